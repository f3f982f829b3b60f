//! What a server sends after login, as a client reads it (reference sections 1.2 and 1.3).

use std::{
    net::{Ipv6Addr, SocketAddr},
    ops::Range,
    time::Duration,
};

use crate::proto::{
    frame::{FrameType, HEADER_LENGTH, PING_DATA_LENGTH, parse_header},
    keys::{KEY_LENGTH, NodePublic},
    message::{ClientTraits, GoneReason},
};

/// Most payload bytes of any frame; a server that announces more ends the session.
pub const MAX_FRAME: usize = 1 << 20;

/// A frame is longer than any that a client reads.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a frame of type {type_byte:#04x} with {length} bytes; clients read at most {MAX_FRAME}")]
pub struct FrameTooLong {
    /// The first byte of the frame.
    pub type_byte: u8,
    /// Its announced payload length in bytes.
    pub length: u32,
}

/// One thing that a server says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    /// A packet from another client.
    Packet {
        /// Who sent it.
        source: NodePublic,
        /// Its bytes.
        packet: &'a [u8],
    },
    /// A client that packets went to, or that is watched, is not connected.
    PeerGone {
        /// Who.
        key: NodePublic,
        /// Why; `None` for a reason that this version does not know.
        reason: Option<GoneReason>,
    },
    /// A client is connected. Only those who watch are told.
    PeerPresent {
        /// Who.
        key: NodePublic,
        /// From where, if the server says so.
        address: Option<SocketAddr>,
        /// What kind of client it is, if the server says so.
        traits: Option<ClientTraits>,
    },
    /// The connection is alive.
    KeepAlive,
    /// The server wants these bytes back in a Pong.
    Ping([u8; PING_DATA_LENGTH]),
    /// The answer to a Ping with these bytes.
    Pong([u8; PING_DATA_LENGTH]),
    /// The server's opinion of the connection: a problem in words, or nothing if there is none.
    Health(&'a [u8]),
    /// The server is about to restart.
    Restarting {
        /// When to connect again.
        reconnect_in: Duration,
        /// For how long to try after that.
        try_for: Duration,
    },
}

impl<'a> Message<'a> {
    /// Understands one whole frame, header included, as [`MessageReader`] finds it. `None` if a
    /// client does not act on frames like this.
    pub fn parse(frame: &'a [u8]) -> Option<Self> {
        use FrameType as T;
        let (head, payload) = frame.split_first_chunk::<HEADER_LENGTH>()?;
        Some(match FrameType::from_byte(head[0])? {
            T::RecvPacket => {
                let (source, packet) = key_first(payload)?;
                Self::Packet { source, packet }
            }
            T::PeerGone => {
                let (key, rest) = key_first(payload)?;
                let reason = rest.first().copied().unwrap_or(GoneReason::Disconnected as u8);
                Self::PeerGone { key, reason: GoneReason::from_byte(reason) }
            }
            T::PeerPresent => {
                let (key, rest) = key_first(payload)?;
                let address = rest.first_chunk::<18>().map(address);
                let traits = rest.get(18).copied().map(ClientTraits::from_flags);
                Self::PeerPresent { key, address, traits }
            }
            T::KeepAlive => Self::KeepAlive,
            T::Ping => Self::Ping(*payload.first_chunk()?),
            T::Pong => Self::Pong(*payload.first_chunk()?),
            T::Health => Self::Health(payload),
            T::Restarting => {
                let [a, b, c, d, e, f, g, h] = *payload.first_chunk()?;
                let milliseconds = |bytes| Duration::from_millis(u32::from_be_bytes(bytes).into());
                Self::Restarting {
                    reconnect_in: milliseconds([a, b, c, d]),
                    try_for: milliseconds([e, f, g, h]),
                }
            }
            T::ServerKey
            | T::ClientInfo
            | T::ServerInfo
            | T::SendPacket
            | T::NotePreferred
            | T::ForwardPacket
            | T::WatchConns
            | T::ClosePeer => return None,
        })
    }
}

fn key_first(payload: &[u8]) -> Option<(NodePublic, &[u8])> {
    let (key, rest) = payload.split_first_chunk::<KEY_LENGTH>()?;
    Some((NodePublic::from_bytes(*key), rest))
}

/// Address and port of PeerPresent; IPv4 is written in its IPv6 form.
fn address(bytes: &[u8; 18]) -> SocketAddr {
    let [ip @ .., high, low] = *bytes;
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([high, low]))
}

