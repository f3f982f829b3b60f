//! The mesh: links to the other servers of a region, by which their clients are reached.
//!
//! A link is a DERP client connection with this server's key and the mesh key. It watches who is
//! connected to the peer, and carries the packets for them. One thread keeps all links, beside the
//! workers; it dials, listens to the peers, and sends what waits for a full socket. The workers write
//! packets to a link as to any connection.

mod board;
mod link;
mod pauses;
mod peer;
mod secret;

#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::RwLock;
use tokio::{
    sync::{Notify, watch},
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

pub(super) use self::board::{Board, ForwardTally};
use self::{
    board::Notice,
    link::{End, Scratch},
    pauses::{Pauses, Restart},
};
pub use self::{
    peer::{MeshPeer, MeshPeerError},
    secret::MeshSecret,
};
use super::{Statistics, connection::Connection, hub::Hub, transport::Transport};
use crate::{
    client::{CONNECT_TIMEOUT, ClientError, Connector, Trust, random_fraction},
    metrics::{LinkState, WorkerCounters},
    proto::{
        client::write,
        keys::{MeshKey, NodePrivate, NodePublic},
        login::ClientInfo,
    },
};

/// How often the names of mesh peers are looked up.
pub const LOOK_UP_PERIOD: Duration = Duration::from_secs(15);
/// How long a lookup may take.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a name is looked up again because of a failure.
const LOOK_UP_REST: Duration = Duration::from_secs(1);
/// Most addresses of one name that are dialled.
const MAX_ADDRESSES: usize = 1024;
/// An address that led to a server with a link already is tried again after this long: another
/// server may have it by then.
const TWIN_PERIOD: Duration = Duration::from_secs(60);
/// The same complaint is logged again after this long.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);
/// Idle time before TCP keepalive probes on a link, and between them: a peer that has vanished without
/// a word is missed after [`KEEPALIVE_PROBES`] of them.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// What looking up a name comes to.
pub type LookUp = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>>>>;

/// Finds the addresses of a host and adds a port to each.
pub type Resolver = Box<dyn Fn(&str, u16) -> LookUp + Send>;

/// Everything the mesh needs to know.
pub struct MeshSettings {
    /// The server's identity.
    pub private_key: NodePrivate,
    /// The secret of the mesh, until [`MeshReloader`] brings another one.
    pub mesh_key: MeshKey,
    /// The other servers. This one may be among them: it is found out and left alone.
    pub peers: Vec<MeshPeer>,
    /// Which certificates they must show; files are read now, and again by [`MeshReloader`].
    pub trust: Trust,
    /// TCP_USER_TIMEOUT of the links; `None`: the system's.
    pub tcp_user_timeout: Option<Duration>,
    /// Time between two lookups of a name, usually [`LOOK_UP_PERIOD`].
    pub look_up_period: Duration,
    /// Finds the addresses of a host; usually [`system_look_up`].
    pub look_up: Resolver,
}

/// Asks the system for the addresses of a host.
pub fn system_look_up(host: &str, port: u16) -> LookUp {
    let host = host.to_owned();
    Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
}

/// Running links.
pub struct Mesh {
    reloader: MeshReloader,
    stop: watch::Sender<bool>,
    thread: JoinHandle<()>,
}

/// Why the mesh cannot start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// The settings for TLS cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The system gave no thread, or no event queue for it.
    #[error("cannot start the thread of the mesh: {0}")]
    Thread(#[from] io::Error),
}

impl Mesh {
    /// Begins to dial the peers of the server that has these statistics.
    ///
    /// # Errors
    ///
    /// If certificates cannot be read, a peer's name cannot stand in one, or the system gives no
    /// thread. Peers that cannot be reached are no error: they are dialled until they can.
    pub fn start(settings: MeshSettings, statistics: &Statistics) -> Result<Self, MeshError> {
        let reloader = MeshReloader {
            peers: settings.peers.clone(),
            trust: settings.trust.clone(),
            connectors: Arc::default(),
        };
        reloader.apply(reloader.prepare(&settings.mesh_key)?);
        let connectors = Arc::clone(&reloader.connectors);
        let board = Arc::clone(&statistics.mesh_board);
        board.begin(&settings.peers);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, mut stopped) = watch::channel(false);
        let (hub, counters) = (Arc::clone(&statistics.hub), Arc::clone(&statistics.mesh_counters));
        let serve = move || {
            let region = Rc::new(Region {
                own_key: settings.private_key.public(),
                settings,
                hub,
                counters,
                board,
                connectors,
                linked: RefCell::default(),
                link_ended: Notify::new(),
                scratch: RefCell::default(),
            });
            let tasks = LocalSet::new();
            tasks.block_on(&runtime, async {
                for (number, peer) in region.settings.peers.iter().enumerate() {
                    let peer = Peer { number, peer: peer.clone(), look_again: Notify::new() };
                    spawn_local(follow(Rc::clone(&region), Rc::new(peer)));
                }
                // Fails only if nobody can stop this any more, which is as good.
                let _ = stopped.wait_for(|&stop| stop).await;
            });
            drop(tasks);
            // A lookup that takes its time must not hold up the end.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("derpd-mesh".to_owned()).spawn(serve)?;
        Ok(Self { reloader, stop, thread })
    }

    /// What can be changed while the links stand.
    pub fn reloader(&self) -> MeshReloader {
        self.reloader.clone()
    }

    /// Closes every link.
    pub fn stop(self) {
        // Both fail only if the thread has ended already.
        let _ = self.stop.send(true);
        let _ = self.thread.join();
    }
}

/// Renews what links are made with. Links that stand are left alone.
#[derive(Clone)]
pub struct MeshReloader {
    peers: Vec<MeshPeer>,
    trust: Trust,
    /// One for each peer.
    connectors: Arc<RwLock<Vec<Connector>>>,
}

/// What links will be made with, once it is applied.
pub struct PreparedMesh(Vec<Connector>);

impl MeshReloader {
    /// Reads the certificates of the authorities again, for links that show this mesh key.
    ///
    /// # Errors
    ///
    /// If certificates cannot be read, or a peer's name cannot stand in one.
    pub fn prepare(&self, mesh_key: &MeshKey) -> Result<PreparedMesh, ClientError> {
        let info = || ClientInfo { mesh_key: Some(mesh_key.clone()), ..ClientInfo::default() };
        let connector = |peer: &MeshPeer| {
            Ok(Connector::new(peer.target.clone(), &self.trust)?.with_info(info()))
        };
        self.peers.iter().map(connector).collect::<Result<_, _>>().map(PreparedMesh)
    }

    /// Uses it for every link that is made from now on.
    pub fn apply(&self, PreparedMesh(connectors): PreparedMesh) {
        *self.connectors.write() = connectors;
    }
}

/// What all links share.
struct Region {
    own_key: NodePublic,
    settings: MeshSettings,
    hub: Arc<Hub>,
    /// Written by the thread of the mesh alone.
    counters: Arc<WorkerCounters>,
    /// What is shown of the links.
    board: Arc<Board>,
    /// One for each peer; may be replaced at any time.
    connectors: Arc<RwLock<Vec<Connector>>>,
    /// Servers that a link leads to, or is about to.
    linked: RefCell<BTreeSet<NodePublic>>,
    /// One of them is free again.
    link_ended: Notify,
    scratch: RefCell<Scratch>,
}

impl Region {
    /// The memory that links use in turn. Never held across an await.
    fn scratch(&self) -> RefMut<'_, Scratch> {
        self.scratch.borrow_mut()
    }
}

