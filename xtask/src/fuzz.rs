//! Runs the fuzzer's targets, and keeps of their inputs what covers the most with the least.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

const CARGO_FUZZ: &str = "0.13.2";
/// Longest input, in bytes: more than any head, frame or packet needs to be wrong in every way.
const LONGEST: u32 = 4096;
/// How long a target runs before its processor time is looked at, in seconds.
const ROUND: u64 = 60;

#[derive(Args)]
pub(crate) struct Options {
    /// The targets; all of them if none is named
    targets: Vec<String>,
    /// How long each target is run, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How much processor time each target gets, in minutes, however long that takes
    #[arg(long, conflicts_with = "seconds")]
    cpu_minutes: Option<u64>,
    /// Keep only inputs that cover something which no other one covers
    #[arg(long)]
    minimise: bool,
}

/// `cargo xtask fuzz`.
pub(crate) fn command(options: &Options) -> Result<()> {
    let known = targets()?;
    if let Some(unknown) = options.targets.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown:?}; there are {}", known.join(", "));
    }
    let chosen = if options.targets.is_empty() { &known } else { &options.targets };
    let program = workspace::pinned_tool(
        "cargo-fuzz",
        CARGO_FUZZ,
        "it builds the targets for libFuzzer and runs them",
        |_| Ok(()),
    )?;
    let fuzz = |arguments: &[&str], rest: &[String]| {
        let mut command = process::command(&program);
        command.current_dir(workspace::root());
        // The sanitizer and the counters of coverage are unstable options of a stable compiler.
        command.env("RUSTC_BOOTSTRAP", "1");
        // As optimised as the fuzzer needs, not as what is shipped.
        command.env("CARGO_PROFILE_RELEASE_LTO", "false");
        command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        command.args(arguments).args(rest);
        command
    };
    let mut table = String::from(
        "| Target | edges covered | runs | CPU, min |\n| --- | ---: | ---: | ---: |\n",
    );
    for (number, target) in chosen.iter().enumerate() {
        fuzz(&["build", target], &[]).run()?;
        let (least, seconds) = match options.cpu_minutes {
            Some(minutes) => (Duration::from_secs(60 * minutes), ROUND),
            None => (Duration::ZERO, options.seconds),
        };
        let limits = [
            "--".to_owned(),
            format!("-max_total_time={seconds}"),
            format!("-max_len={LONGEST}"),
            // By the clock on the wall, and the machine may have other things to do.
            "-timeout=60".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
        ];
        let (before, mut found) = (children_time()?, Found::default());
        let spent = loop {
            let spent = children_time()?.saturating_sub(before);
            eprintln!(
                "{} of {}: {target}, {} s of processor time, {} edges",
                number + 1,
                chosen.len(),
                spent.as_secs(),
                found.edges
            );
            if found.runs > 0 && spent >= least {
                break spent;
            }
            watch(&mut fuzz(&["run", target], &limits), &mut found).with_context(|| {
                format!(
                    "{target}: the input is in fuzz/artifacts; mend it, and put it into the corpus"
                )
            })?;
        };
        if options.minimise {
            fuzz(&["cmin", target], &[]).run()?;
        }
        let Found { edges, runs } = found;
        table +=
            &format!("| `{target}` | {edges} | {runs} | {:.1} |\n", spent.as_secs_f64() / 60.0);
    }
    println!("{table}");
    Ok(())
}

/// What libFuzzer says of a target.
#[derive(Debug, Default, Eq, PartialEq)]
struct Found {
    /// How many edges of the control flow any input has taken.
    edges: u64,
    /// How often the target was run.
    runs: u64,
}

impl Found {
    /// Reads one line of libFuzzer's.
    fn read(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let number_after = |words: &mut std::str::SplitWhitespace<'_>, name| {
            words.find(|word| *word == name)?;
            words.next()?.parse::<u64>().ok()
        };
        if line.starts_with("stat::") {
            let runs = number_after(&mut words, "stat::number_of_executed_units:");
            self.runs += runs.unwrap_or_default();
        } else if line.starts_with('#') {
            self.edges = self.edges.max(number_after(&mut words, "cov:").unwrap_or_default());
        }
    }
}

/// Runs a target; of what it says only what is of use to a reader is passed on.
fn watch(command: &mut Command, found: &mut Found) -> Result<()> {
    let mut child = command.stderr(Stdio::piped()).spawn().context("starting cargo-fuzz")?;
    for line in BufReader::new(child.stderr.take().context("no standard error")?).lines() {
        // Artifacts are printed as bytes, too.
        let Ok(line) = line else { continue };
        found.read(&line);
        if !line.starts_with(['#', '\t']) && !line.starts_with("stat::") {
            eprintln!("{line}");
        }
    }
    let status = child.wait().context("waiting for cargo-fuzz")?;
    if !status.success() {
        bail!("`{}` failed: {status}", command.describe());
    }
    Ok(())
}

/// The processor time of all programs that were run so far.
fn children_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("asking for processor time")?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(time.num_microseconds().unsigned_abs()))
}

/// The targets there are, by the names of their programs.
fn targets() -> Result<Vec<String>> {
    let directory = workspace::root().join("fuzz").join("fuzz_targets");
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        names.extend(
            entry?.path().file_stem().and_then(|it| Path::new(it).to_str()).map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_are_the_most_of_all_rounds_and_runs_are_added() {
        let mut found = Found::default();
        for line in [
            "INFO: Seed: 1",
            "#12\tINITED cov: 2200 ft: 300 corp: 84/5Kb exec/s: 0 rss: 60Mb",
            "#140\tDONE   cov: 2210 ft: 312 corp: 90/5Kb lim: 4096 exec/s: 70 rss: 61Mb",
            "stat::number_of_executed_units: 140",
            "stat::peak_rss_mb:              61",
            "#10\tDONE   cov: 2209 ft: 310 corp: 90/5Kb lim: 4096 exec/s: 70 rss: 61Mb",
            "stat::number_of_executed_units: 10",
        ] {
            found.read(line);
        }
        assert_eq!(found, Found { edges: 2210, runs: 150 });
    }
}
