//! When packets are due.

use std::time::Duration;

/// Even times of sending: the first packet at `first`, then one each `interval`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pace {
    /// Nanoseconds from the beginning to the first packet.
    first: f64,
    /// Nanoseconds between packets.
    interval: f64,
}

impl Pace {
    /// The pace of the pair `index` of `pairs` that together offer `rate` Mbit/s in packets of
    /// `size` bytes on average. The pairs' packets are spread over the interval.
    pub(super) fn of_pair(rate: f64, size: f64, index: usize, pairs: usize) -> Self {
        let pairs = pairs.max(1) as f64;
        let interval = size * 8.0 * pairs * 1e3 / rate;
        Self { first: interval * index as f64 / pairs, interval }
    }

    /// One packet per `interval`.
    pub(super) fn every(interval: Duration) -> Self {
        Self { first: 0.0, interval: interval.as_nanos() as f64 }
    }

    /// When the packet `number`, counted from 0, is due.
    pub(super) fn due(&self, number: u64) -> Duration {
        // Beyond the range, the conversion saturates: never.
        Duration::from_nanos((self.first + self.interval * number as f64).ceil() as u64)
    }

    /// How many packets are due at `elapsed`, if `issued` have gone; no more than `most`.
    pub(super) fn owed(&self, issued: u64, elapsed: Duration, most: u64) -> u64 {
        (0..most).take_while(|more| self.due(issued + more) <= elapsed).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_kept() {
        // 100 Mbit/s in 1000-byte packets are 12,500 per second; of 10 pairs, 1,250 each.
        let paces: Vec<_> = (0..10).map(|index| Pace::of_pair(100.0, 1000.0, index, 10)).collect();
        let last = Duration::from_secs(1) - Duration::from_nanos(1);
        for (index, pace) in paces.iter().enumerate() {
            assert_eq!(pace.due(0), Duration::from_micros(80) * index as u32);
            assert_eq!(pace.due(1) - pace.due(0), Duration::from_micros(800));
            assert_eq!(pace.owed(0, last, u64::MAX), 1250);
        }
    }

    #[test]
    fn what_is_owed_is_bounded_and_paid_once() {
        let pace = Pace::every(Duration::from_millis(1));
        assert_eq!(pace.owed(0, Duration::ZERO, 9), 1);
        assert_eq!(pace.owed(1, Duration::from_micros(999), 9), 0);
        assert_eq!(pace.owed(1, Duration::from_millis(1), 9), 1);
        assert_eq!(pace.owed(1, Duration::from_secs(1), 9), 9);
        assert_eq!(pace.owed(1, Duration::from_secs(1), 5000), 1000);
    }

    #[test]
    fn a_tiny_rate_is_never_due_again() {
        assert!(Pace::of_pair(1e-12, 1400.0, 0, 1).due(1_000_000) > Duration::from_secs(1 << 30));
    }

    proptest! {
        /// A sender that wakes when a packet is due finds it due, and none twice.
        #[test]
        fn due_and_owed_agree(rate in 0.01f64..1e5, size in 1.0f64..65536.0, number in 0..1_000_000u64) {
            let pace = Pace::of_pair(rate, size, 3, 7);
            prop_assert!(pace.owed(number, pace.due(number), 1) == 1);
            if let Some(before) = pace.due(number).checked_sub(Duration::from_nanos(1)) {
                prop_assert_eq!(pace.owed(number, before, 1), 0);
            }
        }
    }
}
