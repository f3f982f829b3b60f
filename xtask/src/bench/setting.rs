//! Under which circumstances figures were taken.

use std::fs;

use anyhow::Result;

use super::DERPER_VERSION;
use crate::{
    go,
    process::{self, CommandExt as _},
    workspace,
};

/// Says how, when, on what and with which versions, as Markdown.
pub(super) fn describe(rounds: u32, seconds: u64) -> Result<String> {
    let date = process::command("date").args(["-u", "+%Y-%m-%d"]).read()?;
    let commit = process::command("git")
        .current_dir(workspace::root())
        .args(["describe", "--always", "--dirty"])
        .read()
        .unwrap_or_else(|_| "unknown".to_owned());
    let rust = process::command("rustc").arg("--version").read()?;
    let go = go::check_version().unwrap_or_else(|_| "unknown".to_owned());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    Ok(format!(
        "- Date: {}\n\
         - Versions: derper {DERPER_VERSION} ({go}); derpd {} ({})\n\
         - Machine: {cpus} CPUs of {}, Linux {}\n\
         - Method: rounds: {rounds}, {seconds} s of load each, the servers in turns within each round, on loopback, TLS \
         with self-signed ECDSA certificates on both sides, a new server process for each figure unless the case says \
         otherwise; the load generator shares the CPUs. Figures are medians (least to most), ratios those of medians.\n",
        date.trim(),
        commit.trim(),
        rust.trim(),
        cpu_model(),
        kernel.trim(),
    ))
}

fn cpu_model() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(|| "unknown model".to_owned(), |(_, name)| name.to_owned())
}
