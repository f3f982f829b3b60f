//! IPv4 (RFC 791).

use super::{Change, HOP_LIMIT, Ip};
use crate::{
    address::{Address, Family},
    checksum::{self, Sum},
    eth,
    packet::Packet,
    reason::Reason,
    udp,
};

/// An IPv4 header without options.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4;

const VERSION_IHL: usize = eth::LEN;
const TOTAL_LENGTH: usize = eth::LEN + 2;
const IDENTIFICATION: usize = eth::LEN + 4;
const FRAGMENT: usize = eth::LEN + 6;
const TTL: usize = eth::LEN + 8;
const PROTOCOL: usize = eth::LEN + 9;
const SOURCE: usize = eth::LEN + 12;
const DESTINATION: usize = eth::LEN + 16;

/// "More fragments" and the fragment offset; either makes a packet a fragment.
const FRAGMENT_MASK: u16 = 0x3fff;

impl Ip for Ipv4 {
    const FAMILY: Family = Family::Ipv4;
    const LEN: usize = 20;

    #[inline(always)]
    fn udp_length<P: Packet>(packet: &P) -> Result<usize, Reason> {
        let [version_ihl] = packet.read(VERSION_IHL).ok_or(Reason::Malformed)?;
        let [protocol] = packet.read(PROTOCOL).ok_or(Reason::Malformed)?;
        if version_ihl >> 4 != 4 || version_ihl & 0xf < 5 {
            return Err(Reason::Malformed);
        }
        if protocol != udp::PROTOCOL {
            return Err(Reason::NotUdp);
        }
        if version_ihl & 0xf != 5 {
            return Err(Reason::Ipv4Options);
        }
        if packet.number(FRAGMENT).ok_or(Reason::Malformed)? & FRAGMENT_MASK != 0 {
            return Err(Reason::Fragment);
        }
        let total = packet.number(TOTAL_LENGTH).ok_or(Reason::Malformed)?;
        usize::from(total).checked_sub(Self::LEN).ok_or(Reason::Malformed)
    }

    #[inline(always)]
    fn check<P: Packet>(packet: &P) -> Result<(), Reason> {
        let mut sum = Sum::ZERO;
        for word in 0..Self::LEN / 4 {
            sum = sum.word(packet.word(eth::LEN + word * 4).ok_or(Reason::Malformed)?);
        }
        if sum.is_intact() { Ok(()) } else { Err(Reason::InvalidIpChecksum) }
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<(Address, Address)> {
        Some((Address::v4(packet.word(SOURCE)?), Address::v4(packet.word(DESTINATION)?)))
    }

    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8> {
        packet.read(TTL).map(|[ttl]| ttl)
    }

    #[inline(always)]
    fn write_forwarded<P: Packet>(packet: &mut P, change: &Change) -> Option<()> {
        let [ttl, protocol, high, low] = packet.read(TTL)?;
        let old = u16::from_ne_bytes([ttl, protocol]);
        let new = u16::from_ne_bytes([ttl.wrapping_sub(1), protocol]);
        let checksum = u16::from_ne_bytes([high, low]);
        let checksum = checksum::update(checksum, change.removed.half(old), change.added.half(new));
        packet.set_half(TTL, new)?;
        packet.set_half(TTL + 2, checksum)?;
        packet.set_word(SOURCE, change.source.0[3])?;
        packet.set_word(DESTINATION, change.destination.0[3])
    }

    /// Identification 0 with "don't fragment", like the network stack's own small datagrams: such a
    /// packet is never reassembled, so it needs no unique number (RFC 6864 section 4.1).
    #[inline(always)]
    fn write_reply<P: Packet>(packet: &mut P, udp_length: u16) -> Option<()> {
        let [high, low] = udp_length.wrapping_add(Self::LEN as u16).to_be_bytes();
        let (source, destination) = (packet.word(SOURCE)?, packet.word(DESTINATION)?);
        let first = u32::from_ne_bytes([0x45, 0, high, low]);
        let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
        let [ttl, protocol] = [HOP_LIMIT, udp::PROTOCOL];
        let third = u16::from_ne_bytes([ttl, protocol]);
        let sum = Sum::ZERO.word(first).word(second).half(third).word(source).word(destination);
        packet.set_word(VERSION_IHL, first)?;
        packet.set_word(IDENTIFICATION, second)?;
        packet.set_half(TTL, third)?;
        packet.set_half(TTL + 2, sum.checksum())?;
        packet.set_word(SOURCE, destination)?;
        packet.set_word(DESTINATION, source)
    }
}
