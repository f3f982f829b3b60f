//! The frames that a client writes after login. Each is appended, header included, to the bytes that
//! are on their way to the server.

use crate::proto::{
    frame::{FrameType, MAX_PACKET_LENGTH, PING_DATA_LENGTH, header},
    keys::{KEY_LENGTH, NodePublic},
};

/// The packet is longer than a relay takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a packet of {0} bytes; relays take at most {MAX_PACKET_LENGTH}")]
pub struct PacketTooLong(pub usize);

/// Appends a SendPacket frame: `packet` for `destination`.
///
/// # Errors
///
/// If the packet has more than [`MAX_PACKET_LENGTH`] bytes; nothing is appended then.
pub fn send_packet(
    bytes: &mut Vec<u8>,
    destination: &NodePublic,
    packet: &[u8],
) -> Result<(), PacketTooLong> {
    let too_long = || PacketTooLong(packet.len());
    if packet.len() > MAX_PACKET_LENGTH {
        return Err(too_long());
    }
    let length = u32::try_from(KEY_LENGTH + packet.len()).map_err(|_| too_long())?;
    bytes.extend(header(FrameType::SendPacket, length));
    bytes.extend(destination.as_bytes());
    bytes.extend(packet);
    Ok(())
}

/// Appends a NotePreferred frame: whether this server is the client's home.
pub fn note_preferred(bytes: &mut Vec<u8>, preferred: bool) {
    bytes.extend(header(FrameType::NotePreferred, 1));
    bytes.push(u8::from(preferred));
}

/// Appends a Ping that its Pong will repeat.
pub fn ping(bytes: &mut Vec<u8>, data: &[u8; PING_DATA_LENGTH]) {
    bytes.extend(header(FrameType::Ping, PING_DATA_LENGTH as u32));
    bytes.extend(data);
}

/// Appends a WatchConns frame: the client wants to hear who is connected, and who comes and goes.
/// Only for clients with the mesh key.
pub fn watch_conns(bytes: &mut Vec<u8>) {
    bytes.extend(header(FrameType::WatchConns, 0));
}

/// Appends a ClosePeer frame: the server is to disconnect the client with this key. Only for clients
/// with the mesh key.
pub fn close_peer(bytes: &mut Vec<u8>, key: &NodePublic) {
    bytes.extend(header(FrameType::ClosePeer, KEY_LENGTH as u32));
    bytes.extend(key.as_bytes());
}

/// Appends a ForwardPacket frame: `packet` for `destination`, sent by `source` to another server. Only
/// for clients with the mesh key.
///
/// # Errors
///
/// If the packet has more than [`MAX_PACKET_LENGTH`] bytes; nothing is appended then.
pub fn forward_packet(
    bytes: &mut Vec<u8>,
    source: &NodePublic,
    destination: &NodePublic,
    packet: &[u8],
) -> Result<(), PacketTooLong> {
    let too_long = || PacketTooLong(packet.len());
    if packet.len() > MAX_PACKET_LENGTH {
        return Err(too_long());
    }
    let length = u32::try_from(2 * KEY_LENGTH + packet.len()).map_err(|_| too_long())?;
    bytes.extend(header(FrameType::ForwardPacket, length));
    bytes.extend(source.as_bytes());
    bytes.extend(destination.as_bytes());
    bytes.extend(packet);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_frames() {
        let mut bytes = Vec::new();
        send_packet(&mut bytes, &NodePublic::from_bytes([0xdd; 32]), b"hello").unwrap();
        assert_eq!(bytes, [&[4, 0, 0, 0, 37][..], &[0xdd; 32], b"hello"].concat());
        bytes.clear();
        note_preferred(&mut bytes, true);
        note_preferred(&mut bytes, false);
        assert_eq!(bytes, [7, 0, 0, 0, 1, 1, 7, 0, 0, 0, 1, 0]);
        bytes.clear();
        ping(&mut bytes, b"12345678");
        assert_eq!(bytes, [&[0x12, 0, 0, 0, 8][..], b"12345678"].concat());
    }

    #[test]
    fn golden_frames_of_the_mesh() {
        let key = |byte| NodePublic::from_bytes([byte; 32]);
        let mut bytes = Vec::new();
        watch_conns(&mut bytes);
        assert_eq!(bytes, [0x10, 0, 0, 0, 0]);
        bytes.clear();
        close_peer(&mut bytes, &key(7));
        assert_eq!(bytes, [&[0x11, 0, 0, 0, 32][..], &[7; 32]].concat());
        bytes.clear();
        forward_packet(&mut bytes, &key(0x55), &key(0xdd), b"hello").unwrap();
        assert_eq!(bytes, [&[0x0a, 0, 0, 0, 69][..], &[0x55; 32], &[0xdd; 32], b"hello"].concat());
        let length = bytes.len();
        let too_long = forward_packet(&mut bytes, &key(1), &key(2), &[0; 65_537]);
        assert_eq!((too_long, bytes.len()), (Err(PacketTooLong(65_537)), length));
    }

    #[test]
    fn the_longest_packet_is_the_longest_a_server_takes() {
        let (mut bytes, key) = (Vec::new(), NodePublic::from_bytes([1; 32]));
        let packet = vec![0; MAX_PACKET_LENGTH + 1];
        assert_eq!(send_packet(&mut bytes, &key, &packet), Err(PacketTooLong(65_537)));
        assert!(bytes.is_empty());
        send_packet(&mut bytes, &key, &packet[1..]).unwrap();
        assert_eq!(bytes[..5], [4, 0, 1, 0, 32]);
    }
}
