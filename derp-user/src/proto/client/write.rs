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
    fn the_longest_packet_is_the_longest_a_server_takes() {
        let (mut bytes, key) = (Vec::new(), NodePublic::from_bytes([1; 32]));
        let packet = vec![0; MAX_PACKET_LENGTH + 1];
        assert_eq!(send_packet(&mut bytes, &key, &packet), Err(PacketTooLong(65_537)));
        assert!(bytes.is_empty());
        send_packet(&mut bytes, &key, &packet[1..]).unwrap();
        assert_eq!(bytes[..5], [4, 0, 1, 0, 32]);
    }
}
