//! Certificates by ACME, from Let's Encrypt's own test server.
//!
//! Pebble checks names at the relay under test as Let's Encrypt does, refuses one nonce in twenty, reuses half of
//! the authorizations, and chooses a profile by chance where none is asked for. Without Go 1.26 or Pebble's
//! modules the tests are skipped.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tempfile::TempDir;

#[path = "support/go.rs"]
mod go;
#[path = "support/pebble.rs"]
mod pebble;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use pebble::{DEAD_PORT, Habits, Pebble};
use peer::{Peer, Wire, random_secret};
use server::{Place, Server, skip, wait_until};

const NAME: &str = "derp.example.com";
const OK: &str = "derpd_certificate_updates_total{result=\"ok\"}";
const FAILED: &str = "derpd_certificate_updates_total{result=\"failed\"}";

/// A Pebble and the place of the relay that it will look at.
struct Bed {
    place: Place,
    pebble: Pebble,
    directory: Arc<TempDir>,
    /// Where Pebble keeps its files.
    _pebble_files: TempDir,
}

impl Bed {
    fn new(test: &str, habits: impl FnOnce(Habits) -> Habits) -> Option<Self> {
        let programs = match pebble::programs() {
            Ok(programs) => programs,
            Err(reason) => {
                skip(test, &reason);
                return None;
            }
        };
        let place = Place::own_address();
        let files = TempDir::new().expect("a temporary directory");
        let habits = habits(Habits::at(&place));
        let pebble = Pebble::start(&programs, place.address(), files.path(), &habits);
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        Some(Self { place, pebble, directory, _pebble_files: files })
    }

    /// Starts a relay that gets its certificates from this Pebble, or goes on with those it has.
    fn start(&self, flags: &[&str]) -> Server {
        self.start_binary(&server::binary(), flags)
    }

    /// The same, with another program than the one under test.
    fn start_binary(&self, binary: &Path, flags: &[&str]) -> Server {
        let own = [
            "-certmode=letsencrypt".to_owned(),
            format!("-hostname={NAME}"),
            format!("--acme-directory={}", self.pebble.url()),
            format!("--acme-ca-file={}", self.pebble.authority_file().display()),
        ];
        let flags: Vec<_> = own.iter().map(String::as_str).chain(flags.iter().copied()).collect();
        Server::start_binary(binary, || self.place, Arc::clone(&self.directory), &flags)
    }

    fn certificate_directory(&self) -> PathBuf {
        self.directory.path().join("certs")
    }

