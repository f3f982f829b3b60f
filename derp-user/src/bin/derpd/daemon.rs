//! The relay from start to end: everything is loaded, bound and attached, then it serves until told to stop.

use std::{
    ffi::OsString,
    fs,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;
use derp_user::{
    config::{self, Config, ConfigError, KeySource, MeshKeySource, Options},
    http::{BootstrapDns, DebugAccess, TlsRequests},
    privilege,
    proto::keys::{MeshKey, NodePrivate},
    server::{self, Mesh, MeshSecret, Server, Statistics},
    tailnet::Tailnet,
    tls,
};
use parking_lot::Mutex;
use sd_notify::NotifyState;
use tokio::sync::Notify;

use crate::{
    around::resolve,
    banner,
    certificates::Source,
    control::{Drain, Signals, Watch, control, notify},
    gate::Gate,
    listen, logging,
    metrics::Sources,
    reload::{self, Counts, MeshFiles, Reloader},
    sandbox,
    site::{connection_limits, mesh_settings, server_settings, site},
    status::{Facts, StatusBoard},
    udp::{Started, Udp},
    version,
};

/// Runs the relay with these options until it is told to stop.
pub(crate) fn run(options: Options, arguments: Vec<OsString>) -> anyhow::Result<()> {
    let started = Instant::now();
    let config = Arc::new(resolve(options)?);
    let levels = logging::start(&config)?;
    tracing::info!("{}", version());
    if config.sandbox
        && let Err(error) = privilege::seal_memory()
    {
        tracing::warn!("sandbox: core dumps cannot be switched off: {error}");
    }

    if let Some(path) = config.layers.path() {
        tracing::info!("configuration file: {}", path.display());
    }
    let file = config.file_settings()?;
    let private_key = load_identity(&config)?;
    let mesh_key = load_mesh_key(&config)?;
    config.check_mesh_key(mesh_key.as_ref())?;
    let access = debug_access(&config)?;
    let certificates = Source::load(&config, &private_key.public())?.map(Arc::new);
    let connection_limits = connection_limits(&config, listen::raise_file_limit());

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
    let sandbox = sandbox::enter(&config, &file, &udp);
    let (xdp, keeper, companion) = (udp.xdp.clone(), udp.keeper(), udp.companion());
    let wireguard = udp.wireguard();
    let udp_reloader = udp.reloader(file);
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
    let reloads: Arc<Counts> = Arc::default();
    let is_confined = sandbox.as_ref().is_some_and(|it| it.has(privilege::Layer::Files));
    let bootstrap = Arc::new(BootstrapDns::new(config.bootstrap.clone()));
    let sources = Sources {
        statistics: Arc::clone(&statistics),
        admission: Arc::clone(&gate.admission),
        rates: gate.rates.clone(),
        proxies: Arc::clone(&gate.proxies),
        reloads: Arc::clone(&reloads),
        stun: stun_counters,
        bootstrap: Arc::clone(&bootstrap),
        tls_requests: TlsRequests::default(),
        sandbox,
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
    let hostname = config.own_hostname().unwrap_or_default().to_owned();
    let facts = Facts { hostname, machine: machine.trim().to_owned() };
    let board = Arc::new(StatusBoard::new(Arc::clone(&sources), keeper.clone(), facts));
    let site = Arc::new(site(&config, Arc::clone(&mesh_secret), access, sources, keeper, &board));
    let tls = match &certificates {
        Some(source) => Some(tls::Acceptor::new(Arc::clone(source.certificates()))?),
        None => None,
    };
    let drain_timeout = Arc::new(Mutex::new(config.drain_timeout));
    let mut reloader = Reloader {
        settings: reload::Settings {
            arguments,
            started: Arc::clone(&config),
            drain: Arc::clone(&drain_timeout),
            site: Arc::clone(&site),
            proxies: Arc::clone(&gate.proxies),
        },
        admission: Arc::clone(&gate.admission),
        certificates: certificates.clone(),
        rates: gate.rates.clone(),
        udp: udp_reloader,
        mesh: MeshFiles {
            config: Arc::clone(&config),
            secret: Arc::clone(&mesh_secret),
            links: None,
        },
        statistics: Arc::clone(&statistics),
        count: reloads,
        levels,
        is_confined,
    };
    let settings = server_settings(
        &config,
        connection_limits,
        private_key,
        mesh_secret,
        tls,
        Arc::clone(&site),
        &gate,
    );
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
        Drain { timeout: drain_timeout, own_clients, server: &server, begun: Notify::new() };
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
