//! Frame types, their legal lengths, and the rules by which a server reads them
//! (reference sections 1.1 to 1.3).

use std::ops::Range;

use super::keys::{KEY_LENGTH, NodePublic};

/// Bytes before every payload: type and length.
pub const HEADER_LENGTH: usize = 5;
/// Most payload bytes of one relayed packet.
pub const MAX_PACKET_LENGTH: usize = 64 << 10;
/// Most payload bytes of any frame that a server buffers after login.
pub const MAX_FRAME_LENGTH: usize = 2 * KEY_LENGTH + MAX_PACKET_LENGTH;
/// Legal lengths of a Ping payload as a server reads it.
const PING_LENGTHS: std::ops::RangeInclusive<usize> = PING_DATA_LENGTH..=1000;
/// Bytes of a Ping that its Pong repeats.
pub const PING_DATA_LENGTH: usize = 8;

/// What a frame is; the discriminant is its byte on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum FrameType {
    /// Server to client: magic and the server's public key; the first frame of every session.
    ServerKey = 0x01,
    /// Client to server: the client's public key and its sealed description.
    ClientInfo = 0x02,
    /// Server to client: sealed settings; the second frame of every session.
    ServerInfo = 0x03,
    /// Client to server: destination key and packet.
    SendPacket = 0x04,
    /// Server to client: source key and packet.
    RecvPacket = 0x05,
    /// Server to client: nothing; keeps NAT state and read deadlines alive.
    KeepAlive = 0x06,
    /// Client to server: whether this server is the client's home.
    NotePreferred = 0x07,
    /// Server to client: a key and why it is not reachable here.
    PeerGone = 0x08,
    /// Server to watcher: a key, its address and flags.
    PeerPresent = 0x09,
    /// Mesh peer to server: source key, destination key and packet.
    ForwardPacket = 0x0a,
    /// Mesh peer to server: tell me who comes and goes.
    WatchConns = 0x10,
    /// Mesh peer to server: disconnect this key.
    ClosePeer = 0x11,
    /// Either way: eight bytes to be returned.
    Ping = 0x12,
    /// Either way: the eight bytes of a Ping.
    Pong = 0x13,
    /// Server to client: a problem in words, or empty when it is over.
    Health = 0x14,
    /// Server to client: the server restarts.
    Restarting = 0x15,
}

impl FrameType {
    /// The type whose wire byte is `byte`, if the protocol defines one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::ServerKey,
            0x02 => Self::ClientInfo,
            0x03 => Self::ServerInfo,
            0x04 => Self::SendPacket,
            0x05 => Self::RecvPacket,
            0x06 => Self::KeepAlive,
            0x07 => Self::NotePreferred,
            0x08 => Self::PeerGone,
            0x09 => Self::PeerPresent,
            0x0a => Self::ForwardPacket,
            0x10 => Self::WatchConns,
            0x11 => Self::ClosePeer,
            0x12 => Self::Ping,
            0x13 => Self::Pong,
            0x14 => Self::Health,
            0x15 => Self::Restarting,
            _ => return None,
        })
    }
}

/// Writes the five header bytes of a frame.
pub fn header(frame_type: FrameType, length: u32) -> [u8; HEADER_LENGTH] {
    let [a, b, c, d] = length.to_be_bytes();
    [frame_type as u8, a, b, c, d]
}

/// Splits header bytes into the type byte and the payload length, if there are enough of them.
pub fn parse_header(bytes: &[u8]) -> Option<(u8, u32)> {
    let [frame_type, a, b, c, d] = *bytes.first_chunk::<HEADER_LENGTH>()?;
    Some((frame_type, u32::from_be_bytes([a, b, c, d])))
}

/// The whole frames, header included, that lie one behind the other in some bytes.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

impl<'a> Frames<'a> {
    /// The frames at the beginning of `bytes`; an incomplete one ends them.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (_, length) = parse_header(self.rest)?;
        let end = HEADER_LENGTH.checked_add(usize::try_from(length).ok()?)?;
        let (frame, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        Some(frame)
    }
}

/// What a logged-in client did that ends its session.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// The payload length is not one that this frame type can have.
    #[error("{frame_type:?} frame with a payload of {length} bytes")]
    Length {
        /// The type of the frame.
        frame_type: FrameType,
        /// Its announced payload length in bytes.
        length: u32,
    },
    /// The frame is for mesh peers, and the client did not prove the mesh key.
    #[error("{0:?} frame from a client without the mesh key")]
    NotTrusted(FrameType),
}

/// How a server goes on after a frame header from a logged-in client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reading {
    /// Wait for the whole payload of this many bytes, then handle it.
    Whole(Expected, usize),
    /// Read and drop this many bytes: nothing that this server acts on.
    Skip(u32),
}

