//! How many workers are used, and which of them a connection belongs to. Without I/O.
//!
//! A worker that has little to do costs more per packet than one that is busy: it sleeps and is woken
//! for every packet, while the busy one finds several each time it looks. So only as many workers
//! are used as the load needs; the rest sleep undisturbed.

use crate::relay::ConnectionId;

/// Busier than this, a worker is about to be a bottleneck: one more is used.
const CROWDED: f64 = 0.8;
/// If the workers in use would be at most this busy with one fewer of them ...
const ROOMY: f64 = 0.4;
/// ... so many times in a row, one of them is sent to sleep.
const PATIENCE: u32 = 2;

/// The worker that connection `id` belongs to when the first `active` workers are in use.
///
/// A jump consistent hash (Lamping and Veach, 2014): spread evenly, and when the number of workers
/// changes by one, only those connections move that must.
pub(super) fn home(id: ConnectionId, active: usize) -> usize {
    let mut hash = id;
    let (mut bucket, mut next) = (0, 0);
    while next < active {
        bucket = next;
        hash = hash.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        let draw = ((hash >> 33) + 1) as f64;
        next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / draw)) as usize;
    }
    bucket
}

/// Decides how many workers are in use.
#[derive(Debug)]
pub(super) struct Staffing {
    least: usize,
    most: usize,
    active: usize,
    roomy_for: u32,
}

impl Staffing {
    /// Begins with `least` of at most `most` workers.
    pub(super) fn new(least: usize, most: usize) -> Self {
        Self { least, most, active: least, roomy_for: 0 }
    }

    /// How many workers are to be used from now on. `busy` tells for each worker which share of the
    /// time since the last call it was on a processor, from 0 to 1.
    ///
    /// Time that a worker spent waiting for a processor does not count: where none is free, another
    /// thread would be one more to wait.
    pub(super) fn judge(&mut self, busy: &[f64]) -> usize {
        let in_use = busy.get(..self.active).unwrap_or(busy);
        let fewer = self.active.saturating_sub(1);
        let sum: f64 = busy.iter().sum();
        if in_use.iter().any(|&share| share > CROWDED) {
            self.roomy_for = 0;
            self.active = self.most.min(self.active + 1);
        } else if fewer >= self.least && sum <= ROOMY * fewer as f64 {
            self.roomy_for += 1;
            if self.roomy_for >= PATIENCE {
                self.roomy_for = 0;
                self.active = fewer;
            }
        } else {
            self.roomy_for = 0;
        }
        self.active
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_connection_has_one_home_and_few_move() {
        for active in 1..=16 {
            let mut residents = vec![0; active];
            for id in 0..10_000 {
                let here = home(id, active);
                residents[here] += 1;
                let then = home(id, active + 1);
                assert!(then == here || then == active, "{id}: {here} to {then} of {active}");
            }
            let fair = 10_000 / active;
            assert!(
                residents.iter().all(|count| (fair * 8 / 10..=fair * 12 / 10).contains(count)),
                "{active}: {residents:?}"
            );
        }
        assert_eq!(home(7, 0), 0, "never a worker that does not exist before the first");
    }

    #[test]
    fn a_crowded_worker_gets_help_until_there_is_none() {
        let mut staffing = Staffing::new(1, 3);
        assert_eq!(staffing.judge(&[0.5, 0.0, 0.0]), 1);
        assert_eq!(staffing.judge(&[0.9, 0.0, 0.0]), 2);
        assert_eq!(staffing.judge(&[0.3, 0.9, 0.0]), 3, "one crowded worker is enough");
        assert_eq!(staffing.judge(&[1.0, 1.0, 1.0]), 3);
        assert_eq!(staffing.judge(&[]), 3);
    }

    #[test]
    fn help_leaves_when_it_has_not_been_needed_for_long() {
        let mut staffing = Staffing::new(1, 2);
        assert_eq!(staffing.judge(&[0.9, 0.0]), 2);
        for _ in 1..PATIENCE {
            assert_eq!(staffing.judge(&[0.2, 0.2]), 2);
        }
        assert_eq!(staffing.judge(&[0.3, 0.3]), 2, "together too much for one");
        for _ in 1..PATIENCE {
            assert_eq!(staffing.judge(&[0.2, 0.2]), 2);
        }
        assert_eq!(staffing.judge(&[0.2, 0.2]), 1);
        for _ in 0..3 * PATIENCE {
            assert_eq!(staffing.judge(&[0.0, 0.0]), 1, "the last one stays");
        }
    }
}
