//! IPv6 (RFC 8200).

use super::{Change, HOP_LIMIT, Ip};
use crate::{
    address::{Address, Family},
    eth,
    packet::Packet,
    reason::Reason,
    udp,
};

/// An IPv6 header without extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6;

const VERSION: usize = eth::LEN;
const PAYLOAD_LENGTH: usize = eth::LEN + 4;
const NEXT_HEADER: usize = eth::LEN + 6;
const HOPS: usize = eth::LEN + 7;
const SOURCE: usize = eth::LEN + 8;
const DESTINATION: usize = eth::LEN + 24;

/// Eight bytes at a time: of smaller pieces the compiler makes larger ones as it sees fit, also where the
/// stack, which unlike a packet must be accessed aligned, does not allow it.
#[inline(always)]
fn address<P: Packet>(packet: &P, at: usize) -> Option<Address> {
    let [a, b] = words(packet.read(at)?);
    let [c, d] = words(packet.read(at + 8)?);
    Some(Address([a, b, c, d]))
}

#[inline(always)]
const fn words([a, b, c, d, e, f, g, h]: [u8; 8]) -> [u32; 2] {
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

#[inline(always)]
fn set_address<P: Packet>(packet: &mut P, at: usize, address: &Address) -> Option<()> {
    let Address([a, b, c, d]) = *address;
    packet.set_word(at, a)?;
    packet.set_word(at + 4, b)?;
    packet.set_word(at + 8, c)?;
    packet.set_word(at + 12, d)
}

impl Ip for Ipv6 {
    const FAMILY: Family = Family::Ipv6;
    const LEN: usize = 40;

    #[inline(always)]
    fn udp_length<P: Packet>(packet: &P) -> Result<usize, Reason> {
        let [version] = packet.read(VERSION).ok_or(Reason::Malformed)?;
        let [next_header] = packet.read(NEXT_HEADER).ok_or(Reason::Malformed)?;
        if version >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        if next_header != udp::PROTOCOL {
            return Err(Reason::NotUdp);
        }
        packet.number(PAYLOAD_LENGTH).map(usize::from).ok_or(Reason::Malformed)
    }

    #[inline(always)]
    fn check<P: Packet>(_: &P) -> Result<(), Reason> {
        Ok(())
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<(Address, Address)> {
        Some((address(packet, SOURCE)?, address(packet, DESTINATION)?))
    }

    #[inline(always)]
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8> {
        packet.read(HOPS).map(|[hops]| hops)
    }

    #[inline(always)]
    fn write_forwarded<P: Packet>(packet: &mut P, change: &Change) -> Option<()> {
        let [hops] = packet.read(HOPS)?;
        packet.write(HOPS, [hops.wrapping_sub(1)])?;
        set_address(packet, SOURCE, change.source)?;
        set_address(packet, DESTINATION, change.destination)
    }

    #[inline(always)]
    fn write_reply<P: Packet>(packet: &mut P, udp_length: u16) -> Option<()> {
        let [high, low] = udp_length.to_be_bytes();
        packet.write(VERSION, [0x60, 0, 0, 0])?;
        packet.write(PAYLOAD_LENGTH, [high, low, udp::PROTOCOL, HOP_LIMIT])?;
        for offset in [0, 4, 8, 12] {
            let (source, destination) =
                (packet.word(SOURCE + offset)?, packet.word(DESTINATION + offset)?);
            packet.set_word(SOURCE + offset, destination)?;
            packet.set_word(DESTINATION + offset, source)?;
        }
        Some(())
    }
}