/// The frames that a server acts on after login.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// [`FrameType::SendPacket`]
    SendPacket,
    /// [`FrameType::ForwardPacket`]
    ForwardPacket,
    /// [`FrameType::NotePreferred`]
    NotePreferred,
    /// [`FrameType::WatchConns`]
    WatchConns,
    /// [`FrameType::ClosePeer`]
    ClosePeer,
    /// [`FrameType::Ping`]
    Ping,
}

/// Judges a header from a client that has logged in, `trusted` if with the mesh key.
fn judge(type_byte: u8, length: u32, trusted: bool) -> Result<Reading, Violation> {
    use FrameType as T;
    let Some(frame_type) = T::from_byte(type_byte) else { return Ok(Reading::Skip(length)) };
    let (expected, shortest, longest) = match frame_type {
        T::SendPacket => (Expected::SendPacket, KEY_LENGTH, KEY_LENGTH + MAX_PACKET_LENGTH),
        T::ForwardPacket => (Expected::ForwardPacket, 2 * KEY_LENGTH, MAX_FRAME_LENGTH),
        T::NotePreferred => (Expected::NotePreferred, 1, 1),
        T::WatchConns => (Expected::WatchConns, 0, 0),
        T::ClosePeer => (Expected::ClosePeer, KEY_LENGTH, KEY_LENGTH),
        T::Ping => (Expected::Ping, *PING_LENGTHS.start(), *PING_LENGTHS.end()),
        T::ServerKey
        | T::ClientInfo
        | T::ServerInfo
        | T::RecvPacket
        | T::KeepAlive
        | T::PeerGone
        | T::PeerPresent
        | T::Pong
        | T::Health
        | T::Restarting => return Ok(Reading::Skip(length)),
    };
    let for_mesh_peers =
        matches!(expected, Expected::ForwardPacket | Expected::WatchConns | Expected::ClosePeer);
    if for_mesh_peers && !trusted {
        return Err(Violation::NotTrusted(frame_type));
    }
    match usize::try_from(length) {
        Ok(whole) if (shortest..=longest).contains(&whole) => Ok(Reading::Whole(expected, whole)),
        Ok(_) | Err(_) => Err(Violation::Length { frame_type, length }),
    }
}

/// Finds the frames in the bytes that a logged-in client sends, however they are cut into reads.
#[derive(Clone, Copy, Debug)]
pub struct FrameReader {
    trusted: bool,
    /// Bytes still to come of a frame that nobody wants.
    skip: u32,
}

/// What [`FrameReader::next`] found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Found {
    /// A whole frame; the range includes its header.
    Frame(Expected, Range<usize>),
    /// The header of a frame that the server does not act on. The next search begins here.
    Unwanted(usize),
    /// Nothing more: bytes from here on must be there again, with more behind them.
    Incomplete(usize),
}

impl FrameReader {
    /// A reader at the beginning of a frame; `trusted` if the client proved the mesh key.
    pub fn new(trusted: bool) -> Self {
        Self { trusted, skip: 0 }
    }

    /// Finds the next frame in `bytes` at or after `at`.
    ///
    /// # Errors
    ///
    /// The [`Violation`] that must close the connection.
    pub fn next(&mut self, bytes: &[u8], at: usize) -> Result<Found, Violation> {
        let available = u32::try_from(bytes.len().saturating_sub(at)).unwrap_or(u32::MAX);
        let skipped = self.skip.min(available);
        self.skip -= skipped;
        let start = at + skipped as usize;
        let Some((type_byte, length)) = bytes.get(start..).and_then(parse_header) else {
            return Ok(Found::Incomplete(start));
        };
        Ok(match judge(type_byte, length, self.trusted)? {
            Reading::Skip(length) => {
                self.skip = length;
                Found::Unwanted(start + HEADER_LENGTH)
            }
            Reading::Whole(expected, length) => {
                let end = start + HEADER_LENGTH + length;
                if bytes.len() < end {
                    Found::Incomplete(start)
                } else {
                    Found::Frame(expected, start..end)
                }
            }
        })
    }
}

/// Turns the SendPacket frame in `frame` (header included) into the RecvPacket frame that its
/// destination gets from `source`, in place, and returns the destination.
///
/// Both frames have the same length, so a run of packets for one destination needs no copy.
/// `None` if the bytes are too few for a SendPacket frame.
pub fn send_to_recv(frame: &mut [u8], source: &NodePublic) -> Option<NodePublic> {
    let (head, _packet) = frame.split_first_chunk_mut::<{ HEADER_LENGTH + KEY_LENGTH }>()?;
    let key = head.last_chunk_mut::<KEY_LENGTH>()?;
    let destination = NodePublic::from_bytes(*key);
    *key = *source.as_bytes();
    head[0] = FrameType::RecvPacket as u8;
    Some(destination)
}

