//! Clients, as they really are: what servers believe is compared with this.

use std::collections::BTreeSet;

use crate::keys::KeyNumber;

/// A connection of a client.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) server: u32,
    pub(crate) connection: u32,
    /// The client has left it without a word; the server will notice.
    pub(crate) dead: bool,
    /// Whose packets came, ...
    pub(crate) received_from: BTreeSet<KeyNumber>,
    /// ... whose departure it was told, ...
    pub(crate) told: BTreeSet<KeyNumber>,
    /// ... and whose departure it must be told: the server knew the sender when the packet came.
    pub(crate) expects: BTreeSet<KeyNumber>,
}

impl Session {
    pub(crate) fn new(server: u32, connection: u32) -> Self {
        Self {
            server,
            connection,
            dead: false,
            received_from: BTreeSet::new(),
            told: BTreeSet::new(),
            expects: BTreeSet::new(),
        }
    }
}

/// One key. Its connections are in the order in which they came or spoke; usually there is one.
#[derive(Debug, Default)]
pub(crate) struct Client {
    pub(crate) sessions: Vec<Session>,
}

impl Client {
    pub(crate) fn session(&mut self, server: u32, connection: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|it| it.server == server && it.connection == connection)
    }

    pub(crate) fn remove(&mut self, server: u32, connection: u32) {
        self.sessions.retain(|it| it.server != server || it.connection != connection);
    }

    pub(crate) fn is_at(&self, server: u32) -> bool {
        self.sessions.iter().any(|session| session.server == server)
    }

    /// The connection that gets the packets that come to `server`.
    pub(crate) fn active_at(&self, server: u32) -> Option<&Session> {
        self.sessions.iter().rev().find(|session| session.server == server)
    }
}
