//! Who is connected and who must be told what: the rules of the relay without I/O.
//!
//! The glue calls a method for every event, under one lock, and then carries out the returned
//! effects in order. A relayed packet never comes here: the glue keeps its own read-only copy of
//! "key to active connection", fed by [`Effect::Route`].

pub mod limit;
pub mod packet;
pub mod queue;
mod roster;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use roster::Roster;

use crate::proto::{
    keys::NodePublic,
    message::{ClientTraits, GoneReason},
};

/// Names one connection for as long as the process lives; never reused.
pub type ConnectionId = u64;

/// A change of home this soon after connecting is part of connecting, not a move.
const HOME_MOVE_AFTER: Duration = Duration::from_secs(5);

/// Most distinct senders whose departure one connection is told of. A client that would exceed it
/// keeps working and merely learns less.
const MAX_SENDERS_REMEMBERED: usize = 1 << 16;

/// What the glue must do, in the order given. `H` is its handle of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect<H> {
    /// Packets for `key` go to this connection from now on; to none if `None`.
    Route {
        /// The destination key.
        key: NodePublic,
        /// The key's active connection.
        to: Option<H>,
    },
    /// Whether this connection shares its key with others and so must report that it spoke.
    Duplicate {
        /// The connection.
        connection: H,
        /// Whether it has company.
        duplicate: bool,
    },
    /// Tell a watcher that a key is here.
    PeerPresent {
        /// The watcher.
        to: H,
        /// Who is here, and how.
        presence: Presence,
    },
    /// Tell a client that a key left.
    PeerGone {
        /// The client.
        to: H,
        /// Who left.
        key: NodePublic,
        /// Why it is not reachable.
        reason: GoneReason,
    },
    /// Disconnect a client.
    Close(H),
}

/// What watchers learn of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Presence {
    /// Whose connection it is.
    pub key: NodePublic,
    /// The remote address it came from.
    pub address: SocketAddr,
    /// What kind of client it is.
    pub traits: ClientTraits,
}

/// A change of home that counts as a move.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum HomeMove {
    /// The client made this server its home.
    In,
    /// The client made another server its home.
    Out,
}

/// Counts of what is connected.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Census {
    /// Registered connections.
    pub connections: u64,
    /// Of these, connections that call this server their home.
    pub home_connections: u64,
    /// Of these, connections that would rather be elsewhere.
    pub not_ideal_connections: u64,
    /// Distinct keys connected.
    pub keys: u64,
    /// Keys with more than one connection.
    pub duplicate_keys: u64,
    /// Connections of such keys.
    pub duplicate_connections: u64,
    /// Connections that shared their key when they came, ever.
    pub duplicates_ever: u64,
    /// Connections that watch.
    pub watchers: u64,
}

struct Client<H> {
    handle: H,
    presence: Presence,
    connected_at: Instant,
    home: bool,
    /// Senders whose departure this connection is, or has been, told of.
    senders: BTreeSet<NodePublic>,
}

/// The relay's book-keeping for every connection.
pub struct Relay<H> {
    own_key: NodePublic,
    clients: BTreeMap<ConnectionId, Client<H>>,
    rosters: BTreeMap<NodePublic, Roster>,
    watchers: BTreeSet<ConnectionId>,
    /// Key to the connections that wait to hear of its departure.
    departures: BTreeMap<NodePublic, BTreeSet<ConnectionId>>,
    census: Census,
}

impl<H: Clone> Relay<H> {
    /// An empty relay whose own public key is `own_key`.
    pub fn new(own_key: NodePublic) -> Self {
        Self {
            own_key,
            clients: BTreeMap::new(),
            rosters: BTreeMap::new(),
            watchers: BTreeSet::new(),
            departures: BTreeMap::new(),
            census: Census::default(),
        }
    }

    /// A client has logged in. It becomes the active connection of its key.
    pub fn register(
        &mut self,
        id: ConnectionId,
        handle: H,
        presence: Presence,
        now: Instant,
    ) -> Vec<Effect<H>> {
        let mut effects = Vec::new();
        let key = presence.key;
        let client = Client {
            handle: handle.clone(),
            presence,
            connected_at: now,
            home: false,
            senders: BTreeSet::new(),
        };
        self.clients.insert(id, client);
        let roster = self.rosters.entry(key).or_default();
        roster.join(id);
        let company = roster.len();
        let first_in_company = (company == 2).then(|| roster.others(id).next()).flatten();
        if company > 1 {
            self.census.duplicates_ever += 1;
            effects.push(Effect::Duplicate { connection: handle.clone(), duplicate: true });
        }
        if let Some(first) = first_in_company.and_then(|first| self.clients.get(&first)) {
            effects.push(Effect::Duplicate { connection: first.handle.clone(), duplicate: true });
        }
        effects.push(Effect::Route { key, to: Some(handle) });
        self.to_watchers(&mut effects, |to| Effect::PeerPresent { to, presence });
        effects
    }

    /// A connection has ended.
    pub fn unregister(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let mut effects = Vec::new();
        let Some(client) = self.clients.remove(&id) else { return effects };
        let key = client.presence.key;
        self.watchers.remove(&id);
        for sender in &client.senders {
            if let Some(waiting) = self.departures.get_mut(sender) {
                waiting.remove(&id);
                if waiting.is_empty() {
                    self.departures.remove(sender);
                }
            }
        }
        let Some(roster) = self.rosters.get_mut(&key) else { return effects };
        roster.leave(id);
        let Some(active) = roster.active() else {
            self.rosters.remove(&key);
            effects.push(Effect::Route { key, to: None });
            self.departed(&mut effects, key);
            let reason = GoneReason::Disconnected;
            self.to_watchers(&mut effects, |to| Effect::PeerGone { to, key, reason });
            return effects;
        };
        let alone = roster.len() == 1;
        if let Some(remaining) = self.clients.get(&active) {
            let connection = remaining.handle.clone();
            if alone {
                effects
                    .push(Effect::Duplicate { connection: connection.clone(), duplicate: false });
            }
            effects.push(Effect::Route { key, to: Some(connection) });
        }
        effects
    }

