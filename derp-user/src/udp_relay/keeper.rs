//! What the keeper knows, and the task that tells it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use derp_common::flow::{Control, LegStatistics, Side, Tables as _, table::statistics_index};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc::Receiver},
    time::{Instant, sleep_until},
};

use super::{KeeperError, KeeperOptions};
use crate::{
    dataplane::{
        self, DataplaneError, FlowTableError, KernelTables,
        route::{Answer, Pair, Ways},
    },
    flow::{
        Change, FlowId, FlowSpec, FlowTable, FlowsView, Found, Outcome, Plane, Revision,
        SharedMirror, Sink as _, StateView, TableSettings, Viewer, WayRequest,
    },
    forward::Stranger,
    quiet::Quiet,
    udp::now,
};

/// How often counts and this host's addresses are read and silent ends are forgotten. Counts cost two system calls
/// a flow.
const REVIEW: Duration = Duration::from_secs(5);
/// How many reports of strangers are dealt with at once.
const STRANGERS: usize = 64;

/// The flow table with its copies.
pub(super) struct State {
    table: FlowTable,
    mirror: SharedMirror,
    kernel: Option<KernelTables>,
    /// The kernel's tables may hold what they should not: they are to be made anew.
    kernel_is_stale: bool,
    ways: Option<Ways>,
    /// What was last asked for about each leg.
    asked: HashMap<(FlowId, Side), WayRequest>,
    /// Names of the interfaces that ways have led to, so that who looks need not ask.
    interfaces: HashMap<u32, Option<String>>,
    /// When counts were last read, in nanoseconds.
    counted: Option<u64>,
    /// Lines about ends that come and fall silent, which whoever may be learnt can cause.
    comings: Quiet,
    /// What became of the flows that another process has left.
    resumed: Vec<Option<FlowId>>,
}

impl State {
    pub(super) fn start(
        options: &KeeperOptions,
        mirror: SharedMirror,
        kernel: Option<KernelTables>,
    ) -> Result<Self, KeeperError> {
        let mut table = FlowTable::new(TableSettings {
            slots: options.slots,
            idle_timeout: options.idle_timeout,
            seed: getrandom::u64().map_err(KeeperError::Random)?,
        });
        table.set_local_addresses(dataplane::local_addresses()?);
        let found = kernel.as_ref().map(found).transpose()?.unwrap_or_default();
        let specs: Vec<_> = options.flows.iter().chain(&options.resumed).cloned().collect();
        let mut results = table.adopt(&specs, &found, now());
        let resumed = results.split_off(options.flows.len().min(results.len()));
        for (spec, result) in options.flows.iter().zip(results) {
            if let Err(source) = result {
                return Err(KeeperError::Flow { name: spec.name.clone(), source });
            }
        }
        let mut state = Self {
            table,
            mirror,
            kernel,
            kernel_is_stale: false,
            ways: None,
            asked: HashMap::new(),
            interfaces: HashMap::new(),
            counted: None,
            comings: Quiet::default(),
            resumed: resumed.into_iter().map(Result::ok).collect(),
        };
        // The kernel's copy may hold all this already; the forwarder's is empty.
        state.fill_mirror();
        state.settle();
        state.observe();
        Ok(state)
    }

    pub(super) fn take_resumed(&mut self) -> Vec<Option<FlowId>> {
        std::mem::take(&mut self.resumed)
    }

    pub(super) fn follow(&mut self, ways: Ways) {
        self.ways = Some(ways);
        self.settle();
    }

    pub(super) fn views(&self) -> FlowsView {
        let now = now();
        let viewer = Viewer {
            has_kernel: self.kernel.is_some(),
            interface_name: &|index| self.interfaces.get(&index).cloned().flatten(),
            now,
        };
        let age = |counted| Duration::from_nanos(now.saturating_sub(counted)).as_secs_f64();
        FlowsView { counted_seconds: self.counted.map(age), flows: self.table.views(&viewer) }
    }

    pub(super) fn states(&self) -> Vec<StateView> {
        self.table.states()
    }

    /// Changes the table and passes on what follows.
    pub(super) fn update<R>(&mut self, change: impl FnOnce(&mut FlowTable) -> R) -> R {
        let result = change(&mut self.table);
        self.settle();
        result
    }

