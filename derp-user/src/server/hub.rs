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

use super::connection::Connection;
use crate::{
    metrics::WorkerCounters,
    proto::{
        keys::NodePublic,
        message::{self, GoneReason},
    },
    quiet::Quiet,
    relay::{Census, ConnectionId, Effect, HomeMove, Presence, Relay},
};

/// Everything that connections of different workers share.
pub(super) struct Hub {
    relay: Mutex<Relay<Arc<Connection>>>,
    /// Key to active connection. Weak, because the map lets go of removed entries only by and by,
    /// while the socket of a connection must close with its session.
    routes: papaya::HashMap<NodePublic, Weak<Connection>>,
    last_id: AtomicU64,
    /// Log lines about clients that are not admitted.
    pub(super) refusals: Quiet,
}

impl Hub {
    pub(super) fn new(own_key: NodePublic) -> Self {
        Self {
            relay: Mutex::new(Relay::new(own_key)),
            routes: papaya::HashMap::new(),
            last_id: AtomicU64::new(0),
            refusals: Quiet::default(),
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

    pub(super) fn watch(&self, id: ConnectionId, counters: &WorkerCounters) {
        self.change(counters, |relay| relay.watch(id));
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

    /// How many connections are registered.
    pub(super) fn connections(&self) -> u64 {
        self.relay.lock().connections()
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
                    if let Some(before) = before.and_then(Weak::upgrade) {
                        before.set_routed(false);
                    }
                    if let Some(connection) = to {
                        connection.set_routed(true);
                    }
                }
                Effect::Duplicate { connection, duplicate } => connection.set_duplicate(duplicate),
                Effect::PeerPresent { to, presence } => {
                    let Presence { key, address, traits } = presence;
                    to.post(|bytes| message::peer_present(bytes, &key, address, traits));
                }
                Effect::PeerGone { to, key, reason } => {
                    to.post(|bytes| message::peer_gone(bytes, &key, reason));
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
