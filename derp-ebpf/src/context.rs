//! Packet access in the kernel: the only pointer arithmetic of the program.
#![expect(unsafe_code, reason = "packet bytes are reached through raw pointers in XDP")]

use aya_ebpf::{helpers::bpf_xdp_adjust_tail, programs::XdpContext};
use derp_common::Packet;

/// The frame an XDP program was called for.
pub(crate) struct XdpPacket<'a> {
    context: &'a XdpContext,
    /// Address of place 0. Kept rather than loaded anew each time: the verifier knows how many bytes
    /// may be read behind this very value, and would have to be shown it again for another.
    start: usize,
    /// How far that is from the frame's first byte.
    advanced: usize,
}

impl<'a> XdpPacket<'a> {
    #[inline(always)]
    pub(crate) fn new(context: &'a XdpContext) -> Self {
        Self { context, start: context.data(), advanced: 0 }
    }

    /// Returns the number of bytes of the whole frame.
    #[inline(always)]
    pub(crate) fn frame_len(&self) -> usize {
        self.end() - self.context.data()
    }

    /// Returns a pointer to `N` bytes of the packet.
    #[inline(always)]
    fn at<const N: usize>(&self, at: usize) -> Option<*mut [u8; N]> {
        let start = self.start.wrapping_add(at);
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
        // SAFETY: `at` has compared all N bytes with the packet's end, and the kernel keeps the packet for the whole
        // call; it loads no program in which `at` could be so large that it comes round to the start again. A byte
        // array has no alignment to break.
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
    fn ensure(&mut self, len: usize) -> Option<()> {
        (self.start + len <= self.end()).then_some(())
    }

    #[inline(always)]
    fn read_ensured<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let bytes = self.start.wrapping_add(at) as *const [u8; N];
        // SAFETY: the caller has compared these bytes with the packet's end, by `ensure`. The kernel does not
        // load a program in which that is not so: its verifier follows every path to every access.
        Some(unsafe { bytes.read() })
    }

    #[inline(always)]
    fn write_ensured<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.start.wrapping_add(at) as *mut [u8; N];
        // SAFETY: as in `read_ensured` and `write`.
        unsafe { place.write(bytes) };
        Some(())
    }

    #[inline(always)]
    fn advance(&mut self, count: usize) {
        self.start += count;
        self.advanced += count;
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end() - self.start
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        let delta = len as i32 - self.len() as i32;
        // SAFETY: the context is the one the kernel passed in, and no pointer into the packet is kept
        // across the call: the start is loaded anew.
        let result = unsafe { bpf_xdp_adjust_tail(self.context.ctx, delta) };
        self.start = self.context.data() + self.advanced;
        (result == 0).then_some(())
    }
}