/// The shortest payload of the frames that a client acts on; `None` for other frames.
fn shortest(type_byte: u8) -> Option<usize> {
    use FrameType as T;
    match T::from_byte(type_byte)? {
        T::RecvPacket | T::PeerGone | T::PeerPresent => Some(KEY_LENGTH),
        T::Ping | T::Pong | T::Restarting => Some(PING_DATA_LENGTH),
        T::KeepAlive | T::Health => Some(0),
        T::ServerKey
        | T::ClientInfo
        | T::ServerInfo
        | T::SendPacket
        | T::NotePreferred
        | T::ForwardPacket
        | T::WatchConns
        | T::ClosePeer => None,
    }
}

/// What [`MessageReader::next`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// A whole frame for [`Message::parse`]; the range includes its header.
    Frame(Range<usize>),
    /// The header of a frame that is unknown or too short. The next search begins here.
    Unwanted(usize),
    /// Nothing more: bytes from here on must be there again, with more behind them.
    Incomplete(usize),
}

/// Finds the frames in the bytes that a server sends after login, however they are cut into reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct MessageReader {
    /// Bytes still to come of a frame that is skipped.
    skip: usize,
}

impl MessageReader {
    /// Finds the next frame in `bytes` at or after `at`. At most a header and [`MAX_FRAME`] bytes
    /// have to be kept while a frame is incomplete.
    ///
    /// # Errors
    ///
    /// A frame that is too long to be read: the session is over.
    pub fn next(&mut self, bytes: &[u8], at: usize) -> Result<Found, FrameTooLong> {
        let skipped = self.skip.min(bytes.len().saturating_sub(at));
        self.skip -= skipped;
        let start = at + skipped;
        let Some((type_byte, length)) = bytes.get(start..).and_then(parse_header) else {
            return Ok(Found::Incomplete(start));
        };
        let payload = match usize::try_from(length) {
            Ok(payload) if payload <= MAX_FRAME => payload,
            Ok(_) | Err(_) => return Err(FrameTooLong { type_byte, length }),
        };
        if shortest(type_byte).is_none_or(|shortest| payload < shortest) {
            self.skip = payload;
            return Ok(Found::Unwanted(start + HEADER_LENGTH));
        }
        let end = start + HEADER_LENGTH + payload;
        Ok(if bytes.len() < end { Found::Incomplete(start) } else { Found::Frame(start..end) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{frame::header, message};

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; KEY_LENGTH])
    }

    fn frame(type_byte: u8, payload: &[u8]) -> Vec<u8> {
        let [_, length @ ..] = header(FrameType::KeepAlive, payload.len() as u32);
        [&[type_byte][..], &length, payload].concat()
    }

    /// Everything that a client understands in a stream that comes in `pieces`.
    fn read(pieces: &mut dyn Iterator<Item = &[u8]>) -> (Vec<Vec<u8>>, Option<FrameTooLong>) {
        let (mut reader, mut kept, mut found) = (MessageReader::default(), Vec::new(), Vec::new());
        for piece in pieces {
            kept.extend_from_slice(piece);
            let mut at = 0;
            loop {
                match reader.next(&kept, at) {
                    Ok(Found::Frame(range)) => {
                        found.push(kept[range.clone()].to_vec());
                        at = range.end;
                    }
                    Ok(Found::Unwanted(resume)) => at = resume,
                    Ok(Found::Incomplete(from)) => {
                        kept.drain(..from);
                        break;
                    }
                    Err(error) => return (found, Some(error)),
                }
            }
            assert!(kept.len() < HEADER_LENGTH + MAX_FRAME);
        }
        (found, None)
    }

    #[test]
    fn what_a_server_writes_is_understood() {
        let traits = ClientTraits { prober: true, ..ClientTraits::default() };
        let mut bytes = Vec::new();
        message::keep_alive(&mut bytes);
        message::pong(&mut bytes, b"12345678");
        message::peer_gone(&mut bytes, &key(1), GoneReason::NotHere);
        message::peer_present(&mut bytes, &key(2), "192.0.2.1:258".parse().unwrap(), traits);
        let (frames, error) = read(&mut std::iter::once(&bytes[..]));
        assert_eq!(error, None);
        let messages: Vec<_> = frames.iter().filter_map(|frame| Message::parse(frame)).collect();
        assert_eq!(
            messages,
            [
                Message::KeepAlive,
                Message::Pong(*b"12345678"),
                Message::PeerGone { key: key(1), reason: Some(GoneReason::NotHere) },
                Message::PeerPresent {
                    key: key(2),
                    address: Some("192.0.2.1:258".parse().unwrap()),
                    traits: Some(traits),
                },
            ]
        );
    }

