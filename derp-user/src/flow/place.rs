//! What the tables hold in one slot, and how that becomes what they should hold.

use std::collections::HashMap;

use derp_common::flow::{
    Control, Leg, Side, Source,
    table::{GRACE, Senders, leg_index, source_value, statistics_index},
};

use super::{Change, FlowId, state::Flow};

/// A slot as the tables have it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Whose it is in the tables.
    pub(super) owner: Option<FlowId>,
    pub(super) control: Control,
    /// The copy of the legs that was written last.
    pub(super) copy: u32,
    /// What it holds.
    pub(super) legs: [Leg; 2],
    pub(super) senders: Senders,
    pub(super) sources: [Option<Source>; 2],
    /// Since when no reader can have seen another control word than this one.
    pub(super) settled: Settled,
}

/// When a control word took effect.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Settled {
    /// It was always there.
    #[default]
    Always,
    /// It is among the changes that were handed out last.
    HandedOut,
    /// At this time.
    At(u64),
}

/// What has become of a slot that was to be brought up to date.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// It is.
    Done,
    /// That has to wait until then, or until the changes that were handed out have been applied.
    Waits(Option<u64>),
}

impl Default for Place {
    fn default() -> Self {
        Self {
            owner: None,
            control: Control::OFF,
            copy: 0,
            legs: [Leg::UNBOUND; 2],
            senders: [0; 2],
            sources: [None; 2],
            settled: Settled::Always,
        }
    }
}

/// The sources that the tables hold, and whose they are there.
pub(super) type InstalledSources = HashMap<Source, u32>;

impl Place {
    /// Appends what makes slot `slot` hold `flow`, as far as that may be done at `now`.
    pub(super) fn update(
        &mut self,
        slot: u32,
        flow: Option<&Flow>,
        sources: &mut InstalledSources,
        now: u64,
        changes: &mut Vec<Change>,
    ) -> Progress {
        if self.owner.is_some() && self.owner != flow.map(|flow| flow.id) {
            self.clear(slot, sources, changes);
        }
        let Some(flow) = flow else { return Progress::Done };
        let legs = flow.legs();
        let control = flow.control(self.copy);
        let is_new = self.owner.is_none();
        if is_new || legs != self.legs || control != self.control {
            match self.settled {
                Settled::Always => {}
                Settled::HandedOut => return Progress::Waits(None),
                // To stop needs no other copy of the legs.
                Settled::At(_) if !is_new && self.control.forwards() && !control.forwards() => {
                    self.set_control(slot, control, changes);
                    return Progress::Waits(None);
                }
                Settled::At(then) if now.saturating_sub(then) < GRACE => {
                    return Progress::Waits(Some(then.saturating_add(GRACE)));
                }
                Settled::At(_) => {}
            }
            if is_new {
                self.welcome(slot, flow, changes);
            }
            self.write(slot, flow, legs, changes);
        }
        self.move_sources(slot, flow.sources(), sources, changes);
        Progress::Done
    }

    /// Takes the slot from its owner.
    fn clear(&mut self, slot: u32, sources: &mut InstalledSources, changes: &mut Vec<Change>) {
        self.owner = None;
        if self.control != Control::OFF {
            self.set_control(slot, Control::OFF, changes);
        }
        self.move_sources(slot, [None; 2], sources, changes);
    }

    /// Removes what the last owner has left behind.
    fn welcome(&mut self, slot: u32, flow: &Flow, changes: &mut Vec<Change>) {
        for side in Side::ALL {
            changes.push(Change::ResetStatistics { index: statistics_index(slot, side) });
        }
        // Always: tables that were taken over may hold some where no flow was.
        self.senders = flow.senders();
        changes.push(Change::Senders { slot, senders: self.senders });
        self.owner = Some(flow.id);
    }

    /// Writes the other copy of the legs, then makes it the valid one.
    fn write(&mut self, slot: u32, flow: &Flow, legs: [Leg; 2], changes: &mut Vec<Change>) {
        self.copy ^= 1;
        self.legs = legs;
        for (side, leg) in Side::ALL.into_iter().zip(legs) {
            changes.push(Change::Leg { index: leg_index(slot, self.copy, side), leg });
        }
        self.set_control(slot, flow.control(self.copy), changes);
    }

    fn set_control(&mut self, slot: u32, control: Control, changes: &mut Vec<Change>) {
        self.control = control;
        self.settled = Settled::HandedOut;
        changes.push(Change::Control { slot, control });
    }

    /// Removals come first, so that the table needs no room to spare. What another flow has taken over in
    /// the meantime is that flow's.
    fn move_sources(
        &mut self,
        slot: u32,
        wanted: [Option<Source>; 2],
        installed: &mut InstalledSources,
        changes: &mut Vec<Change>,
    ) {
        let had: Vec<_> = self.own_sources(slot).collect();
        self.sources = wanted;
        for (value, source) in had {
            if !wanted.contains(&Some(source)) && installed.get(&source) == Some(&value) {
                installed.remove(&source);
                changes.push(Change::RemoveSource { source });
            }
        }
        for (value, source) in self.own_sources(slot) {
            if installed.insert(source, value) != Some(value) {
                changes.push(Change::InsertSource { source, value });
            }
        }
    }

    /// Appends what fills an empty copy of the tables with this slot.
    pub(super) fn snapshot(
        &self,
        slot: u32,
        installed: &InstalledSources,
        changes: &mut Vec<Change>,
    ) {
        if self.owner.is_none() {
            return;
        }
        if self.senders != [0; 2] {
            changes.push(Change::Senders { slot, senders: self.senders });
        }
        for (side, leg) in Side::ALL.into_iter().zip(self.legs) {
            changes.push(Change::Leg { index: leg_index(slot, self.copy, side), leg });
        }
        changes.push(Change::Control { slot, control: self.control });
        for (value, source) in self.own_sources(slot) {
            if installed.get(&source) == Some(&value) {
                changes.push(Change::InsertSource { source, value });
            }
        }
    }

    /// Returns the sources that lead to this slot, with their values.
    pub(super) fn own_sources(&self, slot: u32) -> impl Iterator<Item = (u32, Source)> {
        let value = move |(side, source): (Side, Option<Source>)| {
            source.map(|source| (source_value(slot, side), source))
        };
        Side::ALL.into_iter().zip(self.sources).filter_map(value)
    }
}
