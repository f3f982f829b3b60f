//! Names and capacities of the kernel maps, and how counters are laid out.

use crate::{
    address::{Address, Family},
    reason::Reason,
};

/// The XDP program's function name.
pub const PROGRAM: &str = "derpd_xdp";
/// Array of one [`Settings`](crate::Settings).
pub const SETTINGS: &str = "SETTINGS";
/// Hash of [`Address`] to [`AddressKind`](crate::AddressKind) as `u32`.
pub const ADDRESSES: &str = "ADDRESSES";
/// Array of [`AddressPlace`](crate::AddressPlace), by [`Address::place`]: says of most addresses what
/// `ADDRESSES` does, without a look-up.
pub const ADDRESS_PLACES: &str = "ADDRESS_PLACES";
/// Hash of interface index (`u32`) to [`Interface`](crate::Interface).
pub const INTERFACES: &str = "INTERFACES";
/// Array of [`InterfacePlace`](crate::InterfacePlace), by [`interface_place`]: the same for `INTERFACES`.
pub const INTERFACE_PLACES: &str = "INTERFACE_PLACES";
/// Per-CPU array of [`Counter`], indexed by [`counter_index`].
pub const COUNTERS: &str = "COUNTERS";

/// Array of [`Control`](crate::flow::Control), by slot.
pub const SLOTS: &str = "SLOTS";
/// Array of [`Leg`](crate::flow::Leg), by [`leg_index`](crate::flow::table::leg_index).
pub const LEGS: &str = "LEGS";
/// Array of [`LegStatistics`](crate::flow::LegStatistics), by
/// [`statistics_index`](crate::flow::table::statistics_index).
pub const LEG_STATISTICS: &str = "LEG_STATISTICS";
/// Array of [`Senders`](crate::flow::table::Senders), by slot.
pub const SENDERS: &str = "SENDERS";
/// Hash of [`Source`](crate::flow::Source) to [`source_value`](crate::flow::table::source_value).
pub const SOURCES: &str = "SOURCES";
/// Array of [`StunBuckets`](crate::decide::StunBuckets), by
/// [`StunBuckets::index`](crate::decide::StunBuckets::index).
pub const STUN_BUCKETS: &str = "STUN_BUCKETS";
/// Device hash map of interface index to interface: where packets can be redirected to.
pub const DEVICES: &str = "DEVICES";
/// Ring buffer of [`Event`].
pub const EVENTS: &str = "EVENTS";
/// Array of one bucket that limits how many events there are
/// ([`EVENT_RATE`](crate::decide::EVENT_RATE)).
pub const EVENT_BUCKET: &str = "EVENT_BUCKET";

/// Most STUN sources whose rates are followed at once.
pub const STUN_BUCKETS_CAPACITY: u32 = 65_536;
/// Bytes of the ring buffer of events.
pub const EVENTS_CAPACITY: u32 = 64 * 1024;
/// Slots of the flow table unless configured otherwise.
pub const DEFAULT_SLOTS: u32 = 16_384;

/// Most addresses of this host that the kernel knows; requests to others go to userspace.
pub const ADDRESSES_CAPACITY: u32 = 4096;
/// Most interfaces the program may be attached to at once.
pub const INTERFACES_CAPACITY: u32 = 64;
/// Places of interfaces; a power of two.
pub const INTERFACE_PLACES_CAPACITY: u32 = 64;
/// One counter per address family and reason.
pub const COUNTERS_CAPACITY: u32 = (Family::ALL.len() * Reason::COUNT) as u32;

/// Packets seen, and their bytes as they left the program.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Counter {
    /// Frames.
    pub packets: u64,
    /// Bytes of those frames, Ethernet header included, after any rewriting.
    pub bytes: u64,
}

/// Something rare the daemon may want to know about a flow.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Event {
    /// Where the packet came from.
    pub source: Address,
    /// What was found ([`Reason`]'s discriminant).
    pub reason: u32,
    /// The flow's slot, or [`Event::NO_SLOT`].
    pub slot: u32,
    /// The sender's port, big-endian.
    pub source_port: u16,
    /// The port of ours, big-endian.
    pub local_port: u16,
    /// The VNI of the packet, 0 when it has none.
    pub vni: u32,
}

impl Event {
    /// Stands for the slot where no flow was found.
    pub const NO_SLOT: u32 = u32::MAX;
}

/// Returns where an interface is in `INTERFACE_PLACES`, if it is.
#[inline(always)]
#[must_use]
pub const fn interface_place(index: u32) -> u32 {
    index % INTERFACE_PLACES_CAPACITY
}

/// Returns where packets of this family and reason are counted.
#[inline(always)]
#[must_use]
pub const fn counter_index(family: Family, reason: Reason) -> u32 {
    family as u32 * Reason::COUNT as u32 + reason as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place() {
        let mut next = 0;
        for family in Family::ALL {
            for &reason in Reason::ALL {
                assert_eq!(counter_index(family, reason), next);
                next += 1;
            }
        }
        assert_eq!(next, COUNTERS_CAPACITY);
    }
}
