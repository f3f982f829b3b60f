//! What a well-behaved pair suffers from others.

use super::{open_all, pair};
use crate::tools::bench::{
    BenchError, Setting,
    arguments::Contention,
    frames::Size,
    load::{self, Group, Outcome, Peer},
    pace::Pace,
    report::{ContentionReport, Figures, PairFigures, Server},
};

/// What the others do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Trouble {
    /// One sends another as much as it can.
    Flood,
    /// The same, but the other one does not read.
    Stall,
}

/// Packets of the pair and of the flood.
const SIZE: Size = Size::Fixed(1400);

/// Measures the pair alone, and then, with new connections, beside the trouble.
pub(super) fn run(
    setting: &Setting,
    contention: Contention,
    trouble: Trouble,
) -> Result<Figures, BenchError> {
    let alone = measure(setting, contention, None, "the pair alone")?;
    let rss_before_kib = setting.process.map(|process| process.resident_kib()).transpose()?;
    let beside = match setting.stop.is_set() {
        true => return Err(BenchError::Interrupted),
        false => measure(setting, contention, Some(trouble), "the pair beside others")?,
    };
    let flood = beside.of(Group::Flood);
    let report = ContentionReport {
        rate_mbps: contention.rate,
        duration_s: beside.duration.as_secs_f64(),
        pair_alone: PairFigures::of(alone.of(Group::Watched)),
        pair_beside: PairFigures::of(beside.of(Group::Watched)),
        flood_sent: flood.sent,
        flood_recv: flood.received,
        flood_recv_mbps: beside.received_mbps(Group::Flood),
        stalled_sent: (trouble == Trouble::Stall).then_some(flood.sent),
        disconnected: beside.disconnected(),
        client_cpu_s: beside.client_cpu_s,
        // Few of the packets arrive, but all of them are work.
        server: Server::new(rss_before_kib, &beside, beside.sent()),
    };
    Ok(match trouble {
        Trouble::Flood => Figures::Flood(report),
        Trouble::Stall => Figures::Stall(report),
    })
}

fn measure(
    setting: &Setting,
    contention: Contention,
    trouble: Option<Trouble>,
    what: &str,
) -> Result<Outcome, BenchError> {
    let count = if trouble.is_some() { 4 } else { 2 };
    let mut connections = open_all(setting, count)?.into_iter();
    let pace = Some(Pace::of_pair(contention.rate, SIZE.mean(), 0, 1));
    let (sender, receiver) =
        pair(&mut connections, Group::Watched, SIZE, pace, true).ok_or(BenchError::Interrupted)?;
    // The pair has a thread of its own, so that it waits for nobody here.
    let mut threads = vec![vec![sender, Peer::receiver(receiver, Group::Watched)]];
    if let Some(trouble) = trouble
        && let Some((flooder, flooded)) = pair(&mut connections, Group::Flood, SIZE, None, false)
    {
        let flooded = match trouble {
            Trouble::Flood => Peer::receiver(flooded, Group::Flood),
            Trouble::Stall => Peer::stalled(flooded, Group::Flood),
        };
        threads.push(vec![flooder, flooded]);
    }
    load::run(setting, what, threads, contention.duration)
}
