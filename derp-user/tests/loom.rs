//! What threads read without locks, in every order in which they may meet (loom). The sources are those of derpd, with
//! loom's atomics in the place of the standard library's.

#[allow(
    dead_code,
    unreachable_pub,
    reason = "the file is a part of derpd, of which this uses a part"
)]
#[path = "../src/server/attention.rs"]
mod attention;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the file is a part of derpd, of which this uses a part"
)]
#[path = "../src/server/rates.rs"]
mod rates;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "the file is a part of derpd, of which this uses a part"
)]
#[path = "../src/udp/state.rs"]
mod state;

/// What these are made of.
mod sync {
    use std::task::Waker;

    pub(super) use loom::sync::{
        MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    };

    /// Locks as `parking_lot`'s does.
    #[derive(Debug)]
    pub(super) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(super) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(super) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no thread has panicked")
        }
    }

    /// Is used as that of the crate `atomic_waker`.
    #[derive(Debug)]
    pub(super) struct AtomicWaker(loom::future::AtomicWaker);

    impl Default for AtomicWaker {
        fn default() -> Self {
            Self(loom::future::AtomicWaker::new())
        }
    }

    impl AtomicWaker {
        pub(super) fn register(&self, waker: &Waker) {
            self.0.register_by_ref(waker);
        }

        pub(super) fn wake(&self) {
            self.0.wake();
        }
    }
}

use std::future::poll_fn;

use attention::Attention;
use derp_common::{Settings, Switches};
use derp_user::relay::{self, limit::RateLimit};
use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};
use rates::Rates;
use state::{SettingsCell, SettingsView};

/// At most this many times in a history, a thread is interrupted where it could have gone on. Two or three find most
/// faults, as loom's documentation says; all orders of the longer histories would take hours.
const INTERRUPTIONS: usize = 3;

fn bounded() -> loom::model::Builder {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(INTERRUPTIONS);
    builder
}

#[test]
fn a_call_is_never_lost() {
    loom::model(|| {
        let attention = Arc::new(Attention::default());
        let calls = [0, 1].map(|_| {
            let attention = Arc::clone(&attention);
            thread::spawn(move || attention.call())
        });
        // Deadlocks where a call comes between looking and waiting, and wakes nobody.
        block_on(poll_fn(|context| attention.poll(context)));
        for call in calls {
            call.join().expect("called");
        }
    });
}

/// A connection's flags are set, without more ado, before its owner is called; and others may have called it before.
#[test]
fn what_was_done_before_a_call_is_seen_after_it() {
    bounded().check(|| {
        let attention = Arc::new(Attention::default());
        let flag = Arc::new(AtomicBool::new(false));
        let other = {
            let attention = Arc::clone(&attention);
            thread::spawn(move || attention.call())
        };
        let caller = {
            let (attention, flag) = (Arc::clone(&attention), Arc::clone(&flag));
            thread::spawn(move || {
                flag.store(true, Ordering::Relaxed);
                attention.call();
            })
        };
        // Deadlocks where a call is answered and its flag is not seen.
        while !flag.load(Ordering::Relaxed) {
            block_on(poll_fn(|context| attention.poll(context)));
        }
        for thread in [other, caller] {
            thread.join().expect("called");
        }
    });
}

/// A limit that differs from others by its number.
fn limited(bytes_per_second: u64) -> Option<RateLimit> {
    Some(RateLimit { bytes_per_second, burst: 70_000, announced: false })
}

#[test]
fn a_limit_is_never_older_than_the_number_of_its_change() {
    loom::model(|| {
        let rates = Arc::new(Rates::new(None));
        let writer = {
            let rates = Arc::clone(&rates);
            thread::spawn(move || {
                rates.set(limited(1));
                rates.set(limited(2));
            })
        };
        let (changes, limit) = rates.read();
        let number = limit.map_or(0, |limit| limit.bytes_per_second);
        assert!(number >= changes, "{number} after {changes} changes");
        writer.join().expect("set");
        // Whoever remembers an older one is told to look again.
        assert!(rates.changes() == 2 && rates.limit() == limited(2));
    });
}

/// Settings that differ by their number.
fn numbered(number: u64) -> Settings {
    Settings { lease: number, ..Settings::new(3478) }
}

#[test]
fn settings_never_go_back_and_the_last_are_seen() {
    loom::model(|| {
        let cell = Arc::new(SettingsCell::new(numbered(0)));
        let mut view = SettingsView::new(&cell);
        let writer = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || {
                cell.store(numbered(1));
                cell.store(numbered(2));
            })
        };
        let mut last = 0;
        for _ in 0..2 {
            let now = view.current(&cell).lease;
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
        writer.join().expect("written");
        assert_eq!(view.current(&cell).lease, 2);
    });
}

#[test]
fn no_change_of_two_at_once_is_lost() {
    loom::model(|| {
        let cell = Arc::new(SettingsCell::new(numbered(0)));
        let mut view = SettingsView::new(&cell);
        let writer = {
            let cell = Arc::clone(&cell);
            thread::spawn(move || cell.update(|settings| settings.lease = 7))
        };
        cell.update(|settings| settings.switches |= Switches::SHED_STUN);
        writer.join().expect("written");
        let settings = view.current(&cell);
        assert!(settings.lease == 7 && settings.has(Switches::SHED_STUN));
    });
}
