//! One processor for the relay's host and one for the clients', so that each side's work can be told apart.
//!
//! What a relay costs is not only what its process spends: receiving, forwarding in the kernel and handing a packet to
//! the network card happen in interrupts, which are charged to whoever runs at that time, and on a pair of virtual
//! interfaces to the sender of the packet. So every process of a host runs on the host's own processor, and so does
//! what its interfaces receive: that is done by kernel threads (threaded NAPI), which can be pinned, and whose time the
//! kernel counts. What a relay costs is then the time of its processes and of those threads, whatever else the machine
//! does.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};

use super::super::lab::{Host, Lab, relay_interface};

/// Returns the number of a host's processor.
pub(in crate::e2e) fn of(host: Host) -> usize {
    match host {
        Host::Relay => 1,
        Host::Left | Host::Right => 0,
    }
}

/// Has a thread, or with 0 this one, run on a host's processor only.
pub(in crate::e2e) fn pin(thread: i32, host: Host) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(of(host)).context("choosing a processor")?;
    sched_setaffinity(Pid::from_raw(thread), &set).context("pinning a thread to a processor")
}

/// Makes the links like those between machines: packets have the size they have on a wire, and what arrives is merged
/// and received by threads that can be pinned. A thread that has received waits for `moderation` before it may be woken
/// again, as a network card waits before its next interrupt.
pub(super) fn prepare_links(lab: &Lab, moderation: Duration) -> Result<()> {
    lab.send_checksums()?;
    for (host, interface) in interfaces() {
        lab.command(host, Path::new("ethtool"))
            .args(["-K", &interface, "gro", "on"])
            .output()
            .context("running ethtool")?;
        let is_moderated = u8::from(!moderation.is_zero());
        let settings = [
            ("threaded", "1".to_owned()),
            ("napi_defer_hard_irqs", is_moderated.to_string()),
            ("gro_flush_timeout", moderation.as_nanos().to_string()),
        ];
        for (name, value) in settings {
            let file = format!("/sys/class/net/{interface}/{name}");
            let status = lab
                .command(host, Path::new("sh"))
                .args(["-c", "echo \"$1\" >\"$2\"", "sh", &value, &file])
                .status()
                .context("running a shell")?;
            ensure!(status.success(), "{interface} does not take {name}");
        }
    }
    Ok(())
}

/// Pins the threads that receive for the interfaces; returns the ids of those of the relay's host.
pub(super) fn pin_receivers() -> Result<Vec<u32>> {
    let mut of_relay = Vec::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let path = entry.context("reading /proc")?.path();
        let id = path.file_name().and_then(|it| it.to_str()).and_then(|it| it.parse::<i32>().ok());
        let (Some(id), Ok(name)) = (id, fs::read_to_string(path.join("comm"))) else { continue };
        // Names are cut after 15 characters.
        let host = interfaces().into_iter().find(|(_, interface)| {
            name.strip_prefix("napi/")
                .is_some_and(|name| name.starts_with(&format!("{interface}-")))
        });
        if let Some((host, _)) = host {
            pin(id, host)?;
            if matches!(host, Host::Relay) {
                of_relay.push(id.unsigned_abs());
            }
        }
    }
    Ok(of_relay)
}

fn interfaces() -> [(Host, String); 4] {
    [
        (Host::Relay, relay_interface(Host::Left)),
        (Host::Relay, relay_interface(Host::Right)),
        (Host::Left, "eth0".to_owned()),
        (Host::Right, "eth0".to_owned()),
    ]
}

/// Measures for how long a host's processor has not been idle.
pub(super) struct Busy {
    host: Host,
    start: Instant,
    unused: Duration,
}

impl Busy {
    pub(super) fn start(host: Host) -> Result<Self> {
        Ok(Self { host, start: Instant::now(), unused: unused(of(host))? })
    }

    /// Returns how much of the time since the start the processor has worked.
    pub(super) fn stop(&self) -> Result<Duration> {
        let unused = unused(of(self.host))?.saturating_sub(self.unused);
        Ok(self.start.elapsed().saturating_sub(unused))
    }
}

/// Returns how long a processor was idle, waited for a disk, or was taken by another virtual machine. Unlike the time
/// at work in the same file, which is counted by what runs at each tick of the clock, this is exact.
fn unused(processor: usize) -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let name = format!("cpu{processor} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    let line = line.with_context(|| format!("there is no processor {processor}"))?;
    let fields: Vec<u64> = line.split_whitespace().filter_map(|it| it.parse().ok()).collect();
    let [_, _, _, idle, waiting, _, _, stolen, ..] = fields[..] else {
        anyhow::bail!("/proc/stat has too few numbers: {line}");
    };
    let ticks = sysconf(SysconfVar::CLK_TCK).context("asking for clock ticks")?;
    let ticks = ticks.context("the system has no clock ticks")?;
    Ok(Duration::from_secs_f64((idle + waiting + stolen) as f64 / ticks as f64))
}
