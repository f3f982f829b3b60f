//! What a relay does by the clock (cases 16, 30, 41). Bounds are far apart: the machine may be busy.

use std::time::{Duration, Instant};

use crate::{
    differences::kind,
    peer::{Event, KEEP_ALIVE, Peer, Wire, random_bytes, send_packet},
    queues::stalled_peer,
    server::{Kind, Server},
};

#[test]
fn case_16_a_client_that_never_logs_in_is_closed_after_ten_seconds() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.upgrade();
    let start = Instant::now();
    wire.expect_closed();
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(8), "closed after only {waited:?}");
    assert!(waited < Duration::from_secs(25), "closed after as much as {waited:?}");
}

#[test]
fn case_30_keep_alive_comes_after_60_to_65_seconds_and_again_with_the_same_period() {
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let mut start = Instant::now();
    let periods = [(); 2].map(|()| {
        let Event::Frame(frame) = peer.wire.event(Duration::from_secs(90)) else {
            panic!("no keepalive within 90 s");
        };
        assert_eq!((frame.kind, frame.payload), (KEEP_ALIVE, vec![]));
        let period = start.elapsed();
        start = Instant::now();
        period
    });
    let [first, second] = periods.map(|period| period.as_secs_f64());
    assert!((59.0..70.0).contains(&first), "the first period was {first} s");
    assert!((first - second).abs() < 3.0, "the periods were {first} and {second} s");
}

/// derpd leaves at the write deadline of 2 s; derper may take 5 s more (its TLS library tries to say
/// goodbye on the socket that is blocked).
#[test]
fn case_41_a_client_whose_window_stays_closed_is_dropped_at_the_write_deadline() {
    let server = Server::start();
    let stalled = stalled_peer(&server);
    let mut sender = Peer::connect(&server);
    server.wait_for_metric("derp_current_connections", 2.0);
    let (start, packet) = (Instant::now(), random_bytes::<60_000>());
    // More than the socket buffers of both ends take.
    for _ in 0..200 {
        sender.send(&stalled.key(), &packet);
    }
    server.wait_for_metric("derp_current_connections", 1.0);
    let waited = start.elapsed();
    server.wait_for_metric("derp_sclient_write_timeouts", 1.0);
    let latest = match kind() {
        Kind::Derpd => 6,
        Kind::Derper => 25,
    };
    assert!(waited < Duration::from_secs(latest), "dropped after as much as {waited:?}");
    sender.round_trip();
}

/// However busy its socket is for reading.
#[test]
fn a_client_that_never_stops_sending_meets_its_write_deadline() {
    let server = Server::start();
    let mut flooder = stalled_peer(&server);
    let frame = send_packet(&flooder.key(), &random_bytes::<60_000>());
    let start = Instant::now();
    while flooder.wire.try_write(&frame).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(30), "still connected");
    }
    server.wait_for_metric("derp_sclient_write_timeouts", 1.0);
}
