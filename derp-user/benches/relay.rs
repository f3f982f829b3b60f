//! A client that makes a relay do the same work every time, for `cargo xtask instructions`.
//!
//! `relay BYTES ROUNDS` starts the relay (see `DERPD_TEST_SERVER`) with one worker, and in each round
//! sends [`ROUND`] packets at once and waits until all have come back out of it: so the relay reads,
//! routes and writes them in one quantum, whatever else the machine does.

#[path = "../tests/support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "../tests/support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use peer::{Peer, send_packet};
use server::Server;

/// Packets that a quantum handles together: as many of 1400 bytes as fit.
const ROUND: usize = 20;

fn main() {
    // cargo adds `--bench`.
    let arguments: Vec<_> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [bytes, rounds] = &*arguments else {
        println!("{ROUND}");
        return;
    };
    let packet = vec![0x5a; bytes.parse().expect("a number of bytes")];
    let rounds: usize = rounds.parse().expect("a number of rounds");

    let server = Server::start_with(&["-workers=1", "-stun=false"]);
    let (mut sender, mut receiver) = (Peer::connect(&server), Peer::connect(&server));
    let frames = vec![send_packet(&receiver.key(), &packet); ROUND];
    for _ in 0..rounds {
        sender.wire.write_records(&frames);
        for _ in 0..ROUND {
            assert_eq!(receiver.receive(), (sender.key(), packet.clone()));
        }
    }
    let status = server.terminate();
    assert!(status.success(), "the relay ended with {status}");
}
