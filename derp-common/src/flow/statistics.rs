//! What has come from one end of a flow, and whether more may.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::Leg;
use crate::{cell, rate::Rate, reason::Reason, settings::Settings};

/// What has come from one end of a flow; 64 bytes, a cache line. All times are `CLOCK_MONOTONIC`, in
/// nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(64))]
pub struct LegStatistics {
    /// Packets forwarded.
    pub packets: u64,
    /// Their bytes, UDP payload only.
    pub bytes: u64,
    /// When the last one came, to within [`LegStatistics::GRAIN`].
    pub last_seen: u64,
    /// When the last one was passed to userspace as a sample.
    pub last_passed: u64,
    /// The allowance's bucket ([`Rate::take_cost`]).
    pub bucket: u64,
    /// The bucket of this end's control packets ([`Rate::take`]).
    pub control_bucket: u64,
    /// Packets dropped because the allowance was used up.
    pub over_rate: u64,
    /// When a control packet last cast doubt on the flow; only on side A, only with
    /// [`Switches::COMPANION`](crate::Switches::COMPANION). The daemon resets it to 0.
    pub suspect_since: u64,
}

impl LegStatistics {
    /// How much later than `last_seen` a packet must come for `last_seen` to be written, in nanoseconds:
    /// a busy leg's cache line need not be fought for.
    pub const GRAIN: u64 = 1_000_000_000;
}

/// [`LegStatistics`] as those who count see them: shared, and changed in place.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct LegCells {
    packets: AtomicU64,
    bytes: AtomicU64,
    last_seen: AtomicU64,
    last_passed: AtomicU64,
    bucket: AtomicU64,
    control_bucket: AtomicU64,
    over_rate: AtomicU64,
    suspect_since: AtomicU64,
}

const _: () = assert!(size_of::<LegCells>() == size_of::<LegStatistics>());

impl LegCells {
    /// Decides whether a packet with `bytes` of payload may go from leg `from` now, and counts it if so.
    ///
    /// # Errors
    ///
    /// [`Reason::Sampled`] when userspace is to see this one, [`Reason::OverRate`] when the leg has used
    /// up its allowance.
    #[inline(always)]
    pub fn account(
        &self,
        from: &Leg,
        settings: &Settings,
        bytes: usize,
        now: u64,
    ) -> Result<(), Reason> {
        let interval = settings.sample_interval;
        if interval != 0 && now.wrapping_sub(cell::load(&self.last_passed)) >= interval {
            cell::store(&self.last_passed, now);
            return Err(Reason::Sampled);
        }
        if from.nanoseconds_per_kibibyte != 0 {
            let cost = (bytes as u64 * from.nanoseconds_per_kibibyte as u64) >> 10;
            let rate = Rate { interval: 1, burst: from.burst_microseconds as u64 * 1000 };
            match rate.take_cost(cost, cell::load(&self.bucket), now) {
                Some(bucket) => cell::store(&self.bucket, bucket),
                None => {
                    cell::add(&self.over_rate, 1);
                    return Err(Reason::OverRate);
                }
            }
        }
        cell::add(&self.packets, 1);
        cell::add(&self.bytes, bytes as u64);
        if now.wrapping_sub(cell::load(&self.last_seen)) >= LegStatistics::GRAIN {
            cell::store(&self.last_seen, now);
        }
        Ok(())
    }

    /// Decides whether a control packet of this end may reach userspace now.
    #[inline(always)]
    pub fn admits_control(&self, settings: &Settings, now: u64) -> bool {
        settings.control_rate.take_from(&self.control_bucket, now)
    }

    /// Tells whether a control packet of this end has reached userspace within the time that one uses up of their
    /// allowance; never if they are not limited.
    #[inline(always)]
    pub fn had_control(&self, now: u64) -> bool {
        cell::load(&self.control_bucket) > now
    }

    /// Notes that the flow may be about to change hands.
    #[inline(always)]
    pub fn suspect(&self, now: u64) {
        cell::store(&self.suspect_since, now);
    }

    /// Tells whether the flow may be about to change hands.
    #[inline(always)]
    pub fn is_suspect(&self) -> bool {
        cell::load(&self.suspect_since) != 0
    }

    /// Notes that the flow has not changed hands after all, or is done with it.
    pub fn trust(&self) {
        cell::store(&self.suspect_since, 0);
    }

    /// Returns what has been counted.
    #[must_use]
    pub fn read(&self) -> LegStatistics {
        LegStatistics {
            packets: self.packets.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            last_seen: self.last_seen.load(Relaxed),
            last_passed: self.last_passed.load(Relaxed),
            bucket: self.bucket.load(Relaxed),
            control_bucket: self.control_bucket.load(Relaxed),
            over_rate: self.over_rate.load(Relaxed),
            suspect_since: self.suspect_since.load(Relaxed),
        }
    }

    /// Forgets everything, for the flow that has this place next.
    pub fn reset(&self) {
        let cells = [
            &self.packets,
            &self.bytes,
            &self.last_seen,
            &self.last_passed,
            &self.bucket,
            &self.control_bucket,
            &self.over_rate,
            &self.suspect_since,
        ];
        for cell in cells {
            cell.store(0, Relaxed);
        }
    }
}
