//! Let's Encrypt's test server for ACME, Pebble, with a name server that sends every name to one address.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::{Value, json};

use crate::{
    go::{Built, build},
    server::{PATIENCE, Place, Response, wait_until},
};

const ACME_PORT: u16 = 14_000;
const MANAGEMENT_PORT: u16 = 15_000;
const DNS_PORT: u16 = 18_053;
const DNS_MANAGEMENT_PORT: u16 = 18_055;
/// Nobody listens here.
pub(crate) const DEAD_PORT: u16 = 9;

/// Where Pebble looks for answers to its challenges, and what else is special about it.
pub(crate) struct Habits {
    pub(crate) tls_port: u16,
    pub(crate) http_port: u16,
    /// Seconds for which certificates of each profile are valid.
    pub(crate) profiles: &'static [(&'static str, u64)],
    /// External accounts, which it then asks for.
    pub(crate) accounts: Value,
}

/// A running Pebble; ended when dropped.
pub(crate) struct Pebble {
    address: Ipv4Addr,
    directory: PathBuf,
    processes: Vec<Child>,
}

impl Habits {
    /// Answers are looked for where a relay at `place` gives them.
    pub(crate) fn at(place: &Place) -> Self {
        Self {
            tls_port: place.tls_address().port(),
            http_port: place.http_port(),
            profiles: &[("default", 90 * 24 * 3600), ("shortlived", 6 * 24 * 3600)],
            accounts: json!({}),
        }
    }
}

/// The two programs, or why there are none.
pub(crate) fn programs() -> Result<(PathBuf, PathBuf), String> {
    static PEBBLE: Built = OnceLock::new();
    static DNS: Built = OnceLock::new();
    let program = |built: &Built, name: &str| {
        let package = format!("github.com/letsencrypt/pebble/v2/cmd/{name}");
        built.get_or_init(|| build("pebble", name, &["build"], &package)).clone()
    };
    Ok((program(&PEBBLE, "pebble")?, program(&DNS, "pebble-challtestsrv")?))
}

impl Pebble {
    /// Starts it on `address`, to which every name leads, with its files in `directory`.
    pub(crate) fn start(
        (pebble, dns): &(PathBuf, PathBuf),
        address: Ipv4Addr,
        directory: &Path,
        habits: &Habits,
    ) -> Self {
        let path = |name: &str| directory.join(name);
        make_authority(address, directory);
        let profiles: Value = habits
            .profiles
            .iter()
            .map(|(name, seconds)| {
                let profile = json!({ "description": name, "validityPeriod": seconds });
                ((*name).to_owned(), profile)
            })
            .collect::<serde_json::Map<_, _>>()
            .into();
        let config = json!({ "pebble": {
            "listenAddress": format!("{address}:{ACME_PORT}"),
            "managementListenAddress": format!("{address}:{MANAGEMENT_PORT}"),
            "certificate": path("pebble.crt"),
            "privateKey": path("pebble.key"),
            "httpPort": habits.http_port,
            "tlsPort": habits.tls_port,
            "retryAfter": { "authz": 1, "order": 1 },
            "externalAccountBindingRequired": habits.accounts != json!({}),
            "externalAccountMACKeys": habits.accounts,
            "keyAlgorithm": "ecdsa",
            "profiles": profiles,
        }});
        fs::write(path("pebble.json"), config.to_string()).expect("writable");
        let start = |program: &Path, arguments: &[String], log: &str| {
            let log = File::create(path(log)).expect("writable");
            Command::new(program)
                .args(arguments)
                .env("PEBBLE_VA_NOSLEEP", "1")
                .stdin(Stdio::null())
                .stderr(log.try_clone().expect("a second handle"))
                .stdout(log)
                .spawn()
                .expect("a program that was just built")
        };
        let dns_arguments = [
            format!("-dnsserver={address}:{DNS_PORT}"),
            format!("-management={address}:{DNS_MANAGEMENT_PORT}"),
            format!("-defaultIPv4={address}"),
            "-defaultIPv6=".to_owned(),
            "-http01=".to_owned(),
            "-https01=".to_owned(),
            "-tlsalpn01=".to_owned(),
            "-doh=".to_owned(),
        ];
        let pebble_arguments = [
            format!("-config={}", path("pebble.json").display()),
            format!("-dnsserver={address}:{DNS_PORT}"),
        ];
        let processes = vec![
            start(dns, &dns_arguments, "dns.log"),
            start(pebble, &pebble_arguments, "pebble.log"),
        ];
        let running = Self { address, directory: directory.to_owned(), processes };
        wait_until("Pebble", || {
            [ACME_PORT, MANAGEMENT_PORT, DNS_PORT]
                .iter()
                .all(|port| TcpStream::connect((address, *port)).is_ok())
        });
        running
    }

