//! The endpoints as operators see them; the flow table knows the rest, under the same VNI.

use std::net::SocketAddr;

use derp_common::flow::Side;
use serde::Serialize;

use super::{PeerRelay, endpoint::Endpoint};
use crate::proto::keys::NodePublic;

/// One endpoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointView {
    /// Its VNI.
    pub vni: u32,
    /// Whether it is in use.
    pub state: EndpointState,
    /// The node that has asked for it first.
    pub node: NodePublic,
    /// When it was given first, in nanoseconds.
    pub allocated_at: u64,
    /// Its clients' disco keys, short, in the order of the flow's ends.
    pub clients: [String; 2],
    /// Where they are bound.
    pub remotes: [Option<SocketAddr>; 2],
}

/// Whether an endpoint is in use. The labels are those of the reference's metrics.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// Not yet: an end is not bound.
    Connecting,
    /// Both ends are bound.
    Open,
}

impl EndpointState {
    /// Every state.
    pub const ALL: [Self; 2] = [Self::Connecting, Self::Open];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open => "open",
        }
    }
}

impl PeerRelay {
    /// Returns all endpoints, by VNI.
    pub fn views(&self) -> impl Iterator<Item = EndpointView> {
        self.endpoints.iter().map(|(vni, endpoint)| EndpointView {
            vni: *vni,
            state: state(endpoint),
            node: endpoint.owner,
            allocated_at: endpoint.allocated_at,
            clients: endpoint.keys().map(|key| key.short()),
            remotes: Side::ALL.map(|side| endpoint.client(side).remote),
        })
    }

    /// Returns how many endpoints are in a state.
    #[must_use]
    pub fn endpoints(&self, in_state: EndpointState) -> usize {
        self.endpoints.values().filter(|endpoint| state(endpoint) == in_state).count()
    }
}

fn state(endpoint: &Endpoint) -> EndpointState {
    if endpoint.is_open() { EndpointState::Open } else { EndpointState::Connecting }
}