    /// Has the flows of the configuration be these; see [`super::Keeper::revise`].
    pub(super) fn revise(
        &mut self,
        flows: &[FlowSpec],
        idle_timeout: u64,
        before: impl FnOnce() -> Result<(), DataplaneError>,
    ) -> Result<Revision, KeeperError> {
        let mut table = self.table.clone();
        let revision = table.revise(flows, now())?;
        table.set_idle_timeout(idle_timeout);
        before().map_err(KeeperError::Settings)?;
        self.table = table;
        self.settle();
        Ok(revision)
    }

    /// Returns those of these slots for whose flows the kernel has noted a control packet.
    pub(super) fn suspects(
        &self,
        slots: impl Iterator<Item = u32>,
    ) -> Result<BTreeSet<u32>, FlowTableError> {
        let Some(kernel) = &self.kernel else { return Ok(BTreeSet::new()) };
        let mut suspects = BTreeSet::new();
        for slot in slots {
            if kernel.is_suspect(slot)? {
                suspects.insert(slot);
            }
        }
        Ok(suspects)
    }

    /// Has the kernel forget what it has noted of control packets for these slots, whose flows do not forward.
    pub(super) fn trust(&mut self, slots: &[u32]) -> Result<(), FlowTableError> {
        let Some(kernel) = &mut self.kernel else { return Ok(()) };
        slots.iter().try_for_each(|&slot| kernel.trust(slot))
    }

    /// Tells whether the kernel's tables hold what they should.
    pub(super) fn kernel_is_current(&self) -> bool {
        self.kernel.is_some() && !self.kernel_is_stale
    }

    fn fill_mirror(&mut self) {
        let snapshot = self.table.snapshot();
        let Ok(()) = self.mirror.apply(&snapshot);
    }

    /// Passes on what follows from the last inputs.
    fn settle(&mut self) {
        if let Some(ways) = &self.ways {
            for request in self.table.way_requests() {
                let claim = (request.flow, request.side);
                if request.remote.is_some() {
                    self.asked.insert(claim, request);
                } else {
                    self.asked.remove(&claim);
                }
                if let Err(error) = ways.request(&request) {
                    tracing::warn!("{error}");
                }
            }
        }
        loop {
            let changes = self.table.poll(now());
            if changes.is_empty() {
                break;
            }
            self.apply(&changes);
            self.table.applied(now());
        }
    }

    fn apply(&mut self, changes: &[Change]) {
        // Before the kernel: what it passes to userspace then finds at least as much as it knew itself.
        let Ok(()) = self.mirror.apply(changes);
        let Some(kernel) = self.kernel.as_mut().filter(|_| !self.kernel_is_stale) else { return };
        if let Err(error) = kernel.apply(changes) {
            tracing::error!("{error}: the kernel's flow tables are made anew");
            self.kernel_is_stale = true;
        }
    }

    /// Makes the kernel's tables anew, if that is due and works.
    fn mend_kernel(&mut self) {
        let Some(kernel) = self.kernel.as_mut().filter(|_| self.kernel_is_stale) else { return };
        match rewrite(kernel, &self.table.snapshot()) {
            Ok(()) => self.kernel_is_stale = false,
            Err(error) => tracing::error!("{error}: it is tried again"),
        }
    }

    fn learn(&mut self, stranger: &Stranger) {
        let Stranger { datagram, class, .. } = stranger;
        match self.table.unknown(datagram, *class, now()) {
            Outcome::Learnt { flow, side, what } => {
                if let Some(suffix) = self.comings.suffix(std::time::Instant::now()) {
                    tracing::info!(
                        slot = flow.slot(),
                        ?side,
                        ?what,
                        "learnt an end of a flow{suffix}"
                    );
                }
            }
            Outcome::Refused(refusal) => {
                tracing::debug!(reason = refusal.label(), "a packet of no flow");
            }
            Outcome::Known { .. } => {}
        }
    }

    /// Takes in what has been found out about ways.
    pub(super) fn take_answers(&mut self) {
        for answer in self.ways.as_ref().map(Ways::answers).unwrap_or_default() {
            self.answer(answer);
        }
        self.settle();
    }

    fn answer(&mut self, answer: Answer) {
        let Some(request) = self.asked.get(&answer.claim) else { return };
        if Pair::of(request) != Some(answer.pair) {
            return;
        }
        if let Err(reason) = &answer.way {
            tracing::debug!(slot = answer.claim.0.slot(), %reason, "no way to an end of a flow");
        }
        if let Ok(way) = &answer.way {
            let name = self.interfaces.entry(way.interface);
            name.or_insert_with(|| dataplane::interface_name(way.interface));
        }
        self.table.set_way(request, answer.way.ok());
    }

