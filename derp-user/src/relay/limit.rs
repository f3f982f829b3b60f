//! Token buckets on given time.

use std::time::{Duration, Instant};

use crate::proto::{frame::MAX_PACKET_LENGTH, keys::KEY_LENGTH};

/// Bytes that every burst allows, and the most that one frame is charged: the largest SendPacket frame.
pub const LEAST_BURST: u64 = (KEY_LENGTH + MAX_PACKET_LENGTH) as u64;

/// How much each client may send (reference section 3.14).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RateLimit {
    /// Bytes of frame payloads on average; never 0.
    pub bytes_per_second: u64,
    /// Bytes of frame payloads at once; at least [`LEAST_BURST`].
    pub burst: u64,
    /// Whether clients are told, so that they drop what is too much instead of being held up.
    pub announced: bool,
}

/// Charges bytes: whoever takes more than there is waits until it has been refilled. Starts full.
#[derive(Clone, Copy, Debug)]
pub struct ByteBucket {
    bytes_per_second: f64,
    burst: f64,
    /// Negative while somebody waits.
    bytes: f64,
    filled_at: Instant,
}

impl ByteBucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        let burst = limit.burst as f64;
        let bytes_per_second = limit.bytes_per_second as f64;
        Self { bytes_per_second, burst, bytes: burst, filled_at: now }
    }

    /// Takes the bytes of one frame; how long its handling must wait.
    pub fn charge(&mut self, length: u64, now: Instant) -> Duration {
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.bytes = (self.bytes + elapsed * self.bytes_per_second).min(self.burst);
        self.filled_at = self.filled_at.max(now);
        self.bytes -= length.min(LEAST_BURST) as f64;
        if self.bytes >= 0.0 {
            return Duration::ZERO;
        }
        // A day at least for one byte per second; far from what a Duration or an Instant can hold.
        Duration::from_secs_f64(-self.bytes / self.bytes_per_second)
    }
}

/// Allows `burst` events at once and `per_second` on average. Starts full.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled_at: Instant,
}

impl TokenBucket {
    /// A full bucket. Neither figure may be negative or NaN; an infinite rate allows everything.
    pub fn new(per_second: f64, burst: f64, now: Instant) -> Self {
        Self { per_second, burst, tokens: burst, filled_at: now }
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1.0, now)
    }

    /// Takes this many tokens, if there are as many; none otherwise.
    pub fn take_many(&mut self, count: f64, now: Instant) -> bool {
        if self.per_second.is_infinite() {
            return true;
        }
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        self.filled_at = self.filled_at.max(now);
        let allowed = self.tokens >= count;
        if allowed {
            self.tokens -= count;
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1.0, 3.0, start);
        let taken = |bucket: &mut TokenBucket, at| (0..6).filter(|_| bucket.take(at)).count();
        assert_eq!(taken(&mut bucket, start), 3);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(900)), 0);
        assert_eq!(taken(&mut bucket, start + Duration::from_millis(1100)), 1);
        assert_eq!(taken(&mut bucket, start + Duration::from_secs(1000)), 3);
        assert_eq!(taken(&mut bucket, start), 0, "time that runs backwards adds nothing");
    }

    #[test]
    fn case_57_bytes_pass_at_once_up_to_the_burst_and_then_wait() {
        let start = Instant::now();
        let limit = RateLimit { bytes_per_second: 1000, burst: LEAST_BURST, announced: false };
        let mut bucket = ByteBucket::new(limit, start);
        assert_eq!(bucket.charge(LEAST_BURST, start), Duration::ZERO);
        assert_eq!(bucket.charge(500, start), Duration::from_millis(500));
        assert_eq!(bucket.charge(500, start), Duration::from_secs(1), "behind the one that waits");
        let later = start + Duration::from_secs(1);
        assert_eq!(bucket.charge(0, later), Duration::ZERO);
        assert_eq!(bucket.charge(100, later), Duration::from_millis(100));
        let rested = later + Duration::from_secs(1000);
        assert_eq!(bucket.charge(LEAST_BURST, rested), Duration::ZERO, "never more than the burst");
        assert_eq!(bucket.charge(1, rested), Duration::from_millis(1));
    }

    #[test]
    fn a_frame_is_charged_no_more_than_the_least_burst() {
        let start = Instant::now();
        let limit = RateLimit { bytes_per_second: 1, burst: u64::MAX, announced: false };
        let mut bucket = ByteBucket::new(limit, start);
        assert_eq!(bucket.charge(u64::MAX, start), Duration::ZERO);
        let slow = RateLimit { bytes_per_second: 1, burst: LEAST_BURST, announced: false };
        let mut bucket = ByteBucket::new(slow, start);
        assert_eq!(bucket.charge(u64::MAX, start), Duration::ZERO);
        assert_eq!(bucket.charge(u64::MAX, start), Duration::from_secs(LEAST_BURST));
    }

    #[test]
    fn an_infinite_rate_has_no_limit() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(f64::INFINITY, 0.0, now);
        assert!((0..1000).all(|_| bucket.take(now)));
    }
}
