//! Keeps what strangers can cause from flooding the log.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use crate::relay::limit::TokenBucket;

const LINES_PER_SECOND: f64 = 2.0;
const LINES_AT_ONCE: f64 = 20.0;
/// For what lasts: a line when it begins, and one a minute while it goes on.
const LASTING_LINES_PER_SECOND: f64 = 1.0 / 60.0;

/// A kind of log line that may come only so often.
#[derive(Debug)]
pub(crate) struct Quiet {
    bucket: Mutex<TokenBucket>,
    silent: AtomicU64,
}

impl Default for Quiet {
    fn default() -> Self {
        Self::new(LINES_PER_SECOND, LINES_AT_ONCE)
    }
}

impl Quiet {
    /// For a state of the whole server, where one line tells all: 1 at once, and 1 per minute.
    pub(crate) fn lasting() -> Self {
        Self::new(LASTING_LINES_PER_SECOND, 1.0)
    }

    fn new(lines_per_second: f64, lines_at_once: f64) -> Self {
        let bucket = TokenBucket::new(lines_per_second, lines_at_once, Instant::now());
        Self { bucket: Mutex::new(bucket), silent: AtomicU64::new(0) }
    }

    /// What to append to a line that may be written now: nothing, or how many lines like it were
    /// not. `None` if this one must not be written either.
    pub(crate) fn suffix(&self, now: Instant) -> Option<String> {
        if !self.bucket.lock().take(now) {
            self.silent.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(match self.silent.swap(0, Ordering::Relaxed) {
            0 => String::new(),
            1 => " (1 line like this was left out)".to_owned(),
            more => format!(" ({more} lines like this were left out)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_left_out_is_counted() {
        let quiet = Quiet::default();
        let now = Instant::now();
        let written = (0..100).filter_map(|_| quiet.suffix(now)).filter(String::is_empty).count();
        assert_eq!(written, 20);
        let later = now + Duration::from_secs(1);
        assert_eq!(quiet.suffix(later).unwrap(), " (80 lines like this were left out)");
        assert_eq!(quiet.suffix(later).unwrap(), "");
    }

    #[test]
    fn what_lasts_is_told_once_a_minute() {
        let quiet = Quiet::lasting();
        let now = Instant::now();
        assert_eq!(quiet.suffix(now).unwrap(), "");
        let after = |seconds| quiet.suffix(now + Duration::from_secs(seconds));
        assert!((1..58).all(|seconds| after(seconds).is_none()));
        assert_eq!(after(61).unwrap(), " (57 lines like this were left out)");
    }
}
