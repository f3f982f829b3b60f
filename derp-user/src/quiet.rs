//! Keeps what strangers can cause from flooding the log.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use crate::relay::limit::TokenBucket;

const LINES_PER_SECOND: f64 = 2.0;
const LINES_AT_ONCE: f64 = 20.0;

/// A kind of log line that may come only so often.
#[derive(Debug)]
pub(crate) struct Quiet {
    bucket: Mutex<TokenBucket>,
    silent: AtomicU64,
}

impl Default for Quiet {
    fn default() -> Self {
        let bucket = TokenBucket::new(LINES_PER_SECOND, LINES_AT_ONCE, Instant::now());
        Self { bucket: Mutex::new(bucket), silent: AtomicU64::new(0) }
    }
}

impl Quiet {
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
}
