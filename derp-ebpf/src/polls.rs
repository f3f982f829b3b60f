//! Measures how long the kernel receives for each network interface, and within which process, for benchmarks.
//!
//! Without threads of its own for that, the kernel receives in interrupts, whose time it adds to that of whoever runs at
//! the moment. Here each poll of an interface is timed, with all that is done for the packets in it: XDP, GRO, the network
//! stack, and handing them to the next interface.
#![no_std]
#![no_main]
#![expect(
    unsafe_code,
    reason = "the kernel's tables, and what it tells of itself, are had by pointers"
)]

use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel_str_bytes},
    macros::{map, tracepoint},
    maps::{LruPerCpuHashMap, PerCpuArray},
    programs::TracePointContext,
};

/// Bytes of an interface's name, with the zero at its end.
const NAME: usize = 16;

/// The number of the softirq that receives.
const NET_RX: u32 = 3;

/// What a processor is at while it receives.
#[repr(C)]
#[derive(Clone, Copy)]
struct Receiving {
    /// From when on the time has not been added to any interface's, in nanoseconds; 0 while it does not receive.
    since: u64,
    /// The one that was polled last.
    interface: [u8; NAME],
}

/// What polls are told apart by.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    interface: [u8; NAME],
    /// The process that was interrupted.
    process: u32,
}

#[map]
static RECEIVING: PerCpuArray<Receiving> = PerCpuArray::with_max_entries(1, 0);
/// The time of all polls, in nanoseconds.
#[map]
static TIMES: LruPerCpuHashMap<Key, u64> = LruPerCpuHashMap::with_max_entries(4096, 0);

/// Before the first poll.
#[tracepoint(category = "irq", name = "softirq_entry")]
fn begin(context: TracePointContext) {
    if receives(&context)
        && let Some(receiving) = RECEIVING.get_ptr_mut(0)
    {
        // SAFETY: the entry is this processor's, and softirqs do not interrupt each other.
        unsafe { (*receiving).since = bpf_ktime_get_ns() };
    }
}

/// After each poll, with the name of its interface.
#[tracepoint(category = "napi", name = "napi_poll")]
fn polled(context: TracePointContext) {
    /// Where the record says how many bytes into it the name is, in the lower half of a word.
    const PLACE: usize = 16;
    let Some(receiving) = RECEIVING.get_ptr_mut(0) else { return };
    // SAFETY: the entry is this processor's, where nothing else uses it; the kernel refuses to copy what it cannot read.
    unsafe {
        let Ok(place) = context.read_at::<u32>(PLACE) else { return };
        let from = context.as_ptr().cast::<u8>().add((place & 0xffff) as usize);
        let receiving = &mut *receiving;
        receiving.interface = [0; NAME];
        bpf_probe_read_kernel_str_bytes(from, &mut receiving.interface).ok();
        charge(&context, receiving);
    }
}

/// After the last poll. What is left of GRO's packets after it is counted with it.
#[tracepoint(category = "irq", name = "softirq_exit")]
fn end(context: TracePointContext) {
    if receives(&context)
        && let Some(receiving) = RECEIVING.get_ptr_mut(0)
    {
        // SAFETY: the entry is this processor's, and softirqs do not interrupt each other.
        let receiving = unsafe { &mut *receiving };
        charge(&context, receiving);
        receiving.since = 0;
    }
}

/// Tells whether the softirq of the tracepoint is the one that receives.
fn receives(context: &TracePointContext) -> bool {
    /// Where the record has the softirq's number.
    const NUMBER: usize = 8;
    // SAFETY: the kernel refuses to copy what it cannot read.
    unsafe { context.read_at::<u32>(NUMBER) == Ok(NET_RX) }
}

/// Adds the time until now to that of the interface and the process.
fn charge(context: &TracePointContext, receiving: &mut Receiving) {
    if receiving.since == 0 {
        return;
    }
    // SAFETY: the helper has no conditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let time = now - receiving.since;
    receiving.since = now;
    let key = Key { interface: receiving.interface, process: context.tgid() };
    if let Some(sum) = TIMES.get_ptr_mut(key) {
        // SAFETY: entries are aligned, stay readable while a program runs, and this one is this processor's.
        unsafe { *sum += time };
    } else {
        TIMES.insert(key, time, 0).ok();
    }
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
