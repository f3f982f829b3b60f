//! The capabilities derpd needs, which of them this process has, and giving the rest up; with the files and system
//! calls it does not need, see [`enter`].

mod calls;
mod files;
mod sandbox;

use std::{collections::HashSet, fs, io};

use caps::{CapSet, Capability as Name, CapsHashSet};
use nix::sys::prctl;

pub use self::{
    files::Files,
    sandbox::{Layer, Needs, Sandbox, enter, seal_memory},
};

/// A capability derpd has a use for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Capability {
    /// Creates maps and loads programs.
    Bpf,
    /// Attaches to interfaces, and keeps neighbour entries fresh.
    NetAdmin,
    /// Lets a program compute with packet pointers.
    Perfmon,
    /// Binds ports below 1024.
    NetBindService,
}

impl Capability {
    /// Every capability.
    pub const ALL: [Self; 4] = [Self::Bpf, Self::NetAdmin, Self::Perfmon, Self::NetBindService];
    /// Those that loading and attaching the kernel program need.
    pub const KERNEL: [Self; 3] = [Self::Bpf, Self::NetAdmin, Self::Perfmon];

    /// Returns its name, as in systemd units.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bpf => "CAP_BPF",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
        }
    }

    /// Says what derpd needs it for.
    #[must_use]
    pub const fn purpose(self) -> &'static str {
        match self {
            Self::Bpf => "creates BPF maps and loads the XDP program",
            Self::NetAdmin => "attaches XDP to interfaces",
            Self::Perfmon => "lets the XDP program compute packet lengths",
            Self::NetBindService => "binds ports below 1024",
        }
    }

    const fn name(self) -> Name {
        match self {
            Self::Bpf => Name::CAP_BPF,
            Self::NetAdmin => Name::CAP_NET_ADMIN,
            Self::Perfmon => Name::CAP_PERFMON,
            Self::NetBindService => Name::CAP_NET_BIND_SERVICE,
        }
    }
}

/// The capabilities a thread has in effect.
#[derive(Clone, Debug, Default)]
pub struct Held(CapsHashSet);

impl Held {
    /// Asks the kernel about the calling thread. What cannot be read counts as missing.
    #[must_use]
    pub fn read() -> Self {
        Self(caps::read(None, CapSet::Effective).unwrap_or_default())
    }

    /// Tells whether a capability, or the older one that includes it, is there.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        // Before Linux 5.8, and still, this one stands for CAP_PERFMON and CAP_BPF.
        let stand_in = matches!(capability, Capability::Bpf | Capability::Perfmon)
            && self.0.contains(&Name::CAP_SYS_ADMIN);
        stand_in || self.0.contains(&capability.name())
    }

    /// Names what the kernel data plane lacks, for an error message.
    pub(crate) fn missing(&self) -> String {
        let lacks = |it: &Capability| !self.has(*it);
        let names: Vec<_> =
            Capability::KERNEL.into_iter().filter(lacks).map(Capability::as_str).collect();
        if names.is_empty() {
            // All are there, so something above the process forbids it.
            "the permission of its container, or of the kernel's lockdown mode".to_owned()
        } else {
            names.join(", ")
        }
    }
}

/// What a relay goes on needing after its start.
///
/// Maps are written through descriptors that are open, which needs no capability since Linux 5.19; an older
/// kernel asks for `CAP_BPF` where `kernel.unprivileged_bpf_disabled` is set, and one before 5.9 for
/// `CAP_NET_ADMIN` to detach. Neighbour entries of the ends of flows need `CAP_NET_ADMIN`. Attaching to a further
/// interface needs a restart, which pins make free of charge.
#[must_use]
pub fn needed_later(has_kernel_maps: bool, has_neighbours: bool) -> Vec<Capability> {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/kernel/{name}"));
    let is_restricted = read("unprivileged_bpf_disabled").is_ok_and(|value| value.trim() != "0");
    let version = kernel_version(&read("osrelease").unwrap_or_default()).unwrap_or_default();
    let mut needed = Vec::new();
    if has_kernel_maps && is_restricted && version < (5, 19) {
        needed.push(Capability::Bpf);
    }
    if has_neighbours || has_kernel_maps && version < (5, 9) {
        needed.push(Capability::NetAdmin);
    }
    needed
}

/// Gives up every capability but these, for the calling thread and all threads it will start, and the right
/// to gain any by executing a program. Call it before there are other threads.
///
/// Returns what is left.
///
/// # Errors
///
/// When the kernel refuses; some may be gone by then.
pub fn reduce(keep: &[Capability]) -> io::Result<Vec<Capability>> {
    let permitted = caps::read(None, CapSet::Permitted).map_err(io::Error::other)?;
    let keep: Vec<_> = keep.iter().copied().filter(|it| permitted.contains(&it.name())).collect();
    let kept: CapsHashSet = keep.iter().map(|it| it.name()).collect();
    reduce_bounding(&kept)?;
    // No capability may be raised again from the sets that outlive an execve.
    caps::clear(None, CapSet::Ambient).map_err(io::Error::other)?;
    caps::set(None, CapSet::Inheritable, &HashSet::new()).map_err(io::Error::other)?;
    caps::set(None, CapSet::Effective, &kept).map_err(io::Error::other)?;
    caps::set(None, CapSet::Permitted, &kept).map_err(io::Error::other)?;
    prctl::set_no_new_privs()?;
    Ok(keep)
}

/// Narrows what could be gained by executing a program, where that is allowed.
fn reduce_bounding(kept: &CapsHashSet) -> io::Result<()> {
    let may = caps::has_cap(None, CapSet::Effective, Name::CAP_SETPCAP).unwrap_or(false);
    if !may {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding).map_err(io::Error::other)? {
        if !kept.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Reads `6.18` from a kernel release like `6.18.44-amd64`.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(names: &[Name]) -> Held {
        Held(names.iter().copied().collect())
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(held(&[]).missing(), "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON");
        assert_eq!(held(&[Name::CAP_NET_ADMIN, Name::CAP_BPF]).missing(), "CAP_PERFMON");
        let all = [Name::CAP_NET_ADMIN, Name::CAP_SYS_ADMIN];
        assert!(held(&all).missing().contains("container"));
        assert!(!held(&all).has(Capability::NetBindService));
    }

    #[test]
    fn reads_kernel_releases() {
        assert_eq!(kernel_version("6.18.44-amd64\n"), Some((6, 18)));
        assert_eq!(kernel_version("5.4"), Some((5, 4)));
        assert_eq!(kernel_version("unknown"), None);
    }

    #[test]
    fn a_thread_gives_up_what_it_does_not_keep() {
        let left = std::thread::spawn(|| {
            reduce(&[Capability::NetAdmin]).expect("reduced");
            let sets = [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable, CapSet::Ambient];
            sets.map(|set| caps::read(None, set).expect("a set"))
        });
        let [effective, permitted, inheritable, ambient] = left.join().expect("the thread");
        let allowed: CapsHashSet = [Name::CAP_NET_ADMIN].into();
        assert!(effective.is_subset(&allowed), "{effective:?}");
        assert!(permitted.is_subset(&allowed), "{permitted:?}");
        assert!(inheritable.is_empty() && ambient.is_empty());
    }
}
