//! What a workload reports, as a JSON object with stable keys.

use std::time::Duration;

use serde::{Serialize, Serializer};

use super::{
    arguments::Traffic,
    frames::Size,
    load::{Group, Outcome},
    statistics::{Tally, per},
};

/// The result of one workload. Displays as the summary.
#[derive(Debug)]
pub struct Report(pub(super) Figures);

impl Report {
    /// The one JSON object that `--json` prints.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.0).expect("numbers and texts under texts can be written")
    }
}

/// The figures of each workload; their names are the keys of the JSON object.
#[derive(Debug, Serialize)]
#[serde(tag = "workload", rename_all = "lowercase")]
pub(super) enum Figures {
    Throughput(ThroughputReport),
    Latency(LatencyReport),
    Idle(IdleReport),
    Storm(StormReport),
    Flood(ContentionReport),
    Stall(ContentionReport),
}

/// Traffic between pairs.
#[derive(Debug, Serialize)]
pub(super) struct Load {
    pub(super) pairs: usize,
    #[serde(serialize_with = "size")]
    pub(super) size: Size,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offered_mbps: Option<f64>,
    pub(super) duration_s: f64,
    pub(super) sent: u64,
    pub(super) recv: u64,
    pub(super) loss_pct: f64,
    pub(super) recv_mbps: f64,
    pub(super) disconnected: u64,
    pub(super) client_cpu_s: f64,
    pub(super) client_us_per_pkt: f64,
}

impl Load {
    pub(super) fn new(traffic: Traffic, pairs: usize, outcome: &Outcome) -> Self {
        let tally = outcome.of(Group::Load);
        Self {
            pairs,
            size: traffic.size,
            offered_mbps: traffic.rate,
            duration_s: outcome.duration.as_secs_f64(),
            sent: tally.sent,
            recv: tally.received,
            loss_pct: tally.loss_percent(),
            recv_mbps: outcome.received_mbps(Group::Load),
            disconnected: outcome.disconnected(),
            client_cpu_s: outcome.client_cpu_s,
            client_us_per_pkt: outcome.client_us_per_packet(),
        }
    }
}

/// A fixed size is a number, the blend its name.
fn size<S: Serializer>(size: &Size, serializer: S) -> Result<S::Ok, S::Error> {
    match size {
        Size::Fixed(length) => serializer.serialize_u64(*length as u64),
        Size::Mixed => serializer.serialize_str("mixed"),
    }
}

/// What the server's process used during a load.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Server {
    pub(super) server_cpu_s: f64,
    pub(super) server_us_per_pkt: f64,
    pub(super) rss_before_kib: u64,
    pub(super) rss_kib: u64,
    pub(super) rss_peak_kib: u64,
}

impl Server {
    /// Nothing if the process is not known. It handled this many `packets`.
    pub(super) fn new(
        rss_before_kib: Option<u64>,
        outcome: &Outcome,
        packets: u64,
    ) -> Option<Self> {
        let used = outcome.server?;
        Some(Self {
            server_cpu_s: used.cpu_s,
            server_us_per_pkt: per(used.cpu_s * 1e6, packets as f64),
            rss_before_kib: rss_before_kib?,
            rss_kib: used.rss_kib,
            rss_peak_kib: used.rss_peak_kib,
        })
    }
}

/// Of `throughput`.
#[derive(Debug, Serialize)]
pub(super) struct ThroughputReport {
    #[serde(flatten)]
    pub(super) load: Load,
    pub(super) idle_connections: usize,
    #[serde(flatten)]
    pub(super) server: Option<Server>,
}

/// Delays in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct DelayFigures {
    pub(super) p50_us: f64,
    pub(super) p90_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    pub(super) max_us: f64,
}

impl DelayFigures {
    pub(super) fn of(tally: &Tally) -> Self {
        let quantile = |share| tally.delays.as_ref().map_or(0.0, |all| micros(all.quantile(share)));
        Self {
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: tally.delays.as_ref().map_or(0.0, |all| micros(all.longest())),
        }
    }
}

/// Of `latency`.
#[derive(Debug, Serialize)]
pub(super) struct LatencyReport {
    #[serde(flatten)]
    pub(super) load: Load,
    pub(super) probes: u64,
    pub(super) answered: u64,
    #[serde(flatten)]
    pub(super) delays: DelayFigures,
    #[serde(flatten)]
    pub(super) server: Option<Server>,
}

/// Of `idle`.
#[derive(Debug, Serialize)]
pub(super) struct IdleReport {
    pub(super) conns: usize,
    /// Clients that came and left before.
    pub(super) warm_up: usize,
    pub(super) connect_s: f64,
    pub(super) hold_s: f64,
    pub(super) settle_s: f64,
    pub(super) disconnected: u64,
    #[serde(flatten)]
    pub(super) server: Option<IdleServer>,
}

/// What the server's process used for connections that do nothing.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct IdleServer {
    pub(super) server_cpu_ms_per_conn: f64,
    /// Memory before anybody came; what each connection costs is measured from here.
    pub(super) rss_before_kib: u64,
    /// Memory after the first few have come and left.
    pub(super) rss_warm_kib: u64,
    pub(super) rss_after_kib: u64,
    pub(super) rss_kib_per_conn: f64,
    pub(super) rss_left_kib: u64,
    /// Memory after the connections have left, per memory after the first few had.
    pub(super) rss_left_ratio: f64,
}

/// Of `storm`.
#[derive(Debug, Serialize)]
pub(super) struct StormReport {
    pub(super) conns: u64,
    pub(super) concurrency: usize,
    pub(super) connect_s: f64,
    pub(super) connects_per_s: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
    pub(super) client_cpu_s: f64,
    #[serde(flatten)]
    pub(super) server: Option<StormServer>,
}

/// What the server's process used for clients that come and go.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct StormServer {
    pub(super) server_cpu_s: f64,
    pub(super) server_cpu_ms_per_conn: f64,
    pub(super) rss_before_kib: u64,
    pub(super) rss_kib: u64,
}

/// A pair that is watched.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PairFigures {
    pub(super) sent: u64,
    pub(super) recv: u64,
    pub(super) loss_pct: f64,
    #[serde(flatten)]
    pub(super) delays: DelayFigures,
}

impl PairFigures {
    pub(super) fn of(tally: &Tally) -> Self {
        Self {
            sent: tally.sent,
            recv: tally.received,
            loss_pct: tally.loss_percent(),
            delays: DelayFigures::of(tally),
        }
    }
}

/// Of `flood` and `stall`.
#[derive(Debug, Serialize)]
pub(super) struct ContentionReport {
    pub(super) rate_mbps: f64,
    pub(super) duration_s: f64,
    pub(super) pair_alone: PairFigures,
    pub(super) pair_beside: PairFigures,
    pub(super) flood_sent: u64,
    pub(super) flood_recv: u64,
    pub(super) flood_recv_mbps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stalled_sent: Option<u64>,
    pub(super) disconnected: u64,
    pub(super) client_cpu_s: f64,
    #[serde(flatten)]
    pub(super) server: Option<Server>,
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// Milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e6
}
