//! Counts and delays, added up over connections and threads.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Delays with three significant digits, from 1 ns to a minute.
#[derive(Clone, Debug)]
pub(in crate::tools) struct Delays(Histogram<u64>);

const LONGEST: Duration = Duration::from_secs(60);
const DIGITS: u8 = 3;

impl Default for Delays {
    fn default() -> Self {
        Self(
            Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, DIGITS)
                .expect("the bounds are in order and the digits at most five"),
        )
    }
}

impl Delays {
    /// Counts one delay; beyond a minute it counts as a minute.
    pub(in crate::tools) fn record(&mut self, delay: Duration) {
        self.0.saturating_record(u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX));
    }

    /// How many there are.
    pub(in crate::tools) fn count(&self) -> u64 {
        self.0.len()
    }

    /// The delay that this share of all do not exceed; zero if there is none.
    pub(in crate::tools) fn quantile(&self, share: f64) -> Duration {
        Duration::from_nanos(self.0.value_at_quantile(share))
    }

    /// The longest delay.
    pub(in crate::tools) fn longest(&self) -> Duration {
        Duration::from_nanos(self.0.max())
    }

    /// Adds those of another thread.
    pub(in crate::tools) fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }
}

/// What one kind of traffic came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Packets that the sockets took.
    pub(super) sent: u64,
    /// Packets that arrived.
    pub(super) received: u64,
    /// Bytes of the packets that arrived.
    pub(super) received_bytes: u64,
    /// When the last one arrived.
    pub(super) last_received: Option<Instant>,
    /// How long stamped packets took.
    pub(super) delays: Option<Delays>,
    /// Connections that ended before their time.
    pub(super) disconnected: u64,
}

impl Tally {
    /// Adds that of another thread.
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.received_bytes += other.received_bytes;
        self.last_received = self.last_received.max(other.last_received);
        self.disconnected += other.disconnected;
        if let Some(delays) = &other.delays {
            self.delays.get_or_insert_default().add(delays);
        }
    }

    /// Share of the packets sent that did not arrive, in per cent.
    pub(super) fn loss_percent(&self) -> f64 {
        let lost = self.sent.saturating_sub(self.received);
        per(lost as f64 * 100.0, self.sent as f64)
    }

    /// Mbit/s of packets that arrived in `duration`.
    pub(super) fn received_mbps(&self, duration: Duration) -> f64 {
        per(self.received_bytes as f64 * 8.0 / 1e6, duration.as_secs_f64())
    }
}

/// `amount` per one of `count`; nothing if there are none.
pub(super) fn per(amount: f64, count: f64) -> f64 {
    if count > 0.0 { amount / count } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_distribution() {
        let mut delays = Delays::default();
        (1..=1000).for_each(|number| delays.record(Duration::from_micros(number)));
        let near = |share, micros: f64| {
            let found = delays.quantile(share).as_secs_f64() * 1e6;
            assert!((found / micros - 1.0).abs() < 0.002, "{share}: {found}");
        };
        near(0.5, 500.0);
        near(0.9, 900.0);
        near(0.999, 999.0);
        assert_eq!(delays.count(), 1000);
        assert!(delays.longest() >= Duration::from_millis(1));
    }

    #[test]
    fn nothing_and_too_much_are_no_problem() {
        let mut delays = Delays::default();
        assert_eq!((delays.quantile(0.5), delays.longest()), (Duration::ZERO, Duration::ZERO));
        delays.record(Duration::from_secs(1 << 40));
        delays.record(Duration::ZERO);
        assert_eq!(delays.count(), 2);
        assert!(delays.longest() >= LONGEST);
    }

    #[test]
    fn tallies_add_up() {
        let now = Instant::now();
        let mut delays = Delays::default();
        delays.record(Duration::from_millis(1));
        let one = Tally {
            sent: 10,
            received: 7,
            received_bytes: 7000,
            last_received: Some(now),
            delays: Some(delays),
            disconnected: 1,
        };
        let mut sum = Tally::default();
        sum.add(&one);
        sum.add(&one);
        assert_eq!((sum.sent, sum.received, sum.disconnected), (20, 14, 2));
        assert_eq!(sum.last_received, Some(now));
        assert_eq!(sum.delays.as_ref().map(Delays::count), Some(2));
        assert!((sum.loss_percent() - 30.0).abs() < 1e-9);
        assert!((sum.received_mbps(Duration::from_secs(2)) - 0.056).abs() < 1e-9);
    }

    #[test]
    fn of_nothing_nothing_is_lost() {
        assert_eq!(Tally::default().loss_percent(), 0.0);
        assert_eq!(Tally::default().received_mbps(Duration::ZERO), 0.0);
        let more = Tally { sent: 1, received: 2, ..Tally::default() };
        assert_eq!(more.loss_percent(), 0.0);
    }
}
