//! How busy the workers' threads are.

use std::time::{Duration, Instant};

use nix::{
    time::{ClockId, clock_gettime},
    unistd::gettid,
};

/// The clock of the processor time that one thread has used, readable from any thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct ThreadClock(ClockId);

impl ThreadClock {
    /// The clock of the calling thread.
    pub(super) fn of_this_thread() -> Self {
        // What pthread_getcpuclockid returns: the complement of the thread's number, and in the
        // lowest three bits "one thread" and "time scheduled" (Linux, include/linux/posix-timers.h).
        const ONE_THREAD_SCHEDULED: i32 = 0b110;
        Self(ClockId::from_raw((!gettid().as_raw() << 3) | ONE_THREAD_SCHEDULED))
    }

    /// The processor time used so far; zero once the thread has ended.
    fn used(self) -> Duration {
        clock_gettime(self.0).map_or(Duration::ZERO, Duration::from)
    }
}

/// Tells which share of the time a thread is on a processor.
#[derive(Debug)]
pub(super) struct Meter {
    clock: ThreadClock,
    used: Duration,
    read_at: Instant,
}

impl Meter {
    pub(super) fn new(clock: ThreadClock, now: Instant) -> Self {
        Self { clock, used: clock.used(), read_at: now }
    }

    /// The share since the last call, from 0 to 1.
    pub(super) fn share(&mut self, now: Instant) -> f64 {
        let used = self.clock.used();
        let elapsed = now.saturating_duration_since(self.read_at);
        let share =
            used.saturating_sub(self.used).as_secs_f64() / elapsed.as_secs_f64().max(f64::EPSILON);
        (self.used, self.read_at) = (used, now);
        share.min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_works_and_one_that_sleeps() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let sleeper = std::thread::spawn(move || {
            tell.send(ThreadClock::of_this_thread()).unwrap();
            ended.recv().unwrap_err();
        });
        let sleeping = told.recv().unwrap();
        let start = Instant::now();
        let mut meters = [ThreadClock::of_this_thread(), sleeping].map(|it| Meter::new(it, start));
        while meters[0].clock.used() < meters[0].used + Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        let now = Instant::now();
        let [here, there] = meters.each_mut().map(|meter| meter.share(now));
        assert!(here > there && here <= 1.0, "{here} {there}");
        drop(end);
        sleeper.join().unwrap();
        assert_eq!(meters[1].share(Instant::now()), 0.0);
    }
}
