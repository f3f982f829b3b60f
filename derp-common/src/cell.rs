//! What is one thing in the kernel and another on the host: numbers in memory that several processors share, and
//! a word to the compiler.
//!
//! The compiler knows atomic types for the kernel's machine, but translates none of their operations.
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "shared numbers are reached through raw pointers in BPF")
)]

use core::sync::atomic::AtomicU64;
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::Ordering::Relaxed;

/// Loads the number, all of it as it was at one moment.
#[inline(always)]
pub fn load(cell: &AtomicU64) -> u64 {
    #[cfg(not(target_arch = "bpf"))]
    return cell.load(Relaxed);
    #[cfg(target_arch = "bpf")]
    // SAFETY: the reference is valid for eight aligned bytes, which are loaded by one instruction.
    return unsafe { cell.as_ptr().read_volatile() };
}

/// Stores the number, all of it at one moment.
#[inline(always)]
pub fn store(cell: &AtomicU64, number: u64) {
    #[cfg(not(target_arch = "bpf"))]
    cell.store(number, Relaxed);
    #[cfg(target_arch = "bpf")]
    // SAFETY: as in `load`; an `AtomicU64` may be changed behind a shared reference.
    unsafe {
        cell.as_ptr().write_volatile(number);
    }
}

/// Adds to the number, whoever else does so at the same time.
#[inline(always)]
pub fn add(cell: &AtomicU64, number: u64) {
    #[cfg(not(target_arch = "bpf"))]
    cell.fetch_add(number, Relaxed);
    #[cfg(target_arch = "bpf")]
    // SAFETY: as in `store`. The instruction is as old as BPF maps.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({cell} + 0) += {number}",
            cell = in(reg) cell.as_ptr(),
            number = in(reg) number,
            options(nostack, preserves_flags),
        );
    }
}

/// Does nothing, but where it is called the compiler takes to be seldom reached, and keeps that out of the way of
/// the rest: in the kernel, where every packet finds the program's code in a cold cache.
#[cfg(target_arch = "bpf")]
#[cold]
#[inline(never)]
pub(crate) fn seldom() {
    // SAFETY: there is no instruction; the compiler only cannot know that.
    unsafe {
        core::arch::asm!("", options(nostack));
    }
}

/// Does nothing.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub(crate) fn seldom() {}