    /// A connection that shares its key has spoken: it becomes the key's active one.
    pub fn spoke(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let Some(client) = self.clients.get(&id) else { return Vec::new() };
        let key = client.presence.key;
        let changed = self.rosters.get_mut(&key).is_some_and(|roster| roster.spoke(id));
        if !changed {
            return Vec::new();
        }
        vec![Effect::Route { key, to: Some(client.handle.clone()) }]
    }

    /// The first packet from `sender` was handed to connection `receiver`, which shall hear when
    /// the sender leaves; but only once in its life, as with the reference.
    pub fn first_packet(&mut self, sender: NodePublic, receiver: ConnectionId) {
        let Some(client) = self.clients.get_mut(&receiver) else { return };
        if client.senders.len() < MAX_SENDERS_REMEMBERED && client.senders.insert(sender) {
            self.departures.entry(sender).or_default().insert(receiver);
        }
    }

    /// A client said whether this server is its home.
    pub fn note_preferred(
        &mut self,
        id: ConnectionId,
        home: bool,
        now: Instant,
    ) -> Option<HomeMove> {
        let client = self.clients.get_mut(&id)?;
        if client.home == home {
            return None;
        }
        client.home = home;
        let settled = now.saturating_duration_since(client.connected_at) > HOME_MOVE_AFTER;
        settled.then_some(if home { HomeMove::In } else { HomeMove::Out })
    }

    /// A trusted client wants to hear who is here, and from now on who comes and goes. A server
    /// that watches itself is ignored.
    pub fn watch(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let Some(watcher) = self.clients.get(&id) else { return Vec::new() };
        if watcher.presence.key == self.own_key {
            return Vec::new();
        }
        self.watchers.insert(id);
        self.rosters
            .values()
            .filter_map(|roster| self.clients.get(&roster.active()?))
            .map(|client| Effect::PeerPresent {
                to: watcher.handle.clone(),
                presence: client.presence,
            })
            .collect()
    }

    /// A trusted client wants every connection of `key` closed.
    pub fn close_peer(&self, key: &NodePublic) -> Vec<Effect<H>> {
        let Some(roster) = self.rosters.get(key) else { return Vec::new() };
        roster
            .members()
            .filter_map(|id| self.clients.get(&id))
            .map(|client| Effect::Close(client.handle.clone()))
            .collect()
    }

    /// How many connections are registered.
    pub fn connections(&self) -> u64 {
        self.clients.len() as u64
    }

    /// How many connections, keys and watchers there are.
    pub fn census(&self) -> Census {
        let count = |n: usize| n as u64;
        let duplicates = || self.rosters.values().map(Roster::len).filter(|&company| company > 1);
        Census {
            connections: self.connections(),
            home_connections: count(self.clients.values().filter(|client| client.home).count()),
            not_ideal_connections: count(
                self.clients.values().filter(|client| client.presence.traits.not_ideal).count(),
            ),
            keys: count(self.rosters.len()),
            duplicate_keys: count(duplicates().count()),
            duplicate_connections: duplicates().map(count).sum(),
            watchers: count(self.watchers.len()),
            ..self.census
        }
    }

    /// Looks for contradictions between the tables.
    ///
    /// # Errors
    ///
    /// The first one found, in words.
    pub fn check(&self) -> Result<(), String> {
        let in_rosters: usize = self.rosters.values().map(Roster::len).sum();
        if in_rosters != self.clients.len() {
            return Err(format!(
                "{} connections are registered, but {in_rosters} belong to a key",
                self.clients.len()
            ));
        }
        for (key, roster) in &self.rosters {
            let stranger = roster
                .members()
                .find(|id| self.clients.get(id).is_none_or(|client| client.presence.key != *key));
            if let Some(id) = stranger {
                return Err(format!("connection {id} is listed under {}", key.short()));
            }
        }
        let lost_watcher = self.watchers.iter().find(|id| !self.clients.contains_key(id));
        let lost_waiter =
            self.departures.values().flatten().find(|id| !self.clients.contains_key(id));
        match lost_watcher.or(lost_waiter) {
            Some(id) => Err(format!("connection {id} is gone, but would still be told things")),
            None => Ok(()),
        }
    }

    /// Tells everybody who received packets from `key` that it left the region.
    fn departed(&mut self, effects: &mut Vec<Effect<H>>, key: NodePublic) {
        let waiting = self.departures.remove(&key).unwrap_or_default();
        let handles = waiting.iter().filter_map(|id| self.clients.get(id));
        effects.extend(handles.map(|client| Effect::PeerGone {
            to: client.handle.clone(),
            key,
            reason: GoneReason::Disconnected,
        }));
    }

    fn to_watchers(&self, effects: &mut Vec<Effect<H>>, effect: impl Fn(H) -> Effect<H>) {
        let handles = self.watchers.iter().filter_map(|id| self.clients.get(id));
        effects.extend(handles.map(|client| effect(client.handle.clone())));
    }
}
