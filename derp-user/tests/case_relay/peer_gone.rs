//! Who is told that a peer is gone (cases 32 to 36).

use std::time::Duration;

use crate::{
    peer::{Event, PEER_GONE, Peer, disco_packet, random_secret, send_packet},
    server::Server,
};

const DISCONNECTED: u8 = 0;
const NOT_HERE: u8 = 1;
const INFO: &str = r#"{"version":2}"#;

#[test]
fn case_32_an_ordinary_packet_to_nobody_is_dropped_and_counted() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    peer.send(&random_secret().public_key(), b"anybody there?");
    peer.round_trip();
    peer.wire.expect_silence(Duration::from_millis(300));
    let dropped = r#"derp_packets_dropped{reason="unknown_dest",kind="other"}"#;
    server.wait_for_metric(dropped, 1.0);
}

#[test]
fn case_33_a_disco_packet_to_nobody_is_answered_with_not_here() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let nobody = random_secret().public_key();
    peer.send(&nobody, &disco_packet(61));
    peer.round_trip();
    peer.wire.expect_silence(Duration::from_millis(300));
    peer.send(&nobody, &disco_packet(62));
    assert_eq!(peer.wire.expect(PEER_GONE), [nobody.as_bytes(), &[NOT_HERE][..]].concat());
}

#[test]
fn case_34_not_here_is_limited_to_three_at_once_and_one_per_second() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let nobody = random_secret().public_key();
    let burst: Vec<u8> = (0..6).flat_map(|_| send_packet(&nobody, &disco_packet(62))).collect();
    peer.wire.write(&burst);
    for _ in 0..3 {
        peer.wire.expect(PEER_GONE);
    }
    peer.wire.expect_silence(Duration::from_millis(1200));
    peer.send(&nobody, &disco_packet(62));
    peer.wire.expect(PEER_GONE);
}

#[test]
fn case_35_receivers_are_told_of_a_sender_that_left_but_not_senders_of_a_receiver() {
    let server = Server::start();
    let (mut first, mut second) = (Peer::connect(&server), Peer::connect(&server));
    let first_key = first.key();
    first.send(&second.key(), b"hello");
    second.receive();
    drop(first);
    let told = second.wire.expect(PEER_GONE);
    assert_eq!(told, [first_key.as_bytes(), &[DISCONNECTED][..]].concat());

    let mut third = Peer::connect(&server);
    second.send(&third.key(), b"hello");
    third.receive();
    drop(third);
    server.wait_for_metric("derp_current_connections", 1.0);
    second.wire.expect_silence(Duration::from_millis(300));
}

#[test]
fn case_36_a_connection_is_told_once_of_each_peer() {
    let server = Server::start();
    let mut receiver = Peer::connect(&server);
    let secret = random_secret();
    let [first, second] = [(); 2].map(|()| {
        let mut visitor = Peer::connect_as(&server, secret.clone(), INFO);
        visitor.send(&receiver.key(), b"hello");
        receiver.receive();
        drop(visitor);
        server.wait_for_metric("derp_current_connections", 1.0);
        receiver.wire.event(Duration::from_millis(500))
    });
    assert!(matches!(first, Event::Frame(frame) if frame.kind == PEER_GONE));
    assert_eq!(second, Event::Silence);
}
