//! How much of the relay anybody may use.

use std::net::IpAddr;

use derp_common::Rate;

use super::{Directory, PeerId};
use crate::udp::SourceBuckets;

/// What anybody may use. Rates are per second, with the burst allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Messages from one address (an IPv4 address, or the /64 of an IPv6 address).
    pub messages_per_source: Rate,
    /// Initiations of strangers from one address, likewise: less than all strangers together are allowed.
    pub strangers_per_source: Rate,
    /// MACs that are computed to find out for whom strangers' initiations are, and whose they were.
    pub trials: Rate,
    /// Initiations of peers whose address is known, for one peer.
    pub initiations_per_target: Rate,
    /// Initiations of strangers, for one peer.
    pub strangers_per_target: Rate,
    /// Initiations that are sent, for want of something better, to one address where the peer may be.
    pub guesses_per_address: Rate,
    /// Copies of initiations beyond the first.
    pub copies: Rate,
    /// Initiations of peers that wait for an answer.
    pub pending: usize,
    /// Initiations of strangers that wait for an answer.
    pub pending_strangers: usize,
    /// Those of one stranger.
    pub pending_per_stranger: usize,
    /// Those of one source, a peer's or not, for one peer. WireGuard sends one every 5 s, and they wait for 10 s.
    pub pending_per_pair: usize,
}

impl Default for Limits {
    /// Every peer of a large network may come back at once: each tries again after five seconds.
    fn default() -> Self {
        Self {
            messages_per_source: Rate::per_second(200, 1000),
            strangers_per_source: Rate::per_second(20, 200),
            trials: Rate::per_second(200_000, 200_000),
            initiations_per_target: Rate::per_second(200, 1000),
            strangers_per_target: Rate::per_second(50, 300),
            guesses_per_address: Rate::per_second(10, 40),
            copies: Rate::per_second(100, 200),
            pending: 16_384,
            pending_strangers: 2048,
            pending_per_stranger: 128,
            pending_per_pair: 8,
        }
    }
}

/// Who has used up what.
#[derive(Default)]
pub(super) struct Allowances {
    sources: SourceBuckets,
    strangers: SourceBuckets,
    guesses: SourceBuckets,
    trials: u64,
    copies: u64,
    /// By peer: of known peers, and of strangers.
    targets: Vec<[u64; 2]>,
}

impl Allowances {
    /// Has room for the peers of a directory, all of whom begin anew.
    pub(super) fn follow(&mut self, directory: &Directory) {
        self.targets = vec![[0; 2]; directory.len()];
    }

    pub(super) fn take_message(&mut self, source: IpAddr, limits: &Limits, now: u64) -> bool {
        self.sources.take(source, limits.messages_per_source, now)
    }

    pub(super) fn take_stranger(&mut self, source: IpAddr, limits: &Limits, now: u64) -> bool {
        self.strangers.take(source, limits.strangers_per_source, now)
    }

    /// Takes so many trials at once.
    pub(super) fn take_trials(&mut self, count: usize, limits: &Limits, now: u64) -> bool {
        let cost = limits.trials.interval.saturating_mul(count as u64);
        take(&mut self.trials, limits.trials, cost, now)
    }

    pub(super) fn take_target(
        &mut self,
        target: PeerId,
        is_stranger: bool,
        limits: &Limits,
        now: u64,
    ) -> bool {
        let Some([known, strangers]) = self.targets.get_mut(target.index()) else { return false };
        let (bucket, rate) = if is_stranger {
            (strangers, limits.strangers_per_target)
        } else {
            (known, limits.initiations_per_target)
        };
        take(bucket, rate, rate.interval, now)
    }

    pub(super) fn take_guess(&mut self, address: IpAddr, limits: &Limits, now: u64) -> bool {
        self.guesses.take(address, limits.guesses_per_address, now)
    }

    pub(super) fn take_copy(&mut self, limits: &Limits, now: u64) -> bool {
        take(&mut self.copies, limits.copies, limits.copies.interval, now)
    }
}

fn take(bucket: &mut u64, rate: Rate, cost: u64, now: u64) -> bool {
    match rate.take_cost(cost, *bucket, now) {
        Some(full_at) => {
            *bucket = full_at;
            true
        }
        None => false,
    }
}
