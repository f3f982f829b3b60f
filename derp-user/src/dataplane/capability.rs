//! Names the capabilities that loading and attaching need and this process lacks.

use std::fs;

/// Each capability's bit in the `CapEff` line of `/proc/self/status` (`linux/capability.h`).
const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];

/// Before Linux 5.8, and still, this one stands for CAP_PERFMON and CAP_BPF.
const SYS_ADMIN: u32 = 21;

/// Returns the names of the capabilities this process lacks, for an error message.
pub(super) fn missing() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective(&status) {
        Some(set) => describe(set),
        None => "a capability".to_owned(),
    }
}

fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn describe(set: u64) -> String {
    let has = |bit: u32| set >> bit & 1 == 1;
    let lacks = |&(name, bit): &(&str, u32)| {
        let stand_in = name != "CAP_NET_ADMIN" && has(SYS_ADMIN);
        !has(bit) && !stand_in
    };
    let names: Vec<_> = NEEDED.iter().filter(|it| lacks(it)).map(|(name, _)| *name).collect();
    if names.is_empty() {
        // All are there, so something above the process forbids it.
        "the permission of its container, or of the kernel's lockdown mode".to_owned()
    } else {
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_missing() {
        let none = effective("Name:\tderpd\nCapEff:\t0000000000000000\n").expect("a set");
        assert_eq!(describe(none), "CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF");
        assert_eq!(describe(1 << 12 | 1 << 39), "CAP_PERFMON");
        assert_eq!(describe(1 << 12 | 1 << 21), describe(1 << 12 | 1 << 38 | 1 << 39));
        assert!(describe(u64::MAX).contains("container"));
    }
}
