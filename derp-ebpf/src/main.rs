//! The XDP program of derpd: gives `derp_common::decide` a packet and the maps, counts, and turns the
//! verdict into an XDP action. No protocol decision is taken here.
#![no_std]
#![no_main]

mod context;
mod maps;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use derp_common::{Verdict, decide};

use crate::{context::XdpPacket, maps::KernelHost};

/// Answers STUN requests to this host and forwards the packets of its flows; everything else goes up the stack
/// untouched.
#[xdp]
#[inline(always)]
fn derpd_xdp(context: XdpContext) -> u32 {
    let mut packet = XdpPacket::new(&context);
    let decision = decide(&mut packet, &KernelHost::new(&context));
    maps::count(decision, packet.frame_len());
    match decision.verdict {
        Verdict::Pass => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        Verdict::Redirect => maps::redirect(decision.interface),
        Verdict::Aborted => {
            // Cannot happen to a correct program, so it is worth a line, and costs nothing otherwise.
            aya_log_ebpf::error!(&context, "a rewrite broke off half way");
            xdp_action::XDP_ABORTED
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Helpers under the GPL are only lent to programs that declare a compatible licence.
#[expect(unsafe_code, reason = "the kernel looks for this symbol in this section")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
