//! How far the comparison is, and how long it still takes.

use std::time::{Duration, Instant};

/// Tells of each run before it starts.
pub(super) struct Progress {
    start: Instant,
    /// What all runs were thought to take at the start.
    total: Duration,
    /// What those begun so far were thought to take.
    begun: Duration,
}

impl Progress {
    /// Starts the clock and prints the estimate.
    pub(super) fn start(total: Duration) -> Self {
        eprintln!("about {} in all", minutes(total));
        Self { start: Instant::now(), total, begun: Duration::ZERO }
    }

    /// Tells of a run that is thought to take so long.
    pub(super) fn begin(&mut self, what: &str, estimate: Duration) {
        let left = left(self.total, self.begun, self.start.elapsed());
        eprintln!("[{} left] {what}", minutes(left));
        self.begun += estimate;
    }
}

/// Corrects the estimate of what is left by how long the part behind us really took.
fn left(total: Duration, done: Duration, elapsed: Duration) -> Duration {
    let rest = total.saturating_sub(done);
    if done.is_zero() { rest } else { rest.mul_f64(elapsed.div_duration_f64(done)) }
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02} min", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_is_scaled_by_experience() {
        let [total, done] = [100, 25].map(Duration::from_secs);
        assert_eq!(left(total, Duration::ZERO, Duration::ZERO), total);
        assert_eq!(left(total, done, 2 * done), Duration::from_secs(150));
        assert_eq!(left(total, total, done), Duration::ZERO);
        assert_eq!(minutes(Duration::from_secs(150)), "2:30 min");
    }
}
