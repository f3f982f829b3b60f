//! Packet access in the kernel: the only pointer arithmetic of the program.
#![expect(unsafe_code, reason = "packet bytes are reached through raw pointers in XDP")]

use aya_ebpf::{helpers::bpf_xdp_adjust_tail, programs::XdpContext};
use derp_common::Packet;

/// The frame an XDP program was called for.
pub(crate) struct XdpPacket<'a> {
    context: &'a XdpContext,
}

impl<'a> XdpPacket<'a> {
    #[inline(always)]
    pub(crate) fn new(context: &'a XdpContext) -> Self {
        Self { context }
    }

    /// Returns a pointer to `N` bytes of the packet.
    #[inline(always)]
    fn at<const N: usize>(&self, at: usize) -> Option<*mut [u8; N]> {
        let start = self.context.data() + at;
        (start + N <= self.end()).then_some(start as *mut [u8; N])
    }

    /// Returns the address after the packet's last byte. Loaded anew each time: in a loop, the compiler
    /// would else count on from it, and the verifier forbids arithmetic on it.
    #[inline(always)]
    fn end(&self) -> usize {
        // SAFETY: the kernel's context is valid for the whole call.
        unsafe { (&raw const (*self.context.ctx).data_end).read_volatile() as usize }
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let bytes = self.at::<N>(at)?;
        // SAFETY: `at` has compared all N bytes with the packet's end, and the kernel keeps the packet
        // for the whole call; a byte array has no alignment to break.
        Some(unsafe { bytes.read() })
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.at::<N>(at)?;
        // SAFETY: as in `read`; the program has the packet to itself, and no reference into it exists.
        unsafe { place.write(bytes) };
        Some(())
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.context.data_end() - self.context.data()
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        let delta = len as i32 - self.len() as i32;
        // SAFETY: the context is the one the kernel passed in, and no pointer into the packet is kept
        // across the call.
        let result = unsafe { bpf_xdp_adjust_tail(self.context.ctx, delta) };
        (result == 0).then_some(())
    }
}
