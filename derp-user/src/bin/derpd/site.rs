//! What the pages show, and what the server is started with.

use std::sync::Arc;

use derp_user::{
    config::{Config, MeshConfig},
    http::{self, AcmeChallenge, DebugAccess, Site},
    proto::keys::{MeshKey, NodePrivate},
    server::{self, ConnectionLimits, MeshSecret, MeshSettings, Settings, VerboseDrops},
    tls::{self, Certificates},
    udp_relay::{Keeper, PeerRelayMonitor, WireGuardHandle},
};

use crate::{VERSION, gate::Gate, metrics::Sources, status::StatusBoard};

pub(crate) fn site(
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

/// How many connections there may be; an operator who wants more than there can be is told.
pub(crate) fn connection_limits(config: &Config, files: u64) -> ConnectionLimits {
    let limits = config.tcp.connection_limits(files);
    if let Some(wanted) = config.tcp.connections
        && wanted.get() > limits.connections
    {
        tracing::warn!(
            "-connection-limit {wanted}: {} with the {files} open files that the system allows",
            limits.connections
        );
    }
    limits
}

pub(crate) fn server_settings(
    config: &Config,
    connection_limits: ConnectionLimits,
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
        connection_limits,
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

pub(crate) fn mesh_settings(
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
