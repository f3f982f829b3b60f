//! The layout of the flow tables, and the protocol by which they change under their readers.
//!
//! | Map | Index | Value |
//! | --- | --- | --- |
//! | `SLOTS` | slot | [`Control`] word |
//! | `LEGS` | [`leg_index`]: slot, copy, side | [`Leg`] |
//! | `LEG_STATISTICS` | [`statistics_index`]: slot, side | [`LegStatistics`](super::LegStatistics) |
//! | `SENDERS` | slot | [`Senders`] |
//! | `SOURCES` | [`Source`] | [`source_value`]: slot and side |
//!
//! A slot has two copies of its legs. A reader loads the control word once; it says whether the slot
//! forwards, for which VNI, and which copy is valid. The writer changes only the other copy, then the
//! control word, in which a change of legs alters one byte; a copy that was valid is not written again
//! before [`GRACE`] has passed. No reader ever sees half of an old and half of a new leg.
//!
//! `SOURCES` is a hash, whose elements the kernel recycles under readers. That is harmless: the slot's
//! own legs decide, and what a stale element leads to does not match the packet. Where one source may have
//! many flows, which is so in WireGuard, the receiver index in `SENDERS` decides as well.

use crate::address::Address;

/// How long a copy of the legs that was valid stays untouched, in nanoseconds.
pub const GRACE: u64 = 10_000_000;

/// Slots are a power of two, at most this many: a VNI has 24 bits, and 6 are left for the generation.
pub const MAX_SLOTS: u32 = 1 << 18;

/// One of the two ends of a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u32)]
pub enum Side {
    /// The first leg.
    A = 0,
    /// The second leg.
    B = 1,
}

impl Side {
    /// Both, in index order.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// Returns the opposite end.
    #[inline(always)]
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// The state of a slot in one word: bits 0 to 7 say whether and by which copy of its legs it forwards,
/// bits 8 to 31 are its VNI (0 when the flow is not Geneve). The rest is zero.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct Control(pub u64);

impl Control {
    /// Forwards nothing; what the map holds at first.
    pub const OFF: Self = Self(0);
    const FORWARDS: u64 = 2;
    const COPY: u64 = 1;
    const LEARNS: u64 = 4;

    /// Forwards by this copy (0 or 1) of its legs. VNIs of more than 24 bits are cut.
    #[must_use]
    pub const fn forward(vni: u32, copy: u32) -> Self {
        Self((vni as u64 & 0xff_ffff) << 8 | Self::FORWARDS | copy as u64 & Self::COPY)
    }

    /// Keeps the VNI for the next state, forwarding nothing.
    #[must_use]
    pub const fn off(vni: u32) -> Self {
        Self((vni as u64 & 0xff_ffff) << 8)
    }

    /// Forwards nothing yet: an end is to be learnt, from a packet that userspace must see. What is known of
    /// the ends is in this copy (0 or 1) of its legs.
    #[must_use]
    pub const fn learning(vni: u32, copy: u32) -> Self {
        Self((vni as u64 & 0xff_ffff) << 8 | Self::LEARNS | copy as u64 & Self::COPY)
    }

    /// Tells whether an end of the flow is to be learnt.
    #[inline(always)]
    #[must_use]
    pub const fn learns(self) -> bool {
        self.0 & Self::LEARNS != 0
    }

    /// Tells whether the slot forwards.
    #[inline(always)]
    #[must_use]
    pub const fn forwards(self) -> bool {
        self.0 & Self::FORWARDS != 0
    }

    /// Returns the valid copy of the legs, 0 or 1.
    #[inline(always)]
    #[must_use]
    pub const fn copy(self) -> u32 {
        (self.0 & Self::COPY) as u32
    }

    /// Returns the VNI, 0 when the flow is not Geneve.
    #[inline(always)]
    #[must_use]
    pub const fn vni(self) -> u32 {
        (self.0 >> 8) as u32 & 0xff_ffff
    }
}

/// One end of a flow; 64 bytes, a cache line. Ports and MACs as they lie in the packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Leg {
    /// Whose packets are forwarded, and to whom.
    pub remote: Address,
    /// The address of this host that the remote end sends to and hears from.
    pub local: Address,
    /// The remote port, big-endian; 0 for a leg that is not bound.
    pub remote_port: u16,
    /// The local port, big-endian.
    pub local_port: u16,
    /// Index of the interface that leads to the remote end; 0 while that is not known, which leaves
    /// packets to it to userspace.
    pub interface: u32,
    /// MAC the frames are sent from, as 16-bit units.
    pub source_mac: [u16; 3],
    /// MAC of the next hop.
    pub destination_mac: [u16; 3],
    /// Longest IP packet on the way out, in bytes.
    pub mtu: u16,
    /// VLAN of the way out as a number, 0 when it is untagged.
    pub vlan: u16,
    /// What 1024 bytes *from* this leg use up of its allowance, in nanoseconds; 0 means no limit.
    pub nanoseconds_per_kibibyte: u32,
    /// The allowance that may be used at once, in microseconds.
    pub burst_microseconds: u32,
}

