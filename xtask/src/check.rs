//! What CI runs, in order. Every step runs even when an earlier one failed.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    e2e, ebpf, go, instructions, miri, package,
    process::{self, CommandExt as _},
    reproducible, test, vendored,
    workspace::{self, HOST_PACKAGES},
};

const CARGO_DENY: &str = "0.20.2";

/// `cargo xtask check`.
pub(crate) fn command() -> Result<()> {
    let mut report = Report::default();
    report.step("format", format);
    report.step("lints", host_lints);
    report.step("lints of the kernel program", kernel_lints);
    report.step("lints of the Go tests", go_lints);
    report.step("licences and sources", licences);
    report.step("advisories", advisories);
    report.step("vendored files", vendored_files);
    report.step("documentation", documentation);
    report.step("tests", tests);
    report.step("undefined behaviour", undefined_behaviour);
    report.step("reproducible kernel program", reproducible_kernel_program);
    report.step("packages", packages);
    report.step("instruction counts", instruction_counts);
    report.step("end to end", || end_to_end(&e2e::Options::plain()));
    report.step("end to end, region", || end_to_end(&e2e::Options::region()));
    report.step("end to end, peer relay", || {
        let with_kernel = ebpf::build_if_possible()?.is_ok();
        end_to_end(&e2e::Options::peer_relay(with_kernel))
    });
    report.finish()
}

enum Outcome {
    Done,
    /// Not possible on this machine, and why.
    Skipped(String),
}

/// Names, results and durations of the steps so far.
#[derive(Default)]
struct Report {
    lines: Vec<String>,
    failed: Vec<&'static str>,
}

impl Report {
    fn step(&mut self, name: &'static str, run: impl FnOnce() -> Result<Outcome>) {
        eprintln!("\n== {name}");
        let start = Instant::now();
        let result = match run() {
            Ok(Outcome::Done) => "ok".to_owned(),
            Ok(Outcome::Skipped(reason)) => {
                println!("skipped: {name}: {reason}");
                "skipped".to_owned()
            }
            Err(error) => {
                eprintln!("{error:#}");
                self.failed.push(name);
                "FAILED".to_owned()
            }
        };
        self.lines.push(format!("{:>8}  {result:<8}{name}", clock(start.elapsed())));
    }

    fn finish(self) -> Result<()> {
        println!("\n{}", self.lines.join("\n"));
        if !self.failed.is_empty() {
            bail!("failed: {}", self.failed.join(", "));
        }
        Ok(())
    }
}

fn clock(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

fn format() -> Result<Outcome> {
    cargo(&["fmt", "--all", "--check"])?;
    let mut fmt = process::cargo();
    fmt.current_dir(workspace::ts_derp_client()).args(["fmt", "--check"]).run()?;
    Ok(Outcome::Done)
}

/// Lints each package by itself: built together, one package's features hide another's mistakes.
fn host_lints() -> Result<Outcome> {
    let selections = HOST_PACKAGES.map(|package| vec!["--package", package]).into_iter().chain(
        ["derp-common", "derp-user"].map(|package| vec!["--package", package, "--all-features"]),
    );
    let selections = selections.chain([vec!["--package", "derp-fuzz", "--bins"]]);
    let results: Vec<_> = selections
        .map(|selection| {
            let clippy = [&["clippy", "--locked", "--all-targets"], &*selection];
            cargo(&[&clippy.concat(), &["--", "-Dwarnings"][..]].concat())
        })
        .collect();
    results.into_iter().collect::<Result<Vec<_>>>()?;
    Ok(Outcome::Done)
}

fn kernel_lints() -> Result<Outcome> {
    match ebpf::Toolchain::find_or_install() {
        Ok(toolchain) => ebpf::clippy(&toolchain).map(|()| Outcome::Done),
        Err(reason) => Ok(Outcome::Skipped(format!("{reason:#}"))),
    }
}

fn go_lints() -> Result<Outcome> {
    let module = workspace::interop_module();
    if let Err(reason) = go::check_modules(&module) {
        return Ok(Outcome::Skipped(format!("{reason:#}")));
    }
    let unformatted = process::command("gofmt").arg("-l").arg(&module).read()?;
    if !unformatted.is_empty() {
        bail!("not formatted by gofmt:\n{unformatted}");
    }
    go::command().current_dir(module).args(["vet", "./..."]).run()?;
    Ok(Outcome::Done)
}

fn licences() -> Result<Outcome> {
    deny(&["bans", "licenses", "sources"])
}

/// The advisory database is a repository on the network, which a build machine may not reach.
fn advisories() -> Result<Outcome> {
    let Err(error) = cargo_deny()?.arg("fetch").arg("db").read() else {
        return deny(&["--disable-fetch", "advisories"]);
    };
    let reason = error.to_string();
    let last = reason.lines().last().unwrap_or_default().trim();
    Ok(Outcome::Skipped(format!("the advisory database cannot be fetched: {last}")))
}

fn vendored_files() -> Result<Outcome> {
    Ok(match vendored::check()? {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Skipped(reason),
    })
}

fn deny(arguments: &[&str]) -> Result<Outcome> {
    cargo_deny()?.args(["check", "--hide-inclusion-graph"]).args(arguments).run()?;
    Ok(Outcome::Done)
}

fn cargo_deny() -> Result<Command> {
    let program = workspace::pinned_tool(
        "cargo-deny",
        CARGO_DENY,
        "it checks licences, sources and advisories of dependencies",
        |_| Ok(()),
    )?;
    let mut command = process::command(program);
    command.current_dir(workspace::root());
    Ok(command)
}

fn documentation() -> Result<Outcome> {
    let mut doc = process::cargo();
    doc.current_dir(workspace::root()).env("RUSTDOCFLAGS", "-Dwarnings");
    doc.args(["doc", "--locked", "--no-deps"]).run()?;
    Ok(Outcome::Done)
}

fn tests() -> Result<Outcome> {
    test::command(&[])?;
    Ok(Outcome::Done)
}

fn undefined_behaviour() -> Result<Outcome> {
    Ok(match miri::run_if_possible()? {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Skipped(reason),
    })
}

/// The daemon takes two release builds, and is left to `cargo xtask reproducible`.
fn reproducible_kernel_program() -> Result<Outcome> {
    if let Err(reason) = ebpf::Toolchain::find_or_install() {
        return Ok(Outcome::Skipped(format!("{reason:#}")));
    }
    reproducible::command(&reproducible::Options::of_the_kernel_program())?;
    Ok(Outcome::Done)
}

/// What is delivered, as far as its tools are there.
fn packages() -> Result<Outcome> {
    Ok(match package::check_quickly()? {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Skipped(reason),
    })
}

/// Time never fails a check; the number of instructions on the packet path does.
fn instruction_counts() -> Result<Outcome> {
    Ok(match instructions::check_if_possible()? {
        Ok(()) => Outcome::Done,
        Err(reason) => Outcome::Skipped(reason),
    })
}

/// Two real clients and a file; what it needs is not on every machine.
fn end_to_end(options: &e2e::Options) -> Result<Outcome> {
    if let Some(reason) = e2e::obstacle() {
        return Ok(Outcome::Skipped(reason));
    }
    e2e::command(options)?;
    Ok(Outcome::Done)
}

fn cargo(arguments: &[&str]) -> Result<Outcome> {
    process::cargo().current_dir(workspace::root()).args(arguments).run()?;
    Ok(Outcome::Done)
}
