//! A server: the real relay, and what the glue around it keeps.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use derp_user::relay::{ConnectionId, Relay};

use crate::{
    keys::{KeyNumber, key},
    links::LinkNumber,
};

/// What a connection of a server is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum End {
    /// It has ended.
    Gone,
    Client(u32),
    /// The link of another server, which watches.
    Watcher(LinkNumber),
    /// Our link to another server.
    Link(LinkNumber),
}

/// No connection.
pub(crate) const NOWHERE: u32 = 0;

pub(crate) struct Server {
    pub(crate) relay: Relay<u32>,
    pub(crate) key: KeyNumber,
    pub(crate) up: bool,
    /// The region's name leads to it.
    pub(crate) listed: bool,
    /// Key to connection, as the relay's effects say.
    routes: Vec<u32>,
    /// Every connection it ever had. The first one is [`NOWHERE`].
    ends: Vec<End>,
    /// Connections that share their key.
    pub(crate) duplicates: BTreeSet<u32>,
    /// Its link to each server.
    pub(crate) links_to: Vec<Option<LinkNumber>>,
    /// How far its clock is off, in nanoseconds.
    pub(crate) clock_offset: i64,
    /// When its network interface has sent, and received, everything.
    pub(crate) sends_until: u64,
    pub(crate) receives_until: u64,
}

impl Server {
    pub(crate) fn new(key_number: KeyNumber, servers: usize, keys: usize) -> Self {
        Self {
            relay: Relay::new(key(key_number)),
            key: key_number,
            up: true,
            listed: true,
            routes: vec![NOWHERE; keys],
            ends: vec![End::Gone],
            duplicates: BTreeSet::new(),
            links_to: vec![None; servers],
            clock_offset: 0,
            sends_until: 0,
            receives_until: 0,
        }
    }

    /// Everything it knew is gone. Names of connections are not used again.
    pub(crate) fn crash(&mut self, key_number: KeyNumber) {
        let (servers, keys) = (self.links_to.len(), self.routes.len());
        let ends = vec![End::Gone; self.ends.len()];
        let Self { listed, clock_offset, .. } = *self;
        let new = Self::new(key_number, servers, keys);
        *self = Self { up: false, listed, clock_offset, ends, ..new };
    }

    pub(crate) fn open(&mut self, end: End) -> u32 {
        self.ends.push(end);
        (self.ends.len() - 1) as u32
    }

    /// What the connection was, if it has not ended before.
    pub(crate) fn close(&mut self, connection: u32) -> Option<End> {
        self.duplicates.remove(&connection);
        let end = std::mem::replace(&mut self.ends[connection as usize], End::Gone);
        (end != End::Gone).then_some(end)
    }

    pub(crate) fn end(&self, connection: u32) -> End {
        self.ends[connection as usize]
    }

    /// The connection that packets for a key take.
    pub(crate) fn route(&self, key: KeyNumber) -> Option<(ConnectionId, End)> {
        let connection = self.routes.get(key as usize).copied().unwrap_or(NOWHERE);
        (connection != NOWHERE).then(|| (connection.into(), self.end(connection)))
    }

    pub(crate) fn set_route(&mut self, key: KeyNumber, to: Option<u32>) {
        let at = key as usize;
        if self.routes.len() <= at {
            self.routes.resize(at + 1, NOWHERE);
        }
        self.routes[at] = to.unwrap_or(NOWHERE);
    }

    /// What its clock shows; `start` is the true time of the beginning.
    pub(crate) fn clock(&self, start: Instant, now: u64) -> Instant {
        let offset = Duration::from_nanos(self.clock_offset.unsigned_abs());
        let now = start + Duration::from_nanos(now);
        if self.clock_offset < 0 { now - offset } else { now + offset }
    }
}
