//! Packets between pairs, and probes beside them.

use super::{PROBE, PROBE_INTERVAL, open_all, pair};
use crate::tools::bench::{
    BenchError, Setting,
    arguments::Traffic,
    dial::Connection,
    load::{self, Group, Peer},
    pace::Pace,
    report::{DelayFigures, Figures, LatencyReport, Load, Server, ThroughputReport},
};

/// Traffic between pairs, beside silent connections.
pub(super) fn throughput(
    setting: &Setting,
    traffic: Traffic,
    pairs: usize,
    idle_connections: usize,
) -> Result<Figures, BenchError> {
    let rss_before_kib = rss(setting)?;
    let mut connections = open_all(setting, 2 * pairs + idle_connections)?.into_iter();
    let mut threads = spread(setting, traffic, pairs, &mut connections);
    let count = threads.len();
    for (index, connection) in connections.enumerate() {
        threads[index % count].push(Peer::silent(connection));
    }
    let outcome = load::run(setting, "sending", threads, traffic.duration)?;
    Ok(Figures::Throughput(ThroughputReport {
        load: Load::new(traffic, pairs, &outcome),
        idle_connections,
        server: Server::new(rss_before_kib, &outcome, outcome.received()),
    }))
}

/// Probes between one more pair, on a thread of its own, beside the traffic of the others.
pub(super) fn latency(
    setting: &Setting,
    traffic: Traffic,
    pairs: usize,
) -> Result<Figures, BenchError> {
    let rss_before_kib = rss(setting)?;
    let mut connections = open_all(setting, 2 * pairs + 2)?.into_iter();
    let pace = Some(Pace::every(PROBE_INTERVAL));
    let (prober, target) =
        pair(&mut connections, Group::Watched, PROBE, pace, true).ok_or(BenchError::Interrupted)?;
    let mut threads = Vec::new();
    if pairs > 0 {
        threads = spread(setting, traffic, pairs, &mut connections);
    }
    threads.push(vec![prober, Peer::receiver(target, Group::Watched)]);
    let outcome = load::run(setting, "probing", threads, traffic.duration)?;
    Ok(Figures::Latency(LatencyReport {
        load: Load::new(traffic, pairs, &outcome),
        probes: outcome.of(Group::Watched).sent,
        answered: outcome.of(Group::Watched).received,
        delays: DelayFigures::of(outcome.of(Group::Watched)),
        server: Server::new(rss_before_kib, &outcome, outcome.received()),
    }))
}

/// The server's memory now, if its process is known.
fn rss(setting: &Setting) -> Result<Option<u64>, BenchError> {
    setting.process.map(|process| process.resident_kib()).transpose()
}

/// Spreads pairs over the generator's threads, the two of a pair on different ones.
fn spread(
    setting: &Setting,
    traffic: Traffic,
    pairs: usize,
    connections: &mut impl Iterator<Item = Connection>,
) -> Vec<Vec<Peer>> {
    let count = setting.threads.get().min(2 * pairs);
    let mut threads: Vec<Vec<Peer>> = (0..count).map(|_| Vec::new()).collect();
    for index in 0..pairs {
        let pace = traffic.rate.map(|rate| Pace::of_pair(rate, traffic.size.mean(), index, pairs));
        let Some((sender, receiver)) = pair(connections, Group::Load, traffic.size, pace, false)
        else {
            break;
        };
        threads[index % count].push(sender);
        threads[(index + 1) % count].push(Peer::receiver(receiver, Group::Load));
    }
    threads
}
