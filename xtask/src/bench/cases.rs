//! The table: every case, what is read from it, and the bar it has to meet.

use super::{
    case::{
        Bar::{self, Ratio, Value},
        Beside, Case,
        Limit::{self, AtLeast, AtMost, Under},
        Load, Number, Reading, Row, Run,
        Subject::{self, Derpd, DerpdWithWorkers, Derper},
    },
    witness::TUNNEL_CPU,
};

const DELIVERED: (&str, &str) = ("delivered, Mbit/s", "recv_mbps");
const LOST: (&str, &str) = ("lost, %", "loss_pct");
const CPU_PER_PACKET: (&str, &str) = ("CPU per delivered packet, µs", "server_us_per_pkt");
const CPU_PER_CONNECT: (&str, &str) = ("CPU per connect, ms", "server_cpu_ms_per_conn");
const MEDIAN: (&str, &str) = ("median, µs", "p50_us");
const P99: (&str, &str) = ("p99, µs", "p99_us");
const P999: (&str, &str) = ("p99.9, µs", "p999_us");

const GROWTH: Number = Number::Growth("rss_before_kib", "rss_peak_kib");

const KIB_PER_CONNECTION: f64 = 6.0;
const KIB_WITHOUT_CLIENT: f64 = 14.0 * 1024.0;
/// Memory is back when it is within this of the start.
const BACK: f64 = 1.1;
/// "Not growing with the number" and "as good as" leave this much to chance.
const EQUAL: f64 = 1.1;
/// What two full queues of a receiver may hold: 32 packets of 64 KiB each.
const STALLED_RECEIVER_KIB: f64 = 4096.0;

