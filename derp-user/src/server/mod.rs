//! The DERP server: workers that relay, each on its own thread.

mod arrival;
mod attention;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench_support;
mod connection;
mod crowd;
mod hub;
mod life;
mod link;
mod local;
mod mesh;
mod observe;
mod placement;
mod processor_time;
mod rates;
mod reclaim;
mod session;
mod sync;
mod tcp_info;
mod throttle;
mod transport;
mod upgrade;
mod verbose_drops;
mod wait;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::TcpListener,
    num::NonZeroUsize,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
pub use rates::Rates;
use tokio::sync::{mpsc, watch};
pub use verbose_drops::VerboseDrops;

pub use self::crowd::ConnectionLimits;
pub use self::local::{LocalClient, LocalPacket};
pub use self::mesh::{
    LOOK_UP_PERIOD, LookUp, Mesh, MeshError, MeshPeer, MeshPeerError, MeshReloader, MeshSecret,
    MeshSettings, PreparedMesh, Resolver, system_look_up,
};
pub use self::observe::ClientSight;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::transport::fuzz;
use self::{
    connection::WriteScratch,
    hub::Hub,
    mesh::Board,
    observe::Observers,
    worker::{Desk, Shared},
};
use crate::{
    admit::Admission,
    http::Site,
    metrics::{Gauges, MeshView, RoundTripTotals, RoundTrips, Totals, WorkerCounters},
    proto::{
        keys::{NodePrivate, NodePublic},
        message::{self, ClientTraits},
    },
    proxy_protocol::TrustedProxies,
    relay::{Headcount, limit::TokenBucket},
    tls::Acceptor,
};

/// How many relayed packets of each kind wait for a client whose socket is full, unless set.
pub const DEFAULT_QUEUE_DEPTH: usize = 32;

/// How soon a server that restarts is there again, as far as it knows.
const RESTARTS_WITHIN: Duration = Duration::from_secs(10);

/// How many connections are accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AcceptLimit {
    /// On average, per second.
    pub per_second: f64,
    /// At once.
    pub burst: u64,
}

/// Clients whose every frame is logged, which is only for those who look for a fault.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VerboseClients {
    /// None.
    #[default]
    None,
    /// Those that say they are probers.
    Probers,
    /// All.
    All,
}

impl VerboseClients {
    fn include(self, traits: ClientTraits) -> bool {
        match self {
            Self::None => false,
            Self::Probers => traits.prober,
            Self::All => true,
        }
    }
}

/// Everything the server needs to know.
pub struct Settings {
    /// The server's identity.
    pub private_key: NodePrivate,
    /// The secret of the mesh, if the server belongs to one.
    pub mesh_secret: Arc<MeshSecret>,
    /// TLS for every connection; without it, DERP over plain HTTP.
    pub tls: Option<Acceptor>,
    /// Threads that relay even when fewer would do; more are used as the load grows, up to as many
    /// as the [`Statistics`] were made for.
    pub min_workers: NonZeroUsize,
    /// See [`DEFAULT_QUEUE_DEPTH`].
    pub queue_depth: usize,
    /// How long a client's socket may refuse every byte; `None`: forever.
    pub write_timeout: Option<Duration>,
    /// TCP_USER_TIMEOUT of every connection; `None`: the system's.
    pub tcp_user_timeout: Option<Duration>,
    /// Idle time before TCP keepalive probes; `None`: no probes.
    pub tcp_keepalive_idle: Option<Duration>,
    /// Connections beyond this are closed at once.
    pub accept_limit: Option<AcceptLimit>,
    /// How many there may be at one time.
    pub connection_limits: ConnectionLimits,
    /// Proxies that say where connections really come from.
    pub proxies: Arc<TrustedProxies>,
    /// Who may use the relay.
    pub admission: Arc<Admission>,
    /// Whose frames are logged.
    pub verbose_clients: VerboseClients,
    /// Keys whose lost packets are logged.
    pub verbose_drops: Option<Arc<VerboseDrops>>,
    /// What each client may send, if that is ever to be limited. Mesh peers are not.
    pub rates: Option<Arc<Rates>>,
    /// Answers every request, and says which of them become DERP sessions.
    pub site: Arc<Site>,
}

/// The numbers of a server, readable at any time by anybody. Made before the server, because its
/// pages show them.
pub struct Statistics {
    counters: Arc<[WorkerCounters]>,
    /// What is counted beside the workers, by the [`Mesh`].
    mesh_counters: Arc<WorkerCounters>,
    mesh_board: Arc<Board>,
    /// What is counted by the [`LocalClient`].
    local_counters: Arc<WorkerCounters>,
    hub: Arc<Hub>,
    active_workers: Arc<AtomicUsize>,
    round_trips: RoundTrips,
    observers: Observers,
}

impl Statistics {
    /// The numbers of a server with the public key `own_key` that will have this many workers.
    pub fn new(own_key: NodePublic, workers: NonZeroUsize) -> Self {
        Self {
            counters: (0..workers.get()).map(|_| WorkerCounters::default()).collect(),
            mesh_counters: Arc::default(),
            mesh_board: Arc::default(),
            local_counters: Arc::default(),
            hub: Arc::new(Hub::new(own_key)),
            active_workers: Arc::default(),
            round_trips: RoundTrips::default(),
            observers: Observers::default(),
        }
    }

    /// The round trip times of clients, as [`Statistics::sample_round_trips`] has seen them.
    pub fn round_trips(&self) -> RoundTripTotals {
        self.round_trips.totals()
    }

