//! The programs that labs of WireGuard peers call: routers translate by `nft`, and `wg-quick` reads what derpd prints.

use anyhow::Result;

use crate::apt::{self, Program};

const PROGRAMS: [Program; 2] =
    [("/usr/sbin/nft", &["nftables"]), ("/usr/bin/wg-quick", &["wireguard-tools"])];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    apt::ensure_programs(&PROGRAMS, "tests with WireGuard peers need")
}
