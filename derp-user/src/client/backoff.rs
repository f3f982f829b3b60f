//! How long to wait before a server is dialled again. Without I/O.

use std::time::Duration;

/// Longest wait for a relay: what derper always waits.
const LONGEST: Duration = Duration::from_secs(5);
/// Longest wait after the first failure.
const FIRST: Duration = Duration::from_millis(500);
/// A connection that stood for this long was a success.
const SUCCESS: Duration = Duration::from_secs(5);

/// Doubles the wait with every failure. Waits are spread, so that the clients and mesh peers of a server
/// that has restarted do not all come at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(FIRST, LONGEST)
    }
}

impl Backoff {
    /// A wait of at most `first` after the first failure, and never of more than `longest`.
    pub(crate) const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// Notes that a connection has stood for this long.
    pub(crate) fn stood(&mut self, lasted: Duration) {
        if lasted >= SUCCESS {
            self.failures = 0;
        }
    }

    /// The wait after a failure, or after the end of a connection. `fraction`, from 0 to 1, is random.
    pub(crate) fn next(&mut self, fraction: f64) -> Duration {
        let longest = self.first.saturating_mul(1 << self.failures.min(10)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_derpers_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..6).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 5000, 5000]);
        backoff.stood(Duration::from_secs(1));
        assert_eq!(backoff.next(0.0), Duration::from_millis(2500), "half of it at least");
        backoff.stood(Duration::from_secs(5));
        assert_eq!(backoff.next(1.0), FIRST);
    }
}
