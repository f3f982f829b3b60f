//! When a certificate is ordered. Without I/O: the time and the random numbers are arguments.

use std::time::{Duration, SystemTime};

use crate::tls::Lifetime;

/// Pause after the first failure; each further one doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(60);
/// Longest pause between attempts that fail.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);
/// Longest pause that a server may ask for.
const LONGEST_WISH: Duration = Duration::from_secs(24 * 3600);
/// Longest time after a success in which nothing is ordered.
const LONGEST_HOLD: Duration = Duration::from_secs(24 * 3600);
/// How soon the server is asked again for its suggestion, at the soonest and at the latest.
const LOOK_PAUSES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));
/// The same when it could not be asked.
const FAILED_LOOK_PAUSE: Duration = Duration::from_secs(3600);

/// When the server suggests to renew (RFC 9773).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Window {
    pub(super) start: SystemTime,
    pub(super) end: SystemTime,
}

/// What decides when the certificate of one name is ordered next.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Of the certificate that there is.
    lifetime: Option<Lifetime>,
    /// A number in [0, 1), so that not all relays renew at the same moment.
    fraction: f64,
    window: Option<Window>,
    look_at: SystemTime,
    pause: Option<Pause>,
}

/// Time after an attempt in which there is no other.
#[derive(Clone, Copy, Debug)]
struct Pause {
    /// How many attempts have failed since the last that did not.
    failures: u32,
    since: SystemTime,
    until: SystemTime,
}

impl Plan {
    /// For a certificate that is there, or for none. `fraction` is a random number in [0, 1).
    pub(super) fn new(lifetime: Option<Lifetime>, fraction: f64) -> Self {
        let look_at = SystemTime::UNIX_EPOCH;
        Self { lifetime, fraction, window: None, look_at, pause: None }
    }

    /// For a certificate that has just been issued. Whatever its dates and the server's suggestions are, the next
    /// is not ordered before a sixth of its life, or a day, has gone by: a wrong clock must not cause a flood.
    pub(super) fn issued(lifetime: Lifetime, now: SystemTime, fraction: f64) -> Self {
        let until = now + (lifetime.length() / 6).min(LONGEST_HOLD);
        Self {
            pause: Some(Pause { failures: 0, since: now, until }),
            ..Self::new(Some(lifetime), fraction)
        }
    }

    /// When to try next; in the past, if at once.
    pub(super) fn attempt_at(&self, now: SystemTime) -> SystemTime {
        let due = self.due();
        match self.pause {
            // If the clock has been set back, the time of the last attempt says nothing.
            Some(Pause { since, until, .. }) if since <= now => due.max(until),
            Some(_) | None => due,
        }
    }

    /// When the certificate should be renewed, if that were sure to succeed.
    fn due(&self) -> SystemTime {
        let Some(lifetime) = self.lifetime else { return SystemTime::UNIX_EPOCH };
        let before_end = |part: f64| {
            let ahead = lifetime.length().mul_f64(part);
            lifetime.not_after.checked_sub(ahead).unwrap_or(SystemTime::UNIX_EPOCH)
        };
        match self.window {
            Some(Window { start, end }) => {
                let length = end.duration_since(start).unwrap_or_default();
                // Whatever is suggested, some time must be left to try again.
                (start + length.mul_f64(self.fraction)).min(before_end(1.0 / 6.0))
            }
            None => before_end(1.0 / 3.0 + self.fraction / 30.0),
        }
    }

    /// When to ask the server for its suggestion; never without a certificate.
    pub(super) fn look_at(&self) -> Option<SystemTime> {
        self.lifetime.map(|_| self.look_at)
    }

    fn failures(&self) -> u32 {
        self.pause.map_or(0, |pause| pause.failures)
    }

    /// Notes what the server suggests, and when it wants to be asked again. Without a suggestion the last one counts.
    pub(super) fn suggested(&mut self, now: SystemTime, answer: Option<(Window, Duration)>) {
        let (shortest, longest) = LOOK_PAUSES;
        let pause = match answer {
            Some((window, pause)) => {
                // RFC 9773 section 4.2: else the window is invalid.
                if window.start < window.end {
                    self.window = Some(window);
                }
                pause.clamp(shortest, longest)
            }
            None => FAILED_LOOK_PAUSE,
        };
        self.look_at = now + pause;
    }

