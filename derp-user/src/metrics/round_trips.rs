//! How far away clients are, by what the kernel's TCP has measured.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds in milliseconds and their labels, which are derper's. Unlike in a histogram, each value counts in one
/// bucket only.
const BOUNDS: [(u64, &str); 7] = [
    (10, "10ms"),
    (20, "20ms"),
    (50, "50ms"),
    (100, "100ms"),
    (150, "150ms"),
    (250, "250ms"),
    (500, "500ms"),
];
const ABOVE: &str = "inf";
const FAILED: &str = "error";
const BUCKETS: usize = BOUNDS.len() + 2;

/// Round trip times, sampled again and again.
#[derive(Debug, Default)]
pub struct RoundTrips([AtomicU64; BUCKETS]);

impl RoundTrips {
    /// Counts what one connection has now; `None` if that could not be read.
    pub fn record(&self, time: Option<Duration>) {
        let bucket = match time {
            Some(time) => BOUNDS.partition_point(|&(bound, _)| Duration::from_millis(bound) < time),
            None => BOUNDS.len() + 1,
        };
        self.0[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Samples so far by label.
    pub fn totals(&self) -> RoundTripTotals {
        let labels = BOUNDS.iter().map(|&(_, label)| label).chain([ABOVE, FAILED]);
        let values = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        labels.zip(values).collect()
    }
}

/// Samples by label.
pub type RoundTripTotals = Vec<(&'static str, u64)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_counts_once() {
        let trips = RoundTrips::default();
        for micros in [0, 10_000, 10_001, 500_000, 500_001, 9_000_000] {
            trips.record(Some(Duration::from_micros(micros)));
        }
        trips.record(None);
        let expected = [
            ("10ms", 2),
            ("20ms", 1),
            ("50ms", 0),
            ("100ms", 0),
            ("150ms", 0),
            ("250ms", 0),
            ("500ms", 1),
            ("inf", 2),
            ("error", 1),
        ];
        assert_eq!(trips.totals(), expected);
    }
}
