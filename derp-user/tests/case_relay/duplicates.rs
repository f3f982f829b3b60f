//! Two connections of one key (cases 37 to 39 and 72).

use std::time::Duration;

use crate::{
    differences::kind,
    peer::{Event, Peer, random_secret},
    server::{Kind, Server},
};

const INFO: &str = r#"{"version":2}"#;

/// One key, connected twice, older connection first.
fn twins(server: &Server) -> (Peer, Peer) {
    let secret = random_secret();
    let older = Peer::connect_as(server, secret.clone(), INFO);
    let newer = Peer::connect_as(server, secret, INFO);
    (older, newer)
}

#[test]
fn case_37_a_leaving_duplicate_is_announced_to_nobody() {
    let server = Server::start();
    let (older, mut newer) = twins(&server);
    let mut receiver = Peer::connect(&server);
    newer.send(&receiver.key(), b"hello");
    receiver.receive();
    drop(older);
    server.wait_for_metric("derp_current_connections", 2.0);
    receiver.wire.expect_silence(Duration::from_millis(500));
    drop(newer);
    assert!(matches!(receiver.wire.event(Duration::from_secs(30)), Event::Frame(_)));
}

#[test]
fn case_38_packets_go_to_the_newest_connection_or_the_last_that_spoke() {
    let server = Server::start();
    let (mut older, mut newer) = twins(&server);
    let mut sender = Peer::connect(&server);
    sender.send(&older.key(), b"one");
    assert_eq!(newer.receive(), (sender.key(), b"one".to_vec()));
    older.round_trip();
    sender.send(&older.key(), b"two");
    assert_eq!(older.receive(), (sender.key(), b"two".to_vec()));
    newer.wire.expect_silence(Duration::from_millis(300));
    older.wire.expect_silence(Duration::from_millis(100));
}

#[test]
fn case_39_when_the_newest_leaves_traffic_returns_to_the_one_that_remains() {
    let server = Server::start();
    let (mut older, newer) = twins(&server);
    server.wait_for_metric("derp_current_dup_client_keys", 1.0);
    server.wait_for_metric("derp_current_dup_client_conns", 2.0);
    drop(newer);
    server.wait_for_metric("derp_current_dup_client_keys", 0.0);
    server.wait_for_metric("derp_current_dup_client_conns", 0.0);
    assert_eq!(server.metric("derp_total_dup_client_conns"), 1.0);
    let mut sender = Peer::connect(&server);
    sender.send(&older.key(), b"back");
    assert_eq!(older.receive(), (sender.key(), b"back".to_vec()));
}

/// derper compares connections with keys and reports an inconsistency; derpd stays healthy.
#[test]
fn case_72_duplicates_leave_the_consistency_check_alone() {
    let server = Server::start();
    let _twins = twins(&server);
    server.wait_for_metric("derp_current_connections", 2.0);
    let expected = match kind() {
        Kind::Derpd => 200,
        Kind::Derper => 500,
    };
    assert_eq!(server.get("/debug/check").status, expected);
}