/// What [`forward_to_recv`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Forwarded {
    /// Who sent the packet to the mesh peer.
    pub source: NodePublic,
    /// Whom it is for.
    pub destination: NodePublic,
    /// Where in the old frame the new one begins.
    pub start: usize,
}

/// Turns the ForwardPacket frame in `frame` (header included) into a RecvPacket frame, in place:
/// the new frame is shorter by a key and ends where the old one ended.
///
/// `None` if the bytes are too few for a ForwardPacket frame.
pub fn forward_to_recv(frame: &mut [u8]) -> Option<Forwarded> {
    const START: usize = KEY_LENGTH;
    let new_length = u32::try_from(frame.len().checked_sub(HEADER_LENGTH + KEY_LENGTH)?).ok()?;
    let (head, _packet) = frame.split_first_chunk_mut::<{ HEADER_LENGTH + 2 * KEY_LENGTH }>()?;
    let source = NodePublic::from_bytes(*head[HEADER_LENGTH..].first_chunk()?);
    let destination = NodePublic::from_bytes(*head.last_chunk()?);
    head[START..START + HEADER_LENGTH].copy_from_slice(&header(FrameType::RecvPacket, new_length));
    head[START + HEADER_LENGTH..].copy_from_slice(source.as_bytes());
    Some(Forwarded { source, destination, start: START })
}