/// One configured peer, which may be several servers.
struct Peer {
    /// Its place in the configuration.
    number: usize,
    peer: MeshPeer,
    /// An address failed: the name may lead elsewhere by now.
    look_again: Notify,
}

/// The keeper of one address.
struct Keeper {
    wanted: Rc<Cell<bool>>,
    task: tokio::task::JoinHandle<()>,
    /// Shown for as long as the address is known, also when the task has ended.
    _notice: Rc<Notice>,
}

impl Keeper {
    fn start(region: &Rc<Region>, peer: &Rc<Peer>, address: SocketAddr) -> Self {
        let wanted = Rc::new(Cell::new(true));
        let notice = Rc::new(region.board.post(peer.number, address));
        let keep = keep(
            Rc::clone(region),
            Rc::clone(peer),
            address,
            Rc::clone(&wanted),
            Rc::clone(&notice),
        );
        Self { wanted, task: spawn_local(keep), _notice: notice }
    }
}

/// Has every address of a peer's name kept.
async fn follow(region: Rc<Region>, peer: Rc<Peer>) {
    let MeshPeer { name, dial_host, dial_port, .. } = &peer.peer;
    tracing::info!("mesh({name:?}): will dial {dial_host:?} for {name:?}");
    let mut keepers: BTreeMap<SocketAddr, Keeper> = BTreeMap::new();
    let mut complaints = Complaints::default();
    loop {
        let found = timeout(LOOK_UP_TIMEOUT, (region.settings.look_up)(dial_host, *dial_port));
        match found.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(addresses) => {
                region.board.looked_up(peer.number, None);
                let addresses: BTreeSet<_> = addresses.into_iter().take(MAX_ADDRESSES).collect();
                // One that has ended although it was wanted led to this server itself: it stays known
                // while it is wanted.
                keepers.retain(|address, keeper| {
                    !keeper.task.is_finished()
                        || (keeper.wanted.get() && addresses.contains(address))
                });
                for (address, keeper) in &keepers {
                    keeper.wanted.set(addresses.contains(address));
                }
                for address in addresses {
                    keepers
                        .entry(address)
                        .or_insert_with(|| Keeper::start(&region, &peer, address));
                }
            }
            // What is known stays: a name server that fails must not cost links.
            Err(error) => {
                let fault = format!("cannot look up {dial_host}: {error}");
                complaints.log(name, &fault);
                region.board.looked_up(peer.number, Some(fault));
            }
        }
        sleep(LOOK_UP_REST).await;
        // Woken or not, the name is looked up.
        let _ = timeout(region.settings.look_up_period, peer.look_again.notified()).await;
    }
}

