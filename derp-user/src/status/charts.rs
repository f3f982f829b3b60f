//! Which series are drawn together, on the page and in the terminal.

use super::words;

/// What the numbers of a chart are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unit {
    /// Bytes by the second, shown as bits by the second.
    Bits,
    /// Something by the second.
    Rate,
    /// A number of things.
    Count,
    /// Percent of one processor.
    Percent,
    /// Bytes.
    Bytes,
}

/// One chart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chart {
    /// What is at its top.
    pub title: &'static str,
    /// What its numbers are.
    pub unit: Unit,
    /// Its lines: the name of a series, and what it is called.
    pub lines: &'static [(&'static str, &'static str)],
}

impl Unit {
    /// Its word in the page, for the script.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bits => "bits",
            Self::Rate => "rate",
            Self::Count => "count",
            Self::Percent => "percent",
            Self::Bytes => "bytes",
        }
    }

    /// A value in words.
    pub fn words(self, value: f64) -> String {
        match self {
            Self::Bits => words::bits(value),
            Self::Rate => words::rate(value),
            Self::Count => words::number(value),
            Self::Percent => format!("{value:.1} %"),
            Self::Bytes => words::bytes(value as u64),
        }
    }
}

/// Every chart, in its order.
pub const CHARTS: [Chart; 9] = [
    Chart {
        title: "Throughput",
        unit: Unit::Bits,
        lines: &[("bytes_received", "from clients"), ("bytes_sent", "to clients")],
    },
    Chart {
        title: "Packets",
        unit: Unit::Rate,
        lines: &[
            ("packets_received", "from clients"),
            ("packets_sent", "to clients"),
            ("packets_forwarded_in", "from the mesh"),
            ("packets_forwarded_out", "to the mesh"),
        ],
    },
    Chart {
        title: "Drops by reason",
        unit: Unit::Rate,
        lines: &[
            ("dropped_queue_head", "queue full: oldest"),
            ("dropped_queue_tail", "queue full: newest"),
            ("dropped_unknown_dest", "unknown destination"),
            ("dropped_unknown_dest_on_fwd", "the same, by the mesh"),
            ("dropped_gone_disconnected", "just disconnected"),
            ("dropped_write_error", "write failed"),
            ("dropped_dup_client", "no active connection"),
            ("dropped_by_xdp", "XDP: limits, unknown flows"),
        ],
    },
    Chart {
        title: "Connections",
        unit: Unit::Count,
        lines: &[
            ("connections", "connections"),
            ("clients_remote", "keys at mesh peers"),
            ("mesh_links", "mesh links"),
        ],
    },
    Chart {
        title: "Handshakes",
        unit: Unit::Rate,
        lines: &[
            ("tls_accepted", "TCP for TLS"),
            ("derp_accepts", "DERP"),
            ("tls_handshake_failures", "TLS failed"),
            ("tls_rejected", "over the accept limit"),
        ],
    },
    Chart {
        title: "STUN answers",
        unit: Unit::Rate,
        lines: &[("stun_kernel", "kernel"), ("stun_userspace", "userspace")],
    },
    Chart {
        title: "Packets of UDP flows",
        unit: Unit::Rate,
        lines: &[("flow_packets_kernel", "kernel"), ("flow_packets_userspace", "userspace")],
    },
    Chart { title: "Processor", unit: Unit::Percent, lines: &[("cpu", "of one processor")] },
    Chart { title: "Memory", unit: Unit::Bytes, lines: &[("memory", "resident")] },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::SERIES;

    #[test]
    fn every_line_is_a_series() {
        for chart in CHARTS {
            assert!(!chart.lines.is_empty() && chart.lines.len() <= 8, "{}: colours", chart.title);
            for (name, _) in chart.lines {
                let series = SERIES.iter().find(|series| series.name == *name).expect(name);
                assert_eq!(series.is_rate, !matches!(chart.unit, Unit::Count | Unit::Bytes));
            }
        }
        let drawn = |name| CHARTS.iter().flat_map(|it| it.lines).any(|(line, _)| *line == name);
        for series in SERIES.iter().filter(|series| series.name.starts_with("dropped_")) {
            assert!(drawn(series.name), "{} is not drawn", series.name);
        }
    }

    #[test]
    fn values_have_the_unit_of_their_chart() {
        let value = |unit: Unit| unit.words(1500.0);
        let units = [Unit::Bits, Unit::Rate, Unit::Count, Unit::Percent, Unit::Bytes];
        let expected = ["12.0 kbit/s", "1.50 k/s", "1.50 k", "1500.0 %", "1.50 kB"];
        assert_eq!(units.map(value), expected);
    }
}
