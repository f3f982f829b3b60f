//! The programs that tests in network namespaces call.

use anyhow::Result;

use crate::{
    apt,
    process::{self, CommandExt as _},
};

/// Program, the flag that makes it print its version, and its Debian package.
const PROGRAMS: [(&str, &str, &str); 2] =
    [("ip", "-V", "iproute2"), ("ethtool", "--version", "ethtool")];

/// What changes addresses and ports on their way.
const NFT: (&str, &str, &str) = ("nft", "--version", "nftables");

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    ensure(&PROGRAMS)
}

/// The same for `nft`.
pub(crate) fn ensure_nft() -> Result<()> {
    ensure(&[NFT])
}

fn ensure(programs: &[(&str, &str, &'static str)]) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, version, _)| process::command(program).arg(version).read().is_err())
        .map(|&(_, _, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    apt::ensure(&missing, "tests in network namespaces need")
}
