//! Counts the packets in a stream of frames, looking at the first bytes of each only.

use crate::{
    proto::{
        client::read::{FrameTooLong, MAX_FRAME},
        frame::{FrameType, HEADER_LENGTH, parse_header},
        keys::KEY_LENGTH,
    },
    tools::bench::frames::STAMP,
};

/// How much of a frame is looked at: up to the time of sending, which is where the sender put it.
const HEAD: usize = STAMP.end;

/// One packet as it passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// Its bytes.
    pub(super) length: usize,
    /// What stands where a sender puts the time; 0 if the packet ends before.
    pub(super) stamp: u64,
}

/// Reads one connection's stream, however it is cut.
#[derive(Clone, Debug)]
pub(super) struct Skimmer {
    /// The first bytes of a frame that came in pieces.
    head: [u8; HEAD],
    have: usize,
    /// Bytes still to come of a frame whose head is there.
    rest: usize,
}

impl Default for Skimmer {
    fn default() -> Self {
        Self { head: [0; HEAD], have: 0, rest: 0 }
    }
}

impl Skimmer {
    /// Takes the next bytes, and tells `seen` of each packet that ends in them.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut seen: impl FnMut(Seen),
    ) -> Result<(), FrameTooLong> {
        loop {
            if self.have == 0 {
                bytes = whole(bytes, &mut seen)?;
            }
            if bytes.is_empty() {
                return Ok(());
            }
            if self.rest == 0 {
                bytes = self.collect(bytes)?;
            }
            let passed = self.rest.min(bytes.len());
            self.rest -= passed;
            bytes = bytes.get(passed..).unwrap_or_default();
            if self.rest == 0 && self.is_head_whole()? {
                packet(&self.head[..self.have], frame_length(&self.head)?).map(&mut seen);
                self.have = 0;
            }
        }
    }

    /// Adds to the head what belongs to it, and knows how much of the frame is still to come once it
    /// is whole.
    fn collect<'a>(&mut self, mut bytes: &'a [u8]) -> Result<&'a [u8], FrameTooLong> {
        while !bytes.is_empty() && !self.is_head_whole()? {
            let wanted = if self.have < HEADER_LENGTH {
                HEADER_LENGTH
            } else {
                frame_length(&self.head)?.min(HEAD)
            };
            let (taken, others) = bytes.split_at(bytes.len().min(wanted - self.have));
            self.head[self.have..self.have + taken.len()].copy_from_slice(taken);
            self.have += taken.len();
            bytes = others;
        }
        if self.is_head_whole()? {
            self.rest = frame_length(&self.head)? - self.have;
        }
        Ok(bytes)
    }

    fn is_head_whole(&self) -> Result<bool, FrameTooLong> {
        Ok(self.have >= HEADER_LENGTH && self.have == frame_length(&self.head)?.min(HEAD))
    }
}

/// Passes over the whole frames at the beginning of `bytes` and returns what is behind them.
fn whole<'a>(mut bytes: &'a [u8], seen: &mut impl FnMut(Seen)) -> Result<&'a [u8], FrameTooLong> {
    while bytes.len() >= HEADER_LENGTH {
        let length = frame_length(bytes)?;
        let Some((frame, rest)) = bytes.split_at_checked(length) else { break };
        packet(frame, length).map(&mut *seen);
        bytes = rest;
    }
    Ok(bytes)
}

/// Length of the frame that begins with these bytes, header included; 0 for less than a header.
fn frame_length(bytes: &[u8]) -> Result<usize, FrameTooLong> {
    let Some((type_byte, length)) = parse_header(bytes) else { return Ok(0) };
    match usize::try_from(length) {
        Ok(payload) if payload <= MAX_FRAME => Ok(HEADER_LENGTH + payload),
        Ok(_) | Err(_) => Err(FrameTooLong { type_byte, length }),
    }
}

/// The packet in a frame of this length that begins with `head`, if it carries one.
fn packet(head: &[u8], frame_length: usize) -> Option<Seen> {
    if *head.first()? != FrameType::RecvPacket as u8 {
        return None;
    }
    let length = frame_length.checked_sub(HEADER_LENGTH + KEY_LENGTH)?;
    let stamp = head.get(STAMP).and_then(|stamp| stamp.first_chunk());
    Some(Seen { length, stamp: stamp.map_or(0, |stamp| u64::from_be_bytes(*stamp)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::frame::header;

    fn frame(frame_type: FrameType, length: usize, stamp: u64) -> Vec<u8> {
        let mut frame = header(frame_type, length as u32).to_vec();
        frame.resize(HEADER_LENGTH + length, 7);
        if let Some(place) = frame.get_mut(STAMP) {
            place.copy_from_slice(&stamp.to_be_bytes());
        }
        frame
    }

    #[test]
    fn packets_are_counted_and_nothing_else() {
        let stream = [
            frame(FrameType::KeepAlive, 0, 0),
            frame(FrameType::RecvPacket, 32 + 100, 5),
            frame(FrameType::PeerGone, 33, 0),
            frame(FrameType::RecvPacket, 31, 0),
            frame(FrameType::RecvPacket, 32, 0),
            frame(FrameType::RecvPacket, 32 + 16, 9),
        ]
        .concat();
        let mut packets = Vec::new();
        Skimmer::default().feed(&stream, |seen| packets.push((seen.length, seen.stamp))).unwrap();
        assert_eq!(packets, [(100, 5), (0, 0), (16, 9)]);
    }

    #[test]
    fn a_frame_that_no_client_reads_is_refused() {
        let head = header(FrameType::RecvPacket, MAX_FRAME as u32 + 1);
        assert!(Skimmer::default().feed(&head, |_| ()).is_err());
        let mut skimmer = Skimmer::default();
        assert!(skimmer.feed(&head[..3], |_| ()).is_ok());
        assert!(skimmer.feed(&head[3..], |_| ()).is_err());
    }

    proptest! {
        #[test]
        fn cuts_do_not_matter(
            frames in proptest::collection::vec((0..24u8, 0..200usize, any::<u64>()), 0..20),
            cuts in proptest::collection::vec(1..70usize, 1..30),
        ) {
            let stream: Vec<u8> = frames
                .iter()
                .filter_map(|&(byte, length, stamp)| Some(frame(FrameType::from_byte(byte)?, length, stamp)))
                .flatten()
                .collect();
            let (mut at_once, mut in_pieces) = (Vec::new(), Vec::new());
            Skimmer::default().feed(&stream, |seen| at_once.push(seen)).unwrap();
            let (mut skimmer, mut rest, mut sizes) = (Skimmer::default(), &stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (piece, others) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
                skimmer.feed(piece, |seen| in_pieces.push(seen)).unwrap();
                rest = others;
            }
            let wanted = frames.iter().filter(|(byte, length, _)| *byte == 5 && *length >= 32).count();
            prop_assert_eq!(at_once.len(), wanted);
            prop_assert_eq!(at_once, in_pieces);
        }

        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut skimmer = Skimmer::default();
            for piece in bytes.chunks(7) {
                if skimmer.feed(piece, |_| ()).is_err() {
                    break;
                }
            }
        }
    }
}
