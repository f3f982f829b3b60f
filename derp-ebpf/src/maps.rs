//! The maps, and what the shared code asks of them.
#![expect(unsafe_code, reason = "map values are reached through raw pointers in BPF")]

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray},
    programs::XdpContext,
};
use derp_common::{
    Address, Decision, Host, Interface, Settings,
    maps::{ADDRESSES_CAPACITY, COUNTERS_CAPACITY, Counter, INTERFACES_CAPACITY, counter_index},
};

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static ADDRESSES: HashMap<Address, u32> = HashMap::with_max_entries(ADDRESSES_CAPACITY, 0);
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(INTERFACES_CAPACITY, 0);
#[map]
static COUNTERS: PerCpuArray<Counter> = PerCpuArray::with_max_entries(COUNTERS_CAPACITY, 0);

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

impl Host for KernelHost<'_> {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        SETTINGS.get(0)
    }

    #[inline(always)]
    fn interface(&self) -> Option<&Interface> {
        let index = self.context.ingress_ifindex() as u32;
        // SAFETY: the daemon may replace or remove the entry meanwhile. The kernel frees no memory a
        // running program can see; at worst the MAC of another of our interfaces is compared.
        unsafe { INTERFACES.get(index) }
    }

    #[inline(always)]
    fn address_kind(&self, address: &Address) -> Option<u32> {
        // SAFETY: as above; at worst the kind of another of our addresses is read.
        unsafe { ADDRESSES.get(address) }.copied()
    }
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
