//! The engine: connections that send and receive, spread over threads, for a while.
//!
//! A thread drives its connections with one epoll loop ([`worker`]). Senders take turns: each encrypts a
//! bounded number of frames, every one in a TLS record of its own, and writes them with one system call. A
//! receiver decrypts what one read brings and looks at the frames' headers only ([`skim`]).

mod peer;
mod skim;
mod timer;
mod worker;

use std::{
    thread,
    time::{Duration, Instant},
};

pub(super) use self::peer::{Group, Peer, Sending};
use super::{
    BenchError, Setting,
    process::own_cpu_seconds,
    statistics::{Tally, per},
};

/// How long packets may still arrive after the last one was sent.
pub(super) const DRAIN: Duration = Duration::from_millis(300);
/// How long threads have to get ready.
const LEAD: Duration = Duration::from_millis(20);
/// How often the server's memory is looked at.
const SAMPLE: Duration = Duration::from_millis(100);

/// When a load begins and how long packets are sent.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    begin: Instant,
    duration: Duration,
    /// Nobody sends as much as the server takes, so that it does not matter when exactly data is read.
    paced: bool,
}

/// What a load came to.
#[derive(Debug)]
pub(super) struct Outcome {
    tallies: Tallies,
    begin: Instant,
    /// How long packets were sent; shorter than asked for if the end came early.
    pub(super) duration: Duration,
    /// Processor seconds of the generator.
    pub(super) client_cpu_s: f64,
    /// What the server used, if its process is known.
    pub(super) server: Option<ServerUse>,
}

/// What the server's process used during a load.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerUse {
    /// Processor seconds.
    pub(super) cpu_s: f64,
    /// Resident memory when the load ended.
    pub(super) rss_kib: u64,
    /// Most resident memory seen.
    pub(super) rss_peak_kib: u64,
}

impl Outcome {
    /// What the packets of one group came to.
    pub(super) fn of(&self, group: Group) -> &Tally {
        &self.tallies.0[group as usize]
    }

    /// Mbit/s of packets of a group that arrived, over the time in which they did.
    pub(super) fn received_mbps(&self, group: Group) -> f64 {
        let tally = self.of(group);
        let until_last = tally.last_received.map(|last| last.saturating_duration_since(self.begin));
        tally.received_mbps(self.duration.max(until_last.unwrap_or_default()))
    }

    /// Packets of all groups that were sent.
    pub(super) fn sent(&self) -> u64 {
        self.tallies.0.iter().map(|tally| tally.sent).sum()
    }

    /// Packets of all groups that arrived.
    pub(super) fn received(&self) -> u64 {
        self.tallies.0.iter().map(|tally| tally.received).sum()
    }

    /// Connections that ended before their time.
    pub(super) fn disconnected(&self) -> u64 {
        self.tallies.0.iter().map(|tally| tally.disconnected).sum()
    }

    /// The generator's processor time per packet that arrived, in microseconds.
    pub(super) fn client_us_per_packet(&self) -> f64 {
        per(self.client_cpu_s * 1e6, self.received() as f64)
    }
}

/// One tally per group.
#[derive(Clone, Debug, Default)]
struct Tallies([Tally; Group::COUNT]);

impl Tallies {
    fn of(&mut self, group: Group) -> &mut Tally {
        &mut self.0[group as usize]
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(sum, tally)| sum.add(tally));
    }
}

/// Runs the connections of each element of `threads` on a thread of their own, and lets senders send
/// for `duration`.
pub(super) fn run(
    setting: &Setting,
    what: &str,
    threads: Vec<Vec<Peer>>,
    duration: Duration,
) -> Result<Outcome, BenchError> {
    let server_cpu = setting.process.map(|process| process.cpu_seconds()).transpose()?;
    let client_cpu = own_cpu_seconds()?;
    setting.progress.begin_time(what, duration + DRAIN);
    let paced = !threads.iter().flatten().any(Peer::is_free);
    let schedule = Schedule { begin: Instant::now() + LEAD, duration, paced };
    let (tallies, peers, memory, duration) = thread::scope(|scope| {
        let spawned: Vec<_> = threads
            .into_iter()
            .map(|peers| scope.spawn(|| worker::run(peers, schedule, &setting.stop)))
            .collect();
        let watched =
            watch(setting, schedule, || spawned.iter().all(|thread| thread.is_finished()));
        let (mut tallies, mut peers) = (Tallies::default(), Vec::new());
        for thread in spawned {
            let (tally, still_connected) = thread.join().unwrap_or(Err(BenchError::Thread))?;
            tallies.add(&tally);
            peers.extend(still_connected);
        }
        let (memory, duration) = watched?;
        Ok::<_, BenchError>((tallies, peers, memory, duration))
    })?;
    let client_cpu_s = own_cpu_seconds()? - client_cpu;
    let server = match (setting.process, server_cpu, memory) {
        (Some(process), Some(before), Some((rss_kib, rss_peak_kib))) => {
            Some(ServerUse { cpu_s: process.cpu_seconds()? - before, rss_kib, rss_peak_kib })
        }
        _ => None,
    };
    // Only now: that thousands of connections end is work, but not the work that was measured.
    peers.into_iter().for_each(Peer::close);
    Ok(Outcome { tallies, begin: schedule.begin, duration, client_cpu_s, server })
}

/// Memory of the server at the end of the load, and the most that was seen.
type Memory = Option<(u64, u64)>;

/// Looks at the server's memory and moves the progress bar, until the threads are done. Returns what
/// was seen, and how long packets were sent.
fn watch(
    setting: &Setting,
    schedule: Schedule,
    done: impl Fn() -> bool,
) -> Result<(Memory, Duration), BenchError> {
    let end = schedule.begin + schedule.duration;
    let mut memory = None;
    let mut sample = |at_end: bool| -> Result<(), BenchError> {
        if let Some(process) = setting.process {
            let now = process.resident_kib()?;
            let (last, most) = memory.unwrap_or_default();
            memory = Some((if at_end { now } else { last }, now.max(most)));
        }
        Ok(())
    };
    loop {
        sample(false)?;
        setting.progress.at(schedule.begin.elapsed());
        let now = Instant::now();
        if setting.stop.sleep_until(end.min(now + SAMPLE)) || now + SAMPLE >= end {
            break;
        }
    }
    let duration = schedule.begin.elapsed().min(schedule.duration);
    sample(true)?;
    while !done() {
        thread::sleep(SAMPLE / 10);
        sample(false)?;
        setting.progress.at(schedule.begin.elapsed());
    }
    Ok((memory, duration))
}
