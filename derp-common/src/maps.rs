//! Names and capacities of the kernel maps, and how counters are laid out.

use crate::{address::Family, reason::Reason};

/// The XDP program's function name.
pub const PROGRAM: &str = "derpd_xdp";
/// Array of one [`Settings`](crate::Settings).
pub const SETTINGS: &str = "SETTINGS";
/// Hash of [`Address`](crate::Address) to [`AddressKind`](crate::AddressKind) as `u32`.
pub const ADDRESSES: &str = "ADDRESSES";
/// Hash of interface index (`u32`) to [`Interface`](crate::Interface).
pub const INTERFACES: &str = "INTERFACES";
/// Per-CPU array of [`Counter`], indexed by [`counter_index`].
pub const COUNTERS: &str = "COUNTERS";

/// Most addresses of this host that the kernel knows; requests to others go to userspace.
pub const ADDRESSES_CAPACITY: u32 = 4096;
/// Most interfaces the program may be attached to at once.
pub const INTERFACES_CAPACITY: u32 = 64;
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
