//! Giving memory back to the system after many connections have left.
//!
//! The allocator keeps what was freed for the next connections, which is right while there are some.
//! After a crowd has left it would keep ten times of what is in use, for ever.
//!
//! Trimming returns whole free pages. What a thread has freed last, though, glibc keeps in a cache of
//! the thread's own, as if it were in use: some 400 small blocks that the crowd has left on as many
//! pages. A thread that takes them out of its cache and has another one free them, which then
//! ends, gives these pages back too.

use std::{iter, thread};

/// Fewer departures than this are not worth the work.
const CROWD: u64 = 256;

/// glibc caches blocks of up to 1032 bytes, 16 bytes apart, and 7 of each size ...
const CACHED_SIZES: std::ops::RangeInclusive<usize> = 24..=1032;
const SIZE_STEP: usize = 16;
/// ... or up to 16 since version 2.42.
const CACHED_OF_EACH_SIZE: usize = 16;

/// What is to be done to give memory back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// [`trim`], by one thread.
    Trim,
    /// [`empty_cache`], by every worker.
    EmptyCaches,
}

/// Most useful in this order: what the first step merges is no longer taken for the second one.
const STEPS: [Step; 3] = [Step::Trim, Step::EmptyCaches, Step::Trim];

/// Decides when memory is given back: when a crowd has left, and no more of it is leaving.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    most: u64,
    last: u64,
    steps: &'static [Step],
}

impl Reclaim {
    /// What is to be done now, if anything; `connections` is how many there are, or what is as large.
    /// Asked at regular times.
    pub(super) fn next(&mut self, connections: u64) -> Option<Step> {
        let leaving = connections < self.last;
        self.last = connections;
        self.most = self.most.max(connections);
        if !leaving && self.most - connections >= CROWD {
            self.most = connections;
            self.steps = &STEPS;
        }
        let (&step, later) = self.steps.split_first()?;
        self.steps = later;
        Some(step)
    }
}

/// Has the small blocks that the allocator keeps for the calling thread freed for good.
pub(super) fn empty_cache() {
    let blocks: Vec<Vec<u8>> = CACHED_SIZES
        .step_by(SIZE_STEP)
        .flat_map(|size| iter::repeat_n(size, CACHED_OF_EACH_SIZE))
        .map(Vec::with_capacity)
        .collect();
    // If no thread can be had, they go back to where they came from.
    if let Err(error) = thread::Builder::new().spawn(move || drop(blocks)) {
        tracing::debug!("memory is not given back: {error}");
    }
}

/// Returns free memory to the system. It takes milliseconds, and the allocator's locks one by one.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a call into the C library")]
pub(super) fn trim() {
    // SAFETY: malloc_trim(3) takes a number, touches only free memory and may be called by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries decide for themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn trim() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_the_crowd_has_gone() {
        let mut reclaim = Reclaim::default();
        let steps = [0, 1000, 990, 500, 400, 400, 400, 400, 390, 390, 900, 640, 640]
            .map(|connections| reclaim.next(connections));
        let at = |index: usize| steps[index];
        assert_eq!([at(5), at(6), at(7)], STEPS.map(Some));
        assert_eq!(at(12), Some(Step::Trim));
        let others = (0..steps.len()).filter(|index| ![5, 6, 7, 12].contains(index));
        for index in others {
            assert_eq!(at(index), None, "not while they leave, not twice, not for ten of them");
        }
    }

    #[test]
    fn giving_back_harms_nothing() {
        let kept = vec![7u8; 100_000];
        drop(vec![1u8; 10_000_000]);
        trim();
        empty_cache();
        trim();
        assert!(kept.iter().all(|&byte| byte == 7));
    }

    /// Whether the page at `address` is in memory, by /proc/self/pagemap.
    #[cfg(target_env = "gnu")]
    fn is_resident(address: usize) -> bool {
        use std::os::unix::fs::FileExt as _;
        const PRESENT: u64 = 1 << 63;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap().unwrap();
        let mut entry = [0; 8];
        let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
        let position = address as u64 / page as u64 * 8;
        pages.read_exact_at(&mut entry, position).unwrap();
        u64::from_ne_bytes(entry) & PRESENT != 0
    }

    /// Leaves pages to this thread's cache alone, and empties it; how many of them there were, and how
    /// many are still there.
    #[cfg(target_env = "gnu")]
    fn pages_of_a_cache() -> (usize, usize) {
        const CACHED: usize = 7;
        const APART: usize = 500;
        let mut crowd: Vec<_> = (0..CACHED * APART).map(|_| vec![1u8; 1000]).collect();
        let mut last_pages = Vec::new();
        for block in crowd.iter_mut().skip(APART / 2).step_by(APART) {
            last_pages.push(block.as_ptr() as usize);
            drop(std::mem::take(block));
        }
        drop(crowd);
        let kept = || last_pages.iter().filter(|&&address| is_resident(address)).count();
        trim();
        let before = kept();
        empty_cache();
        // The thread that frees the blocks is not waited for.
        for _ in 0..100 {
            thread::sleep(std::time::Duration::from_millis(20));
            trim();
            if kept() == 0 {
                break;
            }
        }
        (before, kept())
    }

    /// In a process of its own: other tests allocate at the same time, now and then on the same pages.
    #[test]
    #[cfg(target_env = "gnu")]
    fn pages_go_back_that_only_a_threads_cache_keeps() {
        let test = "server::reclaim::tests::alone_pages_go_back";
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--test-threads=1"])
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && report.contains("1 passed"), "{report}");
    }

    #[test]
    #[cfg(target_env = "gnu")]
    #[ignore = "pages_go_back_that_only_a_threads_cache_keeps runs it"]
    fn alone_pages_go_back() {
        let (before, after) = thread::spawn(pages_of_a_cache).join().unwrap();
        assert!(before >= 6 && after <= 1, "pages before and after: {before}, {after}");
    }
}
