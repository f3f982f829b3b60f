//! What the control connection and those who ask it have in common.

use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    LastError, Phase, Status,
    netmap::{Netmap, TooMany},
    status::seconds,
};
use crate::{
    peer_relay::Permission,
    proto::keys::{NodePrivate, NodePublic},
};

/// The state of the control connection.
pub(super) struct Shared {
    state: Mutex<State>,
    node: watch::Sender<NodePrivate>,
}

struct State {
    netmap: Netmap,
    /// Without what follows from the netmap.
    status: Status,
}

impl Shared {
    pub(super) fn new(control_url: String, node: NodePrivate) -> Self {
        let since = seconds(SystemTime::now());
        let node_key = node.public().to_string();
        let status = Status { control_url, since, node_key, ..Status::default() };
        let state = State { netmap: Netmap::default(), status };
        Self { state: Mutex::new(state), node: watch::Sender::new(node) }
    }

    pub(super) fn permission(&self, node: &NodePublic) -> Permission {
        self.state.lock().netmap.permission(node, SystemTime::now())
    }

    pub(super) fn status(&self) -> Status {
        let now = SystemTime::now();
        let state = self.state.lock();
        let mut status = state.status.clone();
        if let Some(own) = state.netmap.own() {
            status.name.clone_from(&own.name);
            status.addresses.clone_from(&own.addresses);
            status.key_expiry = own.key_expiry.map(seconds);
        }
        status.peers = state.netmap.peers();
        status.granted_peers = state.netmap.granted_peers(now);
        status.has_tailnet_lock = state.netmap.has_lock();
        status
    }

    pub(super) fn home_region(&self) -> Option<u32> {
        self.state.lock().status.home_region
    }

    pub(super) fn follow_node(&self) -> watch::Receiver<NodePrivate> {
        self.node.subscribe()
    }

    /// Returns whether the phase is another one than before.
    pub(super) fn enter(&self, phase: Phase) -> bool {
        let status = &mut self.state.lock().status;
        let is_new = status.phase != phase;
        if is_new {
            status.phase = phase;
            status.since = seconds(SystemTime::now());
            status.joins += u64::from(phase == Phase::Connected);
        }
        is_new
    }

    pub(super) fn fail(&self, text: &str) {
        self.enter(Phase::Waiting);
        let at = seconds(SystemTime::now());
        self.state.lock().status.last_error = Some(LastError { at, text: text.to_owned() });
    }

    pub(super) fn set_node(&self, node: NodePrivate) {
        self.state.lock().status.node_key = node.public().to_string();
        self.node.send_replace(node);
    }

    pub(super) fn set_home_region(&self, region: Option<u32>) {
        self.state.lock().status.home_region = region;
    }

    pub(super) fn hear(&self) {
        let status = &mut self.state.lock().status;
        status.messages += 1;
        status.last_heard = Some(seconds(SystemTime::now()));
    }

    pub(super) fn count_ping(&self, is_good: bool) {
        self.state.lock().status.pings += u64::from(is_good);
    }

    pub(super) fn with_netmap<R>(&self, read: impl FnOnce(&Netmap) -> R) -> R {
        read(&self.state.lock().netmap)
    }

    pub(super) fn set_netmap(&self, netmap: Netmap) {
        let old = std::mem::replace(&mut self.state.lock().netmap, netmap);
        // Not under the lock: there may be many peers to free.
        drop(old);
    }

    pub(super) fn update_netmap(
        &self,
        change: impl FnOnce(&mut Netmap) -> Result<(), TooMany>,
    ) -> Result<(), TooMany> {
        change(&mut self.state.lock().netmap)
    }
}
