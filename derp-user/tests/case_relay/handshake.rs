//! From the first byte to the login (cases 1 to 17 without 16, and 20).

use std::sync::Arc;

use rustls_pki_types::ServerName;
use x509_parser::parse_x509_certificate;

use crate::{
    peer::{
        CLIENT_INFO, Event, FAST_START, MAGIC, NOTE_PREFERRED, PEER_PRESENT, Peer, RECV_PACKET,
        SERVER_INFO, SERVER_KEY, UPGRADE, WATCH_CONNS, Wire, client_info, frame, header,
        open_server_info, parse_hex, random_secret, send_packet, to_hex,
    },
    server::{PATIENCE, Server, write_file},
};

const INFO: &str = r#"{"version":2}"#;
const MESH_KEY: &str = "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";

fn start_with_mesh_key() -> Server {
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let file = write_file(directory.path(), "mesh.key", MESH_KEY);
    Server::start_in(directory, &[&format!("-mesh-psk-file={file}")])
}

#[test]
fn case_01_derp_without_upgrade_is_426() {
    let server = Server::start();
    let response = Wire::connect(&server)
        .http("GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    assert_eq!(response.status, 426);
    assert_eq!(response.body, "DERP requires connection upgrade\n");
}

#[test]
fn case_02_an_odd_upgrade_is_426_and_logged_by_name() {
    let server = Server::start();
    let response = Wire::connect(&server).http(
        "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n",
    );
    assert_eq!(response.status, 426);
    server.wait_for_log("\"h2c\"");
}

#[test]
fn case_03_post_without_connection_header_upgrades() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(b"POST /derp HTTP/1.1\r\nHost: relay\r\nUpgrade: DERP\r\n\r\n");
    assert!(wire.response_head().starts_with("HTTP/1.1 101 "));
    wire.expect_server_key();
}

#[test]
fn case_04_the_upgrade_answer_is_four_headers_and_then_the_server_key() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(UPGRADE.as_bytes());
    let head = wire.response_head();
    let Event::Frame(first) = wire.event(PATIENCE) else { panic!("no frame after the answer") };
    assert_eq!((first.kind, first.payload.len()), (SERVER_KEY, 40));
    let key = first.payload.strip_prefix(MAGIC).expect("the magic comes first");
    let expected = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
         Derp-Version: 2\r\nDerp-Public-Key: {}\r\n\r\n",
        to_hex(key)
    );
    assert_eq!(head, expected);
}

#[test]
fn case_05_fast_start_is_answered_without_any_http() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(FAST_START.as_bytes());
    let Event::Frame(first) = wire.event(PATIENCE) else { panic!("no frame") };
    assert_eq!((first.kind, first.payload.len()), (SERVER_KEY, 40));
}

#[test]
fn case_06_fast_start_is_asked_for_by_the_digit_one_only() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(FAST_START.replace("Start: 1", "Start: true").as_bytes());
    assert!(wire.response_head().starts_with("HTTP/1.1 101 "));
    wire.expect_server_key();
}

#[test]
fn case_07_request_login_and_first_frame_may_come_at_once() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    let (secret, key) = (random_secret(), wire.announced_key());
    let burst = [
        FAST_START.as_bytes(),
        &client_info(&secret, &key, INFO),
        &frame(NOTE_PREFERRED, &[1]),
        &send_packet(&secret.public_key(), b"early"),
    ];
    wire.write(&burst.concat());
    assert_eq!(wire.expect_server_key(), key);
    wire.expect(SERVER_INFO);
    assert_eq!(wire.expect(RECV_PACKET)[32..], *b"early");
    server.wait_for_metric("derp_current_home_connections", 1.0);
}

#[test]
fn case_08_the_last_certificate_announces_the_key_and_the_protocol_version() {
    let server = Server::start();
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let name = ServerName::IpAddress(server.ip().into());
        let mut wire = Wire::connect_to(server.tls_address(), name, Some(version))
            .expect("both TLS versions are served");
        let last = wire.certificates().last().expect("a chain").clone();
        let (rest, meta) = parse_x509_certificate(&last).expect("valid DER");
        assert!(rest.is_empty());
        assert_eq!(meta.extensions().len(), 1);
        let constraints = meta.basic_constraints().expect("parsed").expect("present");
        assert!(constraints.critical && !constraints.value.ca);
        assert_eq!(meta.raw_serial(), [2]);
        assert_eq!(meta.subject().to_string(), meta.issuer().to_string());
        let announced = wire.announced_key();
        let name = meta.subject().iter_common_name().next().expect("a name").as_str();
        assert_eq!(name, Ok(format!("derpkey{}", to_hex(announced.as_bytes())).as_str()));
        assert_eq!(wire.upgrade(), announced);
    }
}

