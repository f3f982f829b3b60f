//! What relaying between two real clients costs the relay's host: `cargo xtask bench --peer-relay`.

mod contestant;
mod load;
mod processors;
mod table;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

pub(super) use self::processors::{of as processor_of, pin};
use self::{
    contestant::{Contestant, Relays, Running},
    load::{Kind, Load},
    processors::{Busy, pin_receivers, prepare_links},
    table::{Sample, Table},
};
use super::{
    Programs, cpu_times,
    lab::{Host, Lab, say},
};

/// Before a measurement, its traffic is on its way for so long.
const WARM_UP: Duration = Duration::from_secs(1);

/// How it is measured.
pub(crate) struct Options<'a> {
    pub(crate) derpd: &'a Path,
    pub(crate) derper: &'a Path,
    /// Every contestant runs in each of them, in turns.
    pub(crate) rounds: u32,
    /// How long each load lasts.
    pub(crate) load: Duration,
    /// The least time between two "interrupts" of an interface; with 0, one for each packet that finds nobody at work.
    pub(crate) moderation: Duration,
    /// Only contestants whose name contains it.
    pub(crate) only: Option<&'a str>,
}

/// Measures, and returns tables in Markdown.
pub(crate) fn compare(options: &Options<'_>) -> Result<String> {
    let processors = std::thread::available_parallelism().context("counting processors")?.get();
    ensure!(processors > processor_of(Host::Relay), "a processor for each side is needed");
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    let programs = Programs::build()?;
    let relays = Relays { derpd: options.derpd, derper: options.derper };
    let wanted = |it: &Contestant| options.only.is_none_or(|only| it.to_string().contains(only));
    let mut table = Table::default();
    for round in 1..=options.rounds {
        for contestant in Contestant::ALL.into_iter().filter(wanted) {
            say(&format!("round {round}: {contestant}"));
            let result = run(contestant, &relays, &programs, options);
            for (kind, sample) in result.with_context(|| contestant.to_string())? {
                say(&format!("{kind:?}: {sample}"));
                table.add(contestant, kind, sample);
            }
        }
    }
    Ok(table.to_string())
}

fn run(
    contestant: Contestant,
    relays: &Relays<'_>,
    programs: &Programs,
    options: &Options<'_>,
) -> Result<Vec<(Kind, Sample)>> {
    let lab = Lab::build_pinned().context("building the network")?;
    prepare_links(&lab, options.moderation)?;
    let mut running = Running::start(&lab, contestant, relays, programs)?;
    let receivers = pin_receivers()?;
    ensure!(receivers.len() == 2, "{} threads receive for 2 interfaces", receivers.len());
    let (mut samples, mut bytes) = (Vec::new(), 0);
    for kind in [Kind::Bulk, Kind::Flows] {
        let load = Load::start(&lab, kind, &running.right, &running.left)?;
        std::thread::sleep(WARM_UP);
        let spent = || Ok::<_, anyhow::Error>([running.cpu_time()?, cpu_times(&receivers)?]);
        let (start, received, before) = (Instant::now(), load.received(), spent()?);
        let busy = [Busy::start(Host::Relay)?, Busy::start(Host::Left)?];
        std::thread::sleep(options.load);
        let (elapsed, received, after) = (start.elapsed(), load.received() - received, spent()?);
        let busy = [busy[0].stop()?, busy[1].stop()?];
        let pings = load.finish()?;
        bytes += received;
        let times = [after[0].saturating_sub(before[0]), after[1].saturating_sub(before[1])];
        samples.push((kind, Sample::new(received, elapsed, times, busy, &pings)));
    }
    running.check(&lab, contestant, bytes)?;
    Ok(samples)
}
