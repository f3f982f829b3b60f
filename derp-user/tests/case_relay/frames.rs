//! Frames after the login (cases 23 to 29 and 31).

use std::time::Duration;

use crate::{
    peer::{
        CLIENT_INFO, CLOSE_PEER, FORWARD_PACKET, KEEP_ALIVE, MAX_PACKET, NOTE_PREFERRED, PEER_GONE,
        PING, PONG, Peer, SEND_PACKET, WATCH_CONNS, frame, header, random_bytes, send_packet,
    },
    server::Server,
};

#[test]
fn case_23_an_unknown_frame_is_skipped() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    peer.wire.write(&frame(0x77, b"hello"));
    peer.round_trip();
}

#[test]
fn case_24_pings_of_8_to_1000_bytes_are_answered_with_their_first_8() {
    let server = Server::start();
    for length in [8, 1000] {
        let mut peer = Peer::connect(&server);
        let payload = random_bytes::<1000>();
        peer.wire.write(&frame(PING, &payload[..length]));
        assert_eq!(peer.wire.expect(PONG), payload[..8]);
    }
    for length in [0, 7, 1001] {
        let mut peer = Peer::connect(&server);
        peer.wire.write(&frame(PING, &vec![0; length]));
        peer.wire.expect_closed();
    }
}

#[test]
fn case_25_a_packet_needs_a_destination_but_no_contents() {
    let server = Server::start();
    let mut sender = Peer::connect(&server);
    let mut receiver = Peer::connect(&server);
    sender.send(&receiver.key(), b"");
    assert_eq!(receiver.receive(), (sender.key(), vec![]));
    sender.wire.write(&frame(SEND_PACKET, &[7; 31]));
    sender.wire.expect_closed();
}

#[test]
fn case_26_a_packet_has_at_most_64_kib() {
    let server = Server::start();
    let mut sender = Peer::connect(&server);
    let mut receiver = Peer::connect(&server);
    let packet = random_bytes::<MAX_PACKET>();
    sender.send(&receiver.key(), &packet);
    assert_eq!(receiver.receive(), (sender.key(), packet.to_vec()));
    sender.wire.write(&header(SEND_PACKET, 32 + MAX_PACKET + 1));
    sender.wire.write(receiver.key().as_bytes());
    sender.wire.expect_closed();
    receiver.wire.expect(PEER_GONE);
}

#[test]
fn case_27_note_preferred_is_one_byte_and_any_but_zero_means_home() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let home = "derp_current_home_connections";
    peer.wire.write(&frame(NOTE_PREFERRED, &[7]));
    server.wait_for_metric(home, 1.0);
    peer.wire.write(&frame(NOTE_PREFERRED, &[1]));
    peer.round_trip();
    assert_eq!(server.metric(home), 1.0);
    peer.wire.write(&frame(NOTE_PREFERRED, &[0]));
    server.wait_for_metric(home, 0.0);
    peer.wire.write(&frame(NOTE_PREFERRED, &[1]));
    server.wait_for_metric(home, 1.0);
    drop(peer);
    server.wait_for_metric(home, 0.0);
    for length in [0, 2] {
        let mut peer = Peer::connect(&server);
        peer.wire.write(&frame(NOTE_PREFERRED, &vec![1; length]));
        peer.wire.expect_closed();
    }
}

#[test]
fn case_28_frames_of_the_mesh_close_an_ordinary_client() {
    let server = Server::start();
    let mut bystander = Peer::connect(&server);
    let key = bystander.key();
    let forward = [key.as_bytes(), key.as_bytes(), &b"forged"[..]].concat();
    let forbidden = [
        frame(FORWARD_PACKET, &forward),
        frame(WATCH_CONNS, &[]),
        frame(CLOSE_PEER, key.as_bytes()),
    ];
    for bytes in forbidden {
        let mut peer = Peer::connect(&server);
        peer.wire.write(&bytes);
        peer.wire.expect_closed();
    }
    bystander.round_trip();
    bystander.wire.expect_silence(Duration::from_millis(200));
}

#[test]
fn case_29_frames_only_a_relay_sends_are_ignored() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    for (kind, length) in [(KEEP_ALIVE, 0), (PONG, 8), (CLIENT_INFO, 90), (CLIENT_INFO, 3)] {
        peer.wire.write(&frame(kind, &vec![9; length]));
    }
    peer.round_trip();
}

#[test]
fn case_31_a_packet_to_oneself_comes_back() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let own = peer.key();
    peer.send(&own, b"echo");
    assert_eq!(peer.receive(), (own, b"echo".to_vec()));
}

/// However a stream of frames is cut into TLS records, the frames are the same.
#[test]
fn frames_may_be_cut_anywhere() {
    let server = Server::start();
    let mut sender = Peer::connect(&server);
    let mut receiver = Peer::connect(&server);
    let packets: Vec<Vec<u8>> = (1..20).map(|count| vec![count; usize::from(count) * 7]).collect();
    let stream: Vec<u8> =
        packets.iter().flat_map(|packet| send_packet(&receiver.key(), packet)).collect();
    for piece in stream.chunks(11) {
        sender.wire.write(piece);
    }
    for packet in packets {
        assert_eq!(receiver.receive(), (sender.key(), packet));
    }
}