    /// What the workers, the mesh and the local client have counted.
    pub fn totals(&self) -> Totals {
        Totals::sum(self.counters.iter().chain([&*self.mesh_counters, &*self.local_counters]))
    }

    /// What is connected now.
    pub fn gauges(&self) -> Gauges {
        let census = self.hub.census();
        Gauges {
            current_connections: census.connections,
            arriving_connections: self.hub.door.arrivals(),
            current_home_connections: census.home_connections,
            current_notideal_connections: census.not_ideal_connections,
            clients_local: census.keys,
            clients_remote: census.remote_keys,
            current_dup_client_keys: census.duplicate_keys,
            current_dup_client_conns: census.duplicate_connections,
            total_dup_client_conns: census.duplicates_ever,
            watchers: census.watchers,
            active_workers: self.active_workers(),
            mesh_links: census.links,
            multi_forwarders_created: census.multi_forwarders_created,
            multi_forwarders_deleted: census.multi_forwarders_deleted,
            forwarders_deleted_other: census.forwarders_deleted_other,
        }
    }

    /// How many are connected now, without counting.
    pub fn headcount(&self) -> Headcount {
        self.hub.headcount()
    }

    /// Threads that relay now.
    pub fn active_workers(&self) -> u64 {
        self.active_workers.load(Ordering::Relaxed) as u64
    }

    /// What the links to the other servers of the region are doing.
    pub fn mesh(&self) -> MeshView {
        self.mesh_board.view(&self.hub)
    }

    /// Ends every connection of these keys. Their clients may come back.
    pub fn disconnect(&self, keys: &[NodePublic]) {
        // Closing a connection counts nothing; its owner does, when it leaves.
        let counters = WorkerCounters::default();
        for key in keys {
            self.hub.close_peer(key, &counters);
        }
    }

    /// Tells mesh peers that this server is about to restart, so that they connect again at once. Clients are not told,
    /// because there are some that end a connection on frames they do not know (reference section 9.7).
    pub fn announce_restart(&self) {
        let (mut scratch, counters) = (WriteScratch::default(), WorkerCounters::default());
        for watcher in self.hub.watchers() {
            watcher.post(|bytes| message::restarting(bytes, Duration::ZERO, RESTARTS_WITHIN));
            // Its owner may be told to stop before it gets to it.
            watcher.flush(&mut scratch, &counters);
        }
    }

    /// Looks for contradictions in the relay's tables.
    ///
    /// # Errors
    ///
    /// The first contradiction, in words.
    pub fn check(&self) -> Result<(), String> {
        self.hub.check()
    }
}

/// How far a server is on its way from serving to its end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Phase {
    /// Connections are accepted.
    Serving,
    /// No more are accepted; those there are go on.
    Draining,
    /// Everything ends.
    Stopping,
}

/// A running server.
pub struct Server {
    phase: watch::Sender<Phase>,
    workers: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    /// Starts the workers on a bound listener.
    ///
    /// # Errors
    ///
    /// If the listener refuses the TCP options, or a thread cannot be started.
    pub fn start(
        listener: TcpListener,
        settings: Settings,
        statistics: &Statistics,
    ) -> io::Result<Self> {
        prepare(&listener, &settings)?;
        let (phase, phases) = watch::channel(Phase::Serving);
        let accept_bucket = settings.accept_limit.map(|limit| {
            Mutex::new(TokenBucket::new(limit.per_second, limit.burst as f64, Instant::now()))
        });
        let hub = Arc::clone(&statistics.hub);
        hub.door.set_limits(settings.connection_limits);
        let active = Arc::clone(&statistics.active_workers);
        active.store(settings.min_workers.get().min(statistics.counters.len()), Ordering::Relaxed);
        let (desks, inboxes): (Vec<_>, Vec<_>) = (0..statistics.counters.len())
            .map(|_| {
                let (inbox, messages) = mpsc::unbounded_channel();
                (Desk { inbox, clock: OnceLock::new() }, messages)
            })
            .unzip();
        let desks = desks.into_boxed_slice();
        let shared =
            Arc::new(Shared { settings, hub, accept_bucket, phase: phases, active, desks });
        let mut listener = Some(listener);
        let start_worker = |(index, inbox)| {
            let (shared, counters) = (Arc::clone(&shared), Arc::clone(&statistics.counters));
            let listener = listener.take();
            std::thread::Builder::new()
                .name(format!("derpd-worker-{index}"))
                .spawn(move || worker::run(shared, counters, index, inbox, listener))
        };
        let workers =
            inboxes.into_iter().enumerate().map(start_worker).collect::<Result<_, _>>()?;
        Ok(Self { phase, workers })
    }

    /// Closes the listener. Connections that have been accepted go on as they are.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Closes the listener and every connection, and waits for the workers to end.
    ///
    /// # Errors
    ///
    /// What a worker failed with.
    pub fn stop(self) -> io::Result<()> {
        self.phase.send_replace(Phase::Stopping);
        for worker in self.workers {
            worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
        }
        Ok(())
    }
}

/// Sets the options that accepted sockets inherit.
fn prepare(listener: &TcpListener, settings: &Settings) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let socket = socket2::SockRef::from(listener);
    socket.set_tcp_user_timeout(settings.tcp_user_timeout)?;
    if let Some(idle) = settings.tcp_keepalive_idle {
        const PROBE_INTERVAL: Duration = Duration::from_secs(15);
        const PROBES: u32 = 9;
        socket.set_tcp_keepalive(
            &socket2::TcpKeepalive::new()
                .with_time(idle)
                .with_interval(PROBE_INTERVAL)
                .with_retries(PROBES),
        )?;
    }
    Ok(())
}
