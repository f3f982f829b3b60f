//! derpd: the relay server. Parses the command line, sets everything up, and runs until told to stop.

mod banner;
mod bench;
mod certificates;
mod listen;
mod logging;
mod metrics;
mod reload;
mod status;
mod tailnet;
mod tool;
mod udp;
mod udp_reload;

use std::{
    env, fs,
    net::TcpListener,
    num::NonZeroUsize,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use derp_user::{
    admit::Admission,
    config::{
        self, Config, ConfigError, Environment, FileSettings, Invocation, KeySource, MeshConfig,
        MeshKeySource, Options,
    },
    dataplane,
    http::{
        self, AcmeChallenge, BootstrapDns, DebugAccess, Site, SystemDns, TlsRequests, serve_port80,
    },
    privilege::{self, Capability},
    proto::keys::{MeshKey, NodePrivate, NodePublic},
    proxy_protocol::TrustedProxies,
    server::{
        self, Mesh, MeshSecret, MeshSettings, Rates, Server, Settings, Statistics, VerboseDrops,
    },
    tailnet::Tailnet,
    tls::{self, Certificates},
    udp_relay::{Keeper, PeerRelayMonitor, PeerRelayService, WireGuardHandle},
};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::sleep,
};

use crate::{
    certificates::Source,
    metrics::Sources,
    reload::{MeshFiles, Reloader, rate_line},
    status::{Facts, StatusBoard},
    udp::{Started, Tasks, Udp},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let mut arguments = env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == bench::NAME).is_some() {
        return bench::main(arguments);
    }
    if let Some(tool) = arguments.peek().and_then(tool::find) {
        return tool(arguments.skip(1).collect());
    }
    let options = match config::parse(arguments, &variable) {
        Ok(Invocation::Run(options)) => *options,
        Ok(Invocation::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("derpd: {error}");
            return ExitCode::from(2);
        }
    };
    if options.version {
        println!("{}", version());
        return ExitCode::SUCCESS;
    }
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("derpd: {}", in_words(&error));
            let status = error.downcast_ref().map_or(1, ConfigError::exit_status);
            ExitCode::from(status)
        }
    }
}

