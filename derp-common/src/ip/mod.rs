//! The two IP headers behind one trait, so that everything above them is written once.

mod v4;
mod v6;

pub use self::{v4::Ipv4, v6::Ipv6};
use crate::{
    address::{Address, Family},
    checksum::Sum,
    packet::Packet,
    reason::Reason,
};

/// TTL or hop limit of what we send (RFC 1700's recommended default, as the network stack uses).
const HOP_LIMIT: u8 = 64;

/// A fixed-size IP header straight after the Ethernet header, with UDP straight after it.
pub trait Ip {
    /// Which family this is.
    const FAMILY: Family;
    /// Bytes of the header.
    const LEN: usize;

    /// Returns how many bytes of UDP the header promises.
    ///
    /// # Errors
    ///
    /// The reason why this is not such a header, or not UDP in one piece.
    fn udp_length<P: Packet>(packet: &P) -> Result<usize, Reason>;

    /// Checks what the header protects itself with.
    ///
    /// # Errors
    ///
    /// [`Reason::InvalidIpChecksum`] in IPv4.
    fn check<P: Packet>(packet: &P) -> Result<(), Reason>;

    /// Returns source and destination.
    fn addresses<P: Packet>(packet: &P) -> Option<(Address, Address)>;

    /// Returns the TTL or hop limit.
    fn hop_limit<P: Packet>(packet: &P) -> Option<u8>;

    /// Turns the header into that of an answer with `udp_length` bytes of UDP: addresses swapped, a
    /// fresh hop limit, no traffic class, nothing of the request left.
    fn write_reply<P: Packet>(packet: &mut P, udp_length: u16) -> Option<()>;

    /// Turns the header into that of the next hop: other addresses, one hop fewer, everything else kept.
    fn write_forwarded<P: Packet>(packet: &mut P, change: &Change) -> Option<()>;
}

/// What becomes of the addresses of a forwarded packet.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The new source.
    pub source: &'a Address,
    /// The new destination.
    pub destination: &'a Address,
    /// Sum of both old addresses.
    pub removed: Sum,
    /// Sum of both new ones.
    pub added: Sum,
}