/// The comparison, in the order of the report.
pub(super) fn cases() -> Vec<Case> {
    let paced = throughput(10, 1400, Some(300));
    let flat_out = throughput(10, 1400, None);
    let fifty_pairs = throughput(50, 600, Some(100));
    let among_many =
        Load::Throughput { pairs: 50, bytes: 600, rate: Some(100), idle_connections: 9900 };
    vec![
        beside_derper(
            "10 pairs, 1400 B, flat out",
            flat_out,
            &[
                (DELIVERED, Ratio(AtLeast(30.0))),
                (LOST, Bar::Nothing),
                (CPU_PER_PACKET, Ratio(AtMost(0.025))),
            ],
        ),
        beside_derper(
            "10 pairs, 128 B, flat out",
            throughput(10, 128, None),
            &[
                (DELIVERED, Ratio(AtLeast(50.0))),
                (LOST, Bar::Nothing),
                (CPU_PER_PACKET, Bar::Nothing),
            ],
        ),
        beside_derper(
            "1 pair, 1400 B, flat out",
            throughput(1, 1400, None),
            &[
                (DELIVERED, Ratio(AtLeast(2.3))),
                (LOST, Bar::Nothing),
                (CPU_PER_PACKET, Ratio(AtMost(0.25))),
            ],
        ),
        beside_derper(
            "10 pairs, 1400 B, 300 Mbit/s",
            paced,
            &[(LOST, Value(AtMost(0.0))), (CPU_PER_PACKET, Ratio(AtMost(0.45)))],
        ),
        beside_derper(
            "50 pairs, 600 B, 100 Mbit/s",
            fifty_pairs,
            &[(LOST, Value(AtMost(0.0))), (CPU_PER_PACKET, Ratio(AtMost(0.45)))],
        ),
        beside_derper(
            "latency beside 200 Mbit/s",
            Load::Latency { pairs: 10, rate: Some(200) },
            &[(MEDIAN, Ratio(AtMost(0.9))), (P99, Ratio(AtMost(0.5))), (P999, Ratio(AtMost(0.5)))],
        ),
        beside_derper(
            "latency, otherwise idle",
            Load::Latency { pairs: 0, rate: None },
            &[(MEDIAN, Ratio(AtMost(0.75))), (P99, Ratio(AtMost(0.8))), (P999, Bar::Nothing)],
        ),
        idle(),
        beside_derper(
            "connect storm, 3,000 connects",
            Load::Storm { connections: 3000 },
            &[
                (CPU_PER_CONNECT, Ratio(AtMost(0.4))),
                (("connects per second", "connects_per_s"), Bar::Nothing),
                (("p99 of a connect, ms", "p99_ms"), Bar::Nothing),
            ],
        ),
        Case {
            name: "10,000 connections, 100 of them active",
            runs: vec![
                run(Derper, &[among_many]),
                run(Derpd, &[among_many]),
                run(Derpd, &[fifty_pairs]),
            ],
            rows: vec![
                row(CPU_PER_PACKET, 1, Bar::Nothing).compared_with_derper(),
                row(("CPU of 10,000 : CPU of 100, µs", CPU_PER_PACKET.1), 1, Ratio(AtMost(1.2)))
                    .compared("100 connections", 2, 0),
                row(LOST, 1, Value(AtMost(0.0))).compared_with_derper(),
            ],
        },
        Case {
            name: "two workers instead of one",
            runs: vec![
                run(DerpdWithWorkers(1), &[paced, flat_out]),
                run(DerpdWithWorkers(2), &[paced, flat_out]),
            ],
            rows: vec![
                row(("300 Mbit/s: CPU per packet, µs", CPU_PER_PACKET.1), 1, Ratio(AtMost(1.15)))
                    .compared("one worker", 0, 0),
                row(("flat out: delivered, Mbit/s", DELIVERED.1), 1, Ratio(AtLeast(1.0)))
                    .of_load(1)
                    .compared("one worker", 0, 1),
            ],
        },
        bystander(
            "a pair at 10 Mbit/s beside a flooding sender",
            Load::Flood { rate: 10 },
            Under(1.0),
            None,
        ),
        bystander(
            "a pair at 10 Mbit/s beside a receiver that reads nothing",
            Load::Stall { rate: 10 },
            AtMost(0.0),
            Some(Row {
                label: "growth of memory, KiB",
                figure: Reading { run: 1, load: 0, number: GROWTH },
                beside: Beside::Derper(Reading { run: 0, load: 0, number: GROWTH }),
                bar: Value(AtMost(STALLED_RECEIVER_KIB)),
            }),
        ),
        Case {
            name: "300 Mbit/s right after an overload",
            runs: vec![run(Derpd, &[paced, flat_out, paced])],
            rows: vec![
                row(CPU_PER_PACKET, 0, Ratio(AtMost(EQUAL))).of_load(2).compared("before", 0, 0),
                row(LOST, 0, Value(AtMost(0.0))).of_load(2),
            ],
        },
        beside_derper(
            "real tailscaled clients, 100 MB through the tunnel",
            Load::Tunnel { megabytes: 100 },
            &[(("CPU per MB, ms", TUNNEL_CPU), Ratio(AtMost(0.5)))],
        ),
    ]
}

/// Derper and derpd under one load.
fn beside_derper(
    name: &'static str,
    load: Load,
    figures: &[((&'static str, &'static str), Bar)],
) -> Case {
    Case {
        name,
        runs: vec![run(Derper, &[load]), run(Derpd, &[load])],
        rows: figures
            .iter()
            .map(|&(figure, bar)| row(figure, 1, bar).compared_with_derper())
            .collect(),
    }
}

fn idle() -> Case {
    const WITHOUT: (&str, &str) = ("memory with no client, KiB", "rss_before_kib");
    const EACH: &str = "rss_kib_per_conn";
    const LEFT: &str = "rss_left_ratio";
    let silent = |subject, connections| run(subject, &[Load::Idle { connections }]);
    Case {
        name: "idle TLS connections",
        runs: vec![
            silent(Derper, 1000),
            silent(Derpd, 1000),
            silent(Derpd, 3000),
            silent(Derpd, 10_000),
        ],
        rows: vec![
            row(WITHOUT, 1, Value(AtMost(KIB_WITHOUT_CLIENT))).compared_with_derper(),
            row(("1,000: memory of each, KiB", EACH), 1, Value(AtMost(KIB_PER_CONNECTION)))
                .compared_with_derper(),
            row(("3,000: memory of each, KiB", EACH), 2, Value(AtMost(KIB_PER_CONNECTION))),
            row(("10,000: memory of each, KiB", EACH), 3, Value(AtMost(KIB_PER_CONNECTION))),
            row(("10,000: growth with the number", EACH), 3, Ratio(AtMost(EQUAL)))
                .compared("1,000", 1, 0),
            row(("1,000: memory after they left : before", LEFT), 1, Value(AtMost(BACK)))
                .compared_with_derper(),
            row(("3,000: memory after they left : before", LEFT), 2, Value(AtMost(BACK))),
            row(("10,000: memory after they left : before", LEFT), 3, Value(AtMost(BACK))),
        ],
    }
}