/// An error with its causes, each said once: some errors have their cause in their own words.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The version of the program and of the kernel program in it.
fn version() -> String {
    match dataplane::object_hash() {
        Some(hash) => format!("derpd {VERSION} (XDP program {hash})"),
        None => format!("derpd {VERSION} (built without its XDP program)"),
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Arc::new(resolve(options)?);
    let levels = logging::start(&config)?;
    tracing::info!("{}", version());

    let file = load_file(&config)?;
    levels.apply(file.log.as_deref());
    let private_key = load_identity(&config)?;
    let mesh_key = load_mesh_key(&config)?;
    config.check_mesh_key(mesh_key.as_ref())?;
    let access = debug_access(&config)?;
    let certificates = Source::load(&config, &private_key.public())?.map(Arc::new);
    listen::raise_file_limit();

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the control runtime")?;
    let entered = runtime.enter();
    let signals = Signals::catch()?;
    let gate = Gate::load(&config, runtime.handle())?;

    let mut inherited = listen::Inherited::take()?;
    let main_listener = inherited.listener(config.listen, "-a")?;
    let listen = config.listen.with_port(main_listener.local_addr()?.port());
    let port80 = match config.tls.as_ref().and_then(|tls| tls.http_port) {
        Some(port) => Some(inherited.listener(config.listen.with_port(port), "-http-port")?),
        None => None,
    };
    inherited.finish()?;
    let udp = Udp::prepare(&config, &file)?;
    let attachments =
        udp.xdp.as_ref().map(|xdp| xdp.lock().attachments().to_vec()).unwrap_or_default();
    let stays_attached = udp.xdp.as_ref().is_some_and(|xdp| xdp.lock().stays_attached());
    // Everything is bound and attached, and no other thread runs yet that would keep more.
    reduce_privilege(&udp);
    let (xdp, keeper, companion) = (udp.xdp.clone(), udp.keeper(), udp.companion());
    let wireguard = udp.wireguard();
    let udp_reloader = udp.reloader(&config, file);
    let stun_counters = udp.responder().map(|responder| responder.counters());
    let (stun_addresses, relay_addresses) =
        (udp.stun_addresses.clone(), udp.relay_addresses.clone());
    let Started { forwarder, totals, tasks, peer_relay } = udp.start()?;

    let port80_address = port80.as_ref().and_then(|listener| listener.local_addr().ok());

    let public_key = private_key.public();
    let statistics = Arc::new(Statistics::new(public_key, config.workers));
    let tailnet = match &peer_relay {
        Some(parts) => parts.join_tailnet(&config, listen.port)?,
        None => None,
    };
    let handle = tailnet.as_ref().map(Tailnet::handle);
    let peer_relay =
        peer_relay.map(|parts| parts.join(&statistics, public_key, handle.clone())).transpose()?;
    let mesh_settings = mesh_settings(&config, &private_key, mesh_key.as_ref());
    let mesh_secret = Arc::new(MeshSecret::new(mesh_key));
    let mut reloader = Reloader {
        admission: Arc::clone(&gate.admission),
        certificates: certificates.clone(),
        rates: gate.rates.clone().zip(config.rate_config.clone()),
        udp: udp_reloader,
        mesh: MeshFiles {
            config: Arc::clone(&config),
            secret: Arc::clone(&mesh_secret),
            links: None,
        },
        statistics: Arc::clone(&statistics),
        count: Arc::default(),
        levels,
    };
    let bootstrap = Arc::new(BootstrapDns::new(config.bootstrap.clone()));
    let sources = Sources {
        statistics: Arc::clone(&statistics),
        admission: Arc::clone(&gate.admission),
        rates: gate.rates.clone(),
        proxies: Arc::clone(&gate.proxies),
        reloads: Arc::clone(&reloader.count),
        stun: stun_counters,
        bootstrap: Arc::clone(&bootstrap),
        tls_requests: TlsRequests::default(),
        sample_round_trips: config.sample_round_trips,
        xdp,
        keeper: keeper.clone(),
        peer_relay: peer_relay.as_ref().map(|peer_relay| peer_relay.monitor.clone()),
        companion,
        tailnet: handle,
        wireguard: wireguard.clone(),
        udp: totals,
        certificates: certificates.as_ref().map(|source| Arc::clone(source.certificates())),
        started: (SystemTime::now(), started),
    };
    let sources = Arc::new(sources);
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let facts = Facts { hostname: config.hostname.clone(), machine: machine.trim().to_owned() };
    let board = Arc::new(StatusBoard::new(Arc::clone(&sources), keeper.clone(), facts));
    let site = Arc::new(site(&config, Arc::clone(&mesh_secret), access, sources, keeper, &board));
    let tls = match &certificates {
        Some(source) => Some(tls::Acceptor::new(Arc::clone(source.certificates()))?),
        None => None,
    };
    let settings =
        server_settings(&config, private_key, mesh_secret, tls, Arc::clone(&site), &gate);
    let server = Server::start(main_listener, settings, &statistics)
        .with_context(|| format!("cannot serve on {listen} (-a)"))?;
    let mesh = mesh_settings
        .map(|settings| Mesh::start(settings, &statistics))
        .transpose()
        .map_err(|error| match error {
            server::MeshError::Client(error) => reload::mesh_fault(error),
            error @ server::MeshError::Thread(_) => anyhow::Error::new(error).context("-mesh-with"),
        })?;
    reloader.mesh.links = mesh.as_ref().map(Mesh::reloader);

    banner::log(&banner::Facts {
        config: &config,
        listen,
        port80: port80_address,
        stun: &stun_addresses,
        relay: &relay_addresses,
        attachments: &attachments,
        public_key,
        admission: &gate.admission,
    });
    notify(NotifyState::Ready);
    let port80 = port80.map(|listener| (listener, site, gate.proxies));
    let sample_round_trips = config.sample_round_trips;
    let watch = Watch { bootstrap, statistics, sample_round_trips, board };
    let own_clients = u64::from(peer_relay.is_some());
    let drain =
        Drain { timeout: config.drain_timeout, own_clients, server: &server, begun: Notify::new() };
    runtime.block_on(control(signals, port80, reloader, tasks, watch, peer_relay, drain))?;
    notify(NotifyState::Stopping);
    drop(forwarder);
    drop(tailnet);
    if let Some(wireguard) = wireguard {
        wireguard.save(true);
    }
    if stays_attached {
        tracing::info!("the kernel goes on by itself; `derpd detach` stops it");
    }
    if let Some(mesh) = mesh {
        mesh.stop();
    }
    // The process ends either way; a worker's failure at this point helps nobody.
    if let Err(error) = server.stop() {
        tracing::debug!("stop: {error}");
    }
    drop(entered);
    // Without waiting for a name that is just being looked up.
    runtime.shutdown_background();
    Ok(())
}

/// Tells a service manager that waits for it, as systemd does for units of `Type=notify`.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot tell the service manager: {error}");
    }
}