    /// Notes that an order failed. `wish` is when the server wants to see us again, `fraction` a new random number.
    pub(super) fn failed(&mut self, now: SystemTime, wish: Option<SystemTime>, fraction: f64) {
        let doublings = self.failures().min(16);
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        let own = now + pause.mul_f64(1.0 + fraction / 4.0);
        let wish = wish.map(|wish| wish.min(now + LONGEST_WISH));
        let until = wish.map_or(own, |wish| wish.max(own));
        let failures = self.failures().saturating_add(1);
        self.pause = Some(Pause { failures, since: now, until });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn valid_for(length: Duration) -> Lifetime {
        Lifetime { not_before: start(), not_after: start() + length }
    }

    fn days(time: SystemTime) -> f64 {
        time.duration_since(start()).unwrap().as_secs_f64() / DAY.as_secs_f64()
    }

    #[test]
    fn no_certificate_is_ordered_at_once() {
        let plan = Plan::new(None, 0.5);
        assert!(plan.attempt_at(start()) <= start());
        assert_eq!(plan.look_at(), None);
    }

    #[test]
    fn long_and_short_lives_are_renewed_with_a_third_left() {
        for (life, earliest, latest) in [(90, 57.0, 60.0), (6, 3.8, 4.0), (47, 29.7, 31.4)] {
            for fraction in [0.0, 0.5, 0.999] {
                let plan = Plan::new(Some(valid_for(life * DAY)), fraction);
                let at = days(plan.attempt_at(start()));
                assert!((earliest..=latest).contains(&at), "{life} days: day {at}");
            }
        }
    }

    #[test]
    fn an_expired_certificate_is_due() {
        let now = start() + 100 * DAY;
        let plan = Plan::new(Some(valid_for(90 * DAY)), 0.3);
        assert!(plan.attempt_at(now) <= now);
    }

    #[test]
    fn the_servers_suggestion_counts() {
        let mut plan = Plan::new(Some(valid_for(90 * DAY)), 0.25);
        assert!(plan.look_at().unwrap() <= start(), "it is asked at once");
        let window = Window { start: start() + 40 * DAY, end: start() + 44 * DAY };
        plan.suggested(start(), Some((window, 6 * HOUR)));
        assert_eq!(plan.attempt_at(start()), start() + 41 * DAY);
        assert_eq!(plan.look_at().unwrap(), start() + 6 * HOUR);

        // The certificate is about to be revoked.
        let now = start() + DAY;
        let window = Window { start: start(), end: start() + HOUR };
        plan.suggested(now, Some((window, 6 * HOUR)));
        assert!(plan.attempt_at(now) <= now);
    }

    #[test]
    fn bad_suggestions_do_no_harm() {
        let lifetime = valid_for(90 * DAY);
        let mut plan = Plan::new(Some(lifetime), 0.0);
        let own = plan.attempt_at(start());
        let backwards = Window { start: start() + 2 * HOUR, end: start() + HOUR };
        plan.suggested(start(), Some((backwards, Duration::ZERO)));
        assert_eq!(plan.attempt_at(start()), own);
        assert_eq!(plan.look_at().unwrap(), start() + Duration::from_secs(60));

        let too_late = Window { start: start() + 200 * DAY, end: start() + 300 * DAY };
        plan.suggested(start(), Some((too_late, 1000 * DAY)));
        assert_eq!(plan.attempt_at(start()), start() + 75 * DAY);
        assert_eq!(plan.look_at().unwrap(), start() + DAY);

        // Without an answer the last one counts.
        plan.suggested(start(), None);
        assert_eq!(plan.attempt_at(start()), start() + 75 * DAY);
        assert_eq!(plan.look_at().unwrap(), start() + HOUR);
    }

    /// How often a server is asked that is down from the first attempt on, until `end`.
    fn attempts(plan: &mut Plan, end: SystemTime, fraction: f64) -> Vec<SystemTime> {
        let mut attempts = Vec::new();
        let mut now = start();
        loop {
            now = plan.attempt_at(now).max(now);
            if now >= end {
                return attempts;
            }
            attempts.push(now);
            plan.failed(now, None, fraction);
        }
    }

    #[test]
    fn a_server_that_is_down_for_days_is_asked_less_and_less_but_never_given_up() {
        let mut plan = Plan::new(None, 0.0);
        let attempts = attempts(&mut plan, start() + 5 * DAY, 0.0);
        let pauses: Vec<_> = attempts
            .windows(2)
            .map(|pair| pair[1].duration_since(pair[0]).unwrap().as_secs() / 60)
            .collect();
        assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 32, 60]);
        assert!(pauses[7..].iter().all(|minutes| *minutes == 60));
        assert_eq!(attempts.len(), 6 + 5 * 24 - 1);
    }

    #[test]
    fn a_short_lived_certificate_survives_an_outage_of_a_day_and_a_half() {
        let lifetime = valid_for(6 * DAY);
        let mut plan = Plan::new(Some(lifetime), 0.0);
        let back = start() + 4 * DAY + 36 * HOUR;
        let tries = attempts(&mut plan, back, 0.9);
        assert!(tries.len() > 30, "{}", tries.len());
        assert!(plan.attempt_at(back) < lifetime.not_after - 8 * HOUR, "tried while it is valid");
    }

    #[test]
    fn the_servers_wish_for_a_pause_is_respected_within_reason() {
        let mut plan = Plan::new(None, 0.0);
        plan.failed(start(), Some(start() + 3 * HOUR), 0.0);
        assert_eq!(plan.attempt_at(start()), start() + 3 * HOUR);
        plan.failed(start(), Some(start() + 365 * DAY), 0.0);
        assert_eq!(plan.attempt_at(start()), start() + DAY);
        // Sooner than our own pause is no reason to hurry.
        plan.failed(start(), Some(start()), 0.0);
        assert_eq!(plan.attempt_at(start()), start() + Duration::from_secs(240));
    }

    #[test]
    fn a_new_certificate_is_kept_for_a_while_whatever_the_server_says() {
        let past = Window { start: start() - DAY, end: start() };
        for (life, pause) in [(90 * DAY, DAY), (6 * DAY, DAY), (6 * HOUR, HOUR)] {
            let mut plan = Plan::issued(valid_for(life), start(), 0.5);
            plan.suggested(start(), Some((past, HOUR)));
            assert_eq!(plan.attempt_at(start()), start() + pause);
            plan.failed(start() + pause, None, 0.0);
            assert_eq!(plan.attempt_at(start() + pause), start() + pause + FIRST_PAUSE);
        }
        // By this machine's clock it has expired already.
        let now = start() + 100 * DAY;
        assert_eq!(Plan::issued(valid_for(90 * DAY), now, 0.0).attempt_at(now), now + DAY);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_stop_attempts() {
        let mut plan = Plan::new(None, 0.0);
        plan.failed(start() + 1000 * DAY, None, 0.0);
        assert!(plan.attempt_at(start()) <= start());
    }

    proptest! {
        #[test]
        fn failures_never_bring_an_attempt_forward(
            life in 1u64..40_000_000,
            fraction in 0.0..1.0f64,
            failures in 0u32..100,
            wish in prop::option::of(0u64..10_000_000),
        ) {
            let lifetime = valid_for(Duration::from_secs(life));
            let mut plan = Plan::new(Some(lifetime), fraction);
            let now = plan.attempt_at(start());
            prop_assert!(now >= start() && now < lifetime.not_after);
            for _ in 0..failures {
                plan.failed(now, wish.map(|seconds| now + Duration::from_secs(seconds)), fraction);
            }
            let next = plan.attempt_at(now);
            prop_assert!(next >= now);
            prop_assert!(next <= now + LONGEST_WISH);
        }
    }
}
