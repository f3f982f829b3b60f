//! A request to end early.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

/// Tells everybody who holds a clone that the measurement shall end now.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// Asks for the end. Cannot be taken back.
    pub fn set(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }

    /// Whether the end was asked for.
    pub fn is_set(&self) -> bool {
        *self.0.0.lock()
    }

    /// Sleeps until `deadline`, or until the end is asked for; whether it was.
    pub fn sleep_until(&self, deadline: Instant) -> bool {
        let mut set = self.0.0.lock();
        while !*set {
            if self.0.1.wait_until(&mut set, deadline).timed_out() {
                return *set;
            }
        }
        true
    }

    /// As [`Self::sleep_until`], for `duration` from now.
    pub fn sleep(&self, duration: Duration) -> bool {
        self.sleep_until(Instant::now() + duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_stop_ends_sleep_at_once() {
        let stop = Stop::default();
        assert!(!stop.sleep(Duration::from_millis(1)) && !stop.is_set());
        stop.clone().set();
        assert!(stop.is_set() && stop.sleep(Duration::from_secs(3600)));
    }
}
