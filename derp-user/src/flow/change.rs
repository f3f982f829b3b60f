//! What changes in the flow tables, one write at a time.

use derp_common::flow::{Control, Leg, Source, table::Senders};

/// One write to the flow tables. The order of a list of them is the update protocol of
/// [`derp_common::flow::table`]: whoever applies them one after the other never shows a reader half a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// Writes one leg into a copy that no reader uses.
    Leg {
        /// Where it goes ([`leg_index`](derp_common::flow::table::leg_index)).
        index: u32,
        /// The leg.
        leg: Leg,
    },
    /// Writes a slot's control word; what was written before it takes effect.
    Control {
        /// The slot.
        slot: u32,
        /// The word.
        control: Control,
    },
    /// Writes whose control packets may reach userspace.
    Senders {
        /// The slot.
        slot: u32,
        /// The senders of both ends.
        senders: Senders,
    },
    /// Zeroes the statistics of one leg, whose place has a new owner.
    ResetStatistics {
        /// Where they are ([`statistics_index`](derp_common::flow::table::statistics_index)).
        index: u32,
    },
    /// Adds a source, or gives it a new owner.
    InsertSource {
        /// The key.
        source: Source,
        /// The owner ([`source_value`](derp_common::flow::table::source_value)).
        value: u32,
    },
    /// Removes a source, which is there.
    RemoveSource {
        /// The key.
        source: Source,
    },
}

/// A copy of the flow tables: the userspace one ([`SharedMirror`](super::SharedMirror)), or the kernel's maps.
pub trait Sink {
    /// Why a change cannot be made.
    type Error: std::error::Error;

    /// Makes these changes, in this order.
    ///
    /// # Errors
    ///
    /// The first change that failed ends the list: those after it have not been made. The copy is then to be
    /// taken out of use, or made anew from [`FlowTable::snapshot`](super::FlowTable::snapshot).
    fn apply(&mut self, changes: &[Change]) -> Result<(), Self::Error>;
}
