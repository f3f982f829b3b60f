//! Who is connected and who must be told what: the rules of the relay without I/O.
//!
//! The glue calls a method for every event, under one lock, and then carries out the returned
//! effects in order. A relayed packet never comes here: the glue keeps its own read-only copy of
//! "key to active connection", fed by [`Effect::Route`].

mod forwarding;
pub mod limit;
pub mod packet;
pub mod queue;
mod roster;
mod watching;
mod ways;

pub use forwarding::{Heard, MOST_KEYS};

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
    time::{Duration, Instant},
};

use forwarding::{Change, Forwarding};
use roster::Roster;
use watching::{PIECE, Watching};

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

/// Beyond so many of them for each connection, all connections together are told of this many. Clients choose
/// their keys, and so could fill memory with senders that nobody misses.
const SENDERS_OF_ONE: usize = 64;
const SENDERS_OF_ALL: usize = 1 << 20;

/// What the glue must do, in the order given. `H` is its handle of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Effect<H> {
    /// Packets for `key` go to this connection from now on; to none if `None`.
    Route {
        /// The destination key.
        key: NodePublic,
        /// The key's active connection, or the link to the mesh peer that has one.
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
    /// Keys that only links to mesh peers lead to.
    pub remote_keys: u64,
    /// Links to mesh peers that stand.
    pub links: u64,
    /// Times that a second link to a key was found.
    pub multi_forwarders_created: u64,
    /// Times that of several links to a key one was left.
    pub multi_forwarders_deleted: u64,
    /// Times that a mesh peer took back a key that another one, or this server, has.
    pub forwarders_deleted_other: u64,
}

/// The part of a [`Census`] that is known without counting.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Headcount {
    /// Registered connections.
    pub connections: u64,
    /// Distinct keys connected.
    pub keys: u64,
    /// Keys that only links to mesh peers lead to.
    pub remote_keys: u64,
    /// Connections that watch.
    pub watchers: u64,
    /// Links to mesh peers that stand.
    pub links: u64,
}

/// What the relay knows of one connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientFigures {
    /// Distinct senders it has heard from, as far as they are remembered.
    pub senders: usize,
    /// When it was registered.
    pub connected_at: Instant,
    /// Whether its client calls this server its home.
    pub is_home: bool,
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
    watchers: BTreeMap<ConnectionId, Watching>,
    forwarding: Forwarding<H>,
    /// Keys that are not connected here, but to mesh peers.
    remote_keys: u64,
    /// Key to the connections that wait to hear of its departure.
    departures: BTreeMap<NodePublic, BTreeSet<ConnectionId>>,
    /// The senders that all connections remember.
    senders: usize,
    census: Census,
}

impl<H: Clone> Relay<H> {
    /// An empty relay whose own public key is `own_key`.
    pub fn new(own_key: NodePublic) -> Self {
        Self::with_most_keys(own_key, MOST_KEYS)
    }