/// What decides which connections are served, and how fast.
struct Gate {
    admission: Arc<Admission>,
    rates: Option<Arc<Rates>>,
    proxies: Arc<TrustedProxies>,
}

impl Gate {
    fn load(config: &Config, control: &tokio::runtime::Handle) -> anyhow::Result<Self> {
        let rates = match &config.rate_config {
            Some(path) => {
                let limit = config::load_rate_limit(path)?;
                tracing::info!("{}", rate_line(limit));
                Some(Arc::new(Rates::new(limit)))
            }
            None => None,
        };
        let admission = Admission::new(config.admission.clone(), control.clone())?;
        Ok(Self {
            admission: Arc::new(admission),
            rates,
            proxies: Arc::new(TrustedProxies::new(config.proxies.clone())),
        })
    }
}

/// A variable of the environment, if it is there and is text.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// What the command line means on this machine.
pub(crate) fn resolve(options: Options) -> Result<Config, ConfigError> {
    Config::resolve(
        options,
        &Environment {
            variable: &variable,
            is_root: nix::unistd::geteuid().is_root(),
            file_exists: &|path| path.exists(),
            processors: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        },
    )
}

fn load_file(config: &Config) -> Result<FileSettings, ConfigError> {
    match &config.file {
        Some(path) => config::load_file(path, config.stun_port),
        None => Ok(FileSettings::default()),
    }
}

fn load_identity(config: &Config) -> Result<NodePrivate, ConfigError> {
    match &config.key {
        KeySource::File { path, by_default: true } => {
            tracing::info!("no config path specified; using {}", path.display());
        }
        KeySource::Ephemeral => tracing::info!("Running in dev mode."),
        KeySource::File { by_default: false, .. } => {}
    }
    config::load_identity(&config.key)
}

fn load_mesh_key(config: &Config) -> Result<Option<MeshKey>, ConfigError> {
    let key = config::load_mesh_key(&config.mesh_key)?;
    if key.is_some() {
        if matches!(config.mesh_key, MeshKeySource::File(_)) {
            tracing::info!("Got mesh key from static file");
        }
        tracing::info!("DERP mesh key configured");
    } else {
        tracing::info!("No mesh key configured");
    }
    Ok(key)
}

fn debug_access(config: &Config) -> Result<DebugAccess, ConfigError> {
    let settings = &config.debug_access;
    let key = config::load_debug_key(settings.key_path.as_ref())?;
    Ok(DebugAccess::new(
        settings.address.as_deref(),
        settings.networks.as_deref(),
        key.as_ref().map(|key| key.as_str()),
        config.dev,
    )?)
}

fn reduce_privilege(udp: &Udp) {
    let has_kernel_maps = udp.xdp.is_some();
    let has_neighbours = has_kernel_maps && udp.keeper().is_some();
    match privilege::reduce(&privilege::needed_later(has_kernel_maps, has_neighbours)) {
        Ok(left) if left.is_empty() => tracing::debug!("no capabilities are kept"),
        Ok(left) => {
            let names: Vec<_> = left.into_iter().map(Capability::as_str).collect();
            tracing::info!("capabilities that are kept: {}", names.join(", "));
        }
        Err(error) => tracing::warn!("cannot give up capabilities: {error}"),
    }
}