/// Keeps a link to one address, as long as that is wanted.
async fn keep(
    region: Rc<Region>,
    peer: Rc<Peer>,
    address: SocketAddr,
    wanted: Rc<Cell<bool>>,
    notice: Rc<Notice>,
) {
    let name = &peer.peer.name;
    let mut pauses = Pauses::default();
    let mut complaints = Complaints::default();
    while wanted.get() {
        let begun = Instant::now();
        let (failure, pause) = match attempt(&region, &peer, address, &notice).await {
            Ok(Attempt::Own) => {
                tracing::info!("mesh({name:?}): {address}: detected self-connect; ignoring host");
                notice.is(LinkState::Own);
                return;
            }
            Ok(Attempt::Twin) => {
                notice.is(LinkState::Reserve);
                // Either is a reason to look again.
                let _ = timeout(TWIN_PERIOD, region.link_ended.notified()).await;
                continue;
            }
            Ok(Attempt::Ended(end, restart)) => {
                let pause = pauses.after_link(begun, restart, Instant::now(), random_fraction());
                (format!("Recv: {end}"), pause)
            }
            Err(error) => {
                let pause = pauses.after_failure(Instant::now(), random_fraction());
                (format!("mesh connect: {error}"), pause)
            }
        };
        complaints.log(name, &format!("{address}: {failure}"));
        notice.failed(failure);
        region.counters.mesh_failures.increment();
        peer.look_again.notify_one();
        sleep(pause).await;
    }
    tracing::info!("mesh({name:?}): {address}: no longer an address of the peer");
}

