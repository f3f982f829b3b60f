//! The flow tables as the kernel program reads them: a mirror, and never a second brain.

use std::{collections::BTreeSet, fmt};

use aya::maps::{Array, HashMap, MapData, MapError};
use derp_common::{
    flow::{
        Control, Leg, LegStatistics, Side, Source,
        table::{Senders, leg_index, slot_and_side, statistics_index},
    },
    maps::{LEG_STATISTICS, LEGS, SENDERS, SLOTS, SOURCES},
};

use super::{DataplaneError, Kernel};
use crate::flow::{Change, Sink};

/// The maps of the flow tables; what is in each says [`derp_common::flow::table`].
pub struct FlowMaps {
    /// `SLOTS`.
    pub slots: Array<MapData, Control>,
    /// `LEGS`.
    pub legs: Array<MapData, Leg>,
    /// `LEG_STATISTICS`.
    pub statistics: Array<MapData, LegStatistics>,
    /// `SENDERS`.
    pub senders: Array<MapData, Senders>,
    /// `SOURCES`.
    pub sources: HashMap<MapData, Source, u32>,
}

/// A place in the flow tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// Of a slot.
    Slot(u32),
    /// Of a sender without a VNI.
    Source(Source),
    /// All of them.
    All,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(slot) => write!(f, "slot {slot}"),
            Self::Source(source) => {
                let address = std::net::IpAddr::from(source.address);
                let port = u16::from_be(source.port);
                write!(f, "source {}", std::net::SocketAddr::new(address, port))
            }
            Self::All => f.write_str("every entry"),
        }
    }
}

/// The kernel's flow tables cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowTableError {
    /// The maps do not belong together.
    #[error("the kernel map {map} has {found} entries where {expected} belong to {slots} slots")]
    Size {
        /// The map's name.
        map: &'static str,
        /// Its entries.
        found: u32,
        /// What the number of slots needs.
        expected: u64,
        /// The number of slots.
        slots: u32,
    },
    /// A map could not be read or written.
    #[error("cannot {operation} {place} of the kernel map {map}: {source}")]
    Access {
        /// `read` or `write`.
        operation: &'static str,
        /// The map's name.
        map: &'static str,
        /// Where in it.
        place: Place,
        /// What the kernel said.
        source: Box<MapError>,
    },
}

fn failed(
    operation: &'static str,
    map: &'static str,
    place: Place,
) -> impl FnOnce(MapError) -> FlowTableError {
    move |source| FlowTableError::Access { operation, map, place, source: Box::new(source) }
}

/// A slot that is in use, as found in the kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StoredFlow {
    /// The slot.
    pub slot: u32,
    /// Its control word, which is not [`Control::OFF`].
    pub control: Control,
    /// The copy of the legs that is valid, by side.
    pub legs: [Leg; 2],
    /// Whose control packets may reach userspace.
    pub senders: Senders,
    /// What has come from each side.
    pub statistics: [LegStatistics; 2],
}

/// Writes flows into the kernel, and reads back what it has counted.
///
/// A slot that cannot be written is switched off, said so once, and left out until it is freed; a source that
/// cannot be added is left out. Packets of either are userspace's, as far as the program passes what it does
/// not know.
pub struct KernelTables {
    maps: FlowMaps,
    /// Slots that are switched off because one of their writes failed.
    left_out: BTreeSet<u32>,
    /// Sources for which there was no room.
    sources_left_out: u64,
}

impl FlowMaps {
    /// Takes the maps out of a kernel program, once.
    ///
    /// # Errors
    ///
    /// When a map is missing, taken already, or of another type.
    pub fn take(kernel: &mut Kernel) -> Result<Self, DataplaneError> {
        Ok(Self {
            slots: kernel.take_map(SLOTS)?,
            legs: kernel.take_map(LEGS)?,
            statistics: kernel.take_map(LEG_STATISTICS)?,
            senders: kernel.take_map(SENDERS)?,
            sources: kernel.take_map(SOURCES)?,
        })
    }
}

impl KernelTables {
    /// Takes the maps of a loaded program, empty or as another process has left them.
    ///
    /// # Errors
    ///
    /// When their sizes do not fit each other.
    pub fn new(maps: FlowMaps) -> Result<Self, FlowTableError> {
        let slots = maps.slots.len();
        for (map, found, per_slot) in [
            (LEGS, maps.legs.len(), u64::from(leg_index(1, 0, Side::A))),
            (LEG_STATISTICS, maps.statistics.len(), u64::from(statistics_index(1, Side::A))),
            (SENDERS, maps.senders.len(), 1),
        ] {
            let expected = u64::from(slots) * per_slot;
            if u64::from(found) != expected {
                return Err(FlowTableError::Size { map, found, expected, slots });
            }
        }
        Ok(Self { maps, left_out: BTreeSet::new(), sources_left_out: 0 })
    }