fn site(
    config: &Config,
    mesh_secret: Arc<MeshSecret>,
    access: DebugAccess,
    sources: Arc<Sources>,
    keeper: Option<Keeper>,
    board: &Arc<StatusBoard>,
) -> Site {
    // Not the worker's that serves the page: it has packets to relay.
    let runtime = tokio::runtime::Handle::current();
    let wireguard = sources.wireguard.clone();
    let board = Arc::clone(board);
    let statistics = Arc::clone(&sources.statistics);
    let mesh_statistics = Arc::clone(&statistics);
    let certificates = sources.certificates.clone();
    let peer_relay = sources.peer_relay.clone();
    let validates = |certificates: &Arc<Certificates>| certificates.challenges().is_some();
    let (texts, observed) = (Arc::clone(&sources), Arc::clone(&statistics));
    let (admission, verifier) = (Arc::clone(&sources.admission), Arc::clone(&sources.admission));
    Site::new(http::Settings {
        home: config.home.clone(),
        derp_enabled: config.derp_enabled,
        hostname: board.facts.hostname.clone(),
        machine: board.facts.machine.clone(),
        version: VERSION,
        has_mesh_key: Box::new(move || mesh_secret.current().is_some()),
        mesh: Box::new(move || mesh_statistics.mesh()),
        bootstrap: Arc::clone(&sources.bootstrap),
        admission: Box::new(move || admission.to_string()),
        access,
        acme_challenge: certificates.filter(validates).map(|certificates| -> AcmeChallenge {
            Box::new(move |token| certificates.challenges()?.key_authorization(token))
        }),
        started: sources.started.1,
        tls_requests: sources.tls_requests.clone(),
        traffic: Box::new(move || observed.traffic(&runtime)),
        varz: Box::new(move || texts.report().to_text()),
        vars: Box::new(move || sources.report().to_vars()),
        wireguard: Box::new(move || wireguard.as_ref().map(WireGuardHandle::view)),
        flows: Box::new(move || keeper.as_ref().map(Keeper::views).unwrap_or_default()),
        status: Box::new(move |since| board.status(since)),
        peer_relay: Box::new(move || peer_relay.as_ref().map(PeerRelayMonitor::view)),
        check: Box::new(move || statistics.check().and_then(|()| verifier.check())),
    })
}

fn server_settings(
    config: &Config,
    private_key: NodePrivate,
    mesh_secret: Arc<MeshSecret>,
    tls: Option<tls::Acceptor>,
    site: Arc<Site>,
    gate: &Gate,
) -> Settings {
    Settings {
        private_key,
        mesh_secret,
        min_workers: config.min_workers,
        queue_depth: config.queue_depth,
        write_timeout: config.tcp.write_timeout,
        tcp_user_timeout: config.tcp.user_timeout,
        tcp_keepalive_idle: config.tcp.keepalive_idle,
        // Like derper, plain HTTP is not limited: it is a proxy's or a developer's business.
        accept_limit: tls.as_ref().and(config.tcp.accept_limit),
        proxies: Arc::clone(&gate.proxies),
        admission: Arc::clone(&gate.admission),
        verbose_clients: config.verbose_clients,
        verbose_drops: (!config.verbose_drops.is_empty())
            .then(|| Arc::new(VerboseDrops::new(config.verbose_drops.iter().copied()))),
        rates: gate.rates.clone(),
        tls,
        site,
    }
}

fn mesh_settings(
    config: &Config,
    private_key: &NodePrivate,
    mesh_key: Option<&MeshKey>,
) -> Option<MeshSettings> {
    let (MeshConfig { peers, trust }, mesh_key) = (config.mesh.clone()?, mesh_key?.clone());
    Some(MeshSettings {
        private_key: private_key.clone(),
        mesh_key,
        peers,
        trust,
        tcp_user_timeout: config.tcp.user_timeout,
        look_up_period: server::LOOK_UP_PERIOD,
        look_up: Box::new(server::system_look_up),
    })
}

