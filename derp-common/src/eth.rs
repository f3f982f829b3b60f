//! The Ethernet II header (IEEE 802.3 clause 3.2): destination 0, source 6, EtherType 12.

use crate::packet::Packet;

/// Bytes of an untagged header.
pub const LEN: usize = 14;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// EtherType of an 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// Where the EtherType is, and a tag if there is one.
pub const ETHERTYPE: usize = 12;

const SOURCE: usize = 6;

/// Returns the EtherType, or `None` in a frame shorter than the header.
#[inline(always)]
pub fn ethertype<P: Packet>(packet: &P) -> Option<u16> {
    packet.number(ETHERTYPE)
}

/// Tells whether the frame is addressed to this MAC.
#[inline(always)]
pub fn is_for<P: Packet>(packet: &P, [a, b, c]: [u16; 3]) -> Option<bool> {
    Some(packet.word(0)? == word(a, b) && packet.half(4)? == c)
}

/// Sends the frame to the first MAC, from the second.
#[inline(always)]
pub fn write<P: Packet>(packet: &mut P, [a, b, c]: [u16; 3], [d, e, f]: [u16; 3]) -> Option<()> {
    packet.set_word(0, word(a, b))?;
    packet.set_half(4, c)?;
    packet.set_word(SOURCE, word(d, e))?;
    packet.set_half(SOURCE + 4, f)
}

/// Sends the frame back to where it came from.
#[inline(always)]
pub fn swap<P: Packet>(packet: &mut P) -> Option<()> {
    let (destination, source) = (packet.word(0)?, packet.word(SOURCE)?);
    let (destination_end, source_end) = (packet.half(4)?, packet.half(SOURCE + 4)?);
    packet.set_word(0, source)?;
    packet.set_half(4, source_end)?;
    packet.set_word(SOURCE, destination)?;
    packet.set_half(SOURCE + 4, destination_end)
}

/// Two halves as they lie in memory one after the other.
#[inline(always)]
const fn word(first: u16, second: u16) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}
