//! The one place where workers meet: the relay's book-keeping under its lock, and the routes that
//! every worker reads without one.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    connection::Connection,
    crowd::{ConnectionLimits, Door},
};
use crate::{
    metrics::WorkerCounters,
    proto::{
        keys::NodePublic,
        message::{self, GoneReason},
    },
    quiet::Quiet,
    relay::{
        Census, ClientFigures, ConnectionId, Effect, Headcount, Heard, HomeMove, Presence, Relay,
    },
};

/// Everything that connections of different workers share.
pub(super) struct Hub {
    relay: Mutex<Relay<Arc<Connection>>>,
    /// Key to active connection. Weak, because the map lets go of removed entries only by and by,
    /// while the socket of a connection must close with its session.
    routes: papaya::HashMap<NodePublic, Weak<Connection>>,
    last_id: AtomicU64,
    /// Grows whenever a key is no longer routed to the link that it was routed to: what somebody
    /// remembers of such routes holds only as long as this stays.
    forwarding_epoch: AtomicU64,
    /// Lets connections in, as many as there may be.
    pub(super) door: Door,
    /// Log lines about clients that are not admitted.
    pub(super) refusals: Quiet,
    /// Log lines about there being too many connections.
    pub(super) crowding: Quiet,
    /// Log lines about connections that could not be accepted.
    pub(super) accept_faults: Quiet,
}

/// Keys that are forgotten at once when a link ends: others want the lock too.
const LINK_DOWN_PIECE: usize = 1024;

/// So many keys at other servers take the memory of one connection.
const KEYS_LIKE_A_CONNECTION: u64 = 40;

impl Hub {
    pub(super) fn new(own_key: NodePublic) -> Self {
        Self {
            relay: Mutex::new(Relay::new(own_key)),
            routes: papaya::HashMap::new(),
            last_id: AtomicU64::new(0),
            forwarding_epoch: AtomicU64::new(0),
            door: Door::new(ConnectionLimits::default()),
            refusals: Quiet::default(),
            crowding: Quiet::lasting(),
            accept_faults: Quiet::lasting(),
        }
    }

