//! The flow tables of a loaded program.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aya::maps::{Array, HashMap, MapData, RingBuf, xdp::DevMapHash};
use derp_common::{
    flow::{Control, Leg, LegStatistics, Source, table::Senders},
    maps,
};
use derp_user::dataplane::Kernel;

use crate::flows::{OTHER_INTERFACE, Plan};

/// Maps of the kernel, by what the tests do with them.
pub(crate) struct FlowMaps {
    pub(crate) slots: Array<MapData, Control>,
    pub(crate) legs: Array<MapData, Leg>,
    pub(crate) statistics: Array<MapData, LegStatistics>,
    pub(crate) senders: Array<MapData, Senders>,
    pub(crate) sources: HashMap<MapData, Source, u32>,
    pub(crate) devices: DevMapHash<MapData>,
    pub(crate) stun_buckets: HashMap<MapData, u64, [u64; 2]>,
    pub(crate) events: RingBuf<MapData>,
}

impl FlowMaps {
    pub(crate) fn take(kernel: &mut Kernel) -> Self {
        Self {
            slots: kernel.take_map(maps::SLOTS).expect("slots"),
            legs: kernel.take_map(maps::LEGS).expect("legs"),
            statistics: kernel.take_map(maps::LEG_STATISTICS).expect("statistics"),
            senders: kernel.take_map(maps::SENDERS).expect("senders"),
            sources: kernel.take_map(maps::SOURCES).expect("sources"),
            devices: kernel.take_map(maps::DEVICES).expect("devices"),
            stun_buckets: kernel.take_map(maps::STUN_BUCKETS).expect("STUN buckets"),
            events: kernel.take_map(maps::EVENTS).expect("events"),
        }
    }

    /// Writes the flows, and makes the other interface one that frames can be redirected to. (Nothing is
    /// really sent by it: under `BPF_PROG_TEST_RUN` the loopback may stand for it.)
    pub(crate) fn apply(&mut self, plan: &Plan) {
        for (index, leg) in &plan.legs {
            self.legs.set(*index, leg, 0).expect("leg");
        }
        for (slot, senders) in &plan.senders {
            self.senders.set(*slot, senders, 0).expect("senders");
        }
        for (source, value) in &plan.sources {
            self.sources.insert(source, value, 0).expect("source");
        }
        for (slot, control) in &plan.controls {
            self.slots.set(*slot, control, 0).expect("control");
        }
        self.devices.insert(OTHER_INTERFACE, 1, None, 0).expect("device");
    }
}
