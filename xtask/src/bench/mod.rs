//! `cargo xtask bench`: Tailscale's derper and derpd under the same load, in turns.
//!
//! The machine may be shared and noisy, so only ratios of medians are worth reading: the two take
//! turns (A B A B ...), and every case starts a server process of its own.

mod cases;
mod report;
mod server;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::{
    go,
    process::{self, CommandExt as _},
    workspace,
};
use cases::{CASES, Case};
use report::{Report, Samples};
use server::Program;

/// The release of derper that derpd is measured against.
const DERPER_VERSION: &str = "v1.103.0-pre";

#[derive(Args)]
pub(crate) struct Options {
    /// The load generator: a program with derpload's command line, one JSON object as output
    #[arg(long, value_name = "PATH")]
    load_generator: PathBuf,
    /// How often each case runs on each server
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of load in each run
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Run only the cases whose name contains this; the report file is then left alone
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Measure this binary instead of building derpd; the report file is then left alone
    #[arg(long, value_name = "PATH")]
    derpd: Option<PathBuf>,
}

/// Runs the comparison, prints it, and writes `docs/BENCHMARKS.md`.
pub(crate) fn command(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && options.seconds > 0, "--rounds and --seconds must be at least 1");
    let chosen: Vec<_> = CASES
        .iter()
        .filter(|case| options.only.as_ref().is_none_or(|text| case.name.contains(text.as_str())))
        .collect();
    ensure!(!chosen.is_empty(), "no case has {:?} in its name", options.only);
    let generator = options
        .load_generator
        .canonicalize()
        .with_context(|| format!("load generator {}", options.load_generator.display()))?;
    let directory = workspace::target_dir()?.join("bench");
    let derper = Program::new("derper", build_derper(&directory)?, &directory)?;
    let derpd = match &options.derpd {
        Some(path) => path.clone(),
        None => build_derpd()?,
    };
    let derpd = Program::new("derpd", derpd, &directory)?;

    let mut results = Vec::new();
    for case in chosen {
        let mut samples = Samples::default();
        for round in 1..=options.rounds {
            eprintln!("{}: round {round} of {}", case.name, options.rounds);
            samples.derper.push(measure(case, &derper, &generator, options.seconds)?);
            samples.derpd.push(measure(case, &derpd, &generator, options.seconds)?);
        }
        results.push((case, samples));
    }
    let report = Report::new(options.rounds, Duration::from_secs(options.seconds), &results)?;
    print!("{report}");
    if options.only.is_none() && options.derpd.is_none() {
        let file = workspace::root().join("docs").join("BENCHMARKS.md");
        report.write_into(&file)?;
        println!("written to {}", file.display());
    }
    Ok(())
}

/// Runs one case on a fresh server process.
fn measure(case: &Case, program: &Program, generator: &PathBuf, seconds: u64) -> Result<Value> {
    let server = program.start()?;
    let mut load = process::command(generator);
    load.args(["-addr", &server.address().to_string(), "-name", "127.0.0.1"])
        .args(["-pid", &server.id().to_string()])
        .args(case.arguments);
    if case.takes_duration() {
        load.args(["-dur", &format!("{seconds}s")]);
    }
    let text = load.read().with_context(|| format!("{} with {}", case.name, program.name()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` printed {text:?}", load.describe()))
}

/// Builds derper from its Go module, once.
fn build_derper(directory: &std::path::Path) -> Result<PathBuf> {
    let program = directory.join("bin").join("derper");
    let built = || go::command().args(["version", "-m"]).arg(&program).read();
    if built().is_ok_and(|text| text.contains(DERPER_VERSION)) {
        return Ok(program);
    }
    go::check_version().context("building derper, which derpd is compared with")?;
    eprintln!("building derper {DERPER_VERSION} from its Go module; this takes minutes");
    go::command()
        .env("GOBIN", directory.join("bin"))
        .args(["install", &format!("tailscale.com/cmd/derper@{DERPER_VERSION}")])
        .run()?;
    Ok(program)
}

fn build_derpd() -> Result<PathBuf> {
    process::cargo()
        .current_dir(workspace::root())
        .args(["build", "--release", "--locked", "--package", "derp-user", "--bin", "derpd"])
        .run()?;
    Ok(workspace::target_dir()?.join("release").join("derpd"))
}
