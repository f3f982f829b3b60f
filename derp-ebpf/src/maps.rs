//! The maps, and what the shared code asks of them.
#![expect(unsafe_code, reason = "map values are reached through raw pointers in BPF")]

use core::sync::atomic::AtomicU64;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::map,
    maps::{Array, DevMapHash, HashMap, PerCpuArray, RingBuf},
    programs::XdpContext,
};
use derp_common::{
    Address, AddressPlace, Decision, Host, Interface, InterfacePlace, Settings,
    address::ADDRESS_PLACES as ADDRESS_PLACES_CAPACITY,
    cell,
    decide::StunBuckets,
    flow::{Control, Leg, LegCells, Source, Tables, table::Senders},
    maps::{
        ADDRESSES_CAPACITY, COUNTERS_CAPACITY, Counter, EVENTS_CAPACITY, Event,
        INTERFACE_PLACES_CAPACITY, INTERFACES_CAPACITY, counter_index, interface_place,
    },
};

/// Slots of the flow table; the loader sets how many there are in this and the maps that depend on it.
const SLOTS_CAPACITY: u32 = 1;

/// Has the kernel begin a map's values on a page, and so on a cache line.
const ALIGNED: u32 = BPF_F_MMAPABLE;

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(ADDRESSES_CAPACITY, 0);
#[map]
static ADDRESS_PLACES: Array<AddressPlace> =
    Array::with_max_entries(ADDRESS_PLACES_CAPACITY, ALIGNED);
#[map]
static INTERFACE_PLACES: Array<InterfacePlace> =
    Array::with_max_entries(INTERFACE_PLACES_CAPACITY, 0);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(INTERFACES_CAPACITY, 0);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS_CAPACITY, 0);
#[map]
static SLOTS: Array<AtomicU64> = Array::with_max_entries(SLOTS_CAPACITY, 0);
#[map]
static LEGS: Array<Leg> = Array::with_max_entries(4 * SLOTS_CAPACITY, 0);
#[map]
static LEG_STATISTICS: Array<LegCells> = Array::with_max_entries(2 * SLOTS_CAPACITY, 0);
#[map]
static SENDERS: Array<Senders> = Array::with_max_entries(SLOTS_CAPACITY, 0);
#[map]
static SOURCES: HashMap<Source, u32> = HashMap::with_max_entries(2 * SLOTS_CAPACITY, 0);
#[map]
static STUN_BUCKETS: Array<StunBuckets> = Array::with_max_entries(1, ALIGNED);
#[map]
static DEVICES: DevMapHash = DevMapHash::with_max_entries(INTERFACES_CAPACITY, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(EVENTS_CAPACITY, 0);
#[map]
static EVENT_BUCKET: Array<AtomicU64> = Array::with_max_entries(1, 0);

/// The maps, as seen from the interface a frame came in by.
pub(crate) struct KernelHost<'a> {
    context: &'a XdpContext,
}

impl<'a> KernelHost<'a> {
    #[inline(always)]
    pub(crate) fn new(context: &'a XdpContext) -> Self {
        Self { context }
    }
}

impl Tables for KernelHost<'_> {
    #[inline(always)]
    fn control(&self, slot: u32) -> Option<Control> {
        // One load, so that all of it is of one moment.
        SLOTS.get(slot).map(|word| Control(cell::load(word)))
    }

    #[inline(always)]
    fn leg(&self, index: u32) -> Option<&Leg> {
        LEGS.get(index)
    }

    #[inline(always)]
    fn statistics(&self, index: u32) -> Option<&LegCells> {
        LEG_STATISTICS.get(index)
    }

    #[inline(always)]
    fn senders(&self, slot: u32) -> Option<Senders> {
        SENDERS.get(slot).copied()
    }

    #[inline(always)]
    fn source(&self, source: &Source) -> Option<u32> {
        // SAFETY: the daemon may replace or remove the entry meanwhile. The kernel frees no memory a
        // running program can see; at worst the value of another source is read, whose flow's legs do
        // not match the packet.
        unsafe { SOURCES.get(source) }.copied()
    }
}

impl Host for KernelHost<'_> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn ingress(&self) -> u32 {
        self.context.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn interface(&self, index: u32) -> Option<&Interface> {
        let place = INTERFACE_PLACES.get(interface_place(index))?;
        if place.index == index {
            return Some(&place.interface);
        }
        // SAFETY: as in `source`; at worst the MACs of others of our interfaces are compared, half of each.
        unsafe { INTERFACES.get(index) }
    }

    #[inline(always)]
    fn address_place(&self, address: &Address) -> Option<&AddressPlace> {
        ADDRESS_PLACES.get(address.place())
    }

    #[inline(always)]
    fn address_kind(&self, address: &Address) -> Option<u32> {
        // SAFETY: as in `source`; at worst the kind of another of our addresses is read.
        let ask = |address: &_| unsafe { ADDRESSES.get(address) }.copied();
        self.address_place(address)?.kind_of(address, ask)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes no arguments and only reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn stun_buckets(&self, index: u32) -> Option<&StunBuckets> {
        STUN_BUCKETS.get(index)
    }

    #[inline(always)]
    fn event_bucket(&self) -> Option<&AtomicU64> {
        EVENT_BUCKET.get(0)
    }

    #[inline(always)]
    fn event(&self, event: &Event) {
        // When the daemon does not keep up, it misses some.
        let _ = EVENTS.output::<Event>(event, 0);
    }
}

/// Sends the frame out of another interface; returns the XDP action.
///
/// An interface that has gone loses the frame, which has already been addressed to whoever was behind it.
#[inline(always)]
pub(crate) fn redirect(interface: u32) -> u32 {
    DEVICES.redirect(interface, 0).unwrap_or(aya_ebpf::bindings::xdp_action::XDP_DROP)
}

/// Counts one frame of `length` bytes.
#[inline(always)]
pub(crate) fn count(decision: Decision, length: usize) {
    let index = counter_index(decision.family, decision.reason);
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: the entry is this CPU's own, and an XDP program is not interrupted by another on the
        // same CPU.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += length as u64;
        }
    }
}