    /// The same, where one link may lead to `most_keys` keys at most.
    fn with_most_keys(own_key: NodePublic, most_keys: usize) -> Self {
        Self {
            own_key,
            clients: BTreeMap::new(),
            rosters: BTreeMap::new(),
            watchers: BTreeMap::new(),
            forwarding: Forwarding::new(most_keys),
            remote_keys: 0,
            departures: BTreeMap::new(),
            senders: 0,
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
        if company == 1 && self.forwarding.reaches(&key) {
            self.remote_keys -= 1;
        }
        let first_in_company = (company == 2).then(|| roster.others(id).next()).flatten();
        if company > 1 {
            self.census.duplicates_ever += 1;
            effects.push(Effect::Duplicate { connection: handle.clone(), duplicate: true });
        }
        if let Some(first) = first_in_company.and_then(|first| self.clients.get(&first)) {
            effects.push(Effect::Duplicate { connection: first.handle.clone(), duplicate: true });
        }
        effects.push(Effect::Route { key, to: Some(handle) });
        self.to_watchers(&mut effects, &key, |to| Effect::PeerPresent { to, presence });
        effects
    }

    /// A connection has ended.
    pub fn unregister(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let mut effects = Vec::new();
        let Some(client) = self.clients.remove(&id) else { return effects };
        let key = client.presence.key;
        self.watchers.remove(&id);
        self.senders -= client.senders.len();
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
            let forwarder = self.forwarding.preferred(&key);
            let is_elsewhere = forwarder.is_some();
            effects.push(Effect::Route { key, to: forwarder });
            if is_elsewhere {
                self.remote_keys += 1;
            } else {
                self.departed(&mut effects, key);
            }
            let reason = GoneReason::Disconnected;
            self.to_watchers(&mut effects, &key, |to| Effect::PeerGone { to, key, reason });
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
        let remembered = client.senders.len();
        let may_be_more = remembered < MAX_SENDERS_REMEMBERED && self.senders < SENDERS_OF_ALL;
        if (remembered < SENDERS_OF_ONE || may_be_more) && client.senders.insert(sender) {
            self.senders += 1;
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

    /// A trusted client wants to hear who is here, and from now on who comes and goes. It is told the
    /// beginning now, and the rest by [`Self::watch_more`]. A server that watches itself is ignored.
    pub fn watch(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let is_other = |client: &Client<H>| client.presence.key != self.own_key;
        if !self.clients.get(&id).is_some_and(is_other) {
            return Vec::new();
        }
        self.watchers.insert(id, Watching::NEW);
        self.watch_more(id)
    }

    /// A watcher has taken what it was told: goes on telling it who is here.
    pub fn watch_more(&mut self, id: ConnectionId) -> Vec<Effect<H>> {
        let (Some(watcher), Some(watching)) = (self.clients.get(&id), self.watchers.get_mut(&id))
        else {
            return Vec::new();
        };
        let Some(from) = watching.untold() else { return Vec::new() };
        let piece: Vec<_> = self
            .rosters
            .range((from, Bound::Unbounded))
            .take(PIECE)
            .filter_map(|(_, roster)| self.clients.get(&roster.active()?))
            .map(|client| Effect::PeerPresent {
                to: watcher.handle.clone(),
                presence: client.presence,
            })
            .collect();
        let last = self.rosters.range((from, Bound::Unbounded)).nth(PIECE - 1);
        watching.told(last.map(|(&key, _)| key));
        piece
    }

    /// Whether [`Self::watch_more`] has more to tell a watcher.
    pub fn tells_more(&self, id: ConnectionId) -> bool {
        self.watchers.get(&id).is_some_and(|watching| watching.untold().is_some())
    }

    /// Whether the key is connected to this server itself.
    pub fn is_here(&self, key: &NodePublic) -> bool {
        self.rosters.contains_key(key)
    }

    /// A link to the mesh peer whose key is `server` stands, the only one to it; `link` is its name among
    /// the connections.
    ///
    /// From now on it does not matter which servers this one is a client of. Every server of a region is a
    /// client of every other, so that otherwise each would hold the square of their number of ways.
    pub fn link_up(&mut self, link: ConnectionId, handle: H, server: NodePublic) -> Vec<Effect<H>> {
        let mut effects = Vec::new();
        while let Some(other) = self.forwarding.any_link(&server) {
            self.forwarder_removed(&mut effects, other, server);
        }
        self.forwarding.open(link, handle, server);
        effects
    }

    /// The mesh peer at the other end of a link said these things, in this order.
    pub fn link_heard(
        &mut self,
        link: ConnectionId,
        heard: impl IntoIterator<Item = Heard>,
    ) -> Vec<Effect<H>> {
        let mut effects = Vec::new();
        for heard in heard {
            match heard {
                // This server itself, which the peer sees as one of its clients, or another.
                Heard::Present(key) | Heard::Gone(key)
                    if key == self.own_key || self.forwarding.is_server(&key) => {}
                Heard::Present(key) => self.forwarder_added(&mut effects, link, key),
                Heard::Gone(key) => self.forwarder_removed(&mut effects, link, key),
            }
        }
        effects
    }

    /// How many announcements were not heeded, since their link led to as many keys as it may ([`MOST_KEYS`]).
    pub fn refused_keys(&self) -> u64 {
        self.forwarding.refused
    }

    /// How many keys a link has announced.
    pub fn link_keys(&self, link: ConnectionId) -> usize {
        self.forwarding.announced(link)
    }

    /// A link has ended: forgets at most `most` of the keys that it led to. To be called again until
    /// it says that nothing is left.
    pub fn link_down(&mut self, link: ConnectionId, most: usize) -> (Vec<Effect<H>>, bool) {
        let mut effects = Vec::new();
        for _ in 0..most {
            let Some(key) = self.forwarding.any_key(link) else {
                self.forwarding.close(link);
                return (effects, false);
            };
            self.forwarder_removed(&mut effects, link, key);
        }
        (effects, true)
    }

    fn forwarder_added(
        &mut self,
        effects: &mut Vec<Effect<H>>,
        link: ConnectionId,
        key: NodePublic,
    ) {
        let change = self.forwarding.add(link, key);
        if change == Change::Rerouted && !self.is_here(&key) {
            self.remote_keys += 1;
            effects.push(Effect::Route { key, to: self.forwarding.preferred(&key) });
        }
    }

    fn forwarder_removed(
        &mut self,
        effects: &mut Vec<Effect<H>>,
        link: ConnectionId,
        key: NodePublic,
    ) {
        let is_here = self.is_here(&key);
        match self.forwarding.remove(link, key, is_here) {
            Change::Rerouted | Change::Lost if is_here => {}
            Change::Nothing => {}
            Change::Rerouted => {
                effects.push(Effect::Route { key, to: self.forwarding.preferred(&key) });
            }
            Change::Lost => {
                self.remote_keys -= 1;
                effects.push(Effect::Route { key, to: None });
                self.departed(effects, key);
            }
        }
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

    /// The connections that come after connection `after` by name, or all of them.
    pub fn clients_after(
        &self,
        after: Option<ConnectionId>,
    ) -> impl Iterator<Item = (&H, ClientFigures)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let figures = |client: &Client<H>| ClientFigures {
            senders: client.senders.len(),
            connected_at: client.connected_at,
            is_home: client.home,
        };
        let clients = self.clients.range((from, Bound::Unbounded));
        clients.map(move |(_, client)| (&client.handle, figures(client)))
    }

    /// The connections that want to hear who comes and goes.
    pub fn watchers(&self) -> impl Iterator<Item = &H> {
        self.watchers.keys().filter_map(|id| self.clients.get(id)).map(|client| &client.handle)
    }

    /// How many connections are registered.
    pub fn connections(&self) -> u64 {
        self.clients.len() as u64
    }

    /// How many keys are connected to mesh peers only.
    pub fn remote_keys(&self) -> u64 {
        self.remote_keys
    }

    /// How many connections, keys, watchers and links there are; in no time, however many.
    pub fn headcount(&self) -> Headcount {
        let count = |n: usize| n as u64;
        Headcount {
            connections: self.connections(),
            keys: count(self.rosters.len()),
            remote_keys: self.remote_keys,
            watchers: count(self.watchers.len()),
            links: count(self.forwarding.links()),
        }
    }

    /// How many connections, keys and watchers there are.
    pub fn census(&self) -> Census {
        let count = |n: usize| n as u64;
        let duplicates = || self.rosters.values().map(Roster::len).filter(|&company| company > 1);
        let Headcount { connections, keys, remote_keys, watchers, links } = self.headcount();
        Census {
            connections,
            home_connections: count(self.clients.values().filter(|client| client.home).count()),
            not_ideal_connections: count(
                self.clients.values().filter(|client| client.presence.traits.not_ideal).count(),
            ),
            keys,
            duplicate_keys: count(duplicates().count()),
            duplicate_connections: duplicates().map(count).sum(),
            watchers,
            remote_keys,
            links,
            multi_forwarders_created: self.forwarding.created,
            multi_forwarders_deleted: self.forwarding.deleted,
            forwarders_deleted_other: self.forwarding.deleted_other,
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
        self.forwarding.check()?;
        let senders: usize = self.clients.values().map(|client| client.senders.len()).sum();
        if senders != self.senders {
            return Err(format!("{senders} senders are remembered, not {}", self.senders));
        }
        let remote = self.forwarding.keys().filter(|key| !self.is_here(key)).count() as u64;
        if remote != self.remote_keys {
            return Err(format!("{remote} keys are elsewhere, not {}", self.remote_keys));
        }
        let lost_watcher = self.watchers.keys().find(|id| !self.clients.contains_key(id));
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

    /// What everybody is to be told who watches `key`.
    fn to_watchers(
        &self,
        effects: &mut Vec<Effect<H>>,
        key: &NodePublic,
        effect: impl Fn(H) -> Effect<H>,
    ) {
        let watchers = self.watchers.iter().filter(|(_, watching)| watching.covers(key));
        let handles = watchers.filter_map(|(id, _)| self.clients.get(id));
        effects.extend(handles.map(|client| effect(client.handle.clone())));
    }
}
