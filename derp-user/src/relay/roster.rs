//! The connections that share one key.

use super::ConnectionId;

/// Connections of one key, the one that joined or spoke last at the end: that one is active.
#[derive(Debug, Default)]
pub(super) struct Roster {
    by_recency: Vec<ConnectionId>,
}

impl Roster {
    pub(super) fn len(&self) -> usize {
        self.by_recency.len()
    }

    /// The connection that gets the key's packets.
    pub(super) fn active(&self) -> Option<ConnectionId> {
        self.by_recency.last().copied()
    }

    pub(super) fn members(&self) -> impl Iterator<Item = ConnectionId> {
        self.by_recency.iter().copied()
    }

    pub(super) fn others(&self, id: ConnectionId) -> impl Iterator<Item = ConnectionId> {
        self.members().filter(move |&member| member != id)
    }

    pub(super) fn join(&mut self, id: ConnectionId) {
        self.by_recency.push(id);
    }

    pub(super) fn leave(&mut self, id: ConnectionId) {
        self.by_recency.retain(|&member| member != id);
    }

    /// Makes a member the active one; whether that changes anything.
    pub(super) fn spoke(&mut self, id: ConnectionId) -> bool {
        if self.active() == Some(id) || !self.by_recency.contains(&id) {
            return false;
        }
        self.leave(id);
        self.join(id);
        true
    }
}
