//! Giving memory back to the system after many connections have left.
//!
//! The allocator keeps what was freed for the next connections, which is right while there are some.
//! After a crowd has left it would keep ten times of what is in use, for ever.

/// Fewer departures than this are not worth the work.
const CROWD: u64 = 256;

/// Decides when memory is given back: when a crowd has left, and no more of it is leaving.
#[derive(Debug, Default)]
pub(super) struct Reclaim {
    most: u64,
    last: u64,
}

impl Reclaim {
    /// Whether now is the time; `connections` is how many there are. Asked at regular times.
    pub(super) fn is_due(&mut self, connections: u64) -> bool {
        let leaving = connections < self.last;
        self.last = connections;
        self.most = self.most.max(connections);
        let due = !leaving && self.most - connections >= CROWD;
        if due {
            self.most = connections;
        }
        due
    }
}

/// Returns free memory to the system. It takes milliseconds, and the allocator's locks one by one.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "a call into the C library")]
pub(super) fn give_back() {
    // SAFETY: malloc_trim(3) takes a number, touches only free memory and may be called by any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries decide for themselves.
#[cfg(not(target_env = "gnu"))]
pub(super) fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_given_back_once_the_crowd_has_gone() {
        let mut reclaim = Reclaim::default();
        let due: Vec<bool> = [0, 1000, 990, 500, 400, 400, 400, 390, 390, 900, 640, 640]
            .map(|connections| reclaim.is_due(connections))
            .to_vec();
        let at: Vec<usize> = (0..due.len()).filter(|&index| due[index]).collect();
        assert_eq!(at, [5, 11], "not while they leave, not twice, not for ten of them");
    }

    #[test]
    fn giving_back_harms_nothing() {
        let kept = vec![7u8; 100_000];
        drop(vec![1u8; 10_000_000]);
        give_back();
        assert!(kept.iter().all(|&byte| byte == 7));
    }
}
