//! Histograms of the packet path, and how long packets wait: one writer each, like every counter there.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::Counter;

/// Bounds of the histogram of frames per write.
pub const FRAMES_PER_WRITE_BOUNDS: [u64; 16] =
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 20, 25, 50, 100];
/// Bounds of the histogram of news per batch to a watcher.
pub const MESH_BATCH_BOUNDS: [u64; 11] = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000];
/// Bounds of the histogram of batches that a watcher gets in one go.
pub const MESH_LOOP_BOUNDS: [u64; 8] = [0, 1, 2, 5, 10, 20, 50, 100];

/// A histogram with `N` bounds.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    buckets: [Counter; N],
    above: Counter,
    sum: Counter,
}

impl<const N: usize> Histogram<N> {
    /// A histogram whose buckets have these upper bounds, each included.
    pub fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            buckets: std::array::from_fn(|_| Counter::default()),
            above: Counter::default(),
            sum: Counter::default(),
        }
    }

    /// Records one value.
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        self.buckets.get(bucket).unwrap_or(&self.above).increment();
        self.sum.add(value);
    }
}

/// The sum of several [`Histogram`]s with the same bounds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HistogramTotals<const N: usize> {
    /// The upper bounds.
    pub bounds: [u64; N],
    /// Values by bucket, not cumulative.
    pub buckets: [u64; N],
    /// Values above the last bound.
    pub above: u64,
    /// All values together.
    pub sum: u64,
}

impl<const N: usize> HistogramTotals<N> {
    /// Nothing yet.
    pub const fn new(bounds: &[u64; N]) -> Self {
        Self { bounds: *bounds, buckets: [0; N], above: 0, sum: 0 }
    }

    /// Adds what one histogram holds.
    pub fn add(&mut self, histogram: &Histogram<N>) {
        for (total, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *total += bucket.value();
        }
        self.above += histogram.above.value();
        self.sum += histogram.sum.value();
    }

    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum::<u64>() + self.above
    }

    /// Returns for each bound how many values do not exceed it.
    pub fn cumulative(&self) -> [(u64, u64); N] {
        let mut below = 0;
        std::array::from_fn(|index| {
            below += self.buckets[index];
            (self.bounds[index], below)
        })
    }
}

/// Weight of each packet in the average of [`QueueTime`].
const WEIGHT: f64 = 0.1;

/// Moving average of the time that packets wait for their client's socket. A packet that is written at once has waited
/// for nothing; so as not to burden those, they are made up for by their number whenever the average is needed.
#[derive(Debug, Default)]
pub struct QueueTime {
    /// Milliseconds, as the bits of an f64.
    average: AtomicU64,
    /// How many packets had been sent when it was last changed.
    sent: AtomicU64,
}

impl QueueTime {
    /// Adds packets that have waited. `sent` counts all packets sent so far, these included if they were.
    pub fn record(&self, waits: &Waits, were_sent: bool, sent: u64) {
        let before = if were_sent { sent.saturating_sub(waits.count) } else { sent };
        let average = waits.continue_average(self.average(before));
        self.average.store(average.to_bits(), Ordering::Relaxed);
        self.sent.store(sent, Ordering::Relaxed);
    }

    /// The average in milliseconds, now that so many packets have been sent.
    pub fn average(&self, sent: u64) -> f64 {
        let at_once = sent.saturating_sub(self.sent.load(Ordering::Relaxed));
        decayed(f64::from_bits(self.average.load(Ordering::Relaxed)), at_once)
    }
}

/// Times that packets have waited, one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Waits {
    count: u64,
    /// Milliseconds with their weights in the average to come.
    weighted: f64,
}

impl Waits {
    /// Adds a packet.
    pub fn add(&mut self, time: Duration) {
        self.count += 1;
        // Whole ones, as derper counts.
        self.weighted = self.weighted * (1.0 - WEIGHT) + time.as_millis() as f64 * WEIGHT;
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn continue_average(&self, average: f64) -> f64 {
        decayed(average, self.count) + self.weighted
    }
}

fn decayed(average: f64, packets: u64) -> f64 {
    average * (1.0 - WEIGHT).powi(i32::try_from(packets).unwrap_or(i32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_include_their_bound() {
        let histogram = Histogram::new(&FRAMES_PER_WRITE_BOUNDS);
        for frames in [0, 1, 10, 11, 15, 100, 101] {
            histogram.record(frames);
        }
        let mut totals = HistogramTotals::new(&FRAMES_PER_WRITE_BOUNDS);
        totals.add(&histogram);
        assert_eq!(totals.buckets, [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1]);
        assert_eq!((totals.above, totals.sum, totals.count()), (1, 238, 7));
        assert_eq!(totals.cumulative()[11], (15, 5));
        totals.add(&histogram);
        assert_eq!((totals.above, totals.sum, totals.count()), (2, 476, 14));
    }

    #[test]
    fn packets_sent_at_once_count_as_no_time() {
        let mut expected = 0.0;
        let mut average = |milliseconds: f64| {
            expected = expected * 0.9 + milliseconds * 0.1;
            expected
        };
        let queue = QueueTime::default();
        let mut waits = Waits::default();
        waits.add(Duration::from_micros(100_900));
        waits.add(Duration::from_millis(50));
        queue.record(&waits, true, 12);
        average(100.0);
        assert!((queue.average(12) - average(50.0)).abs() < 1e-9);
        // Three at once, then one that is dropped after a second, which nothing counts as sent.
        let mut dropped = Waits::default();
        dropped.add(Duration::from_secs(1));
        queue.record(&dropped, false, 15);
        for _ in 0..3 {
            average(0.0);
        }
        assert!((queue.average(15) - average(1000.0)).abs() < 1e-9);
        assert!((queue.average(16) - average(0.0)).abs() < 1e-9);
        assert!(queue.average(1000) < 1e-9);
    }
}
