//! The relay for WireGuard: the programs that its labs call, and what it costs.

use anyhow::Result;

use crate::{
    apt::{self, Program},
    ebpf, namespaces,
    process::{self, CommandExt as _},
    workspace,
};

/// Routers of the labs translate by `nft`, and `wg-quick` reads what derpd prints.
const PROGRAMS: [Program; 2] =
    [("/usr/sbin/nft", &["nftables"]), ("/usr/bin/wg-quick", &["wireguard-tools"])];

/// Installs what is missing, or says what to type.
pub(crate) fn ensure_programs() -> Result<()> {
    apt::ensure_programs(&PROGRAMS, "tests with WireGuard peers need")
}

/// Prints a table of what relaying WireGuard costs, by plain forwarder, userspace and kernel program.
pub(crate) fn measure(rounds: u32, seconds: u64) -> Result<()> {
    if let Err(reason) = ebpf::build_if_possible()? {
        anyhow::bail!("the kernel program is part of the comparison: {reason}");
    }
    namespaces::ensure_programs()?;
    process::cargo()
        .current_dir(workspace::root())
        .args(["test", "--release", "--locked", "--package", "derp-user"])
        .args(["--test", "wireguard_cost", "--", "--ignored", "--nocapture"])
        .env("DERPD_RELAY_ROUNDS", rounds.to_string())
        .env("DERPD_RELAY_SECONDS", seconds.to_string())
        .run()
}
