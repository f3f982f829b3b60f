//! What the userspace STUN server has counted, under derper's names.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of the userspace STUN server; shared by all its sockets.
#[derive(Debug, Default)]
pub struct StunCounters {
    read_error: AtomicU64,
    not_stun: AtomicU64,
    write_error: AtomicU64,
    success: AtomicU64,
    ipv4: AtomicU64,
    ipv6: AtomicU64,
}

impl StunCounters {
    /// Returns `stun_requests` by its label `disposition`: what became of each datagram. A refusal that
    /// was sent is a success.
    #[must_use]
    pub fn requests(&self) -> [(&'static str, u64); 4] {
        [
            ("read_error", load(&self.read_error)),
            ("not_stun", load(&self.not_stun)),
            ("write_error", load(&self.write_error)),
            ("success", load(&self.success)),
        ]
    }

    /// Returns `stun_addrfamily` by its label `family`, of valid requests only.
    #[must_use]
    pub fn families(&self) -> [(&'static str, u64); 2] {
        [("ipv4", load(&self.ipv4)), ("ipv6", load(&self.ipv6))]
    }

    pub(super) fn read_error(&self) {
        add(&self.read_error);
    }

    pub(super) fn not_stun(&self) {
        add(&self.not_stun);
    }

    pub(super) fn write_error(&self) {
        add(&self.write_error);
    }

    pub(super) fn success(&self) {
        add(&self.success);
    }

    pub(super) fn valid(&self, is_ipv4: bool) {
        add(if is_ipv4 { &self.ipv4 } else { &self.ipv6 });
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
