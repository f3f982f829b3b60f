//! The programs that tests in network namespaces call.

use anyhow::Result;

use crate::{
    apt,
    process::{self, CommandExt as _},
};

/// Program, the flag that makes it print its version, and its Debian package.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("ip", "-V", "iproute2"), ("ethtool", "--version", "ethtool")];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    let missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(program, version, _)| process::command(program).arg(version).read().is_err())
        .map(|&(_, _, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::ensure(&missing, "tests in network namespaces need")
}
