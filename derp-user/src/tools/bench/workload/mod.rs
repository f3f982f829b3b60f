//! The workloads: which connections each needs, and what it reports.

mod contention;
mod idle;
mod storm;
mod throughput;

use std::time::Duration;

use super::{
    BenchError, Setting,
    arguments::Workload,
    dial::Connection,
    frames::Size,
    load::{Group, Peer, Sending},
    pace::Pace,
    report::Figures,
};

/// Runs a workload.
pub(super) fn run(setting: &Setting, workload: &Workload) -> Result<Figures, BenchError> {
    match *workload {
        Workload::Throughput { traffic, pairs, idle_connections } => {
            throughput::throughput(setting, traffic, pairs as usize, idle_connections as usize)
        }
        Workload::Latency { traffic, pairs } => {
            throughput::latency(setting, traffic, pairs as usize)
        }
        Workload::Idle { connections, warm_up, hold, settle } => {
            idle::run(setting, connections as usize, warm_up as usize, hold, settle)
        }
        Workload::Storm { connections, concurrency } => {
            storm::run(setting, connections as usize, concurrency as usize)
        }
        Workload::Flood(contention) => {
            contention::run(setting, contention, contention::Trouble::Flood)
        }
        Workload::Stall(contention) => {
            contention::run(setting, contention, contention::Trouble::Stall)
        }
    }
}

/// Opens this many connections; fewer are no good.
fn open_all(setting: &Setting, count: usize) -> Result<Vec<Connection>, BenchError> {
    let connections = super::dial::open(setting, count)?;
    if connections.len() < count { Err(BenchError::Interrupted) } else { Ok(connections) }
}

/// Takes the next two connections: a sender to the second, and the second as it is.
fn pair(
    connections: &mut impl Iterator<Item = Connection>,
    group: Group,
    size: Size,
    pace: Option<Pace>,
    stamped: bool,
) -> Option<(Peer, Connection)> {
    let (from, to) = (connections.next()?, connections.next()?);
    let sending = Sending::new(&to.key, size, pace, stamped);
    Some((Peer::sender(from, group, sending), to))
}

/// Probes: this long, this often.
const PROBE: Size = Size::Fixed(128);
const PROBE_INTERVAL: Duration = Duration::from_millis(1);
