//! Bytes nobody should send: the relay closes what is wrong and keeps serving everybody else.

use std::{io::Write, net::TcpStream, time::Duration};

use crate::{
    peer::{Event, Peer, UPGRADE, Wire, client_info, random_bytes, random_secret, send_packet},
    server::{PATIENCE, Server},
};

/// A small generator whose seed is printed, so that a failure can be repeated
/// (`DERPD_TEST_SEED`).
struct Random(u64);

impl Random {
    fn new() -> Self {
        let given = std::env::var("DERPD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from_ne_bytes(random_bytes())) | 1;
        println!("DERPD_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next number below `bound` (xorshift64*).
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).expect("31 bits") % bound
    }

    fn bytes(&mut self, longest: usize) -> Vec<u8> {
        let length = self.below(longest) + 1;
        (0..length).map(|_| self.byte()).collect()
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.below(256)).expect("below 256")
    }

    /// Changes, removes or repeats a piece of `bytes`.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len());
        match self.below(3) {
            0 => bytes[at] = self.byte(),
            1 => bytes.truncate(at + 1),
            _ => bytes.insert(at, self.byte()),
        }
    }
}

/// Waits until the relay closes, if it has a reason to; an incomplete input is closed by us.
fn drain(mut wire: Wire) {
    while matches!(wire.event(Duration::from_millis(20)), Event::Frame(_)) {}
}

#[test]
fn random_bytes_instead_of_tls() {
    let server = Server::start();
    let mut random = Random::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.tls_address()).expect("still listening");
        stream.write_all(&random.bytes(300)).ok();
    }
    Peer::connect(&server).round_trip();
}

#[test]
fn random_request_heads() {
    let server = Server::start();
    let mut random = Random::new();
    for _ in 0..60 {
        let mut wire = Wire::connect(&server);
        wire.try_write(&random.bytes(2000)).ok();
        drain(wire);
        let mut head = UPGRADE.as_bytes().to_vec();
        random.damage(&mut head);
        let mut wire = Wire::connect(&server);
        wire.try_write(&head).ok();
        drain(wire);
    }
    Peer::connect(&server).round_trip();
}

#[test]
fn an_endless_request_head_is_refused() {
    let server = Server::start();
    let mut wire = Wire::connect(&server);
    wire.write(b"GET /derp HTTP/1.1\r\nHost: relay\r\nX-Filler: ");
    let filler = [b'a'; 16 * 1024];
    let refused = (0..1024).any(|_| wire.try_write(&filler).is_err());
    assert!(refused, "16 MiB of one header were taken");
    Peer::connect(&server).round_trip();
}

#[test]
fn random_logins() {
    let server = Server::start();
    let mut random = Random::new();
    for round in 0..60 {
        let mut wire = Wire::connect(&server);
        let key = wire.upgrade();
        let mut login = match round % 3 {
            0 => random.bytes(400),
            _ => client_info(&random_secret(), &key, r#"{"version":2}"#),
        };
        random.damage(&mut login);
        wire.try_write(&login).ok();
        drain(wire);
    }
    Peer::connect(&server).round_trip();
}

#[test]
fn random_json_in_a_login() {
    let server = Server::start();
    let mut random = Random::new();
    for _ in 0..60 {
        let mut wire = Wire::connect(&server);
        let key = wire.upgrade();
        let mut json = br#"{"version":2,"CanAckPings":true,"IsProber":false}"#.to_vec();
        for _ in 0..3 {
            random.damage(&mut json);
        }
        let json = String::from_utf8_lossy(&json);
        wire.write(&client_info(&random_secret(), &key, &json));
        drain(wire);
    }
    Peer::connect(&server).round_trip();
}

#[test]
fn random_frames() {
    let server = Server::start();
    let mut random = Random::new();
    let mut bystander = Peer::connect(&server);
    for round in 0..60 {
        let mut peer = Peer::connect(&server);
        let bytes = if round % 2 == 0 {
            random.bytes(3000)
        } else {
            let mut frames: Vec<u8> =
                (0..5).flat_map(|_| send_packet(&bystander.key(), &random.bytes(200))).collect();
            random.damage(&mut frames);
            frames
        };
        peer.wire.try_write(&bytes).ok();
        drain(peer.wire);
    }
    // Whatever got through as a well-formed frame, the bystander's stream is still in order.
    loop {
        match bystander.wire.event(Duration::from_millis(300)) {
            Event::Frame(_) => {}
            Event::Silence => break,
            Event::Closed => panic!("the bystander was disconnected"),
        }
    }
    bystander.round_trip();
}

/// Half a frame, then goodbye: the connection ends and nothing is delivered.
#[test]
fn a_frame_cut_short_by_the_end_of_the_connection() {
    let server = Server::start();
    let mut receiver = Peer::connect(&server);
    let mut sender = Peer::connect(&server);
    let whole = send_packet(&receiver.key(), &[1; 500]);
    for cut in [3, 20, 100] {
        let mut peer = Peer::connect(&server);
        peer.wire.write(&whole[..cut]);
    }
    server.wait_for_metric("derp_current_connections", 2.0);
    sender.wire.write(&whole);
    assert_eq!(receiver.receive(), (sender.key(), vec![1; 500]));
    assert_eq!(receiver.wire.event(Duration::from_millis(300)), Event::Silence);
    drop(sender);
    assert!(matches!(receiver.wire.event(PATIENCE), Event::Frame(_)));
}
