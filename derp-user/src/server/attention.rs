//! How the task that owns something is told by others that there is something to do.

use std::task::{Context, Poll};

use super::sync::{AtomicBool, AtomicWaker, Ordering};

/// A call that is never lost: whoever calls while the owner is about to wait wakes it. Several calls may count as one.
#[derive(Debug, Default)]
pub(super) struct Attention {
    is_wanted: AtomicBool,
    owner: AtomicWaker,
}

impl Attention {
    /// Calls the owner.
    pub(super) fn call(&self) {
        // Whoever called before wakes it, or has done so.
        if !self.is_wanted.swap(true, Ordering::AcqRel) {
            self.owner.wake();
        }
    }

    /// Waits for a call. Only the owner may call this.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        // The other way round, a call in between would wake nobody.
        self.owner.register(context.waker());
        if self.is_wanted.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}
