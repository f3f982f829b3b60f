//! How long the kernel receives for each interface, and in whose time.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use aya::{Ebpf, maps::PerCpuHashMap, programs::TracePoint};

use crate::ebpf;

/// Bytes of an interface's name in the key of a time; the id of a process follows.
const NAME: usize = 16;

/// Programs in the kernel that take the time (`derp-ebpf/src/polls.rs`); gone when dropped.
pub(super) struct Polls(Ebpf);

impl Polls {
    /// Begins to take the time. Needs tracefs.
    pub(super) fn start() -> Result<Self> {
        let object = ebpf::polls_program()?;
        Self::load(&object).with_context(|| format!("loading {}", object.display()))
    }

    fn load(object: &Path) -> Result<Self> {
        ensure!(
            Path::new("/sys/kernel/tracing/events").exists(),
            "tracepoints are needed: mount -t tracefs tracefs /sys/kernel/tracing"
        );
        let mut programs = Ebpf::load_file(object)?;
        for (name, category, event) in [
            ("begin", "irq", "softirq_entry"),
            ("polled", "napi", "napi_poll"),
            ("end", "irq", "softirq_exit"),
        ] {
            let program = programs.program_mut(name);
            let program = program.with_context(|| format!("it has no program {name}"))?;
            let program: &mut TracePoint = program.try_into()?;
            program.load().with_context(|| format!("the program {name}"))?;
            program
                .attach(category, event)
                .with_context(|| format!("the tracepoint {category}:{event}"))?;
        }
        Ok(Self(programs))
    }

    /// Returns the times until now.
    pub(super) fn times(&self) -> Result<Times> {
        let map = self.0.map("TIMES").context("the program has no table of times")?;
        let map: PerCpuHashMap<_, [u8; NAME + 4], u64> = map.try_into()?;
        let mut times = Times::default();
        for entry in map.iter() {
            let (key, values) = entry.context("reading the table of times")?;
            let (name, process) = key.split_at(NAME);
            let length = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
            times.0.push(Time {
                interface: String::from_utf8_lossy(&name[..length]).into_owned(),
                process: process.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte)),
                spent: Duration::from_nanos(values.iter().sum()),
            });
        }
        ensure!(!times.0.is_empty(), "the kernel's program has seen nothing");
        Ok(times)
    }
}

/// Of one interface, in one process.
#[derive(Clone, Debug)]
struct Time {
    interface: String,
    process: u32,
    spent: Duration,
}

/// All times since the start.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Time>);

impl Times {
    /// Returns for how long the kernel has received for the interfaces whose names begin with a prefix.
    pub(super) fn of_interfaces(&self, prefix: &str) -> Duration {
        self.0.iter().filter(|it| it.interface.starts_with(prefix)).map(|it| it.spent).sum()
    }

    /// Returns for how long the kernel has received, for whomever, while processes were interrupted.
    pub(super) fn within(&self, processes: &[u32]) -> Duration {
        self.0.iter().filter(|it| processes.contains(&it.process)).map(|it| it.spent).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_apart_by_interface_and_by_process() {
        let time = |interface: &str, process, milliseconds| Time {
            interface: interface.to_owned(),
            process,
            spent: Duration::from_millis(milliseconds),
        };
        let times = Times(vec![
            time("to-left", 0, 1),
            time("to-left", 7, 2),
            time("to-right", 8, 4),
            time("eth0", 7, 8),
        ]);
        assert_eq!(times.of_interfaces("to-"), Duration::from_millis(7));
        assert_eq!(times.within(&[7, 9]), Duration::from_millis(10));
    }
}
