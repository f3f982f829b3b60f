//! The peer relay, shared between those who drive it and those who look in.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Keeper, elsewhere::Connections};
use crate::{
    flow::FlowTable,
    metrics::PeerRelayFigures,
    peer_relay::{EndpointState, Mapping, PeerRelay, PeerRelayView, Reachable},
    proto::keys::NodePublic,
    udp::now,
};

/// A peer relay, its flows, and what is known of its surroundings.
#[derive(Clone)]
pub struct PeerRelayMonitor {
    port: u16,
    keeper: Keeper,
    /// Locked before the keeper.
    state: Arc<Mutex<State>>,
    connections: Connections,
}

struct State {
    relay: PeerRelay,
    node: NodePublic,
    mappings: Vec<Mapping>,
    cloud: Vec<IpAddr>,
    allow: String,
    /// Whether it has been said where the relay can be reached.
    is_advertised: bool,
}

impl PeerRelayMonitor {
    /// Watches over `relay`, whose node has the key `node` and whose flows `keeper` keeps on UDP port `port`.
    #[must_use]
    pub fn new(relay: PeerRelay, keeper: Keeper, node: NodePublic, port: u16) -> Self {
        let state = State {
            relay,
            node,
            mappings: Vec::new(),
            cloud: Vec::new(),
            allow: String::new(),
            is_advertised: false,
        };
        let state = Arc::new(Mutex::new(state));
        Self { port, keeper, state, connections: Connections::default() }
    }

    /// Returns everything there is to see.
    #[must_use]
    pub fn view(&self) -> PeerRelayView {
        let flows = self.keeper.views();
        let state = self.state.lock();
        PeerRelayView {
            node_key: state.node.to_string(),
            port: self.port,
            allow: state.allow.clone(),
            mappings: state.mappings.clone(),
            cloud: state.cloud.clone(),
            derp: self.connections.views(),
            ..state.relay.status(flows, now())
        }
    }

    /// Returns the figures for the metrics, as the last review has found them.
    #[must_use]
    pub fn figures(&self) -> PeerRelayFigures {
        let derp = self.connections.views();
        let state = self.state.lock();
        PeerRelayFigures {
            counts: state.relay.counts().clone(),
            traffic: *state.relay.traffic(),
            endpoints: EndpointState::ALL.map(|it| state.relay.endpoints(it)),
            addresses: state.relay.addresses().len(),
            mappings: state.mappings.len(),
            derp: derp.into_iter().map(|it| (it.server, it.is_connected)).collect(),
        }
    }

    /// Notes that the relay's node has another key.
    pub(super) fn set_node(&self, node: NodePublic) {
        self.state.lock().node = node;
    }

    /// Drives the relay, with its flow table.
    pub(super) fn update<R>(&self, drive: impl FnOnce(&mut PeerRelay, &mut FlowTable) -> R) -> R {
        let mut state = self.state.lock();
        let relay = &mut state.relay;
        self.keeper.update(|table| drive(relay, table))
    }

    /// The same, after the table has been told what both data planes have counted until now.
    pub(super) fn update_observed<R>(
        &self,
        drive: impl FnOnce(&mut PeerRelay, &mut FlowTable) -> R,
    ) -> R {
        let mut state = self.state.lock();
        let relay = &mut state.relay;
        self.keeper.update_observed(|table| drive(relay, table))
    }

    /// Notes where clients are told to reach the relay, what of that others say, and who may ask. Returns whether
    /// clients are told something else than before.
    pub(super) fn advertise(
        &self,
        addresses: &[SocketAddr],
        reachable: &Reachable,
        allow: String,
    ) -> bool {
        let mut state = self.state.lock();
        state.allow = allow;
        state.mappings.clone_from(&reachable.mappings);
        state.cloud.clone_from(&reachable.cloud);
        let is_new = !state.is_advertised || state.relay.addresses() != addresses;
        state.is_advertised = true;
        state.relay.set_addresses(addresses.iter().copied());
        is_new
    }

    /// Returns where it is noted how connections to other DERP servers are doing.
    pub(super) fn connections(&self) -> Connections {
        self.connections.clone()
    }
}
