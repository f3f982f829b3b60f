//! Runs the fuzzer's targets, and keeps of their inputs what covers the most with the least.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

const CARGO_FUZZ: &str = "0.13.2";
/// Longest input, in bytes: more than any head, frame or packet needs to be wrong in every way.
const LONGEST: u32 = 4096;

#[derive(Args)]
pub(crate) struct Options {
    /// The targets; all of them if none is named
    targets: Vec<String>,
    /// How long each target is run, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
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
        command.args(arguments).args(rest).run()
    };
    for (number, target) in chosen.iter().enumerate() {
        eprintln!("{} of {}: {target}, {} s", number + 1, chosen.len(), options.seconds);
        let limits = [
            "--".to_owned(),
            format!("-max_total_time={}", options.seconds),
            format!("-max_len={LONGEST}"),
            "-timeout=10".to_owned(),
            "-rss_limit_mb=2048".to_owned(),
            "-print_final_stats=1".to_owned(),
        ];
        fuzz(&["run", target], &limits).with_context(|| {
            format!("{target}: the input is in fuzz/artifacts; mend it, and put it into the corpus")
        })?;
        if options.minimise {
            fuzz(&["cmin", target], &[])?;
        }
    }
    Ok(())
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
