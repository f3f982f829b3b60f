//! What relaying between two real clients costs the relay's host: `cargo xtask bench --peer-relay`.

mod contestant;
mod load;
mod polls;
mod table;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::{SysconfVar, sysconf};

use self::{
    contestant::{Contestant, Relays, Running},
    load::{Kind, Load},
    polls::Polls,
    table::{Sample, Table},
};
use super::{
    Programs, cpu_times,
    lab::{Host, Lab, relay_interface, say},
};
use crate::ebpf;

/// Before a measurement, its traffic is on its way for so long.
const WARM_UP: Duration = Duration::from_secs(1);

/// What the names of the relay's interfaces begin with, and no other's.
const RELAY_INTERFACES: &str = "to-";

/// How it is measured.
pub(crate) struct Options<'a> {
    pub(crate) derpd: &'a Path,
    pub(crate) derper: &'a Path,
    /// Every contestant runs in each of them, in turns.
    pub(crate) rounds: u32,
    /// How long each load lasts.
    pub(crate) load: Duration,
    /// Whether the relay's interfaces take merged packets, as of a card that cuts them itself.
    pub(crate) segmentation_offload: bool,
    /// Only contestants whose name contains it.
    pub(crate) only: Option<&'a str>,
}

/// Measures, and returns tables in Markdown.
pub(crate) fn compare(options: &Options<'_>) -> Result<String> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    let programs = Programs::build()?;
    let relays = Relays { derpd: options.derpd, derper: options.derper };
    let wanted = |it: &Contestant| options.only.is_none_or(|only| it.to_string().contains(only));
    let polls = Polls::start()?;
    let mut table = Table::default();
    for round in 1..=options.rounds {
        for contestant in Contestant::ALL.into_iter().filter(wanted) {
            say(&format!("round {round}: {contestant}"));
            let result = run(contestant, &relays, &programs, &polls, options);
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
    polls: &Polls,
    options: &Options<'_>,
) -> Result<Vec<(Kind, Sample)>> {
    let lab = Lab::build().context("building the network")?;
    prepare_links(&lab, contestant, options.segmentation_offload)?;
    let mut running = Running::start(&lab, contestant, relays, programs)?;
    let (mut samples, mut bytes) = (Vec::new(), 0);
    for kind in [Kind::Bulk, Kind::Flows] {
        let load = Load::start(&lab, kind, &running.right, &running.left)?;
        std::thread::sleep(WARM_UP);
        let start = Instant::now();
        let before = Spent::until_now(&running, polls)?;
        let received = load.received();
        std::thread::sleep(options.load);
        let received = load.received() - received;
        let spent = Spent::until_now(&running, polls)?.since(&before);
        let elapsed = start.elapsed();
        let pings = load.finish()?;
        bytes += received;
        samples.push((kind, Sample::new(received, elapsed, spent, &pings)));
    }
    running.check(&lab, contestant, bytes)?;
    Ok(samples)
}

/// Processor time.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    /// Of the relay's processes, without what the kernel received meanwhile.
    processes: Duration,
    /// Of the kernel, receiving for the relay's interfaces.
    receiving: Duration,
    /// Of the whole machine.
    machine: Duration,
}

impl Spent {
    fn until_now(running: &Running<'_>, polls: &Polls) -> Result<Self> {
        let times = polls.times()?;
        let processes = running.processes();
        Ok(Self {
            processes: cpu_times(processes)?.saturating_sub(times.within(processes)),
            receiving: times.of_interfaces(RELAY_INTERFACES),
            machine: busy()?,
        })
    }

    fn since(self, before: &Self) -> Self {
        Self {
            processes: self.processes.saturating_sub(before.processes),
            receiving: self.receiving.saturating_sub(before.receiving),
            machine: self.machine.saturating_sub(before.machine),
        }
    }
}

/// Makes the links like those between machines: packets have the size they have on a wire, and are merged where they
/// arrive. With `segmentation_offload` the relay may send merged ones, unless they come from the kernel program.
fn prepare_links(lab: &Lab, contestant: Contestant, segmentation_offload: bool) -> Result<()> {
    lab.send_checksums()?;
    if !segmentation_offload || contestant.xdp_mode() == Some("native") {
        // It keeps merged packets away, too.
        lab.accept_native_xdp(&ebpf::pass_program()?)?;
    }
    for client in [Host::Left, Host::Right] {
        let interface = relay_interface(client);
        lab.set_feature(client, "eth0", "gro", true)?;
        lab.set_feature(Host::Relay, &interface, "gro", true)?;
        for feature in ["tso", "tx-udp-segmentation"] {
            lab.set_feature(Host::Relay, &interface, feature, segmentation_offload)?;
        }
    }
    Ok(())
}

/// Returns for how long the machine's processors were not idle, did not wait for a disk, and were not taken by another
/// virtual machine.
fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let [user, nice, system, _, _, interrupts, soft_interrupts, ..] = fields[..] else {
        bail!("/proc/stat has too few numbers: {line}");
    };
    let ticks = sysconf(SysconfVar::CLK_TCK).context("asking for clock ticks")?;
    let ticks = ticks.context("the system has no clock ticks")?;
    let busy = user + nice + system + interrupts + soft_interrupts;
    Ok(Duration::from_secs_f64(busy as f64 / ticks as f64))
}
