//! What a case consists of: loads on servers, and figures read from what the generator answers.

use std::fmt;

/// Some loads, and the figures that come of them.
pub(super) struct Case {
    pub(super) name: &'static str,
    /// In every round all of them are run, in this order, each on a server process of its own.
    pub(super) runs: Vec<Run>,
    pub(super) rows: Vec<Row>,
}

impl Case {
    /// Returns every load of every run.
    pub(super) fn loads(&self) -> impl Iterator<Item = Load> {
        self.runs.iter().flat_map(|run| &run.loads).copied()
    }
}

/// Loads one after the other on one server process.
pub(super) struct Run {
    pub(super) subject: Subject,
    pub(super) loads: Vec<Load>,
}

/// The server under load.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Subject {
    Derper,
    Derpd,
    /// derpd with so many threads that relay.
    DerpdWithWorkers(u32),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Derper => f.write_str("derper"),
            Self::Derpd => f.write_str("derpd"),
            Self::DerpdWithWorkers(count) => write!(f, "derpd -workers={count}"),
        }
    }
}

/// One call of a load generator, in no generator's words. Rates are offered Mbit/s in total.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Load {
    /// Pairs of sender and receiver, flat out without a rate, beside silent connections.
    Throughput { pairs: u32, bytes: u32, rate: Option<u32>, idle_connections: u32 },
    /// Probes beside the traffic of some pairs.
    Latency { pairs: u32, rate: Option<u32> },
    /// Silent connections that come and go.
    Idle { connections: u32 },
    /// Connections that log in and leave at once.
    Storm { connections: u32 },
    /// A well-behaved pair alone, and then beside a sender that floods another receiver.
    Flood { rate: u32 },
    /// A well-behaved pair alone, and then beside a flooded receiver that reads nothing.
    Stall { rate: u32 },
    /// A file of so many million bytes between two real Tailscale clients.
    Tunnel { megabytes: u32 },
}

impl Load {
    /// Returns how many connections it holds at once.
    pub(super) fn connections(self) -> u32 {
        match self {
            Self::Throughput { pairs, idle_connections, .. } => 2 * pairs + idle_connections,
            Self::Latency { pairs, .. } => 2 * (pairs + 1),
            Self::Idle { connections } | Self::Storm { connections } => connections,
            Self::Flood { .. } | Self::Stall { .. } => 4,
            Self::Tunnel { .. } => 2,
        }
    }
}

/// One figure of a case.
pub(super) struct Row {
    pub(super) label: &'static str,
    pub(super) figure: Reading,
    pub(super) beside: Beside,
    pub(super) bar: Bar,
}

impl Row {
    /// Returns everything that is read for it.
    pub(super) fn readings(&self) -> impl Iterator<Item = Reading> {
        std::iter::once(self.figure).chain(self.beside.reading())
    }
}

/// Where a figure is found in a round's answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    /// Index among the case's runs.
    pub(super) run: usize,
    /// Index among the run's loads.
    pub(super) load: usize,
    pub(super) number: Number,
}

/// A number of one answer, which is a JSON object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    /// The value of a key; slashes lead into objects in it.
    Of(&'static str),
    /// By how much the second is more than the first.
    Growth(&'static str, &'static str),
}

impl Number {
    /// Returns the keys it is made of.
    pub(super) fn keys(self) -> impl Iterator<Item = &'static str> {
        let (first, second) = match self {
            Self::Of(key) => (key, None),
            Self::Growth(before, after) => (before, Some(after)),
        };
        std::iter::once(first).chain(second)
    }
}

/// What a figure is compared with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Beside {
    Nothing,
    /// The same of derper.
    Derper(Reading),
    /// derpd itself under other circumstances, in words.
    Itself(&'static str, Reading),
}

impl Beside {
    /// Returns the reading of the other side.
    pub(super) fn reading(self) -> Option<Reading> {
        match self {
            Self::Nothing => None,
            Self::Derper(reading) | Self::Itself(_, reading) => Some(reading),
        }
    }
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    Nothing,
    /// The figure itself.
    Value(Limit),
    /// The figure divided by what is beside it.
    Ratio(Limit),
}

/// A limit of a bar.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    AtLeast(f64),
    AtMost(f64),
    Under(f64),
}

impl Limit {
    /// Whether `value` keeps to it.
    pub(super) fn allows(self, value: f64) -> bool {
        match self {
            Self::AtLeast(limit) => value >= limit,
            Self::AtMost(limit) => value <= limit,
            Self::Under(limit) => value < limit,
        }
    }
}
