//! Bounded access to the bytes of one packet.

/// A packet that can be read, written and resized, every access checked.
///
/// Bytes are copied in and out in pieces of a few bytes, so there is no aliasing and no lifetime, and
/// the kernel's verifier sees each access beside its bounds check. Implementations mark every method
/// `#[inline(always)]`: a BPF function call would lose what the verifier knows about the packet.
pub trait Packet {
    /// Returns the `N` bytes at `at`, or `None` when they are not all inside the packet.
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]>;

    /// Replaces the `N` bytes at `at`, or changes nothing when they are not all inside the packet.
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()>;

    /// Counts places from `count` bytes later from now on, lengths too. What lies before is still there, at
    /// places that wrap around.
    fn advance(&mut self, count: usize);

    /// Returns the number of bytes in the packet.
    fn len(&self) -> usize;

    /// Cuts or grows the packet at its end to `len` bytes; new bytes have any value.
    ///
    /// Returns `None`, with the packet unchanged, when there is no room.
    fn resize(&mut self, len: usize) -> Option<()>;

    /// Checks once that the first `len` bytes are there, or returns `None`. After that, and until it is
    /// resized, [`Packet::read_ensured`] and [`Packet::write_ensured`] may be used within them.
    #[inline(always)]
    fn ensure(&mut self, len: usize) -> Option<()> {
        (len <= self.len()).then_some(())
    }

    /// Like [`Packet::read`], where [`Packet::ensure`] has been asked: the kernel program leaves the check
    /// out there, and its verifier refuses the program if that is not so.
    #[inline(always)]
    fn read_ensured<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.read(at)
    }

    /// Like [`Packet::write`], where [`Packet::ensure`] has been asked.
    #[inline(always)]
    fn write_ensured<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        self.write(at, bytes)
    }

    /// Like [`Packet::read`], for places after the Ethernet header that are not known when compiled.
    #[inline(always)]
    fn read_anywhere<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.read(at)
    }

    /// Tells whether the packet has no bytes.
    #[inline(always)]
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns four bytes as they lie in memory, which is what [`Sum`](crate::checksum::Sum) adds.
    #[inline(always)]
    fn word(&self, at: usize) -> Option<u32> {
        self.read::<4>(at).map(u32::from_ne_bytes)
    }

    /// Writes four bytes given as they lie in memory.
    #[inline(always)]
    fn set_word(&mut self, at: usize, word: u32) -> Option<()> {
        self.write::<4>(at, word.to_ne_bytes())
    }

    /// Returns two bytes as they lie in memory.
    #[inline(always)]
    fn half(&self, at: usize) -> Option<u16> {
        self.read::<2>(at).map(u16::from_ne_bytes)
    }

    /// Writes two bytes given as they lie in memory.
    #[inline(always)]
    fn set_half(&mut self, at: usize, half: u16) -> Option<()> {
        self.write::<2>(at, half.to_ne_bytes())
    }

    /// Returns the big-endian number in the two bytes at `at`.
    #[inline(always)]
    fn number(&self, at: usize) -> Option<u16> {
        self.read::<2>(at).map(u16::from_be_bytes)
    }
}

/// A packet at the start of a buffer on the host; it may grow to the size of the buffer.
#[derive(Debug)]
pub struct SlicePacket<'a> {
    buffer: &'a mut [u8],
    len: usize,
    /// Where place 0 is.
    start: usize,
}

impl<'a> SlicePacket<'a> {
    /// Takes the first `len` bytes of `buffer` as the packet; at most the whole buffer.
    pub fn new(buffer: &'a mut [u8], len: usize) -> Self {
        let len = len.min(buffer.len());
        Self { buffer, len, start: 0 }
    }

    /// Returns the packet's bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Packet for SlicePacket<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let at = self.start.wrapping_add(at);
        self.bytes().get(at..at.checked_add(N)?)?.try_into().ok()
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.start.wrapping_add(at);
        let packet = self.buffer.get_mut(..self.len)?;
        packet.get_mut(at..at.checked_add(N)?)?.copy_from_slice(&bytes);
        Some(())
    }

    #[inline(always)]
    fn advance(&mut self, count: usize) {
        self.start += count;
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.len.saturating_sub(self.start)
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        let len = self.start.checked_add(len)?;
        (len <= self.buffer.len()).then(|| self.len = len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_outside_the_packet_are_refused_and_change_nothing() {
        let mut buffer = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut packet = SlicePacket::new(&mut buffer, 6);
        assert_eq!(packet.read::<2>(4), Some([5, 6]));
        assert_eq!(packet.read::<2>(5), None);
        assert_eq!(packet.read::<2>(usize::MAX), None);
        assert_eq!(packet.write::<4>(3, [0; 4]), None);
        assert_eq!(packet.bytes(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(packet.resize(9), None);
        assert_eq!(packet.len(), 6);
        assert_eq!(packet.resize(8), Some(()));
        assert_eq!(packet.write::<4>(4, [0; 4]), Some(()));
        assert_eq!(packet.bytes(), [1, 2, 3, 4, 0, 0, 0, 0]);
    }

    #[test]
    fn places_are_counted_from_where_it_has_advanced_to() {
        let mut buffer = [1, 2, 3, 4, 5, 6, 7, 8];
        let mut packet = SlicePacket::new(&mut buffer, 6);
        packet.advance(2);
        assert_eq!(packet.len(), 4);
        assert_eq!(packet.read(0), Some([3, 4]));
        assert_eq!(packet.read(0_usize.wrapping_sub(2)), Some([1, 2]));
        assert_eq!(packet.read::<2>(0_usize.wrapping_sub(3)), None);
        assert_eq!(packet.read::<2>(3), None);
        assert_eq!(packet.resize(7), None);
        assert_eq!(packet.resize(6), Some(()));
        assert_eq!(packet.write(4, [9, 9]), Some(()));
        assert_eq!(packet.bytes(), [1, 2, 3, 4, 5, 6, 9, 9]);
    }

    #[test]
    fn a_length_beyond_the_buffer_is_cut() {
        assert_eq!(SlicePacket::new(&mut [0; 4], 9).len(), 4);
    }
}
