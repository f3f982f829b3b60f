//! What a payload on a relay port is (udp-relay reference, sections 1 and 7.1).

use super::admit::{Datagram, Tables};
use crate::{packet::Packet, reason::Reason, settings::Services, stun};

/// Bytes of a Geneve header without options (RFC 8926 section 3.4).
pub const GENEVE: usize = 8;
/// Geneve protocol type of disco messages.
pub const DISCO: u16 = 0x7a11;
/// Geneve protocol type of WireGuard messages.
pub const WIREGUARD: u16 = 0x7a12;
/// Bytes of every message of the relay's handshake, Geneve header included.
pub const CONTROL_LENGTH: usize = 160;
/// How a disco message begins, as a big-endian number.
pub const DISCO_MAGIC: [u8; 6] = [0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac];

/// Bytes of a WireGuard handshake initiation (type 1).
pub const INITIATION: usize = 148;
/// Bytes of a WireGuard handshake response (type 2).
pub const RESPONSE: usize = 92;
/// Bytes of a WireGuard cookie reply (type 3).
pub const COOKIE_REPLY: usize = 64;
/// Fewest bytes of a WireGuard transport message (type 4), which are those of a keepalive.
pub const MIN_TRANSPORT: usize = 32;

/// The flag O, "control packet", in the second byte of a Geneve header.
const CONTROL: u8 = 0x80;

/// What a payload is, of the things that can be served on its port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// A STUN message, whole or not.
    Stun,
    /// A packet to be relayed, of the flow with this VNI.
    Geneve {
        /// The VNI, which may be 0.
        vni: u32,
    },
    /// A message of the relay's handshake about the flow with this VNI.
    Control {
        /// The VNI, which may be 0.
        vni: u32,
        /// The first eight bytes of the sender's disco public key, as they lie in the packet.
        sender: u64,
    },
    /// A WireGuard transport message for the session with this receiver index, as it lies in the packet.
    WireGuard {
        /// The receiver index.
        index: u32,
    },
    /// Anything, on a port where anything is relayed, by nobody in particular.
    Any,
    /// Anything, by a source whose packets are relayed whatever they hold.
    Known {
        /// What `SOURCES` says of the source.
        value: u32,
    },
}

/// Says what the `length` bytes at `at` are, on a port with these `services`.
///
/// # Errors
///
/// The reason why they are nothing that is served there.
#[inline(always)]
pub fn classify<P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
    services: u16,
) -> Result<Class, Reason> {
    if length < 8 {
        return short(services);
    }
    let [b0, b1, b2, b3] = packet.read(at).ok_or(Reason::Malformed)?;
    let second: [u8; 4] = packet.read(at + 4).ok_or(Reason::Malformed)?;
    // Before STUN: an index may be STUN's magic cookie, and no STUN message begins like this.
    if services & Services::WIREGUARD != 0 && matches!(b0, 1..=4) && [b1, b2, b3] == [0; 3] {
        return wireguard(b0, length, second);
    }
    if services & Services::STUN != 0 && b0 & 0xc0 == 0 && second == stun::MAGIC_COOKIE {
        return Ok(Class::Stun);
    }
    if services & Services::GENEVE != 0 {
        return geneve(packet, at, length, [b0, b1, b2, b3], second);
    }
    if services & Services::ANY != 0 {
        return Ok(Class::Any);
    }
    Err(if services == Services::STUN { Reason::NotStun } else { Reason::NotRelayed })
}

/// Like [`classify`], but looks first whether the source's packets are relayed whatever they hold, which may
/// be STUN as well.
///
/// # Errors
///
/// As [`classify`].
#[inline(always)]
pub fn identify<P: Packet, T: Tables>(
    packet: &P,
    at: usize,
    length: usize,
    services: u16,
    datagram: &Datagram,
    tables: &T,
) -> Result<Class, Reason> {
    if services & Services::ANY != 0
        && let Some(value) = tables.source(&datagram.source_key(0))
    {
        return Ok(Class::Known { value });
    }
    classify(packet, at, length, services)
}

/// What a WireGuard message of this type and length is.
///
/// Data need not be padded: the last piece of a packet of the MTU's length is not, and some implementations never
/// pad.
#[inline(always)]
fn wireguard(kind: u8, length: usize, second: [u8; 4]) -> Result<Class, Reason> {
    match (kind, length) {
        (4, MIN_TRANSPORT..) => Ok(Class::WireGuard { index: u32::from_ne_bytes(second) }),
        (1, INITIATION) | (2, RESPONSE) | (3, COOKIE_REPLY) => Err(Reason::WireGuardHandshake),
        _ => Err(Reason::InvalidWireGuard),
    }
}

/// Returns the VNI of the Geneve packet at `at`.
#[inline(always)]
pub(crate) fn vni<P: Packet>(packet: &P, at: usize) -> Option<u32> {
    packet.read(at + 4).map(|bytes| u32::from_be_bytes(bytes) >> 8)
}

/// What is shorter than any header can still be of a flow of any payload.
#[inline(always)]
fn short(services: u16) -> Result<Class, Reason> {
    if services & Services::ANY != 0 {
        Ok(Class::Any)
    } else if services == Services::STUN {
        Err(Reason::NotStun)
    } else {
        Err(Reason::ShortPayload)
    }
}

#[inline(always)]
fn geneve<P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
    [version, flags, protocol_high, protocol_low]: [u8; 4],
    [vni_high, vni_middle, vni_low, reserved]: [u8; 4],
) -> Result<Class, Reason> {
    let protocol = u16::from_be_bytes([protocol_high, protocol_low]);
    let vni = u32::from_be_bytes([0, vni_high, vni_middle, vni_low]);
    if version != 0 || flags & !CONTROL != 0 || reserved != 0 {
        return Err(Reason::UnusualGeneve);
    }
    if protocol != DISCO && protocol != WIREGUARD {
        return Err(Reason::UnusualGeneve);
    }
    if flags & CONTROL == 0 {
        return Ok(Class::Geneve { vni });
    }
    let magic: [u8; 4] = packet.read(at + GENEVE).ok_or(Reason::InvalidRelayControl)?;
    let magic_end: [u8; 2] = packet.read(at + GENEVE + 4).ok_or(Reason::InvalidRelayControl)?;
    let is_disco =
        [magic[0], magic[1], magic[2], magic[3], magic_end[0], magic_end[1]] == DISCO_MAGIC;
    if protocol != DISCO || length != CONTROL_LENGTH || !is_disco {
        return Err(Reason::InvalidRelayControl);
    }
    let sender = packet.read(at + GENEVE + DISCO_MAGIC.len()).ok_or(Reason::InvalidRelayControl)?;
    Ok(Class::Control { vni, sender: u64::from_ne_bytes(sender) })
}
