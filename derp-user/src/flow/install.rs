//! What the tables hold, and how it becomes what they should hold.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use derp_common::flow::Source;

use super::{
    Change, FlowId,
    place::{InstalledSources, Place, Progress, Settled},
    state::Flow,
};

/// Changes after which a batch ends, so that readers of the tables are not kept waiting. It goes a few over, to
/// the end of a flow.
const BATCH: usize = 2048;

/// The tables as they are, and which slots are to be brought up to date.
#[derive(Clone, Debug, Default)]
pub(super) struct Installation {
    /// By slot, as far as any was used.
    places: Vec<Place>,
    sources: InstalledSources,
    /// Sources that the tables hold besides, to be removed.
    strays: Vec<Source>,
    /// How long the control words of places that were not used yet have been what they are.
    initial: Settled,
    queued: HashMap<u32, Queued>,
    /// Those of `queued` that are due, in order, and some that no longer are.
    due: VecDeque<u32>,
    /// Those of `queued` that have to wait, by time.
    waiting: BTreeSet<(u64, u32)>,
    /// Those of `queued` that wait for the last batch to be applied.
    blocked: Vec<u32>,
    /// Slots whose control words are in the last batch.
    handed_out: Vec<u32>,
}

/// Where a slot waits to be brought up to date.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Queued {
    Due,
    Until(u64),
    Blocked,
}

impl Installation {
    /// Has a slot brought up to date with the next batch.
    pub(super) fn touch(&mut self, slot: u32) {
        match self.queued.get(&slot) {
            Some(Queued::Due | Queued::Blocked) => return,
            // It may be that something has come which need not wait.
            Some(&Queued::Until(deadline)) => {
                self.waiting.remove(&(deadline, slot));
            }
            None => {}
        }
        self.queued.insert(slot, Queued::Due);
        self.due.push_back(slot);
    }

    /// Returns the next batch of changes. Those of the last one count as applied at `now`.
    pub(super) fn poll(&mut self, flows: &BTreeMap<u32, Flow>, now: u64) -> Vec<Change> {
        self.applied(now);
        while let Some(&(deadline, slot)) = self.waiting.first()
            && deadline <= now
        {
            self.touch(slot);
        }
        let mut changes = self.remove_strays();
        while changes.len() < BATCH
            && let Some(slot) = self.due.pop_front()
        {
            self.update(slot, flows.get(&slot), now, &mut changes);
        }
        changes
    }

    fn remove_strays(&mut self) -> Vec<Change> {
        let batch = self.strays.len().saturating_sub(BATCH);
        let strays = self.strays.split_off(batch);
        let remove = |source| Change::RemoveSource { source };
        strays.into_iter().filter(|source| !self.sources.contains_key(source)).map(remove).collect()
    }

    fn update(&mut self, slot: u32, flow: Option<&Flow>, now: u64, changes: &mut Vec<Change>) {
        self.queued.remove(&slot);
        let mut sources = std::mem::take(&mut self.sources);
        let place = self.place(slot);
        let progress = place.update(slot, flow, &mut sources, now, changes);
        let is_handed_out = place.settled == Settled::HandedOut;
        self.sources = sources;
        if is_handed_out {
            self.handed_out.push(slot);
        }
        match progress {
            Progress::Done => {}
            Progress::Waits(Some(deadline)) => {
                self.waiting.insert((deadline, slot));
                self.queued.insert(slot, Queued::Until(deadline));
            }
            Progress::Waits(None) => {
                self.blocked.push(slot);
                self.queued.insert(slot, Queued::Blocked);
            }
        }
    }

    /// Notes that the last batch has been applied by `now`.
    pub(super) fn applied(&mut self, now: u64) {
        for slot in std::mem::take(&mut self.handed_out) {
            self.place(slot).settled = Settled::At(now);
        }
        for slot in self.blocked.drain(..) {
            self.queued.insert(slot, Queued::Due);
            self.due.push_back(slot);
        }
    }

    /// Returns when there is something to do; 0 for now.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        if self.due.is_empty() && self.blocked.is_empty() && self.strays.is_empty() {
            return self.waiting.first().map(|&(deadline, _)| deadline);
        }
        Some(0)
    }

    /// Returns the changes that fill an empty copy of the tables.
    pub(super) fn snapshot(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (slot, place) in (0..).zip(&self.places) {
            place.snapshot(slot, &self.sources, &mut changes);
        }
        changes
    }

    /// Tells whose what the tables hold in a slot is.
    pub(super) fn owner(&self, slot: u32) -> Option<FlowId> {
        self.places.get(slot as usize).and_then(|place| place.owner)
    }

    /// Takes over what the tables were found to hold in a slot.
    pub(super) fn adopt(&mut self, slot: u32, found: Place) {
        for (value, source) in found.own_sources(slot) {
            self.sources.insert(source, value);
        }
        *self.place(slot) = found;
        self.touch(slot);
    }

    /// Begins with tables that another process has written until `now`, and with sources in them that lead nowhere.
    pub(super) fn begin_with(&mut self, strays: Vec<Source>, now: u64) {
        self.initial = Settled::At(now);
        self.strays = strays;
    }

    fn place(&mut self, slot: u32) -> &mut Place {
        let index = slot as usize;
        if index >= self.places.len() {
            let initial = || Place { settled: self.initial, ..Place::default() };
            self.places.resize_with(index + 1, initial);
        }
        &mut self.places[index]
    }
}
