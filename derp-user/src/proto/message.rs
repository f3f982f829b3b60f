//! The frames that a server writes after login. Each is appended, header included, to the bytes
//! that are on their way to one client.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    frame::{FrameType, PING_DATA_LENGTH, header},
    keys::{KEY_LENGTH, NodePublic},
};

/// Why a peer is not reachable here; the discriminant is the byte on the wire.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum GoneReason {
    /// It was here, or elsewhere in the region, and has left.
    Disconnected = 0x00,
    /// The server knows nothing of it.
    NotHere = 0x01,
}

impl GoneReason {
    /// The reason whose wire byte is `byte`, if the protocol defines one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0x00 => Some(Self::Disconnected),
            0x01 => Some(Self::NotHere),
            _ => None,
        }
    }
}

/// What kind of client a key is, as watchers are told (reference section 1.2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ClientTraits {
    /// It proved the mesh key.
    pub mesh_peer: bool,
    /// It called itself a prober.
    pub prober: bool,
    /// It would rather be on another node of the region.
    pub not_ideal: bool,
}

impl ClientTraits {
    /// The flags byte of PeerPresent; never zero.
    pub fn flags(self) -> u8 {
        const REGULAR: u8 = 0x01;
        let special = u8::from(self.mesh_peer) << 1
            | u8::from(self.prober) << 2
            | u8::from(self.not_ideal) << 3;
        if special == 0 { REGULAR } else { special }
    }

    /// What a flags byte says; bits without a meaning are ignored.
    pub fn from_flags(flags: u8) -> Self {
        let set = |bit: u8| flags & 1 << bit != 0;
        Self { mesh_peer: set(1), prober: set(2), not_ideal: set(3) }
    }
}

/// Appends a KeepAlive frame.
pub fn keep_alive(bytes: &mut Vec<u8>) {
    bytes.extend(header(FrameType::KeepAlive, 0));
}

/// Appends the Pong that answers a Ping with `data`.
pub fn pong(bytes: &mut Vec<u8>, data: &[u8; PING_DATA_LENGTH]) {
    bytes.extend(header(FrameType::Pong, PING_DATA_LENGTH as u32));
    bytes.extend(data);
}

/// Appends the frame that says that the server is about to restart: whoever gets it is to connect again after
/// `reconnect_in`, and to try so for `try_for`, each sent as milliseconds. Not every client stands it (reference section
/// 9.7), so it is for mesh peers alone.
pub fn restarting(bytes: &mut Vec<u8>, reconnect_in: Duration, try_for: Duration) {
    let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    bytes.extend(header(FrameType::Restarting, 8));
    bytes.extend(milliseconds(reconnect_in).to_be_bytes());
    bytes.extend(milliseconds(try_for).to_be_bytes());
}

/// Appends a PeerGone frame about `key`.
pub fn peer_gone(bytes: &mut Vec<u8>, key: &NodePublic, reason: GoneReason) {
    bytes.extend(header(FrameType::PeerGone, KEY_LENGTH as u32 + 1));
    bytes.extend(key.as_bytes());
    bytes.push(reason as u8);
}

/// Appends a PeerPresent frame about `key`, connected from `address`.
pub fn peer_present(
    bytes: &mut Vec<u8>,
    key: &NodePublic,
    address: SocketAddr,
    traits: ClientTraits,
) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    bytes.extend(header(FrameType::PeerPresent, KEY_LENGTH as u32 + 16 + 2 + 1));
    bytes.extend(key.as_bytes());
    bytes.extend(ip.octets());
    bytes.extend(address.port().to_be_bytes());
    bytes.push(traits.flags());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes);
        bytes
    }

    #[test]
    fn golden_frames() {
        let key = NodePublic::from_bytes([0xaa; 32]);
        assert_eq!(written(keep_alive), [6, 0, 0, 0, 0]);
        assert_eq!(
            written(|bytes| pong(bytes, b"12345678")),
            [&[0x13, 0, 0, 0, 8][..], b"12345678"].concat()
        );
        assert_eq!(
            written(|bytes| peer_gone(bytes, &key, GoneReason::NotHere)),
            [&[8, 0, 0, 0, 33][..], &[0xaa; 32], &[1]].concat()
        );
        assert_eq!(
            written(|bytes| restarting(bytes, Duration::from_millis(258), Duration::MAX)),
            [0x15, 0, 0, 0, 8, 0, 0, 1, 2, 0xff, 0xff, 0xff, 0xff]
        );
        let present = written(|bytes| {
            peer_present(bytes, &key, "192.0.2.1:258".parse().unwrap(), ClientTraits::default());
        });
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1];
        assert_eq!(present, [&[9, 0, 0, 0, 51][..], &[0xaa; 32], &mapped, &[1, 2], &[1]].concat());
    }

    #[test]
    fn case_45_flags() {
        let traits = |mesh_peer, prober, not_ideal| ClientTraits { mesh_peer, prober, not_ideal };
        assert_eq!(traits(false, false, false).flags(), 0x01);
        assert_eq!(traits(false, false, true).flags(), 0x08);
        assert_eq!(traits(false, true, false).flags(), 0x04);
        assert_eq!(traits(true, false, false).flags(), 0x02);
        assert_eq!(traits(true, true, false).flags(), 0x06);
        for flags in 0..16 {
            let said = ClientTraits::from_flags(flags);
            assert_eq!(
                said.flags(),
                (flags & 0x0e).max(1) & if flags & 0x0e == 0 { 1 } else { 0x0e }
            );
        }
    }
}
