//! The SendPacket frames that a sender sends over and over, made once.

use std::{fmt, str::FromStr};

use crate::proto::{
    client::write,
    frame::{HEADER_LENGTH, MAX_PACKET_LENGTH},
    keys::{KEY_LENGTH, NodePublic},
};

/// How long packets are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Size {
    /// All of this many bytes.
    Fixed(usize),
    /// A fixed blend of 64, 576, 1280, 1400 and 16384 bytes, weighted 4:2:4:8:1.
    Mixed,
}

/// Packet lengths of [`Size::Mixed`], in the order in which they are sent: acknowledgements, small and
/// full-sized tunnel packets, and now and then a very long one.
const BLEND: [usize; 19] = [
    1400, 64, 1280, 1400, 576, 1400, 1280, 64, 1400, 16384, 1400, 64, 1280, 1400, 576, 1400, 1280,
    64, 1400,
];

impl Size {
    fn lengths(&self) -> &[usize] {
        match self {
            Self::Fixed(length) => std::slice::from_ref(length),
            Self::Mixed => &BLEND,
        }
    }

    /// Bytes of a packet, on average.
    pub(super) fn mean(&self) -> f64 {
        let lengths = self.lengths();
        lengths.iter().sum::<usize>() as f64 / lengths.len() as f64
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(length) => write!(formatter, "{length}"),
            Self::Mixed => formatter.write_str("mixed"),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<usize>() {
            _ if text == "mixed" => Ok(Self::Mixed),
            Ok(length) if (1..=MAX_PACKET_LENGTH).contains(&length) => Ok(Self::Fixed(length)),
            Ok(_) | Err(_) => Err(format!("it must be 1 to {MAX_PACKET_LENGTH}, or `mixed`")),
        }
    }
}

/// Where in a frame the time of sending is.
pub(super) const STAMP: std::ops::Range<usize> = STAMP_START..STAMP_START + 8;
const STAMP_START: usize = HEADER_LENGTH + KEY_LENGTH + 8;

/// One round of frames, and which is next.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    round: Vec<Vec<u8>>,
    next: usize,
}

impl Frames {
    /// Frames of this size for `destination`.
    pub(super) fn new(size: Size, destination: &NodePublic) -> Self {
        let frame = |&length: &usize| {
            let mut frame = Vec::with_capacity(HEADER_LENGTH + KEY_LENGTH + length);
            write::send_packet(&mut frame, destination, &vec![0; length])
                .expect("sizes are checked when they are parsed");
            frame
        };
        Self { round: size.lengths().iter().map(frame).collect(), next: 0 }
    }

    /// The next frames, at most `count`, and none after `bytes` are exceeded.
    pub(super) fn take(&mut self, count: u64, bytes: usize) -> impl Iterator<Item = &[u8]> {
        let (round, next) = (&self.round, &mut self.next);
        let mut taken = 0;
        (0..count).map_while(move |_| {
            if taken >= bytes {
                return None;
            }
            let frame = round.get(*next)?;
            *next = (*next + 1) % round.len();
            taken += frame.len();
            Some(frame.as_slice())
        })
    }

    /// Writes the time of sending into the next frame, if it has room for it.
    pub(super) fn stamp(&mut self, nanoseconds: u64) {
        if let Some(stamp) = self.round.get_mut(self.next).and_then(|frame| frame.get_mut(STAMP)) {
            stamp.copy_from_slice(&nanoseconds.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> NodePublic {
        NodePublic::from_bytes([7; KEY_LENGTH])
    }

    #[test]
    fn the_blend_has_the_weights_it_promises() {
        let count = |length| BLEND.iter().filter(|&&one| one == length).count();
        assert_eq!([64, 576, 1280, 1400, 16384].map(count), [4, 2, 4, 8, 1]);
        assert!((Size::Mixed.mean() - 1795.4).abs() < 0.1, "{}", Size::Mixed.mean());
    }

    #[test]
    fn sizes_are_read_and_written() {
        assert_eq!("mixed".parse(), Ok(Size::Mixed));
        assert_eq!("65536".parse(), Ok(Size::Fixed(65536)));
        for text in ["0", "65537", "-1", "Mixed", ""] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!(
            (Size::Mixed.to_string(), Size::Fixed(9).to_string()),
            ("mixed".into(), "9".into())
        );
    }

    #[test]
    fn frames_go_round_and_are_bounded() {
        let mut frames = Frames::new(Size::Mixed, &key());
        let lengths: Vec<_> = frames.take(20, usize::MAX).map(<[u8]>::len).collect();
        let expected: Vec<_> = BLEND.iter().chain(&BLEND[..1]).map(|length| length + 37).collect();
        assert_eq!(lengths, expected);
        assert_eq!(frames.take(9, 0).count(), 0);
        assert_eq!(frames.take(9, 1).count(), 1);
        let lengths: Vec<_> = frames.take(u64::MAX, 64 << 10).map(<[u8]>::len).collect();
        let (last, others) = lengths.split_last().unwrap();
        let before_last: usize = others.iter().sum();
        assert!(before_last < 64 << 10 && before_last + last >= 64 << 10, "{lengths:?}");
    }

    #[test]
    fn stamps_stand_in_the_packet() {
        let mut frames = Frames::new(Size::Fixed(16), &key());
        frames.stamp(0x0102_0304_0506_0708);
        let frame = frames.take(1, 99).next().unwrap();
        assert_eq!(frame[37..], [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        Frames::new(Size::Fixed(15), &key()).stamp(1);
    }
}
