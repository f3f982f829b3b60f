//! Certificates and keys (cases 66 to 68).

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rustls_pki_types::ServerName;

use crate::{
    differences::is_derpd,
    peer::{Peer, Wire, random_secret, to_hex},
    server::{Server, wait_until},
};

#[test]
fn case_66_an_address_gets_a_self_signed_certificate_and_a_hint_to_pin_it() {
    let server = Server::start();
    let line = server.wait_for_log("sha256-raw:");
    let hint = line.get(line.find('{').expect("JSON")..).expect("in bounds");
    let hint: serde_json::Value = serde_json::from_str(hint).expect("the hint is JSON");
    let wire = Wire::connect(&server);
    let [leaf, _meta] = wire.certificates() else { panic!("expected a leaf and the meta one") };
    let digest = rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256
        .tls13()
        .expect("a TLS 1.3 suite")
        .common
        .hash_provider
        .hash(leaf);
    let expected = serde_json::json!({
        "Name": "custom",
        "RegionID": 900,
        "HostName": server.ip().to_string(),
        "CertName": format!("sha256-raw:{}", to_hex(digest.as_ref())),
    });
    assert_eq!(hint, expected);
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).expect("valid DER");
    assert!(certificate.validity().is_valid());
    let mode = |name| {
        let path = server.directory().path().join("certs").join(format!("{}{name}", server.ip()));
        fs::metadata(path).expect("the file was written").permissions().mode() & 0o777
    };
    assert_eq!((mode(".crt"), mode(".key")), (0o644, 0o600));
}

#[test]
fn case_67_a_name_is_served_to_its_exact_sni_only() {
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let certificates = directory.path().join("certs");
    fs::create_dir(&certificates).expect("an empty directory");
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("a pair");
    fs::write(certificates.join("relay.example.crt"), made.cert.pem()).expect("writable");
    fs::write(certificates.join("relay.example.key"), made.signing_key.serialize_pem())
        .expect("writable");
    let server = Server::start_in(directory, &["-hostname=relay.example"]);
    let attempt = |name: ServerName<'static>| Wire::connect_to(server.tls_address(), name, None);
    let name = |text: &'static str| ServerName::try_from(text).expect("a DNS name");
    attempt(name("relay.example")).expect("the right name is served").upgrade();
    assert!(attempt(name("other.example")).is_err());
    assert!(attempt(ServerName::IpAddress(server.ip().into())).is_err(), "no SNI");

    let server = Server::start();
    Wire::connect_to(server.tls_address(), name("other.example"), None)
        .expect("an address is served to any SNI")
        .upgrade();
}

#[test]
fn case_68_the_key_file_is_made_once_and_keeps_the_identity() {
    let server = Server::start();
    let (file, directory) = (server.key_file(), Arc::clone(server.directory()));
    let mode = fs::metadata(&file).expect("the key file was written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let before = (Wire::connect(&server).upgrade(), fs::read(&file).expect("readable"));
    drop(server);
    let server = Server::start_in(directory, &[]);
    let after = (Wire::connect(&server).upgrade(), fs::read(&file).expect("readable"));
    assert!(before == after, "the key changed over a restart");
}

/// Writes a new pair for `relay.example` and returns its certificate.
fn install_pair(directory: &Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(["relay.example".to_owned()]).expect("a pair");
    fs::write(directory.join("relay.example.crt"), made.cert.pem()).expect("writable");
    fs::write(directory.join("relay.example.key"), made.signing_key.serialize_pem())
        .expect("writable");
    made.cert.der().to_vec()
}

#[test]
fn a_new_manual_certificate_is_served_without_a_restart() {
    if !is_derpd() {
        return;
    }
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let certificates = directory.path().join("certs");
    fs::create_dir(&certificates).expect("an empty directory");
    let first = install_pair(&certificates);
    let server = Server::start_in(directory, &["-hostname=relay.example"]);
    let connect = || {
        let name = ServerName::try_from("relay.example").expect("a DNS name");
        Wire::connect_to(server.tls_address(), name, None).expect("the name is served")
    };
    let served = || connect().certificates()[0].to_vec();
    let results = || {
        ["ok", "failed"].map(|result| {
            server.metric(&format!("derpd_certificate_updates_total{{result=\"{result}\"}}"))
        })
    };
    let json = r#"{"version":2,"CanAckPings":true}"#;
    let mut peer = Peer::log_in(connect(), random_secret(), json);
    assert_eq!(served(), first);

    let second = install_pair(&certificates);
    wait_until("the new certificate", || served() == second);
    assert_eq!(results(), [1.0, 0.0]);

    fs::write(certificates.join("relay.example.key"), "junk").expect("writable");
    let line = server.wait_for_log("the certificate in use stays");
    assert!(line.contains("relay.example.key: not a PEM private key"), "{line}");
    assert_eq!(results(), [1.0, 1.0]);
    server.reload();
    server.wait_for_log("reload failed, nothing has changed");
    assert_eq!(served(), second);

    let third = install_pair(&certificates);
    server.reload();
    assert_eq!(served(), third, "SIGHUP does not wait for a second look");
    assert_eq!(results(), [2.0, 1.0]);
    assert_eq!(server.log().matches("the certificate in use stays").count(), 1);
    peer.round_trip();
}
