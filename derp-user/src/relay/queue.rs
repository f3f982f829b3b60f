//! What waits for a client whose socket is full: two bounded queues, oldest out first.

use std::{collections::VecDeque, time::Instant};

use super::packet::{PacketKind, packet_of};

/// RecvPacket frames that wait for one client. Disco has a queue of its own, so that bulk traffic
/// never pushes it out. Order is kept within each.
#[derive(Debug)]
pub struct SendQueue {
    depth: usize,
    disco: VecDeque<Waiting>,
    other: VecDeque<Waiting>,
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
        Self { depth: depth.max(1), disco: VecDeque::new(), other: VecDeque::new() }
    }

    /// Appends a copy of a frame and returns the frame that it pushed out, if its queue was full.
    pub fn push(&mut self, frame: &[u8], now: Instant) -> Option<Waiting> {
        let queue = match packet_of(frame).0 {
            PacketKind::Disco => &mut self.disco,
            PacketKind::Other => &mut self.other,
        };
        let pushed_out = if queue.len() >= self.depth { queue.pop_front() } else { None };
        queue.push_back(Waiting { frame: frame.into(), since: now });
        pushed_out
    }

    /// Takes the next frame to send: disco before the rest, which is little and wants to be quick.
    pub fn pop(&mut self) -> Option<Waiting> {
        self.disco.pop_front().or_else(|| self.other.pop_front())
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
        assert_eq!(queue.push(&frame(1, true), then), None);
        for number in 2..=3 {
            assert_eq!(queue.push(&frame(number, false), then), None);
        }
        let oldest = Waiting { frame: frame(2, false).into(), since: then };
        assert_eq!(queue.push(&frame(4, false), now), Some(oldest));
        let left: Vec<u8> =
            std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.frame[0]).collect();
        assert_eq!(left, [1, 3, 4]);
    }
}
