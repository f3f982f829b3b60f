//! A token bucket in one word: the generic cell rate algorithm (ITU-T I.371, annex A).
//!
//! A bucket is the time at which it will be full again. One word cannot be half updated, so two
//! processors that race for the same bucket at worst let one packet too many through.

use core::sync::atomic::AtomicU64;

use crate::cell;

/// How far the clock may lag behind, in nanoseconds: the kernel program reads one that advances with the
/// timer interrupt, at least 100 times a second. What comes in this time counts as coming at once.
pub const TICK: u64 = 10_000_000;

/// How fast and how unevenly something may happen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Rate {
    /// Nanoseconds that one unit uses up; 0 means unlimited.
    pub interval: u64,
    /// Nanoseconds' worth of units that may come at once, the next one included; at least [`TICK`].
    pub burst: u64,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { interval: 0, burst: 0 };

    /// Allows `per_second` units each second and `burst` at once (at least one); 0 per second is no limit.
    #[must_use]
    pub const fn per_second(per_second: u32, burst: u32) -> Self {
        if per_second == 0 {
            return Self::UNLIMITED;
        }
        let interval = match 1_000_000_000 / per_second as u64 {
            0 => 1,
            interval => interval,
        };
        let burst = if burst == 0 { 1 } else { burst };
        Self { interval, burst: interval * burst as u64 }
    }

    /// Takes one unit at time `now` from the bucket whose word is `full_at`.
    ///
    /// Returns the bucket's new word, or `None` when it is empty and stays as it is.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, full_at: u64, now: u64) -> Option<u64> {
        self.take_cost(self.interval, full_at, now)
    }

    /// Like [`Rate::take`], from a shared bucket; tells whether there was something to take.
    #[inline(always)]
    pub fn take_from(self, bucket: &AtomicU64, now: u64) -> bool {
        match self.take(cell::load(bucket), now) {
            Some(full_at) => {
                cell::store(bucket, full_at);
                true
            }
            None => false,
        }
    }

    /// Like [`Rate::take`], for something that uses up `cost` nanoseconds.
    #[inline(always)]
    #[must_use]
    pub const fn take_cost(self, cost: u64, full_at: u64, now: u64) -> Option<u64> {
        let start = if full_at > now { full_at } else { now };
        let next = start.wrapping_add(cost);
        let burst = if self.burst > TICK { self.burst } else { TICK };
        if next.wrapping_sub(now) > burst { None } else { Some(next) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Counts what is let through when one unit comes every `gap` nanoseconds.
    fn passed(rate: Rate, units: u64, gap: u64) -> u64 {
        let (mut bucket, mut passed) = (0, 0);
        for unit in 0..units {
            if let Some(next) = rate.take(bucket, 5 * SECOND + unit * gap) {
                bucket = next;
                passed += 1;
            }
        }
        passed
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let rate = Rate::per_second(100, 20);
        assert_eq!(passed(rate, 1000, 0), 20, "all at once");
        assert_eq!(passed(rate, 1000, 10_000_000), 1000, "at the rate");
        assert_eq!(passed(rate, 1000, 5_000_000), 519, "at twice the rate, for five seconds");
    }

    #[test]
    fn a_burst_of_nothing_lets_one_through() {
        assert_eq!(passed(Rate::per_second(1, 0), 10, 1), 1);
    }

    #[test]
    fn a_clock_that_advances_in_ticks_does_not_slow_a_steady_sender() {
        let (mut bucket, mut passed) = (0, 0);
        for unit in 0..10_000_u64 {
            let now = 5 * SECOND + unit * 100_000 / TICK * TICK;
            if let Some(next) = Rate::per_second(10_000, 1).take(bucket, now) {
                bucket = next;
                passed += 1;
            }
        }
        assert_eq!(passed, 10_000);
    }

    proptest! {
        #[test]
        fn never_more_than_rate_and_burst(per_second in 1u32..100_000, burst in 1u32..1000, gap in 1u64..1_000_000) {
            let units = 2_000;
            let at_once = u64::from(burst).max(u64::from(per_second) * TICK / SECOND);
            let most = at_once + units * gap * u64::from(per_second) / SECOND + 2;
            prop_assert!(passed(Rate::per_second(per_second, burst), units, gap) <= most);
        }
    }
}
