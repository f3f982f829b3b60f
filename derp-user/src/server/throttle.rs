//! The byte rate limit of one client.
//!
//! A frame that is too early waits, and everything behind it on its connection: nothing is dropped,
//! the client's TCP connection fills up instead (reference section 3.14).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::rates::Rates;
use crate::relay::limit::ByteBucket;

/// How often a connection that waits looks whether the limit has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One client's bucket.
#[derive(Debug)]
pub(super) struct Throttle {
    rates: Arc<Rates>,
    changes: u64,
    bucket: Option<ByteBucket>,
    /// When the frame that waits may be handled.
    until: Option<Instant>,
    /// The frame that waits has been charged.
    charged: bool,
}

impl Throttle {
    pub(super) fn new(rates: Arc<Rates>, now: Instant) -> Self {
        let (changes, limit) = rates.read();
        let bucket = limit.map(|limit| ByteBucket::new(limit, now));
        Self { rates, changes, bucket, until: None, charged: false }
    }

    /// Whether a frame with a payload of this length may be handled now. If not, nothing may be until
    /// [`Self::resume`] says so, and then this frame is the first.
    pub(super) fn pass(&mut self, payload: usize, now: Instant) -> bool {
        if std::mem::take(&mut self.charged) {
            return true;
        }
        let passed = self.pass_unwanted(payload, now);
        self.charged = !passed;
        passed
    }

    /// The same for a frame that is only skipped: what comes behind it waits.
    pub(super) fn pass_unwanted(&mut self, payload: usize, now: Instant) -> bool {
        self.follow(now);
        let Some(bucket) = &mut self.bucket else { return true };
        let wait = bucket.charge(payload as u64, now);
        self.until = (!wait.is_zero()).then(|| now + wait);
        self.until.is_none()
    }

    /// Until when nothing may be read; a change of the limit may end it earlier.
    pub(super) fn waits_until(&self, now: Instant) -> Option<Instant> {
        self.until.map(|until| until.min(now + LOOK_AGAIN))
    }

    /// Whether the wait, if there is one, is over.
    pub(super) fn resume(&mut self, now: Instant) -> bool {
        self.follow(now);
        if self.until.is_some_and(|until| now < until) {
            return false;
        }
        self.until = None;
        true
    }

    fn follow(&mut self, now: Instant) {
        if self.rates.changes() != self.changes {
            *self = Self { charged: self.charged, ..Self::new(Arc::clone(&self.rates), now) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::limit::{LEAST_BURST, RateLimit};

    const BURST: usize = LEAST_BURST as usize;

    fn limit(bytes_per_second: u64) -> Option<RateLimit> {
        Some(RateLimit { bytes_per_second, burst: LEAST_BURST, announced: false })
    }

    #[test]
    fn a_frame_that_waited_is_not_charged_again() {
        let now = Instant::now();
        let mut throttle = Throttle::new(Arc::new(Rates::new(limit(1000))), now);
        assert!(throttle.pass(BURST, now));
        assert_eq!(throttle.waits_until(now), None);
        assert!(!throttle.pass(500, now));
        assert_eq!(throttle.waits_until(now), Some(now + Duration::from_millis(500)));
        assert!(!throttle.resume(now + Duration::from_millis(499)));
        let over = now + Duration::from_millis(500);
        assert!(throttle.resume(over));
        assert!(throttle.pass(500, over), "the one that waited");
        assert!(!throttle.pass(1, over), "the next one");
    }

    #[test]
    fn a_skipped_frame_is_not_confused_with_the_next() {
        let now = Instant::now();
        let mut throttle = Throttle::new(Arc::new(Rates::new(limit(1000))), now);
        assert!(throttle.pass_unwanted(BURST, now));
        assert!(!throttle.pass_unwanted(100, now));
        let over = now + Duration::from_millis(100);
        assert!(throttle.resume(over));
        assert!(!throttle.pass(100, over), "charged by itself");
    }

    #[test]
    fn changes_reach_whoever_waits() {
        let now = Instant::now();
        let rates = Arc::new(Rates::new(limit(1)));
        let mut throttle = Throttle::new(Arc::clone(&rates), now);
        assert!(throttle.pass(BURST, now));
        assert!(!throttle.pass(BURST, now));
        assert_eq!(throttle.waits_until(now), Some(now + LOOK_AGAIN), "not 18 hours");
        assert!(!throttle.resume(now + LOOK_AGAIN));
        rates.set(None);
        assert!(throttle.resume(now + LOOK_AGAIN));
        for _ in 0..3 {
            assert!(throttle.pass(BURST, now + LOOK_AGAIN));
        }
        rates.set(limit(1000));
        assert!(throttle.pass(BURST, now + LOOK_AGAIN), "a new bucket is full");
        assert!(!throttle.pass(1, now + LOOK_AGAIN));
    }
}
