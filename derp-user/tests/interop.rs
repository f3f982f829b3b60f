//! Tailscale's own Go clients against a running relay.
//!
//! The Go module in `interop/` holds the tests; each test here starts a relay for one of them.
//! Without Go 1.26 or the modules they are skipped.

use std::{
    process::Command,
    sync::{Arc, OnceLock},
};

#[path = "support/go.rs"]
mod go;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use go::{Built, go_binary};
use server::{Kind, Server, kind, skip, write_file};
use tempfile::TempDir;

// Named to be started first: it waits for a minute.
#[test]
fn a_keep_alive_reaches_the_client() {
    go_test("TestKeepAlive");
}

#[test]
fn region_client_on_both_tls_versions() {
    go_test("TestRegionClient");
}

#[test]
fn url_client_on_both_tls_versions() {
    go_test("TestURLClient");
}

#[test]
fn client_without_fast_start() {
    go_test("TestSlowStart");
}

#[test]
fn pinned_self_signed_certificate() {
    go_test("TestPin");
}

#[test]
fn ping_pong() {
    go_test("TestPingPong");
}

#[test]
fn note_preferred() {
    go_test("TestNotePreferred");
}

#[test]
fn peer_gone() {
    go_test("TestPeerGone");
}

#[test]
fn duplicate_connections() {
    go_test("TestDuplicateConnections");
}

#[test]
fn reconnect() {
    go_test("TestReconnect");
}

#[test]
fn netcheck_over_stun_and_https() {
    go_test("TestNetcheck");
}

#[test]
fn many_pairs_with_packets_of_all_sizes() {
    go_test("TestManyPairs");
}

#[test]
fn burst() {
    go_test("TestBurst");
}

/// derpd is the peer relay: asked by DERP, bound and used by UDP.
#[test]
fn peer_relay() {
    if kind() == Kind::Derper {
        return skip("interop, TestPeerRelay", "derper is no peer relay");
    }
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let keys = directory.path().join("relay.keys").display().to_string();
    let text = format!(
        "[peer_relay]\nport = 40000\nkey_file = {keys:?}\nallow = \"any\"\n\
         addresses = [\"192.0.2.1:40000\"]\n",
    );
    let file = write_file(directory.path(), "derpd.toml", &text);
    let start = || Server::start_in(directory, &[&format!("-config={file}")]);
    go_test_against("TestPeerRelay", start, |_| vec![("RELAY_PEER_KEYS".to_owned(), keys.clone())]);
}

/// derpd's peer relay joins the reference test coordination server over TLS, with an authority of its own.
#[test]
fn peer_relay_in_a_tailnet() {
    if kind() == Kind::Derper {
        return skip("interop, TestTailnet", "derper joins no tailnet");
    }
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let path = |name: &str| directory.path().join(name).display().to_string();
    let authority = Authority::new();
    let (certificate, key) = authority.certificate("127.0.0.1");
    for (name, text) in
        [("authority", authority.pem()), ("control.crt", certificate), ("control.key", key)]
    {
        std::fs::write(path(name), text).expect("writable");
    }
    std::fs::write(path("auth"), "tskey-good\n").expect("writable");
    // Nobody listens there until the Go test does.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let control = free.local_addr().expect("bound");
    drop(free);
    let text = format!(
        "[peer_relay]\nport = 40000\nkey_file = {:?}\ncontrol_url = \"https://{control}\"\n\
         auth_key_file = {:?}\nca_file = {:?}\nhostname = \"relay-under-test\"\n\
         addresses = [\"192.0.2.1:40000\"]\n",
        path("relay.keys"),
        path("auth"),
        path("authority"),
    );
    let file = write_file(directory.path(), "derpd.toml", &text);
    let variables = vec![
        ("RELAY_PEER_KEYS".to_owned(), path("relay.keys")),
        ("RELAY_CONTROL".to_owned(), control.to_string()),
        ("RELAY_CONTROL_CERT".to_owned(), path("control.crt")),
        ("RELAY_CONTROL_KEY".to_owned(), path("control.key")),
    ];
    let start = || Server::start_in(directory, &[&format!("-config={file}")]);
    go_test_against("TestTailnet", start, |_| variables.clone());
}

/// derper takes, and the Go client takes from derper, no message of more than 32 KiB.
#[test]
fn websocket_client_and_a_plain_one() {
    if kind() == Kind::Derper {
        return skip("interop, TestWebSocketClient", "derper does not relay its large packets");
    }
    go_test("TestWebSocketClient");
}

/// `derpd derpmap` writes what Tailscale's and Headscale's own code reads.
#[test]
fn region_client_by_the_maps_that_derpd_prints() {
    go_test_with("TestPrintedMaps", |server| {
        ["tailscale", "headscale", "json"]
            .map(|format| {
                let certificates = server.directory().path().join("certs");
                let output = Command::new(env!("CARGO_BIN_EXE_derpd"))
                    .args(["derpmap", "-certmode=manual", "--region-name=\u{a7} \"test\": #1"])
                    .arg(format!("--format={format}"))
                    .arg(format!("-a={}", server.tls_address()))
                    .arg(format!("-stun-port={}", server.stun_address().port()))
                    .arg(format!("-hostname={}", server.ip()))
                    .arg(format!("-certdir={}", certificates.display()))
                    .output()
                    .expect("derpd runs");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let map = String::from_utf8(output.stdout).expect("text");
                (format!("RELAY_MAP_{}", format.to_uppercase()), map)
            })
            .into()
    });
}

/// A certificate authority that nobody else knows.
struct Authority(rcgen::CertifiedIssuer<'static, rcgen::KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        Self(rcgen::CertifiedIssuer::self_signed(parameters, key).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for a name with its key.
    fn certificate(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new([name.to_owned()]).expect("a name");
        let certificate = parameters.signed_by(&key, &self.0).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }
}

/// Runs one test of the Go module against a relay of its own.
fn go_test(name: &str) {
    go_test_with(name, |_| Vec::new());
}

/// The same, with further variables in its environment.
fn go_test_with(name: &str, variables: impl Fn(&Server) -> Vec<(String, String)>) {
    go_test_against(name, Server::start, variables);
}

/// The same, against the relay that `start` starts.
fn go_test_against(
    name: &str,
    start: impl FnOnce() -> Server,
    variables: impl Fn(&Server) -> Vec<(String, String)>,
) {
    let build = ["test", "-c", "-tags=ts_debug_websockets"];
    let tests = match go_binary(&TESTS, "relay.test", &build, ".") {
        Ok(tests) => tests,
        Err(reason) => return skip(&format!("interop, {name}"), &reason),
    };
    let server = start();
    let output = Command::new(tests)
        .args(["-test.v", "-test.timeout=5m", &format!("-test.run=^{name}$")])
        .env("RELAY_TLS", server.tls_address().to_string())
        .env("RELAY_HTTP", server.http_address().to_string())
        .env("RELAY_STUN", server.stun_address().to_string())
        .env("RELAY_CERTIFICATE", server.certificate_file())
        .env("SSL_CERT_FILE", server.certificate_file())
        .envs(variables(&server))
        .output()
        .expect("the test program was just built");
    let report = String::from_utf8_lossy(&output.stdout);
    println!("{report}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{name} failed");
    assert!(report.contains(&format!("--- PASS: {name} ")), "{name} did not run");
}

static TESTS: Built = OnceLock::new();
