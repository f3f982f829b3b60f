//! How much each source of STUN requests has asked.

use core::sync::atomic::AtomicU64;

use crate::{address::SCATTER, cell, rate::Rate};

/// Sources that share a place.
const WAYS: usize = 4;

/// The buckets of up to four sources; 64 bytes, a cache line.
///
/// A bucket that is full says no more than none at all: whoever comes new takes the place of such a source,
/// which loses nothing by it. Only where all four have asked of late, the one that has the least to lose is
/// forgotten.
///
/// Nothing is locked. Where two processors give one way to two sources at once, one of them may be charged
/// with the other's packets until then, or be let through once too often.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct StunBuckets {
    /// Whose they are ([`Address::rate_key`](crate::Address::rate_key)).
    keys: [AtomicU64; WAYS],
    /// When they will be full ([`Rate::take`]).
    full_at: [AtomicU64; WAYS],
}

impl StunBuckets {
    /// How many of these hold the buckets of so many sources: a power of two.
    #[must_use]
    pub const fn count(sources: u32) -> u32 {
        sources.div_ceil(WAYS as u32).next_power_of_two()
    }

    /// Returns how many sources so many of these hold.
    #[must_use]
    pub const fn sources(count: u32) -> u32 {
        count.saturating_mul(WAYS as u32)
    }

    /// Returns which of [`StunBuckets::count`], given less one, a source's bucket is in.
    #[inline(always)]
    #[must_use]
    pub const fn index(key: u64, mask: u32) -> u32 {
        // Upper bits depend on all bits of the key.
        ((key ^ key >> 32).wrapping_mul(SCATTER) >> 40) as u32 & mask
    }

    /// Takes one unit from the bucket of a source; tells whether there was one to take.
    #[inline(always)]
    pub fn take(&self, key: u64, rate: Rate, now: u64) -> bool {
        let [a, b, c, d] = &self.keys;
        let [at_a, at_b, at_c, at_d] = &self.full_at;
        let known = if cell::load(a) == key {
            at_a
        } else if cell::load(b) == key {
            at_b
        } else if cell::load(c) == key {
            at_c
        } else if cell::load(d) == key {
            at_d
        } else {
            return self.admit(key, rate, now);
        };
        rate.take_from(known, now)
    }

    /// Gives a source a bucket, and takes from it.
    #[inline(always)]
    fn admit(&self, key: u64, rate: Rate, now: u64) -> bool {
        let [a, b, c, d] = &self.keys;
        let [at_a, at_b, at_c, at_d] = &self.full_at;
        let mut least = (cell::load(at_a), a, at_a);
        for (key, full_at) in [(b, at_b), (c, at_c), (d, at_d)] {
            let at = cell::load(full_at);
            if at < least.0 {
                least = (at, key, full_at);
            }
        }
        let (_, place, full_at) = least;
        let Some(next) = rate.take(0, now) else { return false };
        cell::store(place, key);
        cell::store(full_at, next);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000_000_000;
    const RATE: Rate = Rate::per_second(1, 3);

    fn passed(buckets: &StunBuckets, key: u64, units: usize, now: u64) -> usize {
        (0..units).filter(|_| buckets.take(key, RATE, now)).count()
    }

    #[test]
    fn each_source_has_a_bucket_of_its_own() {
        let buckets = StunBuckets::default();
        for key in 1..=4 {
            assert_eq!(passed(&buckets, key, 10, NOW), 3, "{key}");
        }
        for key in 1..=4 {
            assert_eq!(passed(&buckets, key, 10, NOW), 0, "{key}");
            assert_eq!(passed(&buckets, key, 10, NOW + 1_000_000_000), 1, "{key}");
        }
    }

    #[test]
    fn a_newcomer_takes_the_place_of_who_has_nothing_to_lose() {
        let buckets = StunBuckets::default();
        for key in [1, 2, 4] {
            assert_eq!(passed(&buckets, key, 3, NOW), 3);
        }
        assert_eq!(passed(&buckets, 3, 1, NOW), 1);
        let later = NOW + 1_000_000_000;
        assert_eq!(
            passed(&buckets, 5, 9, later),
            3,
            "in the place of 3, whose bucket is full again"
        );
        for key in [1, 2, 4] {
            assert_eq!(passed(&buckets, key, 9, later), 1, "{key} is not forgotten");
        }
        assert_eq!(passed(&buckets, 6, 9, later), 3, "served, whoever is forgotten for it");
    }

    #[test]
    fn a_key_of_zero_is_a_source_like_any() {
        let buckets = StunBuckets::default();
        assert_eq!(passed(&buckets, 0, 9, NOW), 3);
        assert_eq!(passed(&buckets, 1, 9, NOW), 3);
        assert_eq!(passed(&buckets, 0, 9, NOW), 0);
    }

    #[test]
    fn sources_are_spread_over_all_places() {
        assert_eq!([1, 4, 5, 65_536].map(StunBuckets::count), [1, 1, 2, 16_384]);
        for keys in [|it: u64| it << 32, |it: u64| it, |it: u64| it << 48 | 0xb80d_0120] {
            let mut found = std::collections::BTreeMap::<u32, u32>::new();
            for number in 0..1024 {
                *found.entry(StunBuckets::index(keys(number), 255)).or_default() += 1;
            }
            let (used, most) = (found.len(), found.values().max());
            assert!(used > 230 && most < Some(&12), "{used} of 256 used, {most:?} in one");
        }
    }
}
