//! A processor for the relay alone. The attackers of these tests are on the machine of those whom they attack, which
//! real ones are not: what they take of its processors is no doing of the relay's. With `DERPD_HOSTILE_APART`
//! the relay has one processor, with one worker, and everybody else has another one, where attackers run only when the
//! pair has nothing to do. What the pair then waits for is the relay.

use std::{env, fs, process::Command, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::{Pid, gettid},
};

/// Delays up to this many milliseconds are no fault then.
const VARIABLE: &str = "DERPD_HOSTILE_APART";
const THIS_THREAD: Pid = Pid::from_raw(0);

/// The relay's processor, and how the others keep off it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Apart {
    relay: usize,
    /// A delay that is no fault, however short those before were.
    pub(crate) floor: Duration,
}

/// Flags by which the relay uses its processor: a second worker would only take turns with the first.
pub(crate) fn flags() -> &'static [&'static str] {
    if env::var_os(VARIABLE).is_some() { &["-workers=1"] } else { &[] }
}

impl Apart {
    /// As the environment says; `None` if everybody has all processors. This thread, and those that it starts from now
    /// on, are kept off the relay's.
    pub(crate) fn begin() -> Option<Self> {
        let text = env::var(VARIABLE).ok()?;
        let floor = text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text}: not a number"));
        let usable = sched_getaffinity(THIS_THREAD).expect("this thread exists");
        let mut usable = (0..CpuSet::count()).filter(|&it| usable.is_set(it).unwrap_or(false));
        let (Some(relay), Some(others)) = (usable.next(), usable.next()) else {
            panic!("{VARIABLE} takes two processors")
        };
        bind(THIS_THREAD, others);
        Some(Self { relay, floor: Duration::from_millis(floor) })
    }

    /// Gives a relay its processor: all threads that it has, and by them those to come.
    pub(crate) fn give(&self, process: u32) {
        for thread in fs::read_dir(format!("/proc/{process}/task")).expect("it runs").flatten() {
            let id = thread.file_name().to_str().and_then(|name| name.parse().ok());
            bind(Pid::from_raw(id.expect("a number")), self.relay);
        }
    }

    /// Has this thread, and those that it starts from now on, run when nobody else on their processor would.
    pub(crate) fn come_last() {
        let thread = gettid().to_string();
        let status = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
        assert!(status.expect("chrt of util-linux runs").success(), "chrt --idle failed");
    }
}

fn bind(thread: Pid, processor: usize) {
    let mut only = CpuSet::new();
    only.set(processor).expect("a processor of this machine");
    sched_setaffinity(thread, &only).expect("a thread of this test");
}
