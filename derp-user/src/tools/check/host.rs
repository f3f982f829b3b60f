//! What the machine offers.

use std::{fs, path::Path};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Report, files::here};
use crate::{
    dataplane::{Pin, fit::OLDEST_KERNEL, object_hash},
    privilege::{Capability, Held, kernel_version},
};

pub(super) fn kernel(report: &mut Report) {
    let release = setting("osrelease").unwrap_or_default();
    let text = format!("Linux {release}");
    if kernel_version(&release).is_some_and(|version| version >= OLDEST_KERNEL) {
        report.ok("kernel", text);
    } else {
        report.problem(
            "kernel",
            text,
            Some("Linux 5.9 or later is needed for links that can be pinned"),
        );
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        report.ok("kernel", "BTF is there (types in bpftool's output)".to_owned());
    } else {
        report.note("kernel", "no BTF; derpd does without, bpftool shows no types".to_owned());
    }
    // Whoever has CAP_BPF is not concerned, but that is worth saying.
    let text = match setting("unprivileged_bpf_disabled").as_deref() {
        Some("0") => {
            "kernel.unprivileged_bpf_disabled = 0: anybody may load BPF programs; 2 is safer"
        }
        Some("1") => "kernel.unprivileged_bpf_disabled = 1: BPF needs CAP_BPF, until the next boot",
        Some("2") => "kernel.unprivileged_bpf_disabled = 2: BPF needs CAP_BPF",
        Some(_) | None => "kernel.unprivileged_bpf_disabled cannot be read",
    };
    report.note("kernel", text.to_owned());
}

pub(super) fn program(report: &mut Report) {
    match object_hash() {
        Some(hash) => report.ok("program", format!("XDP program {hash} is in this derpd")),
        None => report.problem(
            "program",
            "this derpd was built without its XDP program".to_owned(),
            Some("build it again after `cargo xtask build-ebpf`"),
        ),
    }
}

pub(super) fn capabilities(report: &mut Report) {
    let held = Held::read();
    for capability in Capability::ALL {
        let (name, purpose) = (capability.as_str(), capability.purpose());
        if held.has(capability) {
            report.ok("rights", format!("{name}: {purpose}"));
        } else if Capability::KERNEL.contains(&capability) {
            report.problem(
                "rights",
                format!("{name} is missing: {purpose}"),
                Some("run as root, or give it to derpd (systemd: AmbientCapabilities=)"),
            );
        } else {
            report.note("rights", format!("{name} is missing: {purpose}"));
        }
    }
}

/// Where the kernel data plane is to stay when derpd ends. Where nobody has named a place, a relay does without.
pub(super) fn file_system(report: &mut Report, pin: &Pin) {
    let Pin::Directory { path: pin, is_required } = pin else {
        return report.ok("bpffs", "-xdp-pin=off: nothing is pinned".to_owned());
    };
    let place = if pin.exists() { Some(pin.as_path()) } else { pin.parent() };
    let Some(place) = place.map(here) else { return };
    let text = place.display();
    match statfs(&place) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
            report.ok("bpffs", format!("{text} is on a BPF file system"));
        }
        Ok(_) | Err(nix::errno::Errno::ENOENT) if !is_required => report.note(
            "bpffs",
            format!(
                "{text} is on no BPF file system: nothing is pinned, and the kernel data plane ends with derpd; `mount -t \
                 bpf bpf /sys/fs/bpf` mounts one"
            ),
        ),
        Ok(_) | Err(nix::errno::Errno::ENOENT) => report.problem(
            "bpffs",
            format!("{text} is on no BPF file system: nothing can be pinned there"),
            Some("`mount -t bpf bpf /sys/fs/bpf` mounts one; -xdp-pin=off does without"),
        ),
        Err(errno) => report.problem(
            "bpffs",
            format!("{text} cannot be reached: {}", errno.desc()),
            Some("ask as root, or as the user that derpd runs as"),
        ),
    }
}

/// Reads a `kernel.*` setting.
fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
    Some(text.trim().to_owned())
}
