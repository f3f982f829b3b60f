//! What a decision needs of the machine it is taken on.

use core::sync::atomic::AtomicU64;

use super::StunBuckets;
use crate::{
    address::{Address, AddressPlace},
    flow::Tables,
    maps::Event,
    rate::Rate,
    settings::{Interface, Settings},
};

/// How often the daemon may be told something by [`Host::event`].
pub const EVENT_RATE: Rate = Rate::per_second(100, 100);

/// What a decision needs to know of the machine it is taken on, and to leave there: in the kernel, the maps.
pub trait Host: Tables {
    /// Returns the daemon's settings.
    fn settings(&self) -> Option<&Settings>;

    /// Returns the index of the interface the frame came in by.
    fn ingress(&self) -> u32;

    /// Returns an interface the program is attached to.
    fn interface(&self, index: u32) -> Option<&Interface>;

    /// Returns what is known of this address and others of its place, where that is at hand.
    fn address_place(&self, address: &Address) -> Option<&AddressPlace>;

    /// Returns what this address is to this host ([`AddressKind`](crate::AddressKind)); `None` for
    /// others' addresses.
    fn address_kind(&self, address: &Address) -> Option<u32>;

    /// Returns the time on `CLOCK_MONOTONIC` in nanoseconds, at most [`TICK`](crate::rate::TICK) late.
    fn now(&self) -> u64;

    /// Returns buckets of sources of STUN requests ([`StunBuckets::index`]).
    fn stun_buckets(&self, index: u32) -> Option<&StunBuckets>;

    /// Returns the bucket of all events ([`EVENT_RATE`]).
    fn event_bucket(&self) -> Option<&AtomicU64>;

    /// Tells the daemon, if it has room.
    fn event(&self, event: &Event);
}
