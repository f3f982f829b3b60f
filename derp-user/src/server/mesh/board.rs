//! What is known of every link: written by the thread of the mesh, and by the workers that hand
//! packets over; read by the pages.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;

use super::MeshPeer;
use crate::{
    metrics::{AddressView, LinkState, MeshView, PeerView},
    proto::keys::NodePublic,
    relay::ConnectionId,
    server::hub::Hub,
};

/// Packets handed to the links to one address, since it was first dialled.
#[derive(Debug, Default)]
pub(in crate::server) struct ForwardTally {
    packets: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl ForwardTally {
    pub(in crate::server) fn handed_over(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(in crate::server) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

/// The configured peers and their addresses.
#[derive(Default)]
pub(in crate::server) struct Board(Mutex<Vec<PeerEntry>>);

struct PeerEntry {
    name: String,
    dials: String,
    look_up_fault: Option<String>,
    addresses: BTreeMap<SocketAddr, Entry>,
}

struct Entry {
    state: LinkState,
    since: Instant,
    server_key: Option<NodePublic>,
    /// The link that stands.
    link: Option<ConnectionId>,
    connects: u64,
    failures: u64,
    last_failure: Option<String>,
    tally: Arc<ForwardTally>,
}

impl Board {
    pub(super) fn begin(&self, peers: &[MeshPeer]) {
        let entry = |peer: &MeshPeer| PeerEntry {
            name: peer.name.clone(),
            dials: match peer.dial_host.contains(':') {
                true => format!("[{}]:{}", peer.dial_host, peer.dial_port),
                false => format!("{}:{}", peer.dial_host, peer.dial_port),
            },
            look_up_fault: None,
            addresses: BTreeMap::new(),
        };
        *self.0.lock() = peers.iter().map(entry).collect();
    }

    /// What came of looking up the name of peer number `peer`.
    pub(super) fn looked_up(&self, peer: usize, fault: Option<String>) {
        if let Some(entry) = self.0.lock().get_mut(peer) {
            entry.look_up_fault = fault;
        }
    }

    /// Shows an address of peer number `peer` for as long as the returned value lives.
    pub(super) fn post(self: &Arc<Self>, peer: usize, address: SocketAddr) -> Notice {
        let tally = Arc::default();
        let entry = Entry {
            state: LinkState::Down,
            since: Instant::now(),
            server_key: None,
            link: None,
            connects: 0,
            failures: 0,
            last_failure: None,
            tally: Arc::clone(&tally),
        };
        if let Some(peer) = self.0.lock().get_mut(peer) {
            peer.addresses.insert(address, entry);
        }
        Notice { board: Arc::clone(self), peer, address, tally }
    }

    pub(in crate::server) fn view(&self, hub: &Hub) -> MeshView {
        let now = Instant::now();
        let address = |(&address, entry): (&SocketAddr, &Entry)| AddressView {
            address,
            state: entry.state,
            seconds: now.saturating_duration_since(entry.since).as_secs(),
            server_key: entry.server_key.map(|key| key.to_string()),
            connects: entry.connects,
            failures: entry.failures,
            last_failure: entry.last_failure.clone(),
            clients: entry.link.map_or(0, |link| hub.link_keys(link)),
            forwarded_packets: entry.tally.packets.load(Ordering::Relaxed),
            forwarded_bytes: entry.tally.bytes.load(Ordering::Relaxed),
            dropped_packets: entry.tally.dropped.load(Ordering::Relaxed),
        };
        let peer = |entry: &PeerEntry| PeerView {
            name: entry.name.clone(),
            dials: entry.dials.clone(),
            look_up_fault: entry.look_up_fault.clone(),
            addresses: entry.addresses.iter().map(address).collect(),
        };
        MeshView { peers: self.0.lock().iter().map(peer).collect() }
    }
}

/// The entry of one address on the [`Board`].
pub(super) struct Notice {
    board: Arc<Board>,
    peer: usize,
    address: SocketAddr,
    tally: Arc<ForwardTally>,
}

impl Notice {
    /// Where the links to this address count what is handed to them.
    pub(super) fn tally(&self) -> Arc<ForwardTally> {
        Arc::clone(&self.tally)
    }

    /// The server at the address has this key.
    pub(super) fn greeted(&self, key: NodePublic) {
        self.change(|entry| entry.server_key = Some(key));
    }

    pub(super) fn up(&self, link: ConnectionId) {
        self.change(|entry| {
            entry.link = Some(link);
            entry.connects += 1;
            entry.enter(LinkState::Up);
        });
    }

    /// An attempt failed, or a link broke.
    pub(super) fn failed(&self, reason: String) {
        self.change(|entry| {
            entry.failures += 1;
            entry.last_failure = Some(reason);
            entry.enter(LinkState::Down);
        });
    }

    pub(super) fn is(&self, state: LinkState) {
        self.change(|entry| entry.enter(state));
    }

    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut peers = self.board.0.lock();
        let entry = peers.get_mut(self.peer).and_then(|peer| peer.addresses.get_mut(&self.address));
        if let Some(entry) = entry {
            change(entry);
        }
    }
}

impl Entry {
    fn enter(&mut self, state: LinkState) {
        if state != LinkState::Up {
            self.link = None;
        }
        if self.state != state {
            self.state = state;
            self.since = Instant::now();
        }
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        if let Some(peer) = self.board.0.lock().get_mut(self.peer) {
            peer.addresses.remove(&self.address);
        }
    }
}
