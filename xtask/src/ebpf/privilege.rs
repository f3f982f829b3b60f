//! Whether this process may load and attach programs.

use std::fs;

/// Numbers from capabilities(7), and the older capability that includes them.
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const BPF: (u32, &str) = (39, "CAP_BPF");
const SYS_ADMIN: u32 = 21;

/// Returns why this process may not load and attach the kernel program, if it may not.
pub(crate) fn may_load() -> Result<(), String> {
    let status = fs::read_to_string("/proc/self/status")
        .map_err(|error| format!("/proc/self/status: {error}"))?;
    let effective = effective_capabilities(&status)
        .ok_or_else(|| "/proc/self/status has no CapEff line".to_owned())?;
    missing(effective).map_or(Ok(()), |name| Err(format!("this process lacks {name}: run as root")))
}

fn missing(effective: u64) -> Option<&'static str> {
    let has = |number: u32| effective & (1 << number) != 0;
    if !has(NET_ADMIN.0) {
        Some(NET_ADMIN.1)
    } else if !has(BPF.0) && !has(SYS_ADMIN) {
        Some(BPF.1)
    } else {
        None
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let hex = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(hex.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_decide() {
        let status = |hex| format!("Name:\tx\nCapEff:\t{hex}\n");
        let of = |hex| effective_capabilities(&status(hex)).map(missing);
        assert_eq!(of("0000000000000000"), Some(Some("CAP_NET_ADMIN")));
        assert_eq!(of("0000000000001000"), Some(Some("CAP_BPF")));
        assert_eq!(of("0000008000001000"), Some(None));
        assert_eq!(of("0000000000201000"), Some(None));
        assert_eq!(effective_capabilities("Name: x"), None);
    }
}
