//! IP addresses as map keys: one shape for both families.

use core::net::{IpAddr, Ipv6Addr};

use crate::checksum::Sum;

/// An IP version; the `address_family` label of the kernel counters.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Family {
    /// Neither, or the frame is too short to tell.
    Unknown = 0,
    /// IPv4.
    Ipv4 = 1,
    /// IPv6.
    Ipv6 = 2,
}

impl Family {
    /// Every family, in index order.
    pub const ALL: [Self; 3] = [Self::Unknown, Self::Ipv4, Self::Ipv6];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
        }
    }
}

/// An IPv6 address, or an IPv4 address in its v4-mapped form (`::ffff:a.b.c.d`).
///
/// Four words as they lie in memory, so that comparing, summing and XORing need no byte swap. Aligned
/// because the compiler copies it eight bytes at a time, which a BPF stack only takes aligned.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct Address(pub [u32; 4]);

/// The third word of a v4-mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Address {
    /// Wraps the four bytes of an IPv4 address, as they lie in memory.
    #[inline(always)]
    #[must_use]
    pub const fn v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Tells which family the address is of.
    #[must_use]
    pub const fn family(&self) -> Family {
        if self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED {
            Family::Ipv4
        } else {
            Family::Ipv6
        }
    }

    /// Returns what stands for this source where rates are limited, and what of the address it leaves
    /// out: an IPv4 address stands for itself, an IPv6 address for its /64, which one host commonly has to
    /// itself. (No network begins with 32 zero bits, so the two never meet.)
    #[inline(always)]
    #[must_use]
    pub const fn rate_key(&self, family: Family) -> (u64, u64) {
        let [a, b, c, d] = self.0;
        match family {
            Family::Ipv4 | Family::Unknown => ((d as u64) << 32, 0),
            Family::Ipv6 => (a as u64 | (b as u64) << 32, c as u64 | (d as u64) << 32),
        }
    }

    /// Sums the words that are on the wire; the prefix of a v4-mapped address is not.
    #[inline(always)]
    #[must_use]
    pub const fn sum(&self, family: Family) -> Sum {
        let last = Sum::ZERO.word(self.0[3]);
        match family {
            Family::Ipv4 | Family::Unknown => last,
            Family::Ipv6 => last.word(self.0[0]).word(self.0[1]).word(self.0[2]),
        }
    }

    /// Tells whether an answer may be sent to this address: it names one host on the network.
    ///
    /// Refused are the unspecified, loopback, multicast, reserved and broadcast addresses, and in IPv6
    /// also every address that stands for an IPv4 one (RFC 1122 section 3.2.1.3, RFC 4291 section 2).
    #[inline(always)]
    #[must_use]
    pub const fn is_usable_source(&self, family: Family) -> bool {
        let [first, ..] = self.0[0].to_ne_bytes();
        match family {
            Family::Unknown => false,
            Family::Ipv4 => {
                let [network, ..] = self.0[3].to_ne_bytes();
                network != 0 && network != 127 && network < 224
            }
            Family::Ipv6 => {
                let leading_zeros = self.0[0] == 0 && self.0[1] == 0;
                first != 0xff && !(leading_zeros && (self.0[2] == 0 || self.0[2] == MAPPED))
            }
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let o = v6.octets();
                let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
                Self([word(0), word(4), word(8), word(12)])
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (place, word) in octets.chunks_exact_mut(4).zip(address.0) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets)).to_canonical()
    }
}

/// What an address in the local-address map is; the map's value.
///
/// An address that is not in the map belongs to somebody else.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum AddressKind {
    /// A unicast address of this host: requests to it are answered, requests from it are not.
    Unicast = 1,
    /// The broadcast address of a subnet of this host: never answered, in either direction.
    Broadcast = 2,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn usable(text: &str) -> bool {
        let address = Address::from(text.parse::<IpAddr>().expect("test address"));
        let family = if text.contains(':') { Family::Ipv6 } else { Family::Ipv4 };
        address.is_usable_source(family)
    }

    #[test]
    fn sources_that_name_one_host_are_usable() {
        for address in ["192.0.2.1", "10.0.0.255", "1.1.1.1", "223.255.255.255"] {
            assert!(usable(address), "{address}");
        }
        for address in ["2001:db8::1", "fe80::1", "fd00::1", "64:ff9b::c000:201", "::1:0:0:1"] {
            assert!(usable(address), "{address}");
        }
    }

    #[test]
    fn sources_that_name_no_single_host_are_not() {
        for address in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "239.1.1.1"]
        {
            assert!(!usable(address), "{address}");
        }
        for address in ["240.0.0.1", "255.255.255.255", "::", "::1", "::192.0.2.1", "ff02::1"] {
            assert!(!usable(address), "{address}");
        }
        assert!(!usable("::ffff:192.0.2.1"), "v4-mapped on an IPv6 packet");
    }

    proptest! {
        #[test]
        fn round_trips(address: IpAddr) {
            prop_assert_eq!(IpAddr::from(Address::from(address)), address.to_canonical());
        }

        #[test]
        fn the_family_is_read_off(address: std::net::Ipv4Addr) {
            prop_assert_eq!(Address::from(IpAddr::V4(address)).family(), Family::Ipv4);
        }
    }
}
