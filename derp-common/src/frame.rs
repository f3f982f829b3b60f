//! A frame seen past its VLAN tag, so that nothing above has to be written twice.

use crate::{eth, packet::Packet};

/// Bytes of an 802.1Q tag, EtherType included.
const TAG: usize = 4;
/// Where priority and VLAN are, once the tag is skipped.
const VLAN: usize = eth::LEN - TAG;
/// The VLAN's number in the tag; above it are priority and drop eligibility.
const VLAN_ID: u16 = 0x0fff;

/// A view of a packet in which everything after the MAC addresses has its place in an untagged frame.
///
/// It also remembers what [`Packet::ensure`] was asked: places within, if known when compiled, need no
/// check of their own.
#[derive(Debug)]
pub struct Frame<'a, P> {
    packet: &'a mut P,
    tag: usize,
    ensured: usize,
}

impl<'a, P: Packet> Frame<'a, P> {
    /// Views an untagged frame, or one that is not to be looked into.
    #[inline(always)]
    pub fn new(packet: &'a mut P) -> Self {
        Self { packet, tag: 0, ensured: 0 }
    }

    /// Views a frame past the tag that is there.
    #[inline(always)]
    pub fn tagged(packet: &'a mut P) -> Self {
        let mut frame = Self::new(packet);
        frame.skip_tag();
        frame
    }

    /// Looks past the tag that is there from now on.
    #[inline(always)]
    pub fn skip_tag(&mut self) {
        self.packet.advance(TAG);
        self.tag = TAG;
        self.ensured = 0;
    }

    /// Tells whether a packet for VLAN `vlan` (0 when untagged) can leave in this frame, which has a tag to
    /// write the number to or none.
    #[inline(always)]
    pub fn can_carry(&self, vlan: u16) -> Option<bool> {
        Some(match (self.tag, vlan) {
            (0, vlan) => vlan == 0,
            // A tag of VLAN 0 says no more than the priority.
            (_, 0) => self.vlan()? & VLAN_ID == 0,
            (_, _) => true,
        })
    }

    /// Writes the number of the VLAN the packet leaves in; priority and drop eligibility stay.
    #[inline(always)]
    pub fn set_vlan(&mut self, vlan: u16) -> Option<()> {
        if self.tag == 0 {
            return Some(());
        }
        let old = self.vlan()?;
        self.packet.set_half(VLAN, (old & !VLAN_ID | vlan & VLAN_ID).to_be())
    }

    /// Returns what the tag says.
    #[inline(always)]
    fn vlan(&self) -> Option<u16> {
        self.packet.number(VLAN)
    }

    /// The tag lies between the MACs and all the rest, from which the packet counts.
    #[inline(always)]
    fn place(&self, at: usize) -> usize {
        if at < eth::ETHERTYPE { at.wrapping_sub(self.tag) } else { at }
    }
}

impl<P: Packet> Packet for Frame<'_, P> {
    #[inline(always)]
    fn read<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        if at + N <= self.ensured {
            self.packet.read_ensured(self.place(at))
        } else {
            self.packet.read(self.place(at))
        }
    }

    #[inline(always)]
    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.place(at);
        if at + N <= self.ensured {
            self.packet.write_ensured(place, bytes)
        } else {
            self.packet.write(place, bytes)
        }
    }

    #[inline(always)]
    fn read_anywhere<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.packet.read(at)
    }

    #[inline(always)]
    fn ensure(&mut self, len: usize) -> Option<()> {
        self.packet.ensure(len)?;
        self.ensured = len;
        Some(())
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.packet.len()
    }

    #[inline(always)]
    fn advance(&mut self, count: usize) {
        self.packet.advance(count);
        self.ensured = 0;
    }

    #[inline(always)]
    fn resize(&mut self, len: usize) -> Option<()> {
        self.packet.resize(len)?;
        self.ensured = 0;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SlicePacket;

    /// MACs 0 to 11, a tag of priority 5 and VLAN 7, EtherType IPv4, then 18, 19, ...
    fn bytes() -> [u8; 24] {
        let mut bytes = [0; 24];
        for (byte, value) in bytes.iter_mut().zip(0..) {
            *byte = value;
        }
        bytes[12..18].copy_from_slice(&[0x81, 0x00, 0xa0, 0x07, 0x08, 0x00]);
        bytes
    }

    #[test]
    fn everything_after_the_macs_is_where_it_would_be_untagged() {
        let mut bytes = bytes();
        let mut packet = SlicePacket::new(&mut bytes, 22);
        let mut frame = Frame::tagged(&mut packet);
        assert_eq!(frame.len(), 18);
        assert_eq!(frame.read(4), Some([4, 5, 6, 7]));
        assert_eq!(frame.number(12), Some(0x0800));
        assert_eq!(frame.read_anywhere(14), Some([18, 19]));
        assert_eq!(frame.ensure(18), Some(()));
        assert_eq!(frame.ensure(19), None);
        assert_eq!(frame.read(14), Some([18, 19, 20, 21]));
        assert_eq!(frame.read::<4>(15), None);
        assert_eq!(frame.write(14, [1, 2]), Some(()));
        assert_eq!(frame.resize(20), Some(()));
        assert_eq!(frame.read(14), Some([1, 2, 20, 21, 22, 23]));
    }

    #[test]
    fn the_vlan_changes_and_the_priority_stays() {
        let mut bytes = bytes();
        let mut packet = SlicePacket::new(&mut bytes, 22);
        let mut frame = Frame::tagged(&mut packet);
        assert_eq!(frame.can_carry(9), Some(true));
        assert_eq!(frame.can_carry(0), Some(false), "the tag would have to go");
        frame.set_vlan(0xf123).expect("room");
        assert_eq!(packet.bytes()[12..18], [0x81, 0x00, 0xa1, 0x23, 0x08, 0x00]);

        bytes[14..16].copy_from_slice(&[0xa0, 0]);
        let mut packet = SlicePacket::new(&mut bytes, 22);
        assert_eq!(Frame::tagged(&mut packet).can_carry(0), Some(true), "only a priority");
        let mut frame = Frame::new(&mut packet);
        assert_eq!(frame.can_carry(0), Some(true));
        assert_eq!(frame.can_carry(9), Some(false), "there is no room for a tag");
        frame.set_vlan(9).expect("nothing to do");
        assert_eq!(packet.bytes()[14], 0xa0);
    }
}
