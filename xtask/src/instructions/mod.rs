//! `cargo xtask instructions`: how many instructions the packet path takes, held against a committed
//! baseline.
//!
//! Unlike time, the count under valgrind's callgrind is the same on every machine and at every load,
//! as long as compiler and valgrind are.

mod baseline;
mod count;

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;

use crate::{
    apt,
    process::{self, CommandExt as _},
    workspace,
};
use baseline::{Baseline, Verdict};
use count::Counter;

/// Instructions per packet, by case.
type Counts = BTreeMap<String, f64>;

/// Options of `cargo xtask instructions`.
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Make what is counted now the baseline
    #[arg(long)]
    bless: bool,
    /// Print one JSON object instead of a table
    #[arg(long, conflicts_with = "bless")]
    json: bool,
}

/// Counts, and compares with the baseline or replaces it.
pub(crate) fn command(options: &Options) -> Result<()> {
    ensure_valgrind()?;
    let now = count()?;
    if options.bless {
        now.write(&baseline_file())?;
        println!("written to {}", baseline_file().display());
        return Ok(());
    }
    if let Err(reason) = judge(&now, options.json)? {
        eprintln!("not judged: {reason}");
    }
    Ok(())
}

/// As `cargo xtask instructions`; the inner error is why this machine cannot tell.
pub(crate) fn check_if_possible() -> Result<Result<(), String>> {
    if let Err(reason) = ensure_valgrind() {
        return Ok(Err(format!("{reason:#}")));
    }
    judge(&count()?, false)
}

fn count() -> Result<Baseline> {
    let counter = Counter::build()?;
    Ok(Baseline { counted_with: circumstances()?, per_packet: counter.count()? })
}

/// Prints every count beside the baseline's. The inner error is why they cannot be compared.
fn judge(now: &Baseline, as_json: bool) -> Result<Result<(), String>> {
    let before = Baseline::read(&baseline_file())?;
    if as_json {
        println!("{}", json!({ "baseline": before, "now": now }));
    } else {
        println!("{:<24}{:>10}{:>10}{:>9}", "instructions per packet", "baseline", "now", "change");
    }
    let mut regressed = Vec::new();
    let mut improved = false;
    for (case, verdict) in before.compare(&now.per_packet) {
        if !as_json {
            println!("{case:<24}{verdict}");
        }
        match verdict {
            Verdict::Same { .. } => {}
            Verdict::Less { .. } => improved = true,
            Verdict::More { .. } | Verdict::New { .. } | Verdict::Gone { .. } => {
                regressed.push(case)
            }
        }
    }
    if before.counted_with != now.counted_with {
        return Ok(Err(format!(
            "the baseline was counted with {}, this with {}",
            before.counted_with, now.counted_with
        )));
    }
    if !regressed.is_empty() {
        bail!(
            "not as in the baseline: {}; where the change is worth it, `cargo xtask instructions --bless` makes it the new baseline",
            regressed.join("; ")
        );
    }
    if improved {
        eprintln!("clearly fewer: keep it so with `cargo xtask instructions --bless`");
    }
    Ok(Ok(()))
}

fn baseline_file() -> PathBuf {
    workspace::root().join("derp-user").join("benches").join("instructions.json")
}

/// Returns what counts depend on besides the code.
fn circumstances() -> Result<String> {
    let rustc = process::command("rustc").arg("--version").read()?;
    let valgrind = process::command("valgrind").arg("--version").read()?;
    Ok(format!("{}, {}, {}", rustc.trim(), valgrind.trim(), processor()))
}

/// Returns the instruction set that valgrind passes on: it hides everything newer than AVX2.
fn processor() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    return if std::is_x86_feature_detected!("avx2") { "x86_64 with AVX2" } else { "x86_64" };
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH
}

fn ensure_valgrind() -> Result<()> {
    if process::command("valgrind").arg("--version").read().is_ok() {
        return Ok(());
    }
    apt::ensure(&["valgrind"], "counts instructions")
}
