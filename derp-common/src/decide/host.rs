//! What a decision needs of the machine it is taken on.

use core::sync::atomic::AtomicU64;

use crate::{
    address::Address,
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

    /// Returns what this address is to this host ([`AddressKind`](crate::AddressKind)); `None` for
    /// others' addresses.
    fn address_kind(&self, address: &Address) -> Option<u32>;

    /// Returns the time on `CLOCK_MONOTONIC` in nanoseconds, at most [`TICK`](crate::rate::TICK) late.
    fn now(&self) -> u64;

    /// Returns the bucket of a source of STUN requests ([`Address::rate_key`]), if it has one.
    fn stun_bucket(&self, key: u64) -> Option<&StunBucket>;

    /// Gives a source of STUN requests a bucket, at the expense of the least recent one when all are taken.
    fn add_stun_bucket(&self, key: u64, bucket: StunBucket);

    /// Returns the bucket of all events ([`EVENT_RATE`]).
    fn event_bucket(&self) -> Option<&AtomicU64>;

    /// Tells the daemon, if it has room.
    fn event(&self, event: &Event);
}

/// How much one source of STUN requests has asked.
#[derive(Debug, Default)]
#[repr(C)]
pub struct StunBucket {
    /// The bucket ([`Rate::take`]).
    pub full_at: AtomicU64,
    /// What the key leaves out of the last address that was found not to be this host's own: it need not be
    /// looked up again. The daemon removes a bucket whose source becomes an address of this host.
    pub foreign: AtomicU64,
}