/// Appends to `bytes` the ForwardPacket frame for `destination` that carries the source and the packet
/// of the RecvPacket frame in `frame` (header included). Nothing if the bytes are too few for one.
pub fn recv_to_forward(bytes: &mut Vec<u8>, frame: &[u8], destination: &NodePublic) {
    let Some((source, packet)) =
        frame.get(HEADER_LENGTH..).and_then(<[u8]>::split_first_chunk::<KEY_LENGTH>)
    else {
        return;
    };
    let Ok(length) = u32::try_from(2 * KEY_LENGTH + packet.len()) else { return };
    bytes.extend_from_slice(&header(FrameType::ForwardPacket, length));
    bytes.extend_from_slice(source);
    bytes.extend_from_slice(destination.as_bytes());
    bytes.extend_from_slice(packet);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; KEY_LENGTH])
    }

    fn frame(frame_type: FrameType, payload: &[&[u8]]) -> Vec<u8> {
        let payload = payload.concat();
        [&header(frame_type, payload.len() as u32)[..], &payload].concat()
    }

    #[test]
    fn every_type_byte_round_trips() {
        let known: Vec<u8> =
            (0..=255).filter(|&byte| FrameType::from_byte(byte).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21]);
        for byte in known {
            assert_eq!(FrameType::from_byte(byte).unwrap() as u8, byte);
        }
    }

    #[test]
    fn frames_are_told_apart() {
        let (ping, keep_alive) =
            (frame(FrameType::Ping, &[b"12345678"]), frame(FrameType::KeepAlive, &[]));
        let bytes = [&ping[..], &keep_alive, &ping[..12]].concat();
        assert_eq!(Frames::of(&bytes).collect::<Vec<_>>(), [&ping[..], &keep_alive]);
        assert_eq!(Frames::of(&[4, 0xff, 0xff, 0xff, 0xff]).next(), None);
    }

    #[test]
    fn lengths_are_held_to_the_byte() {
        let whole = |type_byte, length| matches!(judge(type_byte, length, true), Ok(Reading::Whole(_, n)) if n as u32 == length);
        for (type_byte, shortest, longest) in
            [(4, 32, 65568), (10, 64, 65600), (7, 1, 1), (16, 0, 0), (17, 32, 32), (18, 8, 1000)]
        {
            assert!(whole(type_byte, shortest) && whole(type_byte, longest));
            assert!(!whole(type_byte, longest + 1));
            assert!(judge(type_byte, longest + 1, true).is_err());
            if shortest > 0 {
                assert!(judge(type_byte, shortest - 1, true).is_err());
            }
            assert!(judge(type_byte, u32::MAX, true).is_err());
        }
    }

    #[test]
    fn mesh_frames_need_the_mesh_key() {
        for (type_byte, length) in [(10, 64), (16, 0), (17, 32)] {
            assert!(matches!(judge(type_byte, length, false), Err(Violation::NotTrusted(_))));
        }
    }

    #[test]
    fn frames_a_server_does_not_act_on_are_skipped_whole() {
        for type_byte in [1, 2, 3, 5, 6, 8, 9, 0x13, 0x14, 0x15, 0x77, 0xff, 0] {
            assert_eq!(judge(type_byte, u32::MAX, false), Ok(Reading::Skip(u32::MAX)));
        }
    }

    #[test]
    fn a_sent_packet_becomes_a_received_one_of_the_same_length() {
        let mut bytes = frame(FrameType::SendPacket, &[&[0xdd; 32], b"hello"]);
        assert_eq!(send_to_recv(&mut bytes, &key(0x55)), Some(key(0xdd)));
        assert_eq!(bytes, frame(FrameType::RecvPacket, &[&[0x55; 32], b"hello"]));
        assert_eq!(send_to_recv(&mut [4; 36], &key(1)), None);
    }

    #[test]
    fn a_forwarded_packet_becomes_a_received_one() {
        let mut bytes = frame(FrameType::ForwardPacket, &[&[0x55; 32], &[0xdd; 32], b"hello"]);
        let forwarded = forward_to_recv(&mut bytes).unwrap();
        assert_eq!((forwarded.source, forwarded.destination), (key(0x55), key(0xdd)));
        assert_eq!(
            bytes[forwarded.start..],
            frame(FrameType::RecvPacket, &[&[0x55; 32], b"hello"])
        );
        assert_eq!(forward_to_recv(&mut [10; 68]), None);
    }

    #[test]
    fn a_received_packet_becomes_a_forwarded_one() {
        let mut bytes = Vec::new();
        let received = frame(FrameType::RecvPacket, &[&[0x55; 32], b"hello"]);
        recv_to_forward(&mut bytes, &received, &key(0xdd));
        assert_eq!(bytes, frame(FrameType::ForwardPacket, &[&[0x55; 32], &[0xdd; 32], b"hello"]));
        recv_to_forward(&mut bytes, &received[..36], &key(0xdd));
        assert_eq!(bytes.len(), 5 + 32 + 32 + 5, "too few bytes add nothing");
        let forwarded = forward_to_recv(&mut bytes).unwrap();
        assert_eq!(bytes[forwarded.start..], received);
    }

    proptest! {
        #[test]
        fn any_header_is_judged(bytes in any::<[u8; 5]>(), trusted: bool) {
            let (type_byte, length) = parse_header(&bytes).unwrap();
            if let Ok(Reading::Whole(_, whole)) = judge(type_byte, length, trusted) {
                prop_assert!(whole <= MAX_FRAME_LENGTH);
            }
        }

        /// Frames are the same however the stream is cut, and little is ever kept.
        #[test]
        fn cuts_do_not_matter(
            frames in proptest::collection::vec((0..24u8, 0..90u32), 0..20),
            tail in proptest::collection::vec(any::<u8>(), 0..20),
            cuts in proptest::collection::vec(1..50usize, 1..30),
        ) {
            let mut stream = Vec::new();
            for (type_byte, length) in frames {
                stream.push(type_byte);
                stream.extend(length.to_be_bytes());
                stream.extend(std::iter::repeat_n(type_byte, length as usize));
            }
            stream.extend(tail);
            let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
                let (mut reader, mut kept, mut found) = (FrameReader::new(true), Vec::new(), Vec::new());
                for piece in pieces {
                    kept.extend_from_slice(piece);
                    let mut at = 0;
                    loop {
                        match reader.next(&kept, at) {
                            Ok(Found::Frame(_, range)) => {
                                found.push(kept[range.clone()].to_vec());
                                at = range.end;
                            }
                            Ok(Found::Unwanted(resume)) => at = resume,
                            Ok(Found::Incomplete(from)) => {
                                kept.drain(..from);
                                break;
                            }
                            Err(violation) => return (found, Some(violation)),
                        }
                    }
                    assert!(kept.len() < HEADER_LENGTH + MAX_FRAME_LENGTH);
                }
                (found, None)
            };
            let mut rest = &stream[..];
            let mut sizes = cuts.iter().cycle();
            let mut pieces = std::iter::from_fn(|| {
                let (piece, others) = rest.split_at(rest.len().min(*sizes.next()?));
                rest = others;
                (!piece.is_empty()).then_some(piece)
            });
            prop_assert_eq!(read(&mut pieces), read(&mut std::iter::once(&stream[..])));
        }

        #[test]
        fn any_bytes_survive_the_rewrites(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let length = bytes.len();
            let mut other = bytes.clone();
            prop_assert_eq!(send_to_recv(&mut bytes, &key(1)).is_some(), length >= 37);
            prop_assert_eq!(forward_to_recv(&mut other).is_some(), length >= 69);
        }
    }
}
