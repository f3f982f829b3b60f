//! The byte rate limit that all clients follow, which connections look at for every frame.

use super::sync::{AtomicU64, Mutex, Ordering};
use crate::relay::limit::RateLimit;

/// The limit of every client, which may change at any time.
#[derive(Debug)]
pub struct Rates {
    limit: Mutex<Option<RateLimit>>,
    changes: AtomicU64,
}

impl Rates {
    /// Begins with this limit, or none.
    pub fn new(limit: Option<RateLimit>) -> Self {
        Self { limit: Mutex::new(limit), changes: AtomicU64::new(0) }
    }

    /// The limit now.
    pub fn limit(&self) -> Option<RateLimit> {
        *self.limit.lock()
    }

    /// Sets another limit. Every connection gets a new, full bucket at its next frame, and one that
    /// waits within a second.
    pub fn set(&self, limit: Option<RateLimit>) {
        *self.limit.lock() = limit;
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Changes so far.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// Changes so far, and the limit. The limit may be newer than the number says, never older.
    pub(super) fn read(&self) -> (u64, Option<RateLimit>) {
        (self.changes(), self.limit())
    }
}