    /// Tells the table what both data planes have counted.
    pub(super) fn observe(&mut self) {
        let indexes: Vec<_> = self.table.statistics_indexes().collect();
        let now = now();
        self.counted = Some(now);
        {
            let mirror = self.mirror.read();
            for &index in &indexes {
                if let Some(cells) = mirror.statistics(index) {
                    self.table.observe(Plane::Userspace, index, &cells.read(), now);
                }
            }
        }
        let Some(kernel) = &self.kernel else { return };
        let slots: BTreeSet<_> = indexes.iter().map(|index| index >> 1).collect();
        match kernel.statistics(slots) {
            Ok(read) => {
                for (slot, sides) in read {
                    self.observe_kernel(slot, &sides, now);
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
    }

    fn observe_kernel(&mut self, slot: u32, sides: &[LegStatistics; 2], now: u64) {
        for (side, statistics) in Side::ALL.into_iter().zip(sides) {
            self.table.observe(Plane::Kernel, statistics_index(slot, side), statistics, now);
        }
    }

    fn review(&mut self) {
        match dataplane::local_addresses() {
            Ok(addresses) => self.table.set_local_addresses(addresses),
            Err(error) => tracing::warn!("{error}"),
        }
        // Interfaces can be renamed, and go; if one comes back, a way will lead to it again.
        self.interfaces.retain(|&index, name| {
            *name = dataplane::interface_name(index);
            name.is_some()
        });
        self.observe();
        for expired in self.table.expire(now()) {
            let Some(suffix) = self.comings.suffix(std::time::Instant::now()) else { continue };
            match expired.end {
                Some(side) => {
                    tracing::info!(flow = expired.name, ?side, "an end fell silent{suffix}");
                }
                None => tracing::info!(flow = expired.name, "a flow fell silent{suffix}"),
            }
        }
        self.mend_kernel();
    }

    /// How long there is nothing to do without a new input.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        let deadline = self.table.next_deadline()?;
        Some(Duration::from_nanos(deadline.saturating_sub(now())))
    }
}

/// What the kernel's tables hold.
fn found(kernel: &KernelTables) -> Result<Found, FlowTableError> {
    let mut found = Found { sources: kernel.stored_sources()?, ..Found::default() };
    for flow in kernel.stored_flows()? {
        found.add(flow.slot, flow.control, flow.legs, flow.senders);
    }
    Ok(found)
}

/// Makes the kernel's tables hold this and nothing else.
fn rewrite(kernel: &mut KernelTables, snapshot: &[Change]) -> Result<(), FlowTableError> {
    let mut changes = Vec::new();
    for flow in kernel.stored_flows()? {
        changes.push(Change::Control { slot: flow.slot, control: Control::OFF });
    }
    for (source, _) in kernel.stored_sources()? {
        changes.push(Change::RemoveSource { source });
    }
    changes.extend_from_slice(snapshot);
    kernel.apply(&changes)
}

/// Tells the state what happens.
pub(super) async fn run(state: &Mutex<State>, changed: &Notify, mut strangers: Receiver<Stranger>) {
    let ways = state.lock().ways.clone();
    let mut next_review = Instant::now() + REVIEW;
    let mut reported = Vec::with_capacity(STRANGERS);
    loop {
        let idle = state.lock().idle_for();
        let deadline = idle.map_or(next_review, |idle| next_review.min(Instant::now() + idle));
        tokio::select! {
            _ = strangers.recv_many(&mut reported, STRANGERS), if !strangers.is_closed() => {}
            () = answered(ways.as_ref()) => {}
            // There may be something to do earlier than was known.
            () = changed.notified() => {}
            () = sleep_until(deadline) => {}
        }
        let mut state = state.lock();
        for stranger in reported.drain(..) {
            state.learn(&stranger);
        }
        if Instant::now() >= next_review {
            state.review();
            next_review = Instant::now() + REVIEW;
        }
        state.take_answers();
    }
}

async fn answered(ways: Option<&Ways>) {
    match ways {
        Some(ways) => ways.answered().await,
        None => std::future::pending().await,
    }
}