    #[test]
    fn frames_of_other_servers_are_understood() {
        let packet = frame(5, &[&[7; 32][..], b"hello"].concat());
        assert_eq!(
            Message::parse(&packet),
            Some(Message::Packet { source: key(7), packet: b"hello" })
        );
        let gone = |rest: &[u8]| frame(8, &[&[7; 32], rest].concat());
        for (rest, reason) in [
            (&[][..], Some(GoneReason::Disconnected)),
            (&[0], Some(GoneReason::Disconnected)),
            (&[1, 9], Some(GoneReason::NotHere)),
            (&[0xf0], None),
        ] {
            let gone = gone(rest);
            assert_eq!(Message::parse(&gone), Some(Message::PeerGone { key: key(7), reason }));
        }
        for length in [32, 49, 50] {
            let present = frame(9, &vec![7; length]);
            let Some(Message::PeerPresent { address, traits: None, .. }) = Message::parse(&present)
            else {
                panic!("{length}");
            };
            assert_eq!(address.is_some(), length == 50);
        }
        assert_eq!(Message::parse(&frame(0x14, b"bad")), Some(Message::Health(b"bad")));
        assert_eq!(
            Message::parse(&frame(0x15, &[0, 0, 1, 0, 0, 0, 2, 0, 9])),
            Some(Message::Restarting {
                reconnect_in: Duration::from_millis(256),
                try_for: Duration::from_millis(512)
            })
        );
    }

    #[test]
    fn short_and_unknown_frames_are_skipped_whole() {
        for (type_byte, length) in [
            (5, 31),
            (8, 31),
            (9, 31),
            (0x12, 7),
            (0x13, 7),
            (0x15, 7),
            (1, 40),
            (3, 53),
            (0x77, 9),
        ] {
            let stream = [frame(type_byte, &vec![6; length]), frame(6, &[])].concat();
            let (frames, error) = read(&mut stream.chunks(3));
            assert_eq!((frames, error), (vec![frame(6, &[])], None), "{type_byte}");
        }
    }

    #[test]
    fn over_one_mebibyte_ends_the_session() {
        for type_byte in [5, 6, 0x77] {
            let [_, length @ ..] = header(FrameType::KeepAlive, MAX_FRAME as u32 + 1);
            let head = [&[type_byte][..], &length].concat();
            let error = MessageReader::default().next(&head, 0);
            assert_eq!(error, Err(FrameTooLong { type_byte, length: 1_048_577 }));
        }
        let longest = frame(5, &vec![0; MAX_FRAME]);
        assert_eq!(read(&mut longest.chunks(9999)).0, std::slice::from_ref(&longest));
    }

    proptest! {
        /// Every frame found is understood, they are the same however the stream is cut, and a
        /// reader that has seen any bytes still finds what comes behind them.
        #[test]
        fn cuts_do_not_matter(
            frames in proptest::collection::vec((0..24u8, 0..90usize), 0..20),
            tail in proptest::collection::vec(any::<u8>(), 0..20),
            cuts in proptest::collection::vec(1..50usize, 1..30),
        ) {
            let mut stream = Vec::new();
            for (type_byte, length) in &frames {
                stream.extend(frame(*type_byte, &vec![*type_byte; *length]));
            }
            let wanted = frames
                .iter()
                .filter(|(type_byte, length)| shortest(*type_byte).is_some_and(|least| *length >= least))
                .count();
            stream.extend(tail);
            let mut rest = &stream[..];
            let mut sizes = cuts.iter().cycle();
            let mut pieces = std::iter::from_fn(|| {
                let (piece, others) = rest.split_at(rest.len().min(*sizes.next()?));
                rest = others;
                (!piece.is_empty()).then_some(piece)
            });
            let cut = read(&mut pieces);
            prop_assert!(cut.0.len() >= wanted);
            prop_assert!(cut.0.iter().all(|frame| Message::parse(frame).is_some()));
            prop_assert_eq!(cut, read(&mut std::iter::once(&stream[..])));
        }

        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
            let _ = read(&mut std::iter::once(&bytes[..]));
        }
    }
}