/// What became of dialling an address.
enum Attempt {
    /// It is this server.
    Own,
    /// It is a server that has a link already.
    Twin,
    /// A link stood, and has ended; with what the peer has said about its restart.
    Ended(End, Option<Restart>),
}

/// Why no link came to stand.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Transport(#[from] super::transport::TransportError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

async fn attempt(
    region: &Rc<Region>,
    peer: &Peer,
    address: SocketAddr,
    notice: &Notice,
) -> Result<Attempt, AttemptError> {
    // There is one for each peer, whenever they are replaced.
    let Some(connector) = region.connectors.read().get(peer.number).cloned() else {
        return Err(io::Error::other("the peer is not configured").into());
    };
    let connector = connector.with_address(address);
    let late = || ClientError::ConnectTimeout { host: address.to_string(), limit: CONNECT_TIMEOUT };
    let greeting = timeout(CONNECT_TIMEOUT, connector.greet()).await.map_err(|_| late())??;
    let server_key = greeting.server_key();
    notice.greeted(server_key);
    if server_key == region.own_key {
        return Ok(Attempt::Own);
    }
    let Some(_claim) = Claim::of(region, server_key) else { return Ok(Attempt::Twin) };
    let login = greeting.log_in(&region.settings.private_key);
    let client = timeout(CONNECT_TIMEOUT, login).await.map_err(|_| late())??;
    let (stream, wire, unread) = client.into_parts()?;
    prepare(&stream, region.settings.tcp_user_timeout)?;
    let transport = Transport::of_client(wire)?;
    let id = region.hub.next_id();
    let connection = Connection::new(id, server_key, address, stream, transport, Vec::new());
    let connection = Arc::new(connection.into_link(notice.tally()));
    connection.post(write::watch_conns);
    region.counters.mesh_connects.increment();
    region.hub.link_up(&connection, &region.counters);
    notice.up(id);
    let _standing = Standing { connection: Arc::clone(&connection), region };
    tracing::debug!("mesh({:?}): {address} is {}", peer.peer.name, server_key.short());
    let (end, restart) = link::serve(region, &peer.peer.name, connection, unread).await;
    Ok(Attempt::Ended(end, restart))
}

/// Sets the options of a link's socket.
fn prepare(stream: &std::net::TcpStream, user_timeout: Option<Duration>) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(user_timeout)?;
    socket.set_tcp_keepalive(
        &socket2::TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Keeps a second link to the same server from coming to stand.
struct Claim<'a> {
    region: &'a Region,
    server_key: NodePublic,
}

impl<'a> Claim<'a> {
    fn of(region: &'a Region, server_key: NodePublic) -> Option<Self> {
        // Not made in vain: its end would release the other's.
        region.linked.borrow_mut().insert(server_key).then(|| Self { region, server_key })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.region.linked.borrow_mut().remove(&self.server_key);
        self.region.link_ended.notify_waiters();
    }
}

/// Takes a link out of the relay when it ends, however it ends.
struct Standing<'a> {
    region: &'a Region,
    connection: Arc<Connection>,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let Self { region, connection } = self;
        region.hub.link_down(connection.id, &region.counters);
        connection.end(&mut region.scratch().write, &region.counters);
    }
}

/// Says what is wrong, but not the same every few seconds.
#[derive(Default)]
struct Complaints {
    last: Option<(String, Instant)>,
}

impl Complaints {
    fn log(&mut self, name: &str, complaint: &str) {
        let now = Instant::now();
        let is_old = self.last.as_ref().is_some_and(|(text, at)| {
            text == complaint && now.saturating_duration_since(*at) < COMPLAINT_PERIOD
        });
        if !is_old {
            tracing::warn!("mesh({name:?}): {complaint}");
            self.last = Some((complaint.to_owned(), now));
        }
    }
}
