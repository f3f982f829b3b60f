//! The peer relay's node as a member of a tailnet: a client of its control server, be that Tailscale's, Headscale or
//! another one (control-registration reference).
//!
//! By the control server clients learn that the relay exists, with which disco key it opens their requests and in which
//! DERP region it is reached; from it the relay learns who its peers are and whom the policy grants it.
//!
//! | Module | What it decides or does | I/O |
//! | --- | --- | --- |
//! | `noise` | the handshake and the records of the secure connection | none |
//! | `request`, `response` | the JSON of both directions | none |
//! | `frames` | where messages begin and end | none |
//! | `filter`, `netmap` | who may ask for endpoints | none; time is an argument |
//! | `region` | which DERP region this server is in | none |
//! | `plan` | how the node is registered | none |
//! | `stream`, `control`, `ping` | bytes, connections, requests | sockets |
//! | `worker` | connects, registers, publishes, follows; pauses, and begins again | all of that |
//!
//! [`Tailnet`] is a thread of its own: reading the map of a large tailnet takes a while, and nobody else is to wait.
//! Everything that comes from outside is bounded: answers, messages and their heads in length, requests in time, peers in
//! number. A connection is dead when an HTTP/2 ping is not answered or nothing is heard for two minutes.

mod control;
mod error;
mod filter;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod identity;
mod keys;
mod netmap;
mod noise;
mod ping;
mod plan;
mod region;
mod request;
mod response;
mod shared;
mod status;
mod stream;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{oneshot, watch};

pub use self::{
    error::TailnetError,
    identity::{Identity, read_auth_key},
    keys::{MachinePrivate, MachinePublic},
    region::ServerNames,
    status::{LastError, Phase, Status},
};
use self::{shared::Shared, worker::Worker};
use crate::{
    client::{Target, Trust},
    peer_relay::{Permission, disco::DiscoPublic},
    proto::keys::{NodePrivate, NodePublic},
};

/// A stream of changes without a message for this long is dead. Servers send one every minute; the reference waits as
/// long.
const SILENCE: Duration = Duration::from_secs(120);

/// Keeps a node's keys, or says in words why it cannot.
pub type SaveIdentity = Box<dyn Fn(&Identity) -> Result<(), String> + Send>;

/// What a node joins its tailnet with.
pub struct TailnetOptions {
    /// The control server.
    pub control: Target,
    /// Whom its certificate must be signed by.
    pub trust: Trust,
    /// The file with the key by which the node may join. It is read when it is needed.
    pub auth_key_file: PathBuf,
    /// The name that the node asks for.
    pub hostname: String,
    /// The DERP region in which the node is reached. Without it, the one that names this server.
    pub home_region: Option<u32>,
    /// The node's keys.
    pub identity: Identity,
    /// Its disco key.
    pub disco: DiscoPublic,
    /// Says what clients know this DERP server by.
    pub server: Box<dyn Fn() -> ServerNames + Send>,
    /// Keeps the node's keys when they have changed.
    pub save: SaveIdentity,
}

/// A node in a tailnet, until dropped.
pub struct Tailnet {
    shared: Arc<Shared>,
    /// Has seen the key that the node began with.
    node: watch::Receiver<NodePrivate>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Tailnet {
    /// Starts to join. Faults of the network and of the server are no errors: it is tried again.
    ///
    /// # Errors
    ///
    /// If the authorities cannot be read that are to be trusted, or no thread can be started.
    pub fn start(options: TailnetOptions) -> Result<Self, TailnetError> {
        Self::start_with(options, SILENCE)
    }

    fn start_with(options: TailnetOptions, silence: Duration) -> Result<Self, TailnetError> {
        let node = options.identity.node.clone();
        let shared = Arc::new(Shared::new(options.control.to_string(), node));
        let worker = Worker::new(options, silence, Arc::clone(&shared))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(TailnetError::Thread)?;
        let node = shared.follow_node();
        let (stop, stopped) = oneshot::channel();
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = worker.run() => {}
                    _ = stopped => {}
                }
            });
            // Without waiting for a name that is just being looked up.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new()
            .name("derpd-tailnet".to_owned())
            .spawn(work)
            .map_err(TailnetError::Thread)?;
        Ok(Self { shared, node, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns what others may ask.
    #[must_use]
    pub fn handle(&self) -> TailnetHandle {
        TailnetHandle { node: self.node.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl Drop for Tailnet {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Answers questions about the tailnet. What is known stays known while the control server cannot be reached.
#[derive(Clone)]
pub struct TailnetHandle {
    shared: Arc<Shared>,
    node: watch::Receiver<NodePrivate>,
}

impl TailnetHandle {
    /// Returns whether a node may ask for endpoints, and with which disco key.
    #[must_use]
    pub fn permission(&self, node: &NodePublic) -> Permission {
        self.shared.permission(node)
    }

    /// Returns what the control connection is doing, and what is known.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Returns the DERP region that peers are told to reach the node in.
    #[must_use]
    pub fn home_region(&self) -> Option<u32> {
        self.shared.home_region()
    }

    /// Waits until the node has another key than it began with, or than this handle last said, and returns it. May be
    /// dropped while it waits.
    pub async fn next_node(&mut self) -> NodePrivate {
        if self.node.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.node.borrow_and_update().clone()
    }
}

impl fmt::Debug for TailnetHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TailnetHandle").finish_non_exhaustive()
    }
}
