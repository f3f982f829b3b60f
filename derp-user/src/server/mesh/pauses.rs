//! How long to wait before a peer's address is dialled again.

use std::time::{Duration, Instant};

use crate::client::Backoff;

/// Most that a peer may keep us waiting after its restart, as otherwise.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Most that it may have us dial at short intervals.
const LONGEST_TRIAL: Duration = Duration::from_secs(60);
/// Such an interval, before it is spread.
const SHORT: Duration = Duration::from_millis(200);

/// What a peer has said about its restart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Restart {
    /// When it wants to be dialled again, from the end of the link on.
    pub(super) reconnect_in: Duration,
    /// For how long it expects to be out of reach at the most after that.
    pub(super) try_for: Duration,
}

/// Pauses between attempts to reach one address: longer and longer ones, and short ones while a peer restarts.
#[derive(Debug, Default)]
pub(super) struct Pauses {
    backoff: Backoff,
    /// Until when the peer is expected back.
    restarts_until: Option<Instant>,
}

impl Pauses {
    /// Returns the pause after a link that stood from `begun` to `now`. `fraction`, from 0 to 1, is random.
    pub(super) fn after_link(
        &mut self,
        begun: Instant,
        restart: Option<Restart>,
        now: Instant,
        fraction: f64,
    ) -> Duration {
        self.backoff.stood(now.saturating_duration_since(begun));
        let Some(Restart { reconnect_in, try_for }) = restart else {
            self.restarts_until = None;
            return self.backoff.next(fraction);
        };
        // Spread, as its other peers come back, too; and not in vain, should the link end again and again.
        let least = SHORT.mul_f64(0.25 + fraction.clamp(0.0, 1.0) / 4.0);
        let wait = reconnect_in.clamp(least, LONGEST_WAIT);
        self.restarts_until = Some(now + wait + try_for.min(LONGEST_TRIAL));
        wait
    }

    /// Returns the pause after an attempt that failed.
    pub(super) fn after_failure(&mut self, now: Instant, fraction: f64) -> Duration {
        if self.restarts_until.is_some_and(|until| now < until) {
            return SHORT.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0);
        }
        self.backoff.next(fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_peer_that_restarts_is_dialled_at_short_intervals_for_as_long_as_it_said() {
        let begun = Instant::now();
        let mut pauses = Pauses::default();
        let ended = begun + 10 * SECOND;
        let restart = Restart { reconnect_in: SECOND, try_for: 10 * SECOND };
        assert_eq!(pauses.after_link(begun, Some(restart), ended, 0.5), SECOND);
        for seconds in 1..11 {
            assert_eq!(pauses.after_failure(ended + seconds * SECOND, 1.0), SHORT);
            assert_eq!(pauses.after_failure(ended + seconds * SECOND, 0.0), SHORT / 2);
        }
        // Then like any other, from the shortest pause on.
        assert_eq!(pauses.after_failure(ended + 11 * SECOND, 1.0), Backoff::default().next(1.0));
    }

    #[test]
    fn a_link_that_ends_without_a_word_ends_the_expectation() {
        let now = Instant::now();
        let mut pauses = Pauses::default();
        let restart = Restart { reconnect_in: Duration::ZERO, try_for: 10 * SECOND };
        assert_eq!(pauses.after_link(now, Some(restart), now, 1.0), SHORT / 2);
        assert_eq!(pauses.after_link(now, Some(restart), now, 0.0), SHORT / 4);
        let usual = pauses.after_link(now, None, now + SECOND, 1.0);
        assert_eq!(usual, Backoff::default().next(1.0));
        assert!(pauses.after_failure(now + SECOND, 1.0) > usual);
    }

    #[test]
    fn what_a_peer_may_ask_for_has_limits() {
        let now = Instant::now();
        let mut pauses = Pauses::default();
        let forever = Restart { reconnect_in: Duration::MAX, try_for: Duration::MAX };
        assert_eq!(pauses.after_link(now, Some(forever), now, 0.0), LONGEST_WAIT);
        let soon = now + LONGEST_WAIT + LONGEST_TRIAL - SECOND;
        assert_eq!(pauses.after_failure(soon, 1.0), SHORT);
        assert!(pauses.after_failure(soon + SECOND, 1.0) > SHORT);
    }
}
