//! The UDP relay as a whole: the flow table, both data planes that forward by it, and who keeps them in step.
//!
//! [`Keeper`] holds the one flow table. Whatever happens (a stranger's packet, a route that changes, an end that
//! falls silent) goes to the table, and what follows from it goes into both copies of the tables, the
//! kernel's and the forwarder's. [`Keeper::run`] is the task in which that happens; the admin page looks in from
//! outside.

mod cloud;
mod companion;
mod elsewhere;
mod interfaces;
mod keeper;
mod mappings;
mod monitor;
mod peer;
mod wireguard;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc::Receiver};

use self::keeper::State;
pub use self::{
    companion::{CompanionReader, CompanionService, CompanionServiceOptions, Serve},
    elsewhere::DerpServers,
    monitor::PeerRelayMonitor,
    peer::{PeerRelayRules, PeerRelayService},
    wireguard::{Remembered, StateError, WireGuardHandle, WireGuardService},
};
use crate::{
    dataplane::{DataplaneError, FlowTableError, KernelTables, route::Ways},
    flow::{
        FlowId, FlowSpec, FlowTable, FlowsView, ReviseError, Revision, SharedMirror, StateView,
    },
    forward::Stranger,
};

/// What the relay is made with.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    /// How many flows there can be; rounded up to a power of two.
    pub slots: u32,
    /// After how long silence an end is forgotten or a flow removed, in nanoseconds.
    pub idle_timeout: u64,
    /// The flows of the configuration.
    pub flows: Vec<FlowSpec>,
    /// Flows that another process has left; what cannot be admitted of them is let go.
    pub resumed: Vec<FlowSpec>,
}

/// Why the relay cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// A flow of the configuration cannot be admitted.
    #[error("the flow {name:?} cannot be admitted: {source}")]
    Flow {
        /// Its name.
        name: String,
        /// Why.
        source: crate::flow::AdmitError,
    },
    /// The kernel's tables cannot be used.
    #[error(transparent)]
    Kernel(#[from] FlowTableError),
    /// This host's addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] DataplaneError),
    /// A flow of another configuration cannot be admitted.
    #[error(transparent)]
    Revise(#[from] ReviseError),
    /// The kernel program cannot be told what is served on which port.
    #[error(transparent)]
    Settings(DataplaneError),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(#[source] getrandom::Error),
}

/// How often tables are looked at again that are settled before anybody reads them, and the waits in between.
const SETTLING_ROUNDS: u32 = 50;
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_millis(20);

/// Keeps the flow table and its copies.
#[derive(Clone)]
pub struct Keeper {
    state: Arc<Mutex<State>>,
    /// The table was changed from outside its task.
    changed: Arc<Notify>,
}

impl Keeper {
    /// Admits the flows of the configuration. Those that the kernel's tables hold already go on as they are; what
    /// else those hold is removed. What the forwarder reads is in `mirror`.
    ///
    /// # Errors
    ///
    /// When a flow cannot be admitted, or the kernel's tables cannot be read or written.
    pub fn start(
        options: &KeeperOptions,
        mirror: SharedMirror,
        kernel: Option<KernelTables>,
    ) -> Result<Self, KeeperError> {
        let state = State::start(options, mirror, kernel)?;
        Ok(Self { state: Arc::new(Mutex::new(state)), changed: Arc::default() })
    }

    /// Returns what became of the flows that another process has left, in order, once.
    #[must_use]
    pub fn take_resumed(&self) -> Vec<Option<FlowId>> {
        self.state.lock().take_resumed()
    }

    /// Has the ways of the kernel's flows found.
    pub fn follow(&self, ways: Ways) {
        self.state.lock().follow(ways);
    }

    /// Writes the ways that have been found until now into the kernel's tables. Changes there wait for those who may
    /// be reading, so that this takes some tens of milliseconds.
    pub fn settle_ways(&self) {
        let mut state = self.state.lock();
        state.take_answers();
        for _ in 0..SETTLING_ROUNDS {
            let Some(wait) = state.idle_for() else { break };
            std::thread::sleep(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT));
            state.update(|_| {});
        }
    }

    /// Returns the flows as they are now, with what the last review has found counted. Makes no system call.
    #[must_use]
    pub fn views(&self) -> FlowsView {
        self.state.lock().views()
    }

    /// Returns the state of every flow.
    #[must_use]
    pub fn states(&self) -> Vec<StateView> {
        self.state.lock().states()
    }

    /// Has the flows of the configuration be these from now on, and ends be forgotten after `idle_timeout` nanoseconds.
    /// Flows that forward the same as before go on untouched. `before` is called when all of them can be
    /// admitted and nothing has changed yet; what it refuses, is refused. It must not call the keeper.
    ///
    /// # Errors
    ///
    /// When a flow cannot be admitted, or `before` fails; nothing has changed then.
    pub fn revise(
        &self,
        flows: &[FlowSpec],
        idle_timeout: u64,
        before: impl FnOnce() -> Result<(), DataplaneError>,
    ) -> Result<Revision, KeeperError> {
        let revision = self.state.lock().revise(flows, idle_timeout, before)?;
        self.changed.notify_one();
        Ok(revision)
    }

    /// Changes the flow table, and both copies with it.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut FlowTable) -> R) -> R {
        let result = self.state.lock().update(change);
        self.changed.notify_one();
        result
    }

    /// The same, after the table has been told what both data planes have counted until now.
    pub(crate) fn update_observed<R>(&self, change: impl FnOnce(&mut FlowTable) -> R) -> R {
        let result = {
            let mut state = self.state.lock();
            state.observe();
            state.update(change)
        };
        self.changed.notify_one();
        result
    }

    /// Returns those of these slots for whose flows the kernel has noted a control packet.
    pub(crate) fn suspects(
        &self,
        slots: impl Iterator<Item = u32>,
    ) -> Result<BTreeSet<u32>, FlowTableError> {
        self.state.lock().suspects(slots)
    }

    /// Has the kernel forget what it has noted of control packets for these slots, whose flows do not forward.
    pub(crate) fn trust(&self, slots: &[u32]) -> Result<(), FlowTableError> {
        self.state.lock().trust(slots)
    }

    /// Tells whether the kernel's tables hold what they should.
    pub(crate) fn kernel_is_current(&self) -> bool {
        self.state.lock().kernel_is_current()
    }

    /// Goes on until dropped; on a Tokio runtime with time. `strangers` are those the forwarder reports.
    pub async fn run(self, strangers: Receiver<Stranger>) {
        keeper::run(&self.state, &self.changed, strangers).await;
    }
}
