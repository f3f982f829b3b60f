//! The Ethernet II header (IEEE 802.3 clause 3.2): destination 0, source 6, EtherType 12.

use crate::{packet::Packet, settings::Interface};

/// Bytes of an untagged header.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

const SOURCE: usize = 6;
const ETHERTYPE: usize = 12;

/// Returns the EtherType, or `None` in a frame shorter than the header.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.number(ETHERTYPE)
}

/// Tells whether the frame is addressed to this interface itself, not to a group.
#[inline(always)]
pub fn is_for<P: Packet>(packet: &P, interface: &Interface) -> Option<bool> {
    let [a, b, c] = interface.mac;
    Some(packet.half(0)? == a && packet.half(2)? == b && packet.half(4)? == c)
}

/// Sends the frame back to where it came from.
#[inline(always)]
pub fn swap<P: Packet>(packet: &mut P) -> Option<()> {
    for at in [0, 2, 4] {
        let (destination, source) = (packet.half(at)?, packet.half(at + SOURCE)?);
        packet.set_half(at, source)?;
        packet.set_half(at + SOURCE, destination)?;
    }
    Some(())
}
