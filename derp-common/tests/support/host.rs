//! A host in memory: what the kernel program has in maps, for the same decisions without a kernel.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    sync::atomic::AtomicU64,
};

use derp_common::{
    Address, AddressPlace, Host, Interface, Settings,
    decide::StunBuckets,
    flow::{Control, Leg, LegCells, LegStatistics, Source, Tables, table::Senders},
    maps::Event,
};

/// The maps, and the interface the next frame comes in by.
pub(crate) struct TestHost {
    pub(crate) settings: Settings,
    pub(crate) ingress: u32,
    pub(crate) interfaces: HashMap<u32, Interface>,
    pub(crate) addresses: HashMap<Address, u32>,
    pub(crate) controls: HashMap<u32, Control>,
    pub(crate) legs: HashMap<u32, Leg>,
    pub(crate) senders: HashMap<u32, Senders>,
    pub(crate) sources: HashMap<Source, u32>,
    pub(crate) now: Cell<u64>,
    pub(crate) events: RefCell<Vec<Event>>,
    statistics: Vec<LegCells>,
    stun_buckets: Vec<StunBuckets>,
    event_bucket: AtomicU64,
}

impl TestHost {
    /// Knows nobody yet, and has this many slots.
    pub(crate) fn new(settings: Settings, slots: u32) -> Self {
        Self {
            settings,
            ingress: 1,
            interfaces: HashMap::new(),
            addresses: HashMap::new(),
            controls: (0..slots).map(|slot| (slot, Control::OFF)).collect(),
            legs: HashMap::new(),
            senders: HashMap::new(),
            sources: HashMap::new(),
            now: Cell::new(1_000_000_000_000),
            events: RefCell::default(),
            statistics: (0..2 * slots).map(|_| LegCells::default()).collect(),
            stun_buckets: (0..=settings.stun_mask).map(|_| StunBuckets::default()).collect(),
            event_bucket: AtomicU64::new(0),
        }
    }

    /// What has come from an end of a flow.
    pub(crate) fn statistics_of(&self, index: u32) -> LegStatistics {
        self.statistics[index as usize].read()
    }

    /// Clears every suspicion.
    pub(crate) fn trust_all(&self) {
        self.statistics.iter().for_each(LegCells::trust);
    }

    /// Lets time pass.
    pub(crate) fn wait(&self, nanoseconds: u64) {
        self.now.set(self.now.get() + nanoseconds);
    }
}

impl Tables for TestHost {
    fn control(&self, slot: u32) -> Option<Control> {
        self.controls.get(&slot).copied()
    }

    fn leg(&self, index: u32) -> Option<&Leg> {
        self.legs.get(&index)
    }

    fn statistics(&self, index: u32) -> Option<&LegCells> {
        self.statistics.get(index as usize)
    }

    fn senders(&self, slot: u32) -> Option<Senders> {
        // The kernel's array holds zeroes where nothing was written.
        self.controls
            .contains_key(&slot)
            .then(|| self.senders.get(&slot).copied().unwrap_or([0; 2]))
    }

    fn source(&self, source: &Source) -> Option<u32> {
        self.sources.get(source).copied()
    }
}

impl Host for TestHost {
    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn interface(&self, index: u32) -> Option<&Interface> {
        self.interfaces.get(&index)
    }

    fn address_place(&self, _address: &Address) -> Option<&AddressPlace> {
        None
    }

    fn address_kind(&self, address: &Address) -> Option<u32> {
        self.addresses.get(address).copied()
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn stun_buckets(&self, index: u32) -> Option<&StunBuckets> {
        self.stun_buckets.get(index as usize)
    }

    fn event_bucket(&self) -> Option<&AtomicU64> {
        Some(&self.event_bucket)
    }

    fn event(&self, event: &Event) {
        self.events.borrow_mut().push(*event);
    }
}
