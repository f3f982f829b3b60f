//! Memory of this process.

use std::fs;

/// Resident bytes.
pub(crate) fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("as documented");
    let kibibytes = line.trim().trim_end_matches("kB").trim();
    kibibytes.parse::<usize>().expect("a number") << 10
}