    /// A name for a new connection.
    pub(super) fn next_id(&self) -> ConnectionId {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Where packets for `key` go now. Takes no lock.
    pub(super) fn active_connection(&self, key: &NodePublic) -> Option<Arc<Connection>> {
        self.routes.pin().get(key)?.upgrade()
    }

    /// To be read before a route by way of a link is looked up, in order to remember it.
    pub(super) fn forwarding_epoch(&self) -> u64 {
        self.forwarding_epoch.load(Ordering::Acquire)
    }

    pub(super) fn register(
        &self,
        connection: &Arc<Connection>,
        presence: Presence,
        counters: &WorkerCounters,
    ) {
        let handle = Arc::clone(connection);
        self.change(counters, |relay| {
            relay.register(connection.id, handle, presence, Instant::now())
        });
    }

    pub(super) fn unregister(&self, id: ConnectionId, counters: &WorkerCounters) {
        self.change(counters, |relay| relay.unregister(id));
    }

    pub(super) fn spoke(&self, id: ConnectionId, counters: &WorkerCounters) {
        self.change(counters, |relay| relay.spoke(id));
    }

    /// Begins to tell a watcher who is here; whether it must be told more with [`Self::watch_more`].
    pub(super) fn watch(&self, id: ConnectionId, counters: &WorkerCounters) -> bool {
        let mut more = false;
        self.change(counters, |relay| {
            let effects = relay.watch(id);
            more = relay.tells_more(id);
            effects
        });
        more
    }

    /// Goes on telling a watcher that has taken what it was told; whether there is still more.
    pub(super) fn watch_more(&self, id: ConnectionId, counters: &WorkerCounters) -> bool {
        let mut more = false;
        self.change(counters, |relay| {
            let effects = relay.watch_more(id);
            more = relay.tells_more(id);
            effects
        });
        more
    }

    /// Tells a mesh peer that a key is not here; unless it has just come, which the peer may have been
    /// told before.
    pub(super) fn tell_not_here(
        &self,
        to: &Arc<Connection>,
        key: NodePublic,
        counters: &WorkerCounters,
    ) {
        self.change(counters, |relay| {
            if relay.is_here(&key) {
                return Vec::new();
            }
            vec![Effect::PeerGone { to: Arc::clone(to), key, reason: GoneReason::NotHere }]
        });
    }

    pub(super) fn link_up(&self, link: &Arc<Connection>, counters: &WorkerCounters) {
        self.change(counters, |relay| relay.link_up(link.id, Arc::clone(link), link.key));
    }

    /// Whether the link has announced more keys than it may.
    pub(super) fn link_heard(
        &self,
        link: ConnectionId,
        heard: impl IntoIterator<Item = Heard>,
        counters: &WorkerCounters,
    ) -> bool {
        let mut refused = 0;
        self.change(counters, |relay| {
            let before = relay.refused_keys();
            let effects = relay.link_heard(link, heard);
            refused = relay.refused_keys() - before;
            effects
        });
        counters.mesh_keys_refused.add(refused);
        refused > 0
    }

    /// How many keys a link leads to.
    pub(super) fn link_keys(&self, link: ConnectionId) -> usize {
        self.relay.lock().link_keys(link)
    }

    pub(super) fn link_down(&self, link: ConnectionId, counters: &WorkerCounters) {
        let mut more = true;
        while more {
            self.change(counters, |relay| {
                let (effects, rest) = relay.link_down(link, LINK_DOWN_PIECE);
                more = rest;
                effects
            });
        }
    }

    pub(super) fn close_peer(&self, key: &NodePublic, counters: &WorkerCounters) {
        self.change(counters, |relay| relay.close_peer(key));
    }

    pub(super) fn first_packet(&self, sender: NodePublic, receiver: ConnectionId) {
        self.relay.lock().first_packet(sender, receiver);
    }

    pub(super) fn note_preferred(&self, id: ConnectionId, home: bool, counters: &WorkerCounters) {
        match self.relay.lock().note_preferred(id, home, Instant::now()) {
            Some(HomeMove::In) => counters.home_moves_in.increment(),
            Some(HomeMove::Out) => counters.home_moves_out.increment(),
            None => {}
        }
    }

    /// Those that want to hear who comes and goes: mesh peers, and whoever else has the mesh key.
    pub(super) fn watchers(&self) -> Vec<Arc<Connection>> {
        self.relay.lock().watchers().map(Arc::clone).collect()
    }

    /// At most `most` clients that come after client `after` by name.
    pub(super) fn clients_after(
        &self,
        after: Option<ConnectionId>,
        most: usize,
    ) -> Vec<(Arc<Connection>, ClientFigures)> {
        let relay = self.relay.lock();
        let clients = relay.clients_after(after).take(most);
        clients.map(|(client, figures)| (Arc::clone(client), figures)).collect()
    }

    pub(super) fn headcount(&self) -> Headcount {
        self.relay.lock().headcount()
    }

    /// How much memory is held for: connections, and in their measure the keys at other servers.
    pub(super) fn occupancy(&self) -> u64 {
        let relay = self.relay.lock();
        relay.connections() + relay.remote_keys() / KEYS_LIKE_A_CONNECTION
    }

    pub(super) fn census(&self) -> Census {
        self.relay.lock().census()
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.relay.lock().check()
    }

    /// Applies a change and its effects under one lock, so that two changes are never seen in
    /// different orders by different watchers. No effect waits: frames are left for the owners of
    /// their connections to send.
    fn change(
        &self,
        counters: &WorkerCounters,
        change: impl FnOnce(&mut Relay<Arc<Connection>>) -> Vec<Effect<Arc<Connection>>>,
    ) {
        let mut relay = self.relay.lock();
        let routes = self.routes.pin();
        for effect in change(&mut relay) {
            match effect {
                Effect::Route { key, to } => {
                    let before = match &to {
                        Some(connection) => routes.insert(key, Arc::downgrade(connection)),
                        None => routes.remove(&key),
                    };
                    match before.and_then(Weak::upgrade) {
                        Some(link) if link.is_link() => {
                            self.forwarding_epoch.fetch_add(1, Ordering::AcqRel);
                        }
                        Some(client) => client.set_routed(false),
                        None => {}
                    }
                    if let Some(connection) = to {
                        connection.set_routed(true);
                    }
                }
                Effect::Duplicate { connection, duplicate } => connection.set_duplicate(duplicate),
                Effect::PeerPresent { to, presence } => {
                    let Presence { key, address, traits } = presence;
                    to.post_presence(|bytes| message::peer_present(bytes, &key, address, traits));
                }
                Effect::PeerGone { to, key, reason } => {
                    to.post_departure(|bytes| message::peer_gone(bytes, &key, reason));
                    match reason {
                        GoneReason::Disconnected => {
                            counters.peer_gone_disconnected_frames.increment()
                        }
                        GoneReason::NotHere => counters.peer_gone_not_here_frames.increment(),
                    }
                }
                Effect::Close(connection) => connection.close(),
            }
        }
    }
}
