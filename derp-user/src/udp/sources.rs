//! One token bucket per source, in bounded memory.

use std::{
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
};

use derp_common::Rate;

/// Places of a set, in one cache line.
const WAYS: usize = 4;
/// Sets; a power of two. With 16 bytes a place, 128 KiB in all.
const SETS: usize = 2048;

#[derive(Clone, Copy, Default)]
struct Place {
    source: u64,
    /// The bucket's word ([`Rate::take`]): when it will be full.
    full_at: u64,
}

/// Token buckets of the latest sources: an IPv4 address, or the /64 of an IPv6 address.
///
/// A bucket that has filled up again is worth nothing and its place is free. When a set has none, the
/// source that has the least left to wait for makes room. The hash is seeded at random, so that nobody can
/// choose whose places to take.
pub struct SourceBuckets {
    places: Vec<[Place; WAYS]>,
    seed: RandomState,
}

impl SourceBuckets {
    /// Returns buckets that are all full. Memory is taken with the first limited source.
    #[must_use]
    pub fn new() -> Self {
        Self { places: Vec::new(), seed: RandomState::new() }
    }

    /// Takes one unit from the bucket of a source at time `now`; tells whether there was one.
    pub fn take(&mut self, source: IpAddr, rate: Rate, now: u64) -> bool {
        self.take_named(key(source), rate, now)
    }

    /// Like [`SourceBuckets::take`], for a source that is told from others by a number.
    pub fn take_named(&mut self, source: u64, rate: Rate, now: u64) -> bool {
        if rate == Rate::UNLIMITED {
            return true;
        }
        if self.places.is_empty() {
            self.places = vec![[Place::default(); WAYS]; SETS];
        }
        let hash = self.seed.hash_one(source);
        let index = usize::try_from(hash).unwrap_or(0) % SETS;
        let Some(set) = self.places.get_mut(index) else { return false };
        let known = set.iter_mut().position(|place| place.source == source && place.full_at > now);
        let place = match known {
            Some(way) => set.get_mut(way),
            None => set.iter_mut().min_by_key(|place| place.full_at),
        };
        let Some(place) = place else { return false };
        let full_at = if known.is_some() { place.full_at } else { now };
        let Some(full_at) = rate.take(full_at, now) else { return false };
        *place = Place { source, full_at };
        true
    }
}

impl Default for SourceBuckets {
    fn default() -> Self {
        Self::new()
    }
}

/// The families cannot meet: the network of an IPv6 host begins with other bits than 32 zeros.
fn key(source: IpAddr) -> u64 {
    match source.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => u64::try_from(v6.to_bits() >> 64).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const RATE: Rate = Rate::per_second(10, 3);
    const NOW: u64 = 5_000_000_000;

    fn passed(buckets: &mut SourceBuckets, source: &str, now: u64) -> usize {
        let source = source.parse().expect("address");
        (0..10).filter(|_| buckets.take(source, RATE, now)).count()
    }

    #[test]
    fn each_source_has_its_own_bucket() {
        let mut buckets = SourceBuckets::new();
        assert_eq!(passed(&mut buckets, "192.0.2.1", NOW), 3);
        assert_eq!(passed(&mut buckets, "192.0.2.2", NOW), 3);
        assert_eq!(passed(&mut buckets, "192.0.2.1", NOW), 0);
        assert_eq!(passed(&mut buckets, "::ffff:192.0.2.1", NOW), 0, "one source in two notations");
        assert_eq!(passed(&mut buckets, "192.0.2.1", NOW + 100_000_000), 1, "after 1/10 s");
        assert_eq!(passed(&mut buckets, "192.0.2.1", NOW + 10_000_000_000), 3, "full again");
    }

    #[test]
    fn a_network_of_ipv6_is_one_source() {
        let mut buckets = SourceBuckets::new();
        assert_eq!(passed(&mut buckets, "2001:db8::1", NOW), 3);
        assert_eq!(passed(&mut buckets, "2001:db8::ffff:2", NOW), 0);
        assert_eq!(passed(&mut buckets, "2001:db8:0:1::1", NOW), 3);
    }

    #[test]
    fn no_limit_needs_no_memory() {
        let mut buckets = SourceBuckets::new();
        let source = Ipv4Addr::LOCALHOST.into();
        assert!((0..1000).all(|_| buckets.take(source, Rate::UNLIMITED, NOW)));
        assert_eq!(buckets.places.capacity(), 0);
    }

    #[test]
    fn more_sources_than_places_are_still_served() {
        let mut buckets = SourceBuckets::new();
        let addresses = 0x0a00_0000..0x0a00_8000;
        let sources = addresses.map(|bits| Ipv4Addr::from_bits(bits).into());
        assert!(sources.into_iter().all(|source| buckets.take(source, RATE, NOW)));
        assert_eq!(buckets.places.len(), SETS);
    }
}
