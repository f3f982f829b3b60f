//! `cargo xtask soak`: a relay at half load for as long as one likes, and the account of every packet at the end.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    ebpf, namespaces,
    process::{self, CommandExt as _},
    workspace,
};

#[derive(Args)]
pub(crate) struct Options {
    /// How long it is observed, in minutes, after a warm-up of a tenth of that, three minutes at most
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Clients of the DERP server; half of them stay, the others come and go
    #[arg(long, default_value_t = 2000)]
    clients: usize,
    /// Packets per second that those who stay send together; without it, what takes half of the processors, for relay
    /// and clients together, is looked for first
    #[arg(long)]
    rate: Option<u32>,
    /// The program under test, instead of the one that is built from here
    #[arg(long)]
    server: Option<PathBuf>,
}

/// Runs it, as root, with a release build.
pub(crate) fn command(options: &Options) -> Result<()> {
    if let Err(reason) = ebpf::build_if_possible()? {
        anyhow::bail!("the flows need the kernel program: {reason}");
    }
    namespaces::ensure_programs()?;
    let mut test = process::cargo();
    test.current_dir(workspace::root())
        .args(["test", "--release", "--locked", "--package", "derp-user", "--test", "soak"])
        .args(["--", "--ignored", "--exact", "--nocapture", "soak_for_long"])
        .env("DERPD_REQUIRE_XDP", "1")
        .env("DERPD_SOAK_MINUTES", options.minutes.to_string())
        .env("DERPD_SOAK_CLIENTS", options.clients.to_string());
    if let Some(rate) = options.rate {
        test.env("DERPD_SOAK_RATE", rate.to_string());
    }
    if let Some(server) = &options.server {
        let server = server.canonicalize().with_context(|| server.display().to_string())?;
        test.env("DERPD_TEST_SERVER", server);
    }
    test.run()
}
