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
#[path = "../src/udp/state.rs"]
mod state;

/// What the two are made of.
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
use loom::{future::block_on, sync::Arc, thread};
use state::{SettingsCell, SettingsView};

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