    /// The chain that a client sees who trusts Pebble's root.
    fn chain(&self, name: &ServerName<'static>) -> Option<Vec<CertificateDer<'static>>> {
        let root = self.pebble.root();
        let stream = pebble::tls(self.place.tls_address(), name.clone(), &root).ok()?;
        Some(stream.conn.peer_certificates()?.to_vec())
    }

    /// Waits until such a client is served, and returns the chain.
    fn wait_for_chain(&self, name: &ServerName<'static>) -> Vec<CertificateDer<'static>> {
        let mut chain = None;
        wait_until("a certificate", || {
            chain = self.chain(name);
            chain.is_some()
        });
        chain.expect("the wait ended with one")
    }

    /// Waits until such a client sees another leaf than this one, and returns it. A valid one is served all the time.
    fn wait_for_other(&self, leaf: &CertificateDer<'static>) -> CertificateDer<'static> {
        let mut next = leaf.clone();
        wait_until("the next certificate", || {
            next = self.chain(&name()).expect("a certificate that is valid")[0].clone();
            next != *leaf
        });
        next
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("a DNS name")
}

/// What a certificate says about the time in which it is valid, in seconds.
fn validity(certificate: &CertificateDer<'_>) -> (i64, i64) {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).expect("valid DER");
    (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it exists").permissions().mode() & 0o777
}

#[test]
fn a_name_is_checked_by_tls_and_the_certificate_outlives_a_restart() {
    let only_tls = |habits| Habits { http_port: DEAD_PORT, ..habits };
    let Some(bed) = Bed::new("tls-alpn-01", only_tls) else { return };
    let server = bed.start(&["--acme-profile=default", "-acme-email=admin@example.com"]);
    let chain = bed.wait_for_chain(&name());
    assert_eq!(chain.len(), 3, "leaf, intermediate and meta certificate");
    assert!(server.log().contains(&format!("certificate of {NAME}: got one")));
    let (_, not_after) = validity(&chain[0]);
    let expiry = format!("derpd_certificate_expiry_timestamp_seconds{{name=\"{NAME}\"}}");
    server.wait_for_metric(&expiry, not_after as f64);
    assert_eq!((server.metric(OK), server.metric(FAILED)), (1.0, 0.0));
    assert_eq!(mode(&bed.certificate_directory()), 0o700);
    let files = fs::read_dir(bed.certificate_directory()).expect("readable");
    let files: Vec<_> = files.map(|entry| entry.expect("readable").path()).collect();
    assert_eq!(files.len(), 2, "the certificate and the account: {files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600));

    // The relay serves DERP to its name, and nothing to others or to the protocol of validation.
    let wire = Wire::connect_to(server.tls_address(), name(), None).expect("it is served");
    Peer::log_in(wire, random_secret(), r#"{"version":2}"#).round_trip();
    let other = ServerName::try_from("other.example.com").expect("a DNS name");
    assert!(Wire::connect_to(server.tls_address(), other, None).is_err());
    let no_name = ServerName::IpAddress(server.ip().into());
    assert!(Wire::connect_to(server.tls_address(), no_name, None).is_err());

    // Nobody is there to ask, and nobody has to.
    let root = bed.pebble.root();
    drop(server);
    drop(bed.pebble);
    let server = Server::start_at(
        || bed.place,
        Arc::clone(&bed.directory),
        &[
            &format!("-hostname={NAME}"),
            "-certmode=letsencrypt",
            &format!("--acme-directory=https://{}:14000/dir", bed.place.address()),
        ],
    );
    let stream = pebble::tls(server.tls_address(), name(), &root).expect("it is served at once");
    assert_eq!(stream.conn.peer_certificates().expect("a chain")[0], chain[0]);
    assert_eq!(server.metric(OK), 0.0);
}

#[test]
fn a_name_is_checked_by_http_where_tls_does_not_lead_here() {
    let only_http = |habits| Habits { tls_port: DEAD_PORT, ..habits };
    let Some(bed) = Bed::new("http-01", only_http) else { return };
    let server = bed.start(&[]);
    bed.wait_for_chain(&name());
    assert_eq!((server.metric(OK), server.metric(FAILED)), (1.0, 0.0));
    let answer = server.get("/.well-known/acme-challenge/unknown");
    assert_eq!((answer.status, answer.body.as_str()), (404, "no such challenge\n"));
}

#[test]
fn a_name_that_does_not_lead_here_is_reported_and_nothing_else_suffers() {
    let elsewhere = |habits| Habits { tls_port: DEAD_PORT, http_port: DEAD_PORT, ..habits };
    let Some(bed) = Bed::new("failed validation", elsewhere) else { return };
    let server = bed.start(&[]);
    let line = server.wait_for_log("could not check the name");
    for part in ["by tls-alpn-01: ", "; by http-01: ", "clients are refused", "next attempt in "] {
        assert!(line.contains(part), "{line}");
    }
    assert_eq!((server.metric(OK), server.metric(FAILED)), (0.0, 1.0));
    assert!(bed.chain(&name()).is_none());
    server.wait_for_log(&format!("there is no certificate for {NAME} yet"));
    assert_eq!(server.get("/generate_204").status, 204);
}

#[test]
fn an_external_account_is_bound_once() {
    const KEY: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let with_accounts = |habits| Habits { accounts: json!({ "kid-1": KEY }), ..habits };
    let Some(bed) = Bed::new("EAB", with_accounts) else { return };
    let server = bed.start(&["-acme-eab-kid=kid-1", "-acme-eab-key=d3Jvbmc"]);
    let line = server.wait_for_log("next attempt in ");
    assert!(line.contains("new account: "), "{line}");
    drop(server);
    let server = bed.start(&["-acme-eab-kid=kid-1", &format!("-acme-eab-key={KEY}")]);
    bed.wait_for_chain(&name());
    assert!(!server.log().contains(KEY));
    drop(server);

    // The account is known from now on.
    fs::remove_file(bed.certificate_directory().join(NAME)).expect("the certificate was kept");
    let _server = bed.start(&[]);
    bed.wait_for_chain(&name());
}

#[test]
fn renewal_leaves_connections_alone() {
    let brief = |habits| Habits { profiles: &[("brief", 18)], ..habits };
    let Some(bed) = Bed::new("renewal", brief) else { return };
    let server = bed.start(&["--acme-profile=brief"]);
    let first = bed.wait_for_chain(&name());
    let wire = Wire::connect_to(server.tls_address(), name(), None).expect("it is served");
    let mut peer = Peer::log_in(wire, random_secret(), r#"{"version":2,"CanAckPings":true}"#);
    let mut leaf = first[0].clone();
    for _ in 0..2 {
        let next = bed.wait_for_other(&leaf);
        assert!(validity(&next).1 > validity(&leaf).1);
        leaf = next;
        peer.round_trip();
    }
    assert!(server.metric(OK) >= 3.0);
    assert_eq!(server.metric(FAILED), 0.0);
}

/// A relay's program that has a file system of one page for its certificates, which nobody else sees.
fn with_small_disk(directory: &TempDir) -> Result<PathBuf, String> {
    let unshare = Command::new("unshare").args(["-m", "true"]).status();
    if !unshare.is_ok_and(|status| status.success()) {
        return Err("no mount namespaces: run as root".to_owned());
    }
    let write = |name: &str, text: String| {
        let path = directory.path().join(name);
        fs::write(&path, text).expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its own file");
        path
    };
    let certificates = directory.path().join("certs");
    fs::create_dir(&certificates).expect("a new directory");
    let inner = write(
        "inner",
        format!(
            "#!/bin/sh\nmount --make-rprivate / && mount -t tmpfs -o size=64k,mode=700 none '{}' || exit 9\nexec '{}' \"$@\"\n",
            certificates.display(),
            server::binary().display()
        ),
    );
    Ok(write("derpd", format!("#!/bin/sh\nexec unshare -m '{}' \"$@\"\n", inner.display())))
}

#[test]
fn a_full_disk_costs_no_certificate_and_is_said_once() {
    let brief = |habits| Habits { profiles: &[("brief", 24)], ..habits };
    let Some(bed) = Bed::new("full disk", brief) else { return };
    let program = match with_small_disk(&bed.directory) {
        Ok(program) => program,
        Err(reason) => return skip("full disk", &reason),
    };
    let server = bed.start_binary(&program, &["-acme-profile=brief"]);
    let first = bed.wait_for_chain(&name());
    // Its file system, as it sees it itself.
    let disk = PathBuf::from(format!("/proc/{}/root", server.id()));
    let file = |name: &str| {
        let directory = bed.certificate_directory();
        disk.join(directory.strip_prefix("/").expect("an absolute path")).join(name)
    };
    wait_until("the first one to be saved", || file(NAME).exists());
    let kept = fs::read(file(NAME)).expect("readable");
    let unsaved = "derpd_certificates_unsaved";
    assert_eq!(server.metric(unsaved), 0.0);

    let filler = file("filler");
    let full = fs::write(&filler, vec![0; 128 << 10]).expect_err("it is too large");
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    server.wait_for_metric(unsaved, 1.0);
    // Two more come, and are served; the file is the old one, and whole.
    let mut leaf = first[0].clone();
    for _ in 0..2 {
        leaf = bed.wait_for_other(&leaf);
    }
    assert!(fs::read(file(NAME)).expect("readable") == kept);
    let lines = |text: &str| server.log().lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("a restart would lose it"), 1, "{}", server.log());
    assert_eq!(server.metric(FAILED), 0.0, "the certificate itself could be had");

    fs::remove_file(&filler).expect("removable");
    server.wait_for_metric(unsaved, 0.0);
    assert!(fs::read(file(NAME)).expect("readable") != kept);
    let directory = file("");
    let names =
        fs::read_dir(&directory).expect("readable").map(|it| it.expect("readable").file_name());
    let names: Vec<_> = names.collect();
    assert_eq!(names.len(), 2, "no half of a file stays: {names:?}");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn the_authority_can_call_a_certificate_back() {
    let Some(bed) = Bed::new("renewal information", |habits| habits) else { return };
    let server = bed.start(&["--acme-profile=default"]);
    let first = bed.wait_for_chain(&name());
    drop(server);
    bed.pebble.suggest(&first[0], "2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z");
    let server = bed.start(&["--acme-profile=default"]);
    wait_until("the replacement", || bed.chain(&name()).is_some_and(|chain| chain[0] != first[0]));
    assert!(bed.pebble.log().contains("is a replacement of"), "the server is told");
    assert_eq!((server.metric(OK), server.metric(FAILED)), (1.0, 0.0));
}

#[test]
fn an_address_gets_a_short_lived_certificate() {
    let Some(bed) = Bed::new("IP certificate", |habits| habits) else { return };
    let address = bed.place.address();
    let hostname = format!("-hostname={address}");
    let server = bed.start(&[&hostname, "-acme-ip-certs"]);
    let name = ServerName::IpAddress(address.into());
    let chain = bed.wait_for_chain(&name);
    let (not_before, not_after) = validity(&chain[0]);
    assert_eq!(not_after - not_before, 6 * 24 * 3600 - 1);
    server.wait_for_log(&format!("derper: acme: got cert for {address} (expires "));
    server.wait_for_log(&format!(
        "{{\"Name\":\"custom\",\"RegionID\":900,\"HostName\":\"{address}\"}}"
    ));
    Peer::connect(&server).round_trip();
}

#[test]
fn an_address_that_clients_come_to_gets_one_beside_the_name() {
    let Some(bed) = Bed::new("IP certificate on demand", |habits| habits) else { return };
    let server = bed.start(&["-acme-ip-certs"]);
    bed.wait_for_chain(&name());
    assert_eq!(server.metric(OK), 1.0, "nobody has come to the address yet");
    bed.wait_for_chain(&ServerName::IpAddress(bed.place.address().into()));
    server.wait_for_metric(OK, 2.0);
    bed.wait_for_chain(&name());
}

#[test]
fn a_server_that_cannot_prove_itself_gets_nothing() {
    let Some(bed) = Bed::new("wrong authority", |habits| habits) else { return };
    let stranger = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a pair");
    let path = bed.directory.path().join("stranger.crt");
    fs::write(&path, stranger.cert.pem()).expect("writable");
    let server = bed.start(&[&format!("--acme-ca-file={}", path.display())]);
    let line = server.wait_for_log("next attempt in ");
    assert!(line.contains("invalid peer certificate"), "{line}");
    assert_eq!((server.metric(OK), server.metric(FAILED)), (0.0, 1.0));
    // Long enough for a relay that goes on too fast to show.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(server.metric(FAILED), 1.0, "the next attempt is a minute away");
}
