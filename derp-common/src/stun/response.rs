//! Builds the answer to a Binding request (RFC 8489 sections 6.3.1.1 and 14.2).

use super::{ATTRIBUTE_HEADER, BINDING_SUCCESS, HEADER, MAGIC_COOKIE, XOR_MAPPED_ADDRESS};
use crate::{
    address::{Address, Family},
    checksum::Sum,
    packet::Packet,
};

/// Returns the bytes of an answer to a client of this family.
#[inline(always)]
#[must_use]
pub const fn len(family: Family) -> usize {
    let address = match family {
        Family::Ipv4 | Family::Unknown => 4,
        Family::Ipv6 => 16,
    };
    HEADER + ATTRIBUTE_HEADER + 4 + address
}

/// Turns the request at `at` into its answer: one XOR-MAPPED-ADDRESS with the client's address and
/// `port` (as it lies in memory). Cookie and transaction id stay where they are.
///
/// The packet must already have room for [`len`] bytes at `at`. Returns the sum of the answer's bytes.
#[inline(always)]
pub fn write<P: Packet>(
    packet: &mut P,
    at: usize,
    family: Family,
    address: &Address,
    port: u16,
) -> Option<Sum> {
    let [success_high, success_low] = BINDING_SUCCESS.to_be_bytes();
    let [kind_high, kind_low] = XOR_MAPPED_ADDRESS.to_be_bytes();
    let attributes = (len(family) - HEADER) as u8;
    let [port_high, port_low] = port.to_ne_bytes();
    let [cookie_high, cookie_low, ..] = MAGIC_COOKIE;

    let mut writer = Writer { packet, at, sum: Sum::ZERO };
    writer.put(u32::from_ne_bytes([success_high, success_low, 0, attributes]))?;
    let cookie = u32::from_ne_bytes(MAGIC_COOKIE);
    writer.put(cookie)?;
    let transaction = [writer.keep()?, writer.keep()?, writer.keep()?];
    let value = attributes - ATTRIBUTE_HEADER as u8;
    writer.put(u32::from_ne_bytes([kind_high, kind_low, 0, value]))?;
    let family_and_port = [0, family as u8, port_high ^ cookie_high, port_low ^ cookie_low];
    writer.put(u32::from_ne_bytes(family_and_port))?;
    let Address(words) = *address;
    if let Family::Ipv6 = family {
        writer.put(words[0] ^ cookie)?;
        writer.put(words[1] ^ transaction[0])?;
        writer.put(words[2] ^ transaction[1])?;
        writer.put(words[3] ^ transaction[2])?;
    } else {
        writer.put(words[3] ^ cookie)?;
    }
    Some(writer.sum)
}

/// Goes through a message word by word and sums it.
struct Writer<'a, P> {
    packet: &'a mut P,
    at: usize,
    sum: Sum,
}

impl<P: Packet> Writer<'_, P> {
    #[inline(always)]
    fn put(&mut self, word: u32) -> Option<()> {
        self.packet.set_word(self.at, word)?;
        self.passed(word);
        Some(())
    }

    #[inline(always)]
    fn keep(&mut self) -> Option<u32> {
        let word = self.packet.word(self.at)?;
        self.passed(word);
        Some(word)
    }

    #[inline(always)]
    fn passed(&mut self, word: u32) {
        self.sum = self.sum.word(word);
        self.at += 4;
    }
}
