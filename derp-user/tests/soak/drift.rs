//! What a running relay needs and how long packets take, looked at again and again, and whether it grows.

use std::{
    fs,
    time::{Duration, Instant},
};

use crate::{metrics::Metrics, probe::Probe, relay::Relay, vitals::Vitals};

const MEGABYTE: u64 = 1 << 20;
/// Rows of the table of a long run.
const ROWS: usize = 12;
/// How much more memory the last quarter may have needed than the second one: a part of it, and this.
const MORE_MEMORY: (u64, u64) = (20, 2 * MEGABYTE);
/// How much longer packets may take in the last quarter, and what is no delay at all.
const SLOWER: u32 = 2;
const QUICK: Duration = Duration::from_millis(1);

/// One look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    at: Duration,
    vitals: Vitals,
    threads: usize,
    connections: u64,
    delays: Option<(Duration, Duration)>,
    derp: u64,
    dropped: u64,
    kernel: u64,
    userspace: u64,
}

/// Threads of a process.
pub(crate) fn threads(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/task")).expect("it runs").count()
}

impl Sample {
    pub(crate) fn take(begun: Instant, relay: &Relay, probe: &Probe) -> Self {
        let process = relay.daemon.id();
        let metrics = Metrics::read(&relay.daemon);
        Self {
            at: begun.elapsed(),
            vitals: Vitals::of(process),
            threads: threads(process),
            connections: metrics.sum("derp_current_connections", &[]),
            delays: probe.delays(),
            derp: metrics.sum("derp_packets_received", &[]),
            dropped: metrics.sum("derp_packets_dropped", &[]),
            kernel: metrics
                .sum_any("xdp_stun_server_packets_total", &["\"forwarded\"", "\"redirected\""]),
            userspace: metrics.sum("derpd_udp_forwarded_packets_total", &[]),
        }
    }

    /// One row: what happened since an earlier look.
    pub(crate) fn row(&self, earlier: &Self) -> String {
        let seconds = (self.at - earlier.at).as_secs_f64().max(1e-3);
        let rate = |now: u64, then: u64| (now - then) as f64 / seconds;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        let (half, most) = self.delays.unwrap_or_default();
        let processor = self.vitals.processor.saturating_sub(earlier.vitals.processor);
        format!(
            "| {:.1} | {:.1} | {} | {} | {} | {:.2} | {:.1} | {:.0} | {:.1} | {:.0} | {:.1} | {:.0} |",
            self.at.as_secs_f64() / 60.0,
            self.vitals.memory as f64 / MEGABYTE as f64,
            self.vitals.descriptors,
            self.threads,
            self.connections,
            milliseconds(half),
            milliseconds(most),
            rate(self.derp, earlier.derp),
            rate(self.dropped, earlier.dropped),
            rate(self.kernel, earlier.kernel),
            rate(self.userspace, earlier.userspace),
            100.0 * processor.as_secs_f64() / seconds,
        )
    }
}

/// What is above the rows.
pub(crate) const HEAD: &str = "\
| minute | memory, MB | descriptors | threads | clients | half, ms | 99 %, ms | DERP/s | dropped/s | kernel/s | userspace/s | CPU, % |
| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |";

/// Prints some of the looks, evenly spread.
pub(crate) fn print(samples: &[Sample]) {
    println!("\n{HEAD}");
    let step = samples.len().div_ceil(ROWS).max(1);
    let rows: Vec<_> = samples.iter().step_by(step).collect();
    for pair in rows.windows(2) {
        println!("{}", pair[1].row(pair[0]));
    }
}

/// Compares the last quarter with the second one.
pub(crate) fn judge(samples: &[Sample]) {
    let quarter = samples.len() / 4;
    assert!(quarter > 0, "{} looks are too few", samples.len());
    let (second, last) = (&samples[quarter..2 * quarter], &samples[samples.len() - quarter..]);
    let memory = |of: &[Sample]| median(of.iter().map(|it| it.vitals.memory));
    let delay = |of: &[Sample]| median(of.iter().filter_map(|it| Some(it.delays?.0)));
    let (memory_then, memory_now) = (memory(second), memory(last));
    let (delay_then, delay_now) = (delay(second), delay(last));
    println!(
        "\nsecond and last quarter: {:.1} and {:.1} MB, {:.2?} and {:.2?} for half of the packets",
        memory_then as f64 / MEGABYTE as f64,
        memory_now as f64 / MEGABYTE as f64,
        delay_then,
        delay_now,
    );
    let (part, more) = MORE_MEMORY;
    assert!(memory_now <= memory_then + memory_then / part + more, "its memory grows");
    assert!(delay_now <= (SLOWER * delay_then).max(QUICK), "packets take longer and longer");
}

fn median<T: Copy + Default + Ord>(values: impl Iterator<Item = T>) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}
