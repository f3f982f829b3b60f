//! Whether this machine is one that the kernel program was built for.

use std::fs;

use super::DataplaneError;
use crate::privilege::kernel_version;

/// The first kernel with all that is needed: CAP_BPF and CAP_PERFMON are of 5.8, links of 5.9.
pub(crate) const OLDEST_KERNEL: (u32, u32) = (5, 9);

/// Refuses to go on where the program cannot be what it was built to be, before anything of it is loaded.
///
/// # Errors
///
/// [`DataplaneError::Unfit`], with the reason.
pub(super) fn check() -> Result<(), DataplaneError> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge(release.trim(), cfg!(target_endian = "little"))
}

/// A release that cannot be read is given the benefit of the doubt: the verifier has the last word.
fn judge(release: &str, is_little_endian: bool) -> Result<(), DataplaneError> {
    let unfit = |reason| Err(DataplaneError::Unfit { reason });
    if !is_little_endian {
        return unfit("it was built for little-endian processors".to_owned());
    }
    match kernel_version(release) {
        Some(version) if version < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            unfit(format!(
                "it was built for Linux {major}.{minor} and later, and this is {release}"
            ))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_kernels_and_other_processors_are_refused_with_the_reason() {
        for release in ["5.9.0", "5.10.1-amd64", "6.18.44", "10.0", "unknown", ""] {
            assert!(judge(release, true).is_ok(), "{release}");
        }
        for (release, is_little_endian, reason) in [
            ("5.8.18-arm", true, "it was built for Linux 5.9 and later, and this is 5.8.18-arm"),
            ("4.19.0", true, "it was built for Linux 5.9 and later, and this is 4.19.0"),
            ("6.18.0", false, "it was built for little-endian processors"),
        ] {
            let error = judge(release, is_little_endian).expect_err(release).to_string();
            assert_eq!(error, format!("the XDP program is not loaded: {reason}"));
        }
        check().expect("tests run where it is supported");
    }
}
