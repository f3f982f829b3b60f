//! Tailscale's own Go clients and prober against a running relay.
//!
//! The Go module in `interop/` holds the tests; each test here starts a relay for one of them.
//! Without Go 1.26 or the modules they are skipped.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
};

use tempfile::TempDir;

#[path = "support/go.rs"]
mod go;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use go::{Built, go_binary};
use server::{Place, Server, skip};

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

/// The prober checks that certificate and SNI fit a name, so the relay is `localhost` here.
#[test]
fn prober_finds_tls_stun_and_relaying_good() {
    let package = "tailscale.com/cmd/derpprobe";
    let prober = match go_binary(&PROBER, "derpprobe", &["build"], package) {
        Ok(prober) => prober,
        Err(reason) => return skip("interop with the prober", &reason),
    };
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let certificate = write_certificate(directory.path(), "localhost");
    let server =
        Server::start_at(Place::localhost, Arc::clone(&directory), &["-hostname=localhost"]);
    let map = serde_json::json!({"Regions": {"900": {
        "RegionID": 900, "RegionCode": "test", "RegionName": "Relay under test",
        "Nodes": [{
            "Name": "900a", "RegionID": 900, "HostName": "localhost", "IPv4": "127.0.0.1",
            "DERPPort": server.tls_address().port(), "STUNPort": server.stun_address().port(),
        }],
    }}});
    let map = server::write_file(directory.path(), "map.json", &map.to_string());
    let output = Command::new(prober)
        .args(["-once", "-spread=false", "-bw-interval=15s", "-derp-map"])
        .arg(format!("file://{map}"))
        .env("SSL_CERT_FILE", &certificate)
        .output()
        .expect("the prober was just built");
    let report = String::from_utf8_lossy(&output.stderr);
    println!("{report}");
    assert!(output.status.success());
    for class in ["900a/tls", "900a/udp", "900a/900a/mesh", "900a/900a/bw"] {
        let good = report
            .lines()
            .any(|line| line.contains("good: ") && line.contains(&format!("derp/test/{class}")));
        assert!(good, "{class} is not among the good ones");
    }

    // Ours finds the same good, under the same names.
    let output = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["probe", "--bandwidth-size=1000000", "--derp-map", &map, "--ca"])
        .arg(certificate)
        .output()
        .expect("derpd runs");
    let ours = String::from_utf8_lossy(&output.stdout);
    println!("{ours}");
    let names = |report: &str, before: &str| -> BTreeSet<String> {
        let named = report.lines().filter_map(|line| line.split_once(before)?.1.split_once(": "));
        let names = named.map(|(name, _)| name.trim().to_owned());
        names.filter(|name| name.starts_with("derp/") && !name.ends_with("/http")).collect()
    };
    assert_eq!(names(&ours, "OK "), names(&report, "good: "));
}

/// Runs one test of the Go module against a relay of its own.
fn go_test(name: &str) {
    go_test_with(name, |_| Vec::new());
}

/// The same, with further variables in its environment.
fn go_test_with(name: &str, variables: impl Fn(&Server) -> Vec<(String, String)>) {
    let tests = match go_binary(&TESTS, "relay.test", &["test", "-c"], ".") {
        Ok(tests) => tests,
        Err(reason) => return skip(&format!("interop, {name}"), &reason),
    };
    let server = Server::start();
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
static PROBER: Built = OnceLock::new();

/// Puts a certificate for a name where the relay looks for it.
fn write_certificate(directory: &Path, name: &str) -> PathBuf {
    let directory = directory.join("certs");
    fs::create_dir(&directory).expect("an empty directory");
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a pair");
    let certificate = directory.join(format!("{name}.crt"));
    fs::write(&certificate, made.cert.pem()).expect("writable");
    fs::write(directory.join(format!("{name}.key")), made.signing_key.serialize_pem())
        .expect("writable");
    certificate
}
