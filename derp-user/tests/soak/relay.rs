//! The relay under test: its configuration, its certificates.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use derp_user::client::{Connector, Trust};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::ServerName;

use crate::{
    crowd::RELAY,
    flows::{self, WIREGUARD_PORT},
    lab::{Daemon, Lab, PATIENCE, RELAY_A, RELAY_B},
    netns::run_in,
    party::Keys,
    peer::Wire,
    relay_client::RelayNode,
    server::binary,
};

const TLS_PORT: u16 = 443;

/// The daemon, with what its clients need to know.
pub(crate) struct Relay {
    pub(crate) daemon: Daemon,
    pub(crate) node: RelayNode,
    authority: Issuer<'static, KeyPair>,
    authority_file: PathBuf,
    certificates: PathBuf,
    /// How often the certificate was replaced.
    pub(crate) replaced: u64,
}

impl Relay {
    pub(crate) fn start(lab: &Lab, clients: usize, hub: &Keys, spokes: &[Keys]) -> Self {
        let directory = lab.directory();
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority_file = directory.join("authority.pem");
        let authority = parameters.self_signed(&key).expect("a certificate");
        fs::write(&authority_file, authority.pem()).expect("writable");
        let authority = Issuer::new(parameters, key);
        let certificates = directory.join("certs");
        fs::create_dir(&certificates).expect("a new directory");
        write_certificate(&authority, &certificates);

        // Else what waits for a client that does not read would wait in the system, 4 MB for each.
        run_in(&lab.relay, || {
            fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16384 262144").expect("writable");
        });
        let keys = directory.join("relay.keys");
        let configuration = configuration(&keys, hub, spokes);
        let flags = [
            format!("-a=:{TLS_PORT}"),
            "-http-port=8080".to_owned(),
            format!("-hostname={RELAY}"),
            "-certmode=manual".to_owned(),
            format!("-certdir={}", certificates.display()),
            // The clients share this machine, and may all have to wait for it.
            "-tcp-write-timeout=60s".to_owned(),
            "-tcp-user-timeout=60s".to_owned(),
            format!("-connection-limit={}", 2 * clients + 100),
            format!("-xdp-interface={RELAY_A}"),
            format!("-xdp-interface={RELAY_B}"),
            "-xdp-mode=native".to_owned(),
        ];
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let daemon = Daemon::start_build(&binary(), &lab.relay, directory, &configuration, &flags);
        let node = RelayNode::of_file(&keys);
        Self { daemon, node, authority, authority_file, certificates, replaced: 0 }
    }

    /// Where clients connect to.
    pub(crate) fn tls_address() -> SocketAddr {
        SocketAddr::new(RELAY.parse().expect("an address"), TLS_PORT)
    }

    /// How clients connect: they trust the authority that signs each new certificate.
    pub(crate) fn connector(&self) -> Connector {
        let target = format!("https://{RELAY}").parse().expect("a relay");
        Connector::new(target, &Trust::Roots(self.authority_file.clone())).expect("a connector")
    }

    /// Replaces the certificate, has the relay reload, and waits until it shows the new one.
    pub(crate) fn replace_certificate(&mut self, namespace: &str) {
        let written = write_certificate(&self.authority, &self.certificates);
        self.daemon.signal(Signal::SIGHUP);
        let deadline = Instant::now() + PATIENCE;
        while shown(namespace) != written {
            assert!(Instant::now() < deadline, "the old certificate stays\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        self.replaced += 1;
    }
}

/// Writes a new certificate for the relay and its key, and returns the former.
fn write_certificate(authority: &Issuer<'_, KeyPair>, directory: &Path) -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new([RELAY.to_owned()]).expect("a name");
    let certificate = parameters.signed_by(&key, authority).expect("a certificate");
    fs::write(directory.join(format!("{RELAY}.crt")), certificate.pem()).expect("writable");
    fs::write(directory.join(format!("{RELAY}.key")), key.serialize_pem()).expect("writable");
    certificate.der().to_vec()
}

/// The certificate that a new connection is shown; empty if none comes about.
fn shown(namespace: &str) -> Vec<u8> {
    run_in(namespace, || {
        let address = Relay::tls_address();
        let name = ServerName::IpAddress(address.ip().into());
        let wire = Wire::connect_to(address, name, None);
        wire.map_or(Vec::new(), |wire| {
            wire.certificates().first().map_or(Vec::new(), |it| it.to_vec())
        })
    })
}

fn configuration(keys: &Path, hub: &Keys, spokes: &[Keys]) -> String {
    let mut text = flows::configuration();
    let mut say = |line: &str| writeln!(text, "{line}").expect("a string takes everything");
    say("[dataplane]\npin = false");
    say(&format!("[peer_relay]\nkey_file = {:?}\nallow = \"any\"", keys.display().to_string()));
    say(&format!("[wireguard]\nport = {WIREGUARD_PORT}"));
    say("[[wireguard.network]]\nname = \"soak\"\npairs = \"star\"\nhub = \"hub\"");
    let spokes = spokes.iter().enumerate().map(|(number, keys)| (format!("spoke{number}"), keys));
    for (label, keys) in std::iter::once(("hub".to_owned(), hub)).chain(spokes) {
        let key = BASE64_STANDARD.encode(keys.public.as_bytes());
        say("[[wireguard.network.peer]]");
        say(&format!("label = \"{label}\"\npublic_key = \"{key}\""));
    }
    text
}
