//! Byte rate limits of clients (cases 57 and 58).

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    differences::{is_derpd, kind},
    peer::{
        Event, PONG, Peer, RECV_PACKET, SERVER_INFO, Wire, client_info, frame, open_server_info,
        random_secret, send_packet,
    },
    server::{Kind, PATIENCE, Server, write_file},
};

const INFO: &str = r#"{"version":2}"#;
const MESH_KEY: &str = "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";
const MAX_FRAME: usize = 32 + 65536;

fn start(json: &str, more: &[&str]) -> Server {
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let file = write_file(directory.path(), "rates.json", json);
    let flag = format!("-rate-config={file}");
    let flags: Vec<&str> = std::iter::once(flag.as_str()).chain(more.iter().copied()).collect();
    Server::start_in(directory, &flags)
}

#[test]
fn case_57_beyond_the_burst_the_reader_waits_and_nothing_is_lost() {
    let server = start("{\"PerClientRateLimitBytesPerSec\":10000}", &[]);
    let mut peer = Peer::connect(&server);
    let key = peer.key();
    // The whole burst at once, then two seconds' worth, then a Ping behind it.
    let mut bytes = send_packet(&key, &vec![7; 65536]);
    for number in 0..20_u8 {
        bytes.extend(send_packet(&key, &[&[number][..], &[0; 967]].concat()));
    }
    bytes.extend(frame(crate::peer::PING, b"12345678"));
    let begun = Instant::now();
    peer.wire.write(&bytes);
    assert_eq!(peer.receive().1.len(), 65536);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    // Pongs wait like everything else, and may then come with the last packets.
    let (mut numbers, mut pong) = (Vec::new(), None);
    while numbers.len() < 20 || pong.is_none() {
        match peer.wire.event(PATIENCE) {
            Event::Frame(frame) if frame.kind == RECV_PACKET => numbers.push(frame.payload[32]),
            Event::Frame(frame) if frame.kind == PONG => pong = Some(begun.elapsed()),
            other @ (Event::Frame(_) | Event::Closed | Event::Silence) => {
                panic!("{other:?} after {numbers:?}")
            }
        }
    }
    assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "in order, none lost");
    let waited = begun.elapsed().min(pong.expect("seen"));
    assert!(waited > Duration::from_millis(1900), "{waited:?}");
    assert_eq!(server.metric("derp_rate_limit_per_client_bytes_per_second"), 10_000.0);
    assert_eq!(server.metric("derp_rate_limit_per_client_burst_bytes"), MAX_FRAME as f64);
    assert!(server.metric("derp_rate_limit_per_client_waited") >= 20.0);
}

#[test]
fn frames_of_every_type_are_charged_and_each_client_by_itself() {
    let server = start("{\"PerClientRateLimitBytesPerSec\":1000}", &[]);
    let (mut busy, mut other) = (Peer::connect(&server), Peer::connect(&server));
    // An unknown frame takes the burst, half a second's worth of another the rest.
    let bytes = [frame(0x77, &vec![0; MAX_FRAME]), frame(0x77, &[0; 500])].concat();
    let begun = Instant::now();
    busy.wire.write(&bytes);
    busy.wire.write(&frame(crate::peer::PING, b"12345678"));
    other.round_trip();
    assert!(begun.elapsed() < Duration::from_millis(400));
    busy.wire.expect(PONG);
    assert!(begun.elapsed() > Duration::from_millis(450), "{:?}", begun.elapsed());
}

#[test]
fn mesh_peers_are_not_limited() {
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let mesh_file = write_file(directory.path(), "mesh.key", MESH_KEY);
    let rate_file = write_file(directory.path(), "r", "{\"PerClientRateLimitBytesPerSec\":1}");
    let flags = [format!("-mesh-psk-file={mesh_file}"), format!("-rate-config={rate_file}")];
    let server = Server::start_in(Arc::clone(&directory), &flags.each_ref().map(String::as_str));
    let json = format!(r#"{{"meshKey":"{MESH_KEY}"}}"#);
    let mut peer = Peer::connect_as(&server, random_secret(), &json);
    let key = peer.key();
    for _ in 0..4 {
        peer.send(&key, &vec![1; 65536]);
        peer.receive();
    }
    peer.round_trip();
}

#[test]
fn case_58_sighup_changes_the_limit_of_those_who_wait_too() {
    let server = start("{\"PerClientRateLimitBytesPerSec\":1}", &[]);
    let mut peer = Peer::connect(&server);
    let key = peer.key();
    for number in 0..3 {
        peer.send(&key, &vec![number; 65536]);
    }
    peer.receive();
    peer.wire.expect_silence(Duration::from_secs(1));

    let rates = server.directory().path().join("rates.json");
    fs::write(&rates, "{\"PerClientRateLimitBytesPerSec\":").expect("writable");
    let has_reload = kind() == Kind::Derpd;
    if has_reload {
        server.reload();
        server.wait_for_log("nothing has changed");
        assert_eq!(server.metric("derp_rate_limit_per_client_bytes_per_second"), 1.0);
    }
    peer.wire.expect_silence(Duration::from_millis(1500));

    fs::write(&rates, "{}").expect("writable");
    if has_reload {
        server.reload();
        for number in 1..3 {
            assert_eq!(peer.receive().1[0], number);
        }
        peer.round_trip();
    }
}

#[test]
fn case_58_sighup_without_anything_to_reload_harms_nobody() {
    if !is_derpd() {
        return;
    }
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    server.reload();
    server.wait_for_log(": unchanged");
    peer.round_trip();
}

#[test]
fn a_client_that_waits_still_gets_packets_and_may_leave() {
    let server = start("{\"PerClientRateLimitBytesPerSec\":1}", &[]);
    let (mut waiting, mut other) = (Peer::connect(&server), Peer::connect(&server));
    let (key, other_key) = (waiting.key(), other.key());
    waiting.send(&other_key, &vec![1; 65536]);
    other.receive();
    waiting.send(&other_key, b"late");
    other.wire.expect_silence(Duration::from_millis(300));
    other.send(&key, b"hello");
    assert_eq!(waiting.receive().1, b"hello");
}

#[test]
fn the_limit_is_announced_only_if_asked_for() {
    if !is_derpd() {
        return;
    }
    let json = "{\"PerClientRateLimitBytesPerSec\":1000,\"AnnounceToClients\":true}";
    let server = start(json, &[]);
    let mut wire = Wire::connect(&server);
    let (secret, key) = (random_secret(), wire.upgrade());
    wire.write(&client_info(&secret, &key, INFO));
    let payload = wire.expect(SERVER_INFO);
    let expected =
        r#"{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":65568}"#;
    assert_eq!(open_server_info(&secret, &key, &payload), expected);
}
