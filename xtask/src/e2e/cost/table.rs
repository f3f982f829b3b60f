//! Medians over the rounds.

use std::{fmt, time::Duration};

use super::{
    Spent,
    contestant::Contestant,
    load::{FLOW_BYTES, FLOWS, FLOWS_RATE, Kind},
};

/// What one run of a load has shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Delivered payload, Mbit/s.
    rate: f64,
    /// Seconds of processor time of the relay's processes for each 10^9 bytes.
    processes: f64,
    /// The same of the kernel, receiving for the relay's interfaces, which is where XDP forwards.
    receiving: f64,
    /// The same of the whole machine, clients included; it is counted by what runs at each tick of the clock.
    machine: f64,
    /// Round trip beside the load, in milliseconds: median and p99.
    ping: [f64; 2],
}

impl Sample {
    /// Computes it from bytes delivered, the time and the processor time that took, and the sorted round trip times.
    pub(super) fn new(bytes: u64, elapsed: Duration, spent: Spent, pings: &[Duration]) -> Self {
        let (gigabytes, elapsed) = (bytes as f64 / 1e9, elapsed.as_secs_f64());
        let at = |part: usize| {
            let index = (pings.len() * part / 100).min(pings.len().saturating_sub(1));
            pings.get(index).map_or(f64::NAN, |it| it.as_secs_f64() * 1e3)
        };
        Self {
            rate: gigabytes * 8e3 / elapsed,
            processes: spent.processes.as_secs_f64() / gigabytes,
            receiving: spent.receiving.as_secs_f64() / gigabytes,
            machine: spent.machine.as_secs_f64() / gigabytes,
            ping: [at(50), at(99)],
        }
    }

    /// Returns what relaying costs the relay's host, in seconds for each 10^9 bytes.
    fn cost(&self) -> f64 {
        self.processes + self.receiving
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, processes, receiving, machine, ping: [median, p99] } = self;
        write!(
            f,
            "{rate:.0} Mbit/s, processes {processes:.2} and receiving {receiving:.2} s/GB, \
             machine {machine:.1} s/GB, ping {median:.2} ms, p99 {p99:.2} ms",
        )
    }
}

/// All samples.
#[derive(Default)]
pub(super) struct Table(Vec<(Contestant, Kind, Sample)>);

impl Table {
    pub(super) fn add(&mut self, contestant: Contestant, kind: Kind, sample: Sample) {
        self.0.push((contestant, kind, sample));
    }

    fn median(
        &self,
        contestant: Contestant,
        kind: Kind,
        value: impl Fn(&Sample) -> f64,
    ) -> Option<(f64, f64, f64)> {
        let samples = self.0.iter().filter(|it| (it.0, it.1) == (contestant, kind));
        let mut values: Vec<f64> = samples.map(|it| value(&it.2)).collect();
        values.sort_by(f64::total_cmp);
        Some((*values.first()?, *values.get(values.len() / 2)?, *values.last()?))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flows = format!("{FLOWS} flows of {FLOW_BYTES} B, {FLOWS_RATE} packets/s");
        for (kind, title) in [(Kind::Bulk, "bulk TCP"), (Kind::Flows, &flows)] {
            writeln!(
                f,
                "| {title} | delivered, Mbit/s | relay's CPU, s/GB | processes | receiving | : (c) | machine, s/GB | ping, ms | p99, ms |"
            )?;
            writeln!(f, "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")?;
            let reference = self.median(Contestant::Tailscaled, kind, Sample::cost);
            for contestant in Contestant::ALL {
                let spread = |value: fn(&Sample) -> f64, digits: usize| {
                    let (least, median, most) = self.median(contestant, kind, value)?;
                    Some(format!("{median:.digits$} ({least:.digits$}-{most:.digits$})"))
                };
                let Some(rate) = spread(|it| it.rate, 0) else { continue };
                let cost = spread(Sample::cost, 2).unwrap_or_default();
                let median = |value: fn(&Sample) -> f64| {
                    self.median(contestant, kind, value).map_or(f64::NAN, |it| it.1)
                };
                let ratio = reference.map_or(f64::NAN, |it| median(Sample::cost) / it.1);
                writeln!(
                    f,
                    "| {contestant} | {rate} | {cost} | {:.2} | {:.2} | {ratio:.2} | {:.1} | {:.2} | {} |",
                    median(|it| it.processes),
                    median(|it| it.receiving),
                    median(|it| it.machine),
                    median(|it| it.ping[0]),
                    spread(|it| it.ping[1], 1).unwrap_or_default(),
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_of_processes_and_of_what_the_kernel_does_for_them() {
        let second = Duration::from_secs(1);
        let pings: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        let spent = Spent { processes: second / 2, receiving: second / 4, machine: 2 * second };
        let sample = Sample::new(500_000_000, 2 * second, spent, &pings);
        assert_eq!(sample.rate.round(), 2000.0);
        assert_eq!((sample.processes, sample.receiving, sample.cost()), (1.0, 0.5, 1.5));
        assert_eq!((sample.machine, sample.ping), (4.0, [51.0, 100.0]));
    }
}