/// A well-behaved pair alone and beside one that is not, measured in one run of each server.
fn bystander(name: &'static str, load: Load, loss: Limit, further: Option<Row>) -> Case {
    const ALONE: &str = "pair_alone/p99_us";
    const BESIDE: &str = "pair_beside/p99_us";
    let p99 = row(("p99 of the pair : alone, µs", BESIDE), 1, Ratio(AtMost(2.0)));
    let mut rows = vec![
        row(("lost by the pair, %", "pair_beside/loss_pct"), 1, Value(loss)).compared_with_derper(),
        row(("median of the pair, µs", "pair_beside/p50_us"), 1, Bar::Nothing)
            .compared_with_derper(),
        row(("p99 of the pair, µs", BESIDE), 1, Bar::Nothing).compared_with_derper(),
        row(("p99 of the pair alone, µs", ALONE), 1, Bar::Nothing).compared_with_derper(),
        Row { beside: Beside::Itself("alone", reading(1, ALONE)), ..p99 },
    ];
    rows.extend(further);
    Case { name, runs: vec![run(Derper, &[load]), run(Derpd, &[load])], rows }
}

fn throughput(pairs: u32, bytes: u32, rate: Option<u32>) -> Load {
    Load::Throughput { pairs, bytes, rate, idle_connections: 0 }
}

fn run(subject: Subject, loads: &[Load]) -> Run {
    Run { subject, loads: loads.to_vec() }
}

/// A figure with its label and key, read from the first load of a run.
fn row((label, key): (&'static str, &'static str), run: usize, bar: Bar) -> Row {
    Row { label, figure: reading(run, key), beside: Beside::Nothing, bar }
}

impl Row {
    /// Reads the figure from a later load of its run.
    fn of_load(mut self, load: usize) -> Self {
        self.figure.load = load;
        self
    }

    /// Compares with the same figure of derper, which is what the first run measures.
    fn compared_with_derper(self) -> Self {
        let beside = Beside::Derper(Reading { run: 0, load: 0, ..self.figure });
        Self { beside, ..self }
    }

    /// Compares with the same figure of derpd in another run and load, named in words.
    fn compared(self, circumstances: &'static str, run: usize, load: usize) -> Self {
        let beside = Beside::Itself(circumstances, Reading { run, load, ..self.figure });
        Self { beside, ..self }
    }
}

fn reading(run: usize, key: &'static str) -> Reading {
    Reading { run, load: 0, number: Number::Of(key) }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_told_apart_and_every_reading_has_its_load() {
        let cases = cases();
        let names: HashSet<_> = cases.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), cases.len());
        for case in &cases {
            assert!(!case.rows.is_empty(), "{}", case.name);
            for row in &case.rows {
                for reading in row.readings() {
                    let loads = &case.runs[reading.run].loads;
                    assert!(reading.load < loads.len(), "{}: {}", case.name, row.label);
                }
            }
        }
    }

    #[test]
    fn sides_are_what_they_are_called() {
        for case in cases() {
            for row in &case.rows {
                assert_ne!(case.runs[row.figure.run].subject, Derper, "{}", case.name);
                match row.beside {
                    Beside::Nothing => assert!(!matches!(row.bar, Ratio(_)), "{}", case.name),
                    Beside::Derper(reading) => {
                        assert_eq!(case.runs[reading.run].subject, Derper, "{}", case.name);
                    }
                    Beside::Itself(_, reading) => {
                        assert_ne!(case.runs[reading.run].subject, Derper, "{}", case.name);
                    }
                }
            }
        }
    }
}
