//! How much of who is here a watcher has been told.
//!
//! A new watcher is told in pieces, in the order of the keys, so that no memory holds all of it at
//! once. Until its turn has come, a key's coming and going concerns the watcher not: it will be told
//! of the key if it is still here then.

use std::ops::Bound;

use crate::proto::keys::NodePublic;

/// Most keys that a watcher is told of before its connection must have taken them.
pub(super) const PIECE: usize = 1024;

/// A connection that wants to hear who comes and goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watching {
    /// From where on the keys have not been told yet; `None` once all have.
    untold: Option<Bound<NodePublic>>,
}

impl Watching {
    /// One that has been told nothing.
    pub(super) const NEW: Self = Self { untold: Some(Bound::Unbounded) };

    /// Whether the watcher's knowledge of the key must be kept up to date.
    pub(super) fn covers(&self, key: &NodePublic) -> bool {
        match self.untold {
            None => true,
            Some(Bound::Excluded(last)) => *key <= last,
            Some(Bound::Included(_) | Bound::Unbounded) => false,
        }
    }

    /// Where the next piece begins, if there is one.
    pub(super) fn untold(&self) -> Option<Bound<NodePublic>> {
        self.untold
    }

    /// Notes that a whole piece was told that ended with `last`, or everything that was left.
    pub(super) fn told(&mut self, last: Option<NodePublic>) {
        self.untold = last.map(Bound::Excluded);
    }
}
