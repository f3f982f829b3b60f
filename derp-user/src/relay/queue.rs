//! What waits for a client whose socket is full: two bounded queues, oldest out first.
//!
//! They are bounded in bytes, too. Packets of tunnels have at most 1500 or so, and for those the number of packets is
//! what counts; a client that reads nothing and is sent the largest ones must not hold 40 times as much memory.

use std::{collections::VecDeque, time::Instant};

use super::packet::{PacketKind, packet_of};

/// Bytes that a queue may hold for each packet that it may.
const BYTES_PER_PLACE: usize = 4 << 10;

/// RecvPacket frames that wait for one client. Disco has a queue of its own, so that bulk traffic
/// never pushes it out. Order is kept within each.
#[derive(Debug)]
pub struct SendQueue {
    depth: usize,
    disco: Queue,
    other: Queue,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Waiting>,
    bytes: usize,
}

impl Queue {
    fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.frame.len();
        self.frames.push_back(waiting);
    }

    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.frames.pop_front()?;
        self.bytes -= waiting.frame.len();
        Some(waiting)
    }
}

/// A frame that waits.
#[derive(Debug, Eq, PartialEq)]
pub struct Waiting {
    /// The frame.
    pub frame: Box<[u8]>,
    /// Since when.
    pub since: Instant,
}

impl SendQueue {
    /// Two empty queues for `depth` frames each, at least one.
    pub fn new(depth: usize) -> Self {
        Self { depth: depth.max(1), disco: Queue::default(), other: Queue::default() }
    }

    /// Appends a copy of a frame, and hands those that it pushes out, if its queue was full, to `lose`.
    pub fn push(&mut self, frame: &[u8], now: Instant, mut lose: impl FnMut(Waiting)) {
        let bytes = self.depth.saturating_mul(BYTES_PER_PLACE).saturating_sub(frame.len());
        let queue = match packet_of(frame).0 {
            PacketKind::Disco => &mut self.disco,
            PacketKind::Other => &mut self.other,
        };
        while queue.frames.len() >= self.depth || queue.bytes > bytes {
            let Some(oldest) = queue.pop() else { break };
            lose(oldest);
        }
        queue.push(Waiting { frame: frame.into(), since: now });
    }

    /// Takes the next frame to send: disco before the rest, which is little and wants to be quick.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.disco.pop().or_else(|| self.other.pop())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::{frame::HEADER_LENGTH, keys::KEY_LENGTH};

    fn frame(number: u8, disco: bool) -> Vec<u8> {
        let mut frame = vec![number; HEADER_LENGTH + KEY_LENGTH + 70];
        if disco {
            frame[HEADER_LENGTH + KEY_LENGTH..][..6]
                .copy_from_slice(&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]);
        }
        frame
    }

    #[test]
    fn the_oldest_of_the_same_kind_goes() {
        let mut queue = SendQueue::new(2);
        let (then, now) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let mut lost = Vec::new();
        queue.push(&frame(1, true), then, |oldest| lost.push(oldest));
        for number in 2..=3 {
            queue.push(&frame(number, false), then, |oldest| lost.push(oldest));
        }
        assert_eq!(lost, []);
        queue.push(&frame(4, false), now, |oldest| lost.push(oldest));
        assert_eq!(lost, [Waiting { frame: frame(2, false).into(), since: then }]);
        let left: Vec<u8> =
            std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.frame[0]).collect();
        assert_eq!(left, [1, 3, 4]);
    }

    /// 32 packets of 64 KiB waited in each queue: 4 MiB for every client that read nothing.
    #[test]
    fn regression_the_largest_packets_fill_a_queue_sooner() {
        let mut queue = SendQueue::new(32);
        let now = Instant::now();
        let mut lost = 0;
        let large = |number| [&[number][..], &[0; 65_000]].concat();
        for number in 0..40 {
            queue.push(&large(number), now, |_| lost += 1);
        }
        assert_eq!(lost, 38);
        assert_eq!(queue.other.bytes, 2 * 65_001);
        queue.push(&vec![0; 200_000], now, |_| lost += 1);
        assert_eq!((lost, queue.other.frames.len()), (40, 1), "one always may wait");
        while queue.pop().is_some() {}
        assert_eq!(queue.other.bytes, 0);
    }
}
