//! The UDP header (RFC 768): source port 0, destination port 2, length 4, checksum 6.

use crate::{checksum::Sum, packet::Packet};

/// Bytes of the header.
pub const LEN: usize = 8;
/// UDP's number in an IP header.
pub const PROTOCOL: u8 = 17;

/// The header's fields, ports and checksum as they lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Bytes of header and payload, as a number.
    pub length: u16,
    /// Checksum; zero means none.
    pub checksum: u16,
}

impl Udp {
    /// Reads the header at `at`.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, at: usize) -> Option<Self> {
        Some(Self {
            source: packet.half(at)?,
            destination: packet.half(at + 2)?,
            length: packet.number(at + 4)?,
            checksum: packet.half(at + 6)?,
        })
    }

    /// Writes the header to `at`.
    #[inline(always)]
    pub fn write<P: Packet>(self, packet: &mut P, at: usize) -> Option<()> {
        packet.set_half(at, self.source)?;
        packet.set_half(at + 2, self.destination)?;
        packet.set_half(at + 4, self.length.to_be())?;
        packet.set_half(at + 6, self.checksum)
    }

    /// Tells whether the checksum covers nothing but the pseudo-header, whose `addresses` have this sum.
    ///
    /// Such is the checksum of what the network stack has merged from several datagrams, and of what a
    /// local sender left to a device to complete: not fit to be sent. It looks so by chance in one
    /// datagram of 65,535.
    #[inline(always)]
    #[must_use]
    pub const fn is_partial(self, addresses: Sum) -> bool {
        let pseudo_header = addresses.number(PROTOCOL as u16).number(self.length);
        self.checksum == pseudo_header.fold()
    }

    /// Sums the header without its checksum, and the pseudo-header without its addresses
    /// (RFC 768; RFC 8200 section 8.1 comes to the same).
    #[inline(always)]
    #[must_use]
    pub const fn sum(self) -> Sum {
        let pseudo_header = Sum::ZERO.number(PROTOCOL as u16).number(self.length);
        pseudo_header.half(self.source).half(self.destination).number(self.length)
    }
}
