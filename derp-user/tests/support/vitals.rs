//! What the kernel tells of the relay's process.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{fs, time::Duration};

/// One look at a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vitals {
    /// Resident bytes.
    pub(crate) memory: u64,
    /// Open descriptors.
    pub(crate) descriptors: usize,
    /// Processor time so far.
    pub(crate) processor: Duration,
}

impl Vitals {
    pub(crate) fn of(process: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = memory.and_then(|text| text.trim().strip_suffix(" kB"));
        let memory = kibibytes.and_then(|text| text.parse::<u64>().ok()).expect("a number") << 10;
        let descriptors = descriptors(process);
        let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
        let nanoseconds = tasks.flatten().filter_map(|task| {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Self { memory, descriptors, processor: Duration::from_nanos(nanoseconds.sum()) }
    }
}

/// Listing thousands of them takes milliseconds, and the lock that the process needs to open another one. The kernel tells their
/// number as the directory's size, since Linux 6.2; older ones say zero.
fn descriptors(process: u32) -> usize {
    let directory = format!("/proc/{process}/fd");
    match fs::metadata(&directory).expect("it runs").len() {
        0 => fs::read_dir(&directory).expect("it runs").count(),
        count => usize::try_from(count).expect("a count"),
    }
}
