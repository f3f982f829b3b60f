//! An XDP program that lets everything pass. A veth interface takes in what native XDP sends to it only if it has a
//! program itself; tests attach this one to the far ends of their pairs.
#![no_std]
#![no_main]

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

#[xdp]
fn pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
