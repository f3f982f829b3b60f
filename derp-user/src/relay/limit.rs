//! A token bucket on given time.

use std::time::Instant;

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
        if self.per_second.is_infinite() {
            return true;
        }
        let elapsed = now.saturating_duration_since(self.filled_at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * self.per_second).min(self.burst);
        self.filled_at = self.filled_at.max(now);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
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
    fn an_infinite_rate_has_no_limit() {
        let now = Instant::now();
        let mut bucket = TokenBucket::new(f64::INFINITY, 0.0, now);
        assert!((0..1000).all(|_| bucket.take(now)));
    }
}