    /// Address of the directory.
    pub(crate) fn url(&self) -> String {
        format!("https://{}:{ACME_PORT}/dir", self.address)
    }

    /// The authority of Pebble's own certificate.
    pub(crate) fn authority_file(&self) -> PathBuf {
        self.directory.join("authority.crt")
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(self.directory.join("pebble.log")).expect("readable");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The root of the certificates that it issues.
    pub(crate) fn root(&self) -> CertificateDer<'static> {
        let answer = self.manage("GET /roots/0", "");
        CertificateDer::from_pem_slice(answer.body.as_bytes()).expect("a root certificate")
    }

    /// Makes it suggest another time to renew the certificate that begins with `leaf`.
    pub(crate) fn suggest(&self, leaf: &CertificateDer<'_>, start: &str, end: &str) {
        let response = json!({ "suggestedWindow": { "start": start, "end": end } });
        let body = json!({
            "Certificate": pem::encode(&pem::Pem::new("CERTIFICATE", leaf.as_ref())),
            "ARIResponse": response.to_string(),
        });
        let answer = self.manage("POST /set-renewal-info/", &body.to_string());
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    fn manage(&self, request: &str, body: &str) -> Response {
        let pem = fs::read(self.authority_file()).expect("readable");
        let authority = CertificateDer::from_pem_slice(&pem).expect("a certificate");
        let address = SocketAddr::from((self.address, MANAGEMENT_PORT));
        let name = ServerName::IpAddress(self.address.into());
        let mut stream = tls(address, name, &authority).expect("Pebble's own certificate is good");
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: pebble\r\nUser-Agent: test\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).expect("a small request");
        let mut answer = Vec::new();
        // Go may close without a farewell.
        let _ = stream.read_to_end(&mut answer);
        Response::parse(&answer)
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        for process in &mut self.processes {
            process.kill().ok();
            process.wait().ok();
        }
        if thread::panicking() {
            eprintln!("log of Pebble:\n{}", self.log());
        }
    }
}

/// Begins TLS with a server whose certificate `root` must have signed for `name`.
pub(crate) fn tls(
    address: SocketAddr,
    name: ServerName<'static>,
    root: &CertificateDer<'static>,
) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = ClientConnection::new(Arc::new(config), name).expect("a complete configuration");
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(client, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// Makes an authority, and a certificate for Pebble itself.
fn make_authority(address: Ipv4Addr, directory: &Path) {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    let authority = params.self_signed(&key).expect("an authority");
    let issuer = rcgen::Issuer::new(params, key);
    let own = rcgen::KeyPair::generate().expect("a key");
    let names = vec![address.to_string()];
    let params = rcgen::CertificateParams::new(names).expect("an address is a name");
    let certificate = params.signed_by(&own, &issuer).expect("a certificate");
    for (name, text) in [
        ("authority.crt", authority.pem()),
        ("pebble.crt", certificate.pem()),
        ("pebble.key", own.serialize_pem()),
    ] {
        fs::write(directory.join(name), text).expect("writable");
    }
}
