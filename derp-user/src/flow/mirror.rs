//! The flow tables as userspace reads them.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use derp_common::flow::{
    Control, Leg, LegCells, Side, Source, Tables,
    table::{Senders, leg_index, statistics_index},
};
use parking_lot::{RwLock, RwLockReadGuard};

use super::{Change, Sink};

/// The userspace copy of the flow tables. Memory grows with the highest slot that was ever used:
/// 408 bytes a slot, and the sources.
#[derive(Debug)]
pub struct Mirror {
    slots: u32,
    controls: Vec<Control>,
    legs: Vec<Leg>,
    statistics: Vec<LegCells>,
    senders: Vec<Senders>,
    sources: HashMap<Source, u32>,
}

impl Mirror {
    /// Makes empty tables of this many slots.
    #[must_use]
    pub fn new(slots: u32) -> Self {
        Self {
            slots,
            controls: Vec::new(),
            legs: Vec::new(),
            statistics: Vec::new(),
            senders: Vec::new(),
            sources: HashMap::new(),
        }
    }

    /// Makes one change. Changes that lie outside the tables are ignored.
    pub fn change(&mut self, change: &Change) {
        match *change {
            Change::Leg { index, leg } => {
                self.grow(index >> 2);
                write(&mut self.legs, index, leg);
            }
            Change::Control { slot, control } => {
                self.grow(slot);
                write(&mut self.controls, slot, control);
            }
            Change::Senders { slot, senders } => {
                self.grow(slot);
                write(&mut self.senders, slot, senders);
            }
            Change::ResetStatistics { index } => {
                self.grow(index >> 1);
                if let Some(cells) = self.statistics(index) {
                    cells.reset();
                }
            }
            Change::InsertSource { source, value } => {
                if value >> 1 < self.slots {
                    self.sources.insert(source, value);
                }
            }
            Change::RemoveSource { source } => {
                self.sources.remove(&source);
            }
        }
    }

    /// Makes room for a slot.
    fn grow(&mut self, slot: u32) {
        let have = self.controls.len();
        if slot >= self.slots || (slot as usize) < have {
            return;
        }
        let slots = (slot as usize + 1).next_power_of_two().min(self.slots as usize);
        self.controls.resize(slots, Control::OFF);
        self.senders.resize(slots, [0; 2]);
        self.legs.resize(slots * leg_index(1, 0, Side::A) as usize, Leg::UNBOUND);
        let statistics = slots * statistics_index(1, Side::A) as usize;
        self.statistics.resize_with(statistics, LegCells::default);
    }
}

fn write<T>(table: &mut [T], index: u32, value: T) {
    if let Some(place) = table.get_mut(index as usize) {
        *place = value;
    }
}

impl Tables for Mirror {
    fn control(&self, slot: u32) -> Option<Control> {
        self.controls.get(slot as usize).copied()
    }

    fn leg(&self, index: u32) -> Option<&Leg> {
        self.legs.get(index as usize)
    }

    fn statistics(&self, index: u32) -> Option<&LegCells> {
        self.statistics.get(index as usize)
    }

    fn senders(&self, slot: u32) -> Option<Senders> {
        self.senders.get(slot as usize).copied()
    }

    fn source(&self, source: &Source) -> Option<u32> {
        self.sources.get(source).copied()
    }
}

impl Sink for Mirror {
    type Error = Infallible;

    fn apply(&mut self, changes: &[Change]) -> Result<(), Infallible> {
        changes.iter().for_each(|change| self.change(change));
        Ok(())
    }
}

/// A [`Mirror`] with one writer and many readers.
#[derive(Clone, Debug)]
pub struct SharedMirror(Arc<RwLock<Mirror>>);

impl SharedMirror {
    /// Shares these tables.
    #[must_use]
    pub fn new(mirror: Mirror) -> Self {
        Self(Arc::new(RwLock::new(mirror)))
    }

    /// Returns the tables for one batch of packets. Nothing changes, and the writer waits, until this is
    /// dropped: hold it for no more than a batch.
    pub fn read(&self) -> RwLockReadGuard<'_, Mirror> {
        self.0.read()
    }
}

impl Sink for SharedMirror {
    type Error = Infallible;

    fn apply(&mut self, changes: &[Change]) -> Result<(), Infallible> {
        self.0.write().apply(changes)
    }
}