impl Leg {
    /// A leg that is not bound, and whose way out is not known.
    pub const UNBOUND: Self = Self {
        remote: Address([0; 4]),
        local: Address([0; 4]),
        remote_port: 0,
        local_port: 0,
        interface: 0,
        source_mac: [0; 3],
        destination_mac: [0; 3],
        mtu: 0,
        vlan: 0,
        nanoseconds_per_kibibyte: 0,
        burst_microseconds: 0,
    };
}

/// What is known of the senders of each end. Of a Geneve flow: the first eight bytes of the disco public key whose
/// control packets may reach userspace, as they lie in the packet; 0 where there is none. Of a WireGuard flow:
/// [`wireguard_sender`] of the receiver index in packets *from* this end.
pub type Senders = [u64; 2];

/// Returns what `SENDERS` has of an end whose packets have this receiver index, as it lies in the packet. It is never
/// 0, which stands for no sender.
#[inline(always)]
#[must_use]
pub const fn wireguard_sender(index: u32) -> u64 {
    1 << 32 | index as u64
}

/// Whose packets are forwarded without a VNI in them: key of the hash `SOURCES`.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(C, align(8))]
pub struct Source {
    /// The sender.
    pub address: Address,
    /// Its port, big-endian.
    pub port: u16,
    /// The port of ours it sends to, big-endian.
    pub local_port: u16,
    /// WireGuard's receiver index as it lies in the packet; 0 in flows of any payload.
    pub index: u32,
}

/// Returns where a leg is.
#[inline(always)]
#[must_use]
pub const fn leg_index(slot: u32, copy: u32, side: Side) -> u32 {
    slot << 2 | copy << 1 | side as u32
}

/// Returns where the statistics of a leg are; the same for both copies.
#[inline(always)]
#[must_use]
pub const fn statistics_index(slot: u32, side: Side) -> u32 {
    slot << 1 | side as u32
}

/// Returns the value in `SOURCES` for packets from this end.
#[inline(always)]
#[must_use]
pub const fn source_value(slot: u32, side: Side) -> u32 {
    slot << 1 | side as u32
}

/// Takes a value of `SOURCES` apart.
#[inline(always)]
#[must_use]
pub const fn slot_and_side(value: u32) -> (u32, Side) {
    (value >> 1, if value & 1 == 0 { Side::A } else { Side::B })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_word_keeps_vni_state_and_copy() {
        for vni in [0, 1, 7, 0x12_3456, 0xff_ffff] {
            for copy in [0, 1] {
                let control = Control::forward(vni, copy);
                assert!(control.forwards());
                assert_eq!((control.vni(), control.copy()), (vni, copy));
            }
            for unbound in [Control::off(vni), Control::learning(vni, 1)] {
                assert!(!unbound.forwards());
                assert_eq!(unbound.vni(), vni);
            }
            assert!(Control::learning(vni, 1).learns() && !Control::off(vni).learns());
            assert_eq!(Control::learning(vni, 1).copy(), 1);
        }
        assert_eq!(Control::forward(0xffff_ffff, 7), Control::forward(0xff_ffff, 1));
    }

    #[test]
    fn changing_legs_alters_one_byte_of_the_control_word() {
        let before = Control::forward(0x12_3456, 0).0.to_ne_bytes();
        let after = [
            Control::forward(0x12_3456, 1),
            Control::off(0x12_3456),
            Control::learning(0x12_3456, 1),
        ];
        for after in after {
            let differing =
                after.0.to_ne_bytes().iter().zip(before).filter(|(a, b)| **a != *b).count();
            assert_eq!(differing, 1);
        }
    }

    #[test]
    fn every_leg_and_source_has_its_own_place() {
        let mut legs = std::collections::BTreeSet::new();
        for slot in 0..8 {
            for side in Side::ALL {
                assert_eq!(slot_and_side(source_value(slot, side)), (slot, side));
                for copy in 0..2 {
                    assert!(legs.insert(leg_index(slot, copy, side)));
                }
            }
        }
        assert_eq!(legs.last(), Some(&31));
        assert_eq!(size_of::<Leg>(), 64);
    }
}
