//! What is measured.

/// One kind of load, and what is read from the generator's answer.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// Mode and flags of the load generator.
    pub(super) arguments: &'static [&'static str],
    pub(super) figures: &'static [Figure],
}

impl Case {
    /// Whether the generator's mode runs for a given time.
    pub(super) fn takes_duration(&self) -> bool {
        self.arguments.first() != Some(&"idle")
    }
}

/// One number of the generator's answer.
pub(super) struct Figure {
    pub(super) key: &'static str,
    pub(super) label: &'static str,
    pub(super) better: Better,
}

/// Which direction is an improvement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Better {
    Less,
    More,
}

const fn less(key: &'static str, label: &'static str) -> Figure {
    Figure { key, label, better: Better::Less }
}

const DELIVERED: Figure =
    Figure { key: "recv_mbps", label: "delivered, Mbit/s", better: Better::More };
const LOSS: Figure = less("loss_pct", "lost, %");
const CPU_PER_PACKET: Figure = less("server_us_per_pkt", "CPU per delivered packet, µs");

const PACED: &[Figure] = &[CPU_PER_PACKET, LOSS];
const FLAT_OUT: &[Figure] = &[DELIVERED, LOSS, CPU_PER_PACKET];
const LATENCY: &[Figure] =
    &[less("p50_us", "median, µs"), less("p99_us", "p99, µs"), less("p999_us", "p99.9, µs")];
const IDLE: &[Figure] = &[
    less("rss_kib_per_conn", "memory per connection, KiB"),
    less("server_cpu_ms_per_conn", "CPU per connect, ms"),
];

/// The comparison, in the order of the report.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "10 pairs, 1400 B, 300 Mbit/s",
        arguments: &["throughput", "-pairs", "10", "-size", "1400", "-mbps", "300"],
        figures: PACED,
    },
    Case {
        name: "50 pairs, 600 B, 100 Mbit/s",
        arguments: &["throughput", "-pairs", "50", "-size", "600", "-mbps", "100"],
        figures: PACED,
    },
    Case {
        name: "10 pairs, 1400 B, flat out",
        arguments: &["throughput", "-pairs", "10", "-size", "1400"],
        figures: FLAT_OUT,
    },
    Case {
        name: "10 pairs, 128 B, flat out",
        arguments: &["throughput", "-pairs", "10", "-size", "128"],
        figures: FLAT_OUT,
    },
    Case {
        name: "1 pair, 1400 B, flat out",
        arguments: &["throughput", "-pairs", "1", "-size", "1400"],
        figures: FLAT_OUT,
    },
    Case {
        name: "latency beside 200 Mbit/s",
        arguments: &["latency", "-pairs", "10", "-mbps", "200"],
        figures: LATENCY,
    },
    Case { name: "latency, idle", arguments: &["latency", "-pairs", "0"], figures: LATENCY },
    Case { name: "1000 idle connections", arguments: &["idle", "-conns", "1000"], figures: IDLE },
];