/// The signals that stop the relay or make it reload. Caught before it says that it serves, so that none is missed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> anyhow::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context("cannot catch SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("cannot catch SIGTERM")?,
            hangup: signal(SignalKind::hangup()).context("cannot catch SIGHUP")?,
        })
    }
}

/// How the relay ends.
struct Drain<'a> {
    /// How long clients may stay that are connected.
    timeout: Option<Duration>,
    /// How many of the clients are this process itself.
    own_clients: u64,
    server: &'a Server,
    /// Told when it has begun.
    begun: Notify,
}

impl Drain<'_> {
    /// How often it is looked whether clients are still there.
    const LOOK: Duration = Duration::from_millis(100);

    /// Closes the listener, and waits until the last client has left or its time is over.
    async fn run(&self, statistics: &Statistics) {
        let Some(timeout) = self.timeout else { return };
        self.server.drain();
        self.begun.notify_one();
        let clients = || statistics.gauges().clients_local.saturating_sub(self.own_clients);
        tracing::info!(
            clients = clients(),
            "draining: no more connections are accepted; the rest end in {timeout:?}, or at the next signal"
        );
        let gone = async {
            while clients() > 0 {
                sleep(Self::LOOK).await;
            }
        };
        match tokio::time::timeout(timeout, gone).await {
            Ok(()) => tracing::info!("drained: every client has left"),
            Err(_) => tracing::info!(clients = clients(), "drained: the time is over"),
        }
    }
}

/// What is looked at again and again.
struct Watch {
    bootstrap: Arc<BootstrapDns>,
    statistics: Arc<Statistics>,
    sample_round_trips: bool,
    board: Arc<StatusBoard>,
}

impl Watch {
    async fn run(&self) {
        let round_trips = async {
            if self.sample_round_trips {
                self.statistics.sample_round_trips().await;
            }
        };
        let dns = SystemDns::default();
        tokio::join!(self.bootstrap.run(&dns), round_trips, self.board.run());
    }
}

/// Runs what is not the relay itself, until a signal says to stop.
async fn control(
    mut signals: Signals,
    port80: Option<(TcpListener, Arc<Site>, Arc<TrustedProxies>)>,
    reloader: Reloader,
    tasks: Tasks,
    watch: Watch,
    peer_relay: Option<PeerRelayService>,
    drain: Drain<'_>,
) -> anyhow::Result<()> {
    let port80 = match port80 {
        Some((listener, site, proxies)) => {
            Some((tokio::net::TcpListener::from_std(listener)?, site, proxies))
        }
        None => None,
    };
    let services = async {
        let port80 = async {
            if let Some((listener, site, proxies)) = port80 {
                serve_port80(listener, site, proxies, drain.begun.notified()).await;
            }
        };
        let disconnect = |keys: &[NodePublic]| reloader.disconnect(keys);
        let admission = reloader.admission.run(&disconnect);
        let reload = async {
            while signals.hangup.recv().await.is_some() {
                reloader.reload();
            }
        };
        let certificates = async {
            if let Some(source) = &reloader.certificates {
                source.run().await;
            }
        };
        let peer_relay = async {
            if let Some(peer_relay) = peer_relay {
                peer_relay.run().await;
            }
        };
        tokio::join!(port80, tasks.run(), admission, certificates, reload, watch.run(), peer_relay);
        std::future::pending::<()>().await;
    };
    let end = async {
        tokio::select! {
            _ = signals.interrupt.recv() => {
                tracing::info!("received SIGINT, stopping");
                return;
            }
            _ = signals.terminate.recv() => tracing::info!("received SIGTERM, stopping"),
        }
        tokio::select! {
            () = drain.run(&reloader.statistics) => {}
            _ = signals.interrupt.recv() => tracing::info!("received SIGINT, stopping at once"),
            _ = signals.terminate.recv() => tracing::info!("received SIGTERM, stopping at once"),
        }
    };
    tokio::select! {
        () = end => {}
        () = services => {}
    }
    Ok(())
}
