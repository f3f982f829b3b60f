//! The flow tables of a loaded program.
#![allow(dead_code, reason = "each test program uses a part of it")]

use aya::maps::{Array, HashMap, MapData, RingBuf, xdp::DevMapHash};
use derp_common::{
    Address,
    flow::{
        Control, Leg, LegStatistics, Side, Source,
        table::{Senders, leg_index},
    },
    maps::{self, Event},
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

    /// Takes what the program has told, in order.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            let word = |at: usize| item[at..at + 4].try_into().expect("an event");
            let half =
                |at: usize| u16::from_ne_bytes(item[at..at + 2].try_into().expect("an event"));
            events.push(Event {
                source: Address([0, 4, 8, 12].map(|at| u32::from_ne_bytes(word(at)))),
                reason: u32::from_ne_bytes(word(16)),
                slot: u32::from_ne_bytes(word(20)),
                source_port: half(24),
                local_port: half(26),
                vni: u32::from_ne_bytes(word(28)),
            });
        }
        events
    }
}

/// Changes the legs of a flow the way the daemon does: the copy that is not in use, then the control word.
pub(crate) fn rebind(maps: &mut FlowMaps, slot: u32, legs: [Leg; 2]) {
    let control = maps.slots.get(&slot, 0).expect("control");
    let copy = 1 - control.copy();
    for (side, leg) in Side::ALL.into_iter().zip(legs) {
        maps.legs.set(leg_index(slot, copy, side), leg, 0).expect("leg");
    }
    maps.slots.set(slot, Control::forward(control.vni(), copy), 0).expect("control");
}
