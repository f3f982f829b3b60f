//! IP addresses as map keys: one shape for both families.

use core::net::{IpAddr, Ipv6Addr};

use crate::{checksum::Sum, settings::Interface};

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
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(C, align(8))]
pub struct Address(pub [u32; 4]);

/// Places of addresses; a power of two.
pub const ADDRESS_PLACES: u32 = 256;

/// 2 to the power of 64 by the golden ratio: multiplied by it, numbers are told apart by their upper bits.
pub(crate) const SCATTER: u64 = 0x9e37_79b9_7f4a_7c15;

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

    /// Returns what stands for this source where rates are limited: an IPv4 address stands for itself, an
    /// IPv6 address for its /64, which one host commonly has to itself. (No network begins with 32 zero
    /// bits, so the two never meet.)
    #[inline(always)]
    #[must_use]
    pub const fn rate_key(&self, family: Family) -> u64 {
        let [a, b, _, d] = self.0;
        match family {
            Family::Ipv4 | Family::Unknown => (d as u64) << 32,
            Family::Ipv6 => a as u64 | (b as u64) << 32,
        }
    }

    /// Returns the number of this address's [`AddressPlace`], one of [`ADDRESS_PLACES`].
    #[inline(always)]
    #[must_use]
    pub const fn place(&self) -> u32 {
        let [a, b, c, d] = self.0;
        let network = a as u64 | (b as u64) << 32;
        let host = c as u64 | (d as u64) << 32;
        let mixed = (network.wrapping_mul(SCATTER) ^ host).wrapping_mul(SCATTER);
        (mixed >> (u64::BITS - ADDRESS_PLACES.ilog2())) as u32
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

impl AddressKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Unicast, Self::Broadcast];
}

/// What is known of the addresses that share one place ([`Address::place`]), mostly one or none: then it is all
/// there is to know. 64 bytes, a cache line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(64))]
pub struct AddressPlace {
    /// One of them, if there is any.
    pub address: Address,
    /// What it is ([`AddressKind`]); 0 when there is none.
    pub kind: u32,
    /// Not zero when there are others.
    pub is_shared: u32,
    /// The index of the interface that its packets commonly come in by; 0 when that is not known.
    pub ingress: u32,
    /// Zero.
    pub reserved: u32,
    /// That interface.
    pub interface: Interface,
    /// Where this host's addresses are, those of other places too.
    pub own: OwnPlaces,
    /// Zero.
    pub unused: [u64; 2],
}

impl AddressPlace {
    /// Returns what an address of this place is to this host, or `None` for others' addresses. `ask` knows all
    /// addresses.
    #[inline(always)]
    pub fn kind_of(
        &self,
        address: &Address,
        ask: impl FnOnce(&Address) -> Option<u32>,
    ) -> Option<u32> {
        if self.kind != 0 && self.address == *address {
            Some(self.kind)
        } else if self.is_shared != 0 {
            ask(address)
        } else {
            None
        }
    }
}

/// Which places hold addresses of this host, one bit for several places.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct OwnPlaces(pub u64);

impl OwnPlaces {
    /// Any place may.
    pub const ANY: Self = Self(u64::MAX);

    /// Adds an address.
    #[must_use]
    pub const fn with(self, address: &Address) -> Self {
        Self(self.0 | 1 << (address.place() % u64::BITS))
    }

    /// Tells whether this may be an address of this host. Most of others' are not.
    #[inline(always)]
    #[must_use]
    pub const fn may_hold(self, address: &Address) -> bool {
        self.0 >> (address.place() % u64::BITS) & 1 != 0
    }
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

    #[test]
    fn a_place_tells_of_its_own_and_asks_only_when_it_is_shared() {
        let [own, other] = [1, 2].map(|word| Address([word, 0, 0, 0]));
        let kind = |place: AddressPlace, address: Address| place.kind_of(&address, |_| Some(9));
        assert_eq!(kind(AddressPlace::default(), Address::default()), None);
        let alone = AddressPlace { address: own, kind: 1, ..AddressPlace::default() };
        assert_eq!((kind(alone, own), kind(alone, other)), (Some(1), None));
        let shared = AddressPlace { is_shared: 1, ..alone };
        assert_eq!((kind(shared, own), kind(shared, other)), (Some(1), Some(9)));
    }

    #[test]
    fn most_addresses_of_others_are_told_from_ours_at_once() {
        let number = |it: u32| Address::from(IpAddr::from(it.to_be_bytes()));
        let own = (0..8).map(|it| number(0xc000_0201 + it * 977));
        let own: Vec<_> = own.collect();
        let places = own.iter().fold(OwnPlaces::default(), |places, it| places.with(it));
        assert!(own.iter().all(|it| places.may_hold(it)));
        let suspected = (0..1000).filter(|it| places.may_hold(&number(0x0a00_0000 + it * 31)));
        assert!(suspected.count() < 200);
    }

    #[test]
    fn neighbours_have_places_of_their_own() {
        let distinct = |addresses: &[String]| {
            let place = |text: &String| Address::from(text.parse::<IpAddr>().expect("ip")).place();
            let places: std::collections::BTreeSet<_> = addresses.iter().map(place).collect();
            assert!(places.iter().all(|place| *place < ADDRESS_PLACES));
            places.len()
        };
        let numbered = |prefix: &str| (1..=16).map(|it| format!("{prefix}{it:x}")).collect();
        let v4: Vec<_> = (1..=16).map(|it| format!("192.0.2.{it}")).collect();
        assert!(distinct(&v4) >= 14);
        let v6: Vec<_> = numbered("2001:db8::");
        assert!(distinct(&v6) >= 14);
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
