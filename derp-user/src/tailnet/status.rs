//! What the control connection is doing, for pages and metrics.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

/// What the control connection is doing.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It is being made, and the node registered.
    #[default]
    Connecting,
    /// The node waits for an administrator to let it in.
    AwaitingApproval,
    /// The node is in the tailnet, and changes are followed.
    Connected,
    /// It is lost, or the server refused the node; it is made again after a pause.
    Waiting,
}

impl Phase {
    /// Every phase.
    pub const ALL: [Self; 4] =
        [Self::Connecting, Self::AwaitingApproval, Self::Connected, Self::Waiting];

    /// Returns the metric label and log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Connected => "connected",
            Self::Waiting => "waiting",
        }
    }
}

/// The last fault of the control connection.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct LastError {
    /// When it was, in seconds since 1970.
    pub at: u64,
    /// What it was.
    pub text: String,
}

/// What the control connection is doing, and what is known of the tailnet.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Status {
    /// Address of the control server.
    pub control_url: String,
    /// What is being done.
    pub phase: Phase,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The last fault, also if all is well again.
    pub last_error: Option<LastError>,
    /// The node key, as `nodekey:` and 64 digits.
    pub node_key: String,
    /// The node's name in the tailnet, once it is known.
    pub name: String,
    /// The node's addresses in the tailnet.
    pub addresses: Vec<IpAddr>,
    /// When the node key expires, in seconds since 1970; `None` is never.
    pub key_expiry: Option<u64>,
    /// The DERP region that peers are told to reach the node in.
    pub home_region: Option<u32>,
    /// Nodes that the tailnet's policy shows to this one.
    pub peers: usize,
    /// Those of them that may ask for endpoints.
    pub granted_peers: usize,
    /// Whether peers see this node only if it has been signed.
    pub has_tailnet_lock: bool,
    /// When the server was last heard, in seconds since 1970.
    pub last_heard: Option<u64>,
    /// Times the node has joined.
    pub joins: u64,
    /// Messages of the server, those without contents included.
    pub messages: u64,
    /// Pings of the server that were answered.
    pub pings: u64,
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