#[test]
fn case_09_client_info_has_56_bytes_to_256_kib() {
    let server = Server::start();
    for length in [0, 55, 262_145] {
        let mut wire = Wire::connect(&server);
        wire.upgrade();
        wire.write(&header(CLIENT_INFO, length));
        wire.try_write(&vec![0; length]).ok();
        wire.expect_closed();
    }
    // A large one within the limit, made of white space JSON does not mind.
    let json = format!("{INFO}{}", " ".repeat(200_000));
    Peer::connect_as(&server, random_secret(), &json).round_trip();
}

#[test]
fn case_10_any_other_first_frame_closes() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    let key = wire.upgrade();
    wire.write(&send_packet(&key, b"too early"));
    wire.expect_closed();
}

#[test]
fn case_11_client_info_sealed_to_another_key_closes() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.upgrade();
    wire.write(&client_info(&random_secret(), &random_secret().public_key(), INFO));
    wire.expect_closed();
}

#[test]
fn case_12_an_all_zero_client_key_closes_and_harms_nobody() {
    let server = Server::start();
    let mut bystander = Peer::connect(&server);
    let mut wire = Wire::connect(&server);
    wire.upgrade();
    wire.write(&frame(CLIENT_INFO, &[0; 32 + 24 + 16 + 13]));
    wire.expect_closed();
    bystander.round_trip();
    Peer::connect(&server).round_trip();
}

#[test]
fn case_13_names_in_client_info_match_in_any_case() {
    let server = start_with_mesh_key();
    let json = format!(r#"{{"Version":5,"MESHKEY":"{MESH_KEY}"}}"#);
    let mut peer = Peer::connect_as(&server, random_secret(), &json);
    peer.wire.write(&frame(WATCH_CONNS, &[]));
    let present = peer.wire.expect(PEER_PRESENT);
    assert_eq!(present[..32], *peer.key().as_bytes());
}

#[test]
fn case_14_a_mesh_key_that_is_not_64_digits_closes_but_other_names_do_not_matter() {
    let server = start_with_mesh_key();
    for json in [r#"{"meshKey":"abc"}"#, r#"{"meshKey":""}"#, r#"{"meshKey":null}"#, "[]", "{"] {
        let mut wire = Wire::connect(&server);
        let key = wire.upgrade();
        wire.write(&client_info(&random_secret(), &key, json));
        wire.expect_closed();
    }
    let foreign = r#"{"mesh_key":"none","can_ack_pings":false,"is_prober":false,"version":2}"#;
    Peer::connect_as(&server, random_secret(), foreign).round_trip();
}

#[test]
fn case_15_a_wrong_mesh_key_makes_an_ordinary_client() {
    let server = start_with_mesh_key();
    let json = format!(r#"{{"meshKey":"{}"}}"#, MESH_KEY.replace('1', "2"));
    let mut peer = Peer::connect_as(&server, random_secret(), &json);
    peer.round_trip();
    peer.wire.write(&frame(WATCH_CONNS, &[]));
    peer.wire.expect_closed();
}

#[test]
fn case_17_server_info_is_53_bytes_and_says_version_2() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    let (secret, key) = (random_secret(), wire.upgrade());
    wire.write(&client_info(&secret, &key, INFO));
    let payload = wire.expect(SERVER_INFO);
    assert_eq!(payload.len(), 53);
    assert_eq!(open_server_info(&secret, &key, &payload), r#"{"version":2}"#);
}

#[test]
fn case_20_websocket_without_a_subprotocol_is_raw_derp() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(UPGRADE.replace("Upgrade: DERP", "Upgrade: websocket").as_bytes());
    assert!(wire.response_head().starts_with("HTTP/1.1 101 "));
    let (secret, key) = (random_secret(), wire.expect_server_key());
    wire.write(&client_info(&secret, &key, INFO));
    wire.expect(SERVER_INFO);
}

#[test]
fn the_meta_certificate_names_the_key_of_the_file() {
    let server = Server::start();
    let text = std::fs::read_to_string(server.key_file()).expect("the key file");
    let json: serde_json::Value = serde_json::from_str(&text).expect("the key file is JSON");
    let digits = json["PrivateKey"].as_str().and_then(|key| key.strip_prefix("privkey:"));
    let bytes: [u8; 32] = parse_hex(digits.expect("a private key")).try_into().expect("32 bytes");
    let public = crypto_box::SecretKey::from(bytes).public_key();
    assert_eq!(Wire::connect(&server).announced_key(), public);
}
