//! Tailscale's Rust client crate against a running relay (case 74 among others).
//!
//! The crate is strict: any frame it does not know ends its connection. It runs as an echo program
//! of its own (`ts_derp_client/`), outside of the workspace, and is skipped where that cannot be
//! built.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use crypto_box::PublicKey;

#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use peer::{MAX_PACKET, PEER_GONE, Peer, RECV_PACKET, parse_hex, random_bytes};
use server::{Server, skip};

/// The largest packet the crate takes: it counts the source key as part of it.
const MAX_CRATE_PACKET: usize = MAX_PACKET - 32;
/// Shorter than the five minutes of the reference, with much more going on.
const LONG: Duration = Duration::from_secs(10);

#[test]
fn packets_of_all_sizes_are_echoed() {
    let server = Server::start();
    let Some(echo) = Echo::start(&server) else { return };
    let mut peer = Peer::connect(&server);
    server.wait_for_metric("derp_current_home_connections", 1.0);
    let contents = random_bytes::<MAX_CRATE_PACKET>();
    for size in [0, 1, 62, 1280, 16_384, 16_385, 65_499, MAX_CRATE_PACKET] {
        peer.send(&echo.key, &contents[..size]);
        assert_eq!(peer.receive(), (echo.key.clone(), contents[..size].to_vec()));
    }
    echo.stop(&mut peer);
}

#[test]
fn case_74_the_client_stays_connected_beside_neighbours_that_come_and_go() {
    let server = Server::start();
    let Some(echo) = Echo::start(&server) else { return };
    let (mut left, mut right) = (Peer::connect(&server), Peer::connect(&server));
    let large = random_bytes::<MAX_PACKET>();
    let end = Instant::now() + LONG;
    let mut visits = 0;
    while Instant::now() < end {
        // The neighbours' packets are larger than the crate could take.
        left.send(&right.key(), &large);
        assert_eq!(right.receive().1, large);
        let mut visitor = Peer::connect(&server);
        visitor.send(&echo.key, b"goodbye");
        assert_eq!(visitor.receive().1, b"goodbye");
        visits += 1;
    }
    // One PeerGone for every visitor went to the client, which is still there.
    server.wait_for_metric("derp_peer_gone_disconnected_frames", f64::from(visits));
    right.send(&echo.key, b"still there?");
    loop {
        let peer::Event::Frame(frame) = right.wire.event(server::PATIENCE) else {
            panic!("no echo");
        };
        match frame.kind {
            RECV_PACKET => break assert_eq!(frame.payload[32..], *b"still there?"),
            kind => assert_eq!(kind, PEER_GONE),
        }
    }
    echo.stop(&mut right);
}

/// The echo program, connected.
struct Echo {
    process: Child,
    key: PublicKey,
    _stdout: BufReader<ChildStdout>,
}

impl Echo {
    fn start(server: &Server) -> Option<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ts_derp_client");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ts_derp_client");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--locked", "--target-dir"])
            .arg(&target)
            .current_dir(directory)
            .output()
            .expect("cargo runs these tests");
        if !built.status.success() {
            let reason = String::from_utf8_lossy(&built.stderr);
            skip("interop with ts_derp", reason.lines().last().unwrap_or("cannot be built"));
            println!("{reason}");
            return None;
        }
        let address = server.tls_address();
        let mut process = Command::new(target.join("debug/ts_derp_client"))
            .args([address.ip().to_string(), address.port().to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was just built");
        let mut stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("stdout is readable");
        let digits = line.trim().strip_prefix("nodekey:").expect("the client printed its key");
        let key = PublicKey::from_slice(&parse_hex(digits)).expect("32 bytes");
        Some(Self { process, key, _stdout: stdout })
    }

    /// Ends the program by a packet, which it has to receive for that.
    fn stop(mut self, peer: &mut Peer) {
        peer.send(&self.key, b"stop");
        let status = self.process.wait().expect("the program is a child of this process");
        assert!(status.success(), "the client ended with {status}");
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
