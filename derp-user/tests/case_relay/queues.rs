//! Receivers slower than their senders (cases 40 and 42).

use std::time::Duration;

use socket2::SockRef;

use crate::{
    peer::{DISCO_MAGIC, Event, Peer, RECV_PACKET},
    server::Server,
};

/// Packets one queue of one connection holds.
const QUEUE: u32 = 32;
/// With these, two kinds of packets come to more than any socket buffer takes.
const PACKETS: u32 = 12_000;
const SIZE: usize = 1400;

/// A peer with a small receive buffer, which the caller does not read from for a while.
pub(crate) fn stalled_peer(server: &Server) -> Peer {
    let peer = Peer::connect(server);
    SockRef::from(peer.wire.socket()).set_recv_buffer_size(16 * 1024).expect("a legal size");
    peer
}

/// A relay that does not lose patience with a stalled receiver during the test.
fn start_patient() -> Server {
    Server::start_with(&["-tcp-write-timeout=120s"])
}

fn numbered(number: u32, disco: bool) -> Vec<u8> {
    let mut packet = if disco { DISCO_MAGIC.to_vec() } else { vec![0; DISCO_MAGIC.len()] };
    packet.extend_from_slice(&number.to_be_bytes());
    packet.resize(SIZE, 0);
    packet
}

/// Reads until nothing more comes: the numbers of the ordinary and of the disco packets.
pub(crate) fn read_all(peer: &mut Peer) -> (Vec<u32>, Vec<u32>) {
    let (mut ordinary, mut disco) = (vec![], vec![]);
    while let Event::Frame(frame) = peer.wire.event(Duration::from_secs(2)) {
        if frame.kind != RECV_PACKET {
            continue;
        }
        let (magic, rest) = frame.payload[32..].split_at(DISCO_MAGIC.len());
        let (number, _) = rest.split_first_chunk().expect("every packet has a number");
        let numbers = if magic == DISCO_MAGIC { &mut disco } else { &mut ordinary };
        numbers.push(u32::from_be_bytes(*number));
    }
    (ordinary, disco)
}

/// How many packets without a gap end the list.
fn unbroken_tail(numbers: &[u32]) -> u32 {
    let gaps = numbers.windows(2).rev().take_while(|pair| pair[0] + 1 == pair[1]);
    u32::try_from(gaps.count()).expect("fewer than 2^32 packets") + 1
}

#[test]
fn case_40_the_sender_never_blocks_and_the_newest_packets_survive() {
    let server = start_patient();
    let mut receiver = stalled_peer(&server);
    let mut sender = Peer::connect(&server);
    for number in 0..PACKETS {
        sender.send(&receiver.key(), &numbered(number, false));
    }
    sender.round_trip();
    let (received, _) = read_all(&mut receiver);
    assert!(received.is_sorted_by(|before, after| before < after), "order was not kept");
    assert_eq!(received.last(), Some(&(PACKETS - 1)));
    let dropped = server.metric(r#"derp_packets_dropped{reason="queue_head",kind="other"}"#);
    assert!(dropped > 0.0, "nothing was dropped");
    assert_eq!(received.len() as f64 + dropped, f64::from(PACKETS));
}

#[test]
fn case_42_each_queue_of_a_stalled_receiver_holds_32_packets() {
    let server = start_patient();
    let mut receiver = stalled_peer(&server);
    let mut sender = Peer::connect(&server);
    for number in 0..PACKETS / 2 {
        sender.send(&receiver.key(), &numbered(number, false));
        sender.send(&receiver.key(), &numbered(number, true));
    }
    sender.round_trip();
    let (ordinary, disco) = read_all(&mut receiver);
    for (kind, numbers) in [("ordinary", ordinary), ("disco", disco)] {
        assert_eq!(numbers.last(), Some(&(PACKETS / 2 - 1)), "{kind}");
        let tail = unbroken_tail(&numbers);
        // A few more may have been on their way from the queue to the socket.
        assert!((QUEUE..=QUEUE + 8).contains(&tail), "{kind}: {tail} packets in the end");
    }
}