    /// Returns the number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.maps.slots.len()
    }

    /// Returns how many slots are switched off because they could not be written.
    #[must_use]
    pub fn slots_left_out(&self) -> usize {
        self.left_out.len()
    }

    /// Returns how many sources could not be added, since the tables were taken.
    #[must_use]
    pub fn sources_left_out(&self) -> u64 {
        self.sources_left_out
    }

    /// Reads what has been counted for some slots, by side. Two system calls a slot: the kernel's batch
    /// look-up would read every slot.
    ///
    /// # Errors
    ///
    /// When a slot is none, or the map cannot be read.
    pub fn statistics(
        &self,
        slots: impl IntoIterator<Item = u32>,
    ) -> Result<Vec<(u32, [LegStatistics; 2])>, FlowTableError> {
        slots.into_iter().map(|slot| Ok((slot, self.statistics_of(slot)?))).collect()
    }

    /// Tells whether the program has noted a control packet for the flow in a slot ([`LegStatistics::suspect_since`]).
    ///
    /// # Errors
    ///
    /// When the slot is none, or the map cannot be read.
    pub fn is_suspect(&self, slot: u32) -> Result<bool, FlowTableError> {
        Ok(self.statistics_of_side(slot, Side::A)?.suspect_since != 0)
    }

    /// Forgets that a control packet came for the flow in a slot, which does not forward: what is counted of it must
    /// not change meanwhile.
    ///
    /// # Errors
    ///
    /// When the slot is none, or the map cannot be read or written.
    pub fn trust(&mut self, slot: u32) -> Result<(), FlowTableError> {
        let seen = self.statistics_of_side(slot, Side::A)?;
        let index = statistics_index(slot, Side::A);
        let trusted = LegStatistics { suspect_since: 0, ..seen };
        let written = self.maps.statistics.set(index, trusted, 0);
        written.map_err(failed("write", LEG_STATISTICS, Place::Slot(slot)))
    }

    fn statistics_of_side(&self, slot: u32, side: Side) -> Result<LegStatistics, FlowTableError> {
        let found = self.maps.statistics.get(&statistics_index(slot, side), 0);
        found.map_err(failed("read", LEG_STATISTICS, Place::Slot(slot)))
    }

    fn statistics_of(&self, slot: u32) -> Result<[LegStatistics; 2], FlowTableError> {
        let [a, b] = Side::ALL.map(|side| self.statistics_of_side(slot, side));
        Ok([a?, b?])
    }

    /// Reads every slot in use, to take over what another process has left.
    ///
    /// # Errors
    ///
    /// When a map cannot be read.
    pub fn stored_flows(&self) -> Result<Vec<StoredFlow>, FlowTableError> {
        let mut flows = Vec::new();
        for slot in 0..self.slots() {
            let place = Place::Slot(slot);
            let control = self.maps.slots.get(&slot, 0).map_err(failed("read", SLOTS, place))?;
            if control == Control::OFF {
                continue;
            }
            let leg = |side| {
                let index = leg_index(slot, control.copy(), side);
                self.maps.legs.get(&index, 0).map_err(failed("read", LEGS, place))
            };
            let senders =
                self.maps.senders.get(&slot, 0).map_err(failed("read", SENDERS, place))?;
            flows.push(StoredFlow {
                slot,
                control,
                legs: [leg(Side::A)?, leg(Side::B)?],
                senders,
                statistics: self.statistics_of(slot)?,
            });
        }
        Ok(flows)
    }

    /// Reads every sender without a VNI, and where its packets belong
    /// ([`source_value`](derp_common::flow::table::source_value)).
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn stored_sources(&self) -> Result<Vec<(Source, u32)>, FlowTableError> {
        let found: Result<Vec<_>, _> = self.maps.sources.iter().collect();
        found.map_err(failed("read", SOURCES, Place::All))
    }

    fn change(&mut self, change: &Change) -> Result<(), FlowTableError> {
        let (slot, map, written) = match *change {
            Change::InsertSource { source, value } => {
                self.insert_source(source, value);
                return Ok(());
            }
            Change::RemoveSource { source } => return self.remove_source(source),
            Change::Control { slot, control } if self.left_out.contains(&slot) => {
                // Freed, or to be bound anew: its next legs are written, or fail, afresh.
                if !control.forwards() {
                    self.left_out.remove(&slot);
                }
                return self.switch(slot, Control::OFF);
            }
            Change::Control { slot, control } => {
                (slot, SLOTS, self.maps.slots.set(slot, control, 0))
            }
            Change::Leg { index, .. } if self.left_out.contains(&(index >> 2)) => return Ok(()),
            Change::Leg { index, leg } => (index >> 2, LEGS, self.maps.legs.set(index, leg, 0)),
            Change::Senders { slot, senders } => {
                (slot, SENDERS, self.maps.senders.set(slot, senders, 0))
            }
            Change::ResetStatistics { index } => {
                let none = LegStatistics::default();
                (index >> 1, LEG_STATISTICS, self.maps.statistics.set(index, none, 0))
            }
        };
        let Err(error) = written else { return Ok(()) };
        let error = failed("write", map, Place::Slot(slot))(error);
        self.switch(slot, Control::OFF)?;
        if self.left_out.insert(slot) {
            tracing::warn!("{error}: the kernel leaves this flow alone");
        }
        Ok(())
    }

    fn switch(&mut self, slot: u32, control: Control) -> Result<(), FlowTableError> {
        let written = self.maps.slots.set(slot, control, 0);
        written.map_err(failed("write", SLOTS, Place::Slot(slot)))
    }

    /// A source without a place is nobody the kernel knows, whose packets it passes.
    fn insert_source(&mut self, source: Source, value: u32) {
        let Err(error) = self.maps.sources.insert(source, value, 0) else { return };
        self.sources_left_out += 1;
        let error = failed("write", SOURCES, Place::Source(source))(error);
        let (slot, side) = slot_and_side(value);
        // A full table may have to refuse thousands.
        if self.sources_left_out.is_power_of_two() {
            let left_out = self.sources_left_out;
            tracing::warn!(slot, ?side, left_out, "{error}: its packets are left to userspace");
        } else {
            tracing::debug!(slot, ?side, "{error}");
        }
    }

    fn remove_source(&mut self, source: Source) -> Result<(), FlowTableError> {
        match self.maps.sources.remove(&source) {
            // It may have been left out.
            Err(error) if !is_missing(&error) => {
                Err(failed("write", SOURCES, Place::Source(source))(error))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Sink for KernelTables {
    type Error = FlowTableError;

    /// Only an error that leaves a flow in the kernel which should not be there ends the list.
    fn apply(&mut self, changes: &[Change]) -> Result<(), FlowTableError> {
        changes.iter().try_for_each(|change| self.change(change))
    }
}

/// Tells whether a key was not there.
pub(super) fn is_missing(error: &MapError) -> bool {
    if let MapError::SyscallError(error) = error {
        return error.io_error.raw_os_error() == Some(libc::ENOENT);
    }
    matches!(error, MapError::KeyNotFound)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use derp_common::{Address, flow::table::source_value};

    use super::*;

    const SLOTS_HERE: u32 = 8;

    /// Makes maps of these sizes, or says why the test is skipped.
    fn maps(slots: u32, legs: u32, sources: u32) -> Option<FlowMaps> {
        let maps = || {
            Ok::<_, MapError>(FlowMaps {
                slots: Array::create(slots, 0)?,
                legs: Array::create(legs, 0)?,
                statistics: Array::create(slots * 2, 0)?,
                senders: Array::create(slots, 0)?,
                sources: HashMap::create(sources, 0)?,
            })
        };
        match maps() {
            Ok(maps) => Some(maps),
            Err(error) => {
                println!("skipped: BPF maps: {error}");
                let required = std::env::var_os("DERPD_REQUIRE_XDP").is_some_and(|it| it == "1");
                assert!(!required, "DERPD_REQUIRE_XDP=1, but no map can be made: {error}");
                None
            }
        }
    }

    fn tables() -> Option<KernelTables> {
        let maps = maps(SLOTS_HERE, SLOTS_HERE * 4, 2)?;
        Some(KernelTables::new(maps).expect("the sizes fit"))
    }

    fn address(last: u8) -> Address {
        Address::from(IpAddr::from([192, 0, 2, last]))
    }

    fn leg(last: u8) -> Leg {
        Leg {
            remote: address(last),
            local: address(1),
            remote_port: u16::from(last).to_be(),
            local_port: 40_000_u16.to_be(),
            interface: 2,
            source_mac: [1, 2, 3],
            destination_mac: [4, 5, 6],
            mtu: 1500,
            vlan: 0,
            nanoseconds_per_kibibyte: 0,
            burst_microseconds: 0,
        }
    }

    fn source(last: u8) -> Source {
        Source { address: address(last), port: 9, local_port: 10, index: 0 }
    }

    /// The changes that bring a flow in by copy 1.
    fn install(slot: u32, vni: u32) -> [Change; 6] {
        [
            Change::ResetStatistics { index: statistics_index(slot, Side::A) },
            Change::ResetStatistics { index: statistics_index(slot, Side::B) },
            Change::Senders { slot, senders: [7, 8] },
            Change::Leg { index: leg_index(slot, 1, Side::A), leg: leg(10) },
            Change::Leg { index: leg_index(slot, 1, Side::B), leg: leg(11) },
            Change::Control { slot, control: Control::forward(vni, 1) },
        ]
    }

    #[test]
    fn what_is_written_is_read_back() {
        let Some(mut tables) = tables() else { return };
        assert_eq!(tables.stored_flows().expect("readable"), []);
        tables.apply(&install(5, 0x105)).expect("written");
        let expected = StoredFlow {
            slot: 5,
            control: Control::forward(0x105, 1),
            legs: [leg(10), leg(11)],
            senders: [7, 8],
            statistics: [LegStatistics::default(); 2],
        };
        assert_eq!(tables.stored_flows().expect("readable"), [expected]);
        tables.apply(&[Change::Control { slot: 5, control: Control::OFF }]).expect("freed");
        assert_eq!(tables.stored_flows().expect("readable"), []);
    }

    #[test]
    fn statistics_are_read_by_slot_and_reset_by_leg() {
        let Some(mut tables) = tables() else { return };
        let counted = LegStatistics { packets: 3, bytes: 300, ..LegStatistics::default() };
        for side in Side::ALL {
            let index = statistics_index(2, side);
            tables.maps.statistics.set(index, counted, 0).expect("set");
        }
        let none = LegStatistics::default();
        let read = tables.statistics([1, 2]).expect("readable");
        assert_eq!(read, [(1, [none, none]), (2, [counted, counted])]);
        let index = statistics_index(2, Side::B);
        tables.apply(&[Change::ResetStatistics { index }]).expect("reset");
        assert_eq!(tables.statistics([2]).expect("readable"), [(2, [counted, none])]);
        let error = tables.statistics([SLOTS_HERE]).expect_err("no such slot").to_string();
        assert!(
            error.starts_with("cannot read slot 8 of the kernel map LEG_STATISTICS"),
            "{error}"
        );
    }

    #[test]
    fn sources_come_and_go_and_a_full_table_is_no_disaster() {
        let Some(mut tables) = tables() else { return };
        let insert = |last| {
            let value = source_value(u32::from(last), Side::B);
            Change::InsertSource { source: source(last), value }
        };
        // The kernel rounds nothing up here: two places are two.
        tables.apply(&[insert(1), insert(2), insert(3), insert(1)]).expect("no error");
        assert_eq!(tables.sources_left_out(), 1);
        let mut stored = tables.stored_sources().expect("readable");
        stored.sort_by_key(|(_, value)| *value);
        let expected = [1, 2].map(|last| (source(last), source_value(u32::from(last), Side::B)));
        assert_eq!(stored, expected);
        let remove = |last| Change::RemoveSource { source: source(last) };
        tables.apply(&[remove(3), remove(1), remove(2)]).expect("also what is not there");
        assert_eq!(tables.stored_sources().expect("readable"), []);
    }

    #[test]
    fn a_slot_that_cannot_be_written_is_off_until_it_is_freed() {
        // Legs for one slot only.
        let Some(maps) = maps(SLOTS_HERE, 4, 2) else { return };
        let mut tables = KernelTables { maps, left_out: BTreeSet::new(), sources_left_out: 0 };
        tables.apply(&install(0, 0x100)).expect("this fits");
        tables.apply(&install(1, 0x101)).expect("no error");
        assert_eq!(tables.slots_left_out(), 1);
        let flows = tables.stored_flows().expect("readable");
        assert_eq!(flows.iter().map(|flow| flow.slot).collect::<Vec<_>>(), [0]);
        let off = Change::Control { slot: 1, control: Control::off(0x201) };
        tables.apply(&[off]).expect("freed");
        assert_eq!(tables.slots_left_out(), 0);
        tables.apply(&install(1, 0x201)).expect("no error");
        assert_eq!(tables.slots_left_out(), 1, "and fails afresh");
    }

    #[test]
    fn a_slot_that_is_none_is_an_error_that_names_it() {
        let Some(mut tables) = tables() else { return };
        let control = Control::forward(1, 0);
        let error =
            tables.apply(&[Change::Control { slot: 8, control }]).expect_err("no such slot");
        assert!(error.to_string().starts_with("cannot write slot 8 of the kernel map SLOTS"));
    }

    #[test]
    fn maps_that_do_not_belong_together_are_refused() {
        let Some(maps) = maps(SLOTS_HERE, SLOTS_HERE * 4 - 1, 2) else { return };
        let error = KernelTables::new(maps).err().expect("too few legs").to_string();
        assert!(error.contains("LEGS has 31 entries where 32 belong to 8 slots"), "{error}");
    }
}
