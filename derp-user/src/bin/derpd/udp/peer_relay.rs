//! The peer relay between being prepared and being at work.

use std::{net::SocketAddr, sync::Arc};

use derp_user::{
    config::{Config, ConfigError, PeerRelaySettings, RelayKeys},
    forward::{ControlPacket, NOTICES, Outlet, StunAnswer},
    peer_relay::{PeerRelay, PeerRelayOptions, Ports, SEED_LENGTH},
    proto::keys::NodePublic,
    server::{DEFAULT_QUEUE_DEPTH, LocalClient, Statistics},
    tailnet::{Tailnet, TailnetHandle},
    udp_relay::{Keeper, PeerRelayMonitor, PeerRelayRules, PeerRelayService},
};
use tokio::sync::{mpsc::Receiver, watch};

use crate::tailnet;

/// A peer relay that is not at work yet.
pub(crate) struct PeerRelayParts {
    pub(super) settings: PeerRelaySettings,
    pub(super) keys: RelayKeys,
    pub(super) rules: watch::Receiver<Arc<PeerRelayRules>>,
    pub(super) keeper: Keeper,
    pub(super) control: Receiver<ControlPacket>,
    pub(super) stun_answers: Receiver<StunAnswer>,
    pub(super) outlet: Outlet,
    pub(super) relay_addresses: Vec<SocketAddr>,
}

impl PeerRelayParts {
    /// Has the relay's node join its tailnet, if it is to be in one.
    pub(crate) fn join_tailnet(
        &self,
        config: &Config,
        port: u16,
    ) -> anyhow::Result<Option<Tailnet>> {
        tailnet::start(config, port, &self.settings, &self.keys)
    }

    /// Joins the DERP server that has these statistics and the key `own_server`.
    pub(crate) fn join(
        self,
        statistics: &Arc<Statistics>,
        own_server: NodePublic,
        tailnet: Option<TailnetHandle>,
    ) -> anyhow::Result<PeerRelayService> {
        let Self { settings, keys, rules, keeper, control, stun_answers, outlet, relay_addresses } =
            self;
        let is_ours = |address: &&SocketAddr| address.port() == settings.port;
        let ours: Vec<_> = relay_addresses.iter().filter(is_ours).copied().collect();
        let specified = ours.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified());
        let bound = specified.collect();
        let has = |is_ipv4| ours.iter().any(|address| address.is_ipv4() == is_ipv4);
        let port = |is_ipv4| if has(is_ipv4) { settings.port } else { 0 };
        let ports = Ports { ipv4: port(true), ipv6: port(false) };
        let mut seed = [0; SEED_LENGTH];
        getrandom::fill(&mut seed).map_err(ConfigError::Random)?;
        let node = keys.node.public();
        tracing::info!("peer relay on UDP port {}: {node}, {}", settings.port, keys.disco.public());
        let address = ours.first().copied().unwrap_or(([0, 0, 0, 0], settings.port).into());
        let relay = PeerRelay::new(PeerRelayOptions {
            identity: keys.disco,
            seed,
            port: settings.port,
            limits: settings.limits,
        });
        let statistics = Arc::clone(statistics);
        let join =
            move |node| LocalClient::join(&statistics, node, address, NOTICES, DEFAULT_QUEUE_DEPTH);
        Ok(PeerRelayService {
            monitor: PeerRelayMonitor::new(relay, keeper, node, settings.port),
            client: join(node),
            join: Box::new(join),
            node: keys.node,
            own_server,
            control,
            stun_answers,
            outlet,
            rules,
            tailnet,
            ports,
            bound,
        })
    }
}
