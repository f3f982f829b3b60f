//! `cargo xtask interop`: the protocol cases against derpd and against Tailscale's derper, side by side.
//!
//! Run against derper, the tests check themselves: what they expect of derpd must be what the original
//! does, unless `derp-user/tests/case_relay/differences.rs` says why not.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, IsTerminal as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    go,
    process::{self, CommandExt as _},
    workspace,
};

/// The protocol reference numbers its cases from 1 to this.
const CASES: u32 = 74;

/// Cases that are not among the protocol cases: where their tests are, and why not there.
const ELSEWHERE: [(u32, &str); 2] = [
    (71, "xdp_program.rs, case_71_*: derper's kernel program is another one"),
    (74, "ts_derp.rs: a test of Tailscale's Rust client, which needs its crates"),
];

/// Options of `cargo xtask interop`.
#[derive(Args)]
pub(crate) struct Options {
    /// Which relays to run the cases against: derpd alone, or derper as well, from its Go module
    #[arg(long, value_enum, default_value_t = Against::Derper)]
    against: Against,
    /// Only tests whose name contains this text
    #[arg(long)]
    only: Option<String>,
    /// Print the table as one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Against {
    Derpd,
    Derper,
}

/// Runs the cases and prints a table; fails if a test fails, or a case has none.
pub(crate) fn command(options: &Options) -> Result<()> {
    let only = options.only.as_deref();
    let ours = run(only, None)?;
    let theirs = match options.against {
        Against::Derpd => None,
        Against::Derper => Some(run(only, Some(&build_derper()?))?),
    };
    let table = Table { ours, theirs, is_whole: only.is_none() };
    if options.json {
        println!("{}", table.to_json());
    } else {
        println!("{table}");
    }
    let failed = table.failures();
    if !failed.is_empty() {
        bail!("failed, and listed in no table of differences: {}", failed.join(", "));
    }
    let untested = table.untested();
    if table.is_whole && !untested.is_empty() {
        bail!("cases without a test: {untested:?}");
    }
    Ok(())
}

fn build_derper() -> Result<PathBuf> {
    let module = workspace::interop_module();
    go::check_modules(&module)?;
    let directory = workspace::target_dir()?.join("interop");
    go::command()
        .current_dir(module)
        .env("GOTOOLCHAIN", "local")
        .args(["build", "-buildvcs=false", "-o"])
        .arg(directory.join("derper"))
        .arg("tailscale.com/cmd/derper")
        .run()?;
    Ok(directory.join("derper"))
}

/// What came of one test against one relay.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Outcome {
    Passed,
    Failed,
    /// It passed by expecting something else than of derpd, for this reason.
    Differs(String),
    /// It did nothing, for this reason.
    Skipped(String),
}

/// Tests by name.
type Outcomes = BTreeMap<String, Outcome>;

/// Runs the protocol cases against derpd, or against another relay.
fn run(only: Option<&str>, relay: Option<&Path>) -> Result<Outcomes> {
    let mut tests = process::cargo();
    tests
        .current_dir(workspace::root())
        .args(["test", "--locked", "--package", "derp-user", "--test", "case_relay", "--"])
        .args(only);
    if let Some(relay) = relay {
        tests.env("DERPD_TEST_SERVER", relay);
    }
    eprintln!("+ {}", tests.describe());
    // One pipe for both streams keeps their lines in order.
    let (output, writer) = std::io::pipe().context("making a pipe")?;
    tests.stdin(Stdio::null()).stdout(writer.try_clone().context("sharing a pipe")?).stderr(writer);
    let mut child = tests.spawn().context("starting cargo")?;
    // The command still holds the writing end, and would keep the reading one from ending.
    tests.stdout(Stdio::null()).stderr(Stdio::null());
    let mut outcomes = Outcomes::new();
    let mut lines = Vec::new();
    let shows_progress = std::io::stderr().is_terminal();
    let mut tests_done = 0;
    for line in BufReader::new(output).lines() {
        let line = line.context("reading the output of the tests")?;
        if line.starts_with("   Compiling ") {
            eprintln!("{line}");
        }
        if line.starts_with("test ") && shows_progress {
            tests_done += 1;
            eprint!("\r{tests_done} tests");
        }
        lines.push(line);
    }
    if tests_done > 0 {
        eprintln!();
    }
    let status = child.wait().context("waiting for cargo")?;
    note(&lines, &mut outcomes);
    let failed = outcomes.values().any(|outcome| *outcome == Outcome::Failed);
    if failed || !status.success() {
        println!("{}", lines.join("\n"));
    }
    if !status.success() && !failed {
        bail!("`{}` failed before or between tests: see above", tests.describe());
    }
    Ok(outcomes)
}

/// Reads what the harness and the tests have printed.
fn note(lines: &[String], outcomes: &mut Outcomes) {
    // The line that the harness writes about a test may be broken by others.
    let all = lines.join("\n");
    for (mark, make) in [
        ("skipped: ", Outcome::Skipped as fn(String) -> Outcome),
        ("differs: ", Outcome::Differs as fn(String) -> Outcome),
    ] {
        for (at, _) in all.match_indices(mark) {
            let line = all[at + mark.len()..].lines().next().unwrap_or_default();
            if let Some((test, reason)) = line.split_once(": ")
                && test.contains("::")
            {
                outcomes.insert(test.to_owned(), make(reason.to_owned()));
            }
        }
    }
    for line in lines {
        let failed = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(test) = failed {
            outcomes.insert(test.to_owned(), Outcome::Failed);
        }
        let ended = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
        if let Some((test, _)) = ended {
            outcomes.entry(test.to_owned()).or_insert(Outcome::Passed);
        }
    }
}

/// The outcomes side by side.
struct Table {
    ours: Outcomes,
    theirs: Option<Outcomes>,
    /// All tests have run.
    is_whole: bool,
}

impl Table {
    /// One object for each test: its case, if it has one, and what came of it against each relay.
    fn to_json(&self) -> Value {
        let outcome = |outcome: &Outcome| match outcome {
            Outcome::Passed => json!({ "outcome": "ok" }),
            Outcome::Failed => json!({ "outcome": "failed" }),
            Outcome::Differs(reason) => json!({ "outcome": "differs", "reason": reason }),
            Outcome::Skipped(reason) => json!({ "outcome": "not run", "reason": reason }),
        };
        let rows = self.ours.iter().map(|(test, ours)| {
            let theirs = self.theirs.as_ref().and_then(|theirs| theirs.get(test));
            json!({
                "test": test,
                "case": case_number(test),
                "derpd": outcome(ours),
                "derper": theirs.map(outcome),
            })
        });
        Value::Array(rows.collect())
    }

    fn failures(&self) -> Vec<String> {
        let failed = |outcomes: &Outcomes, relay: &str| -> Vec<String> {
            let failed = outcomes.iter().filter(|(_, outcome)| **outcome == Outcome::Failed);
            failed.map(|(test, _)| format!("{test} against {relay}")).collect()
        };
        let mut all = failed(&self.ours, "derpd");
        all.extend(self.theirs.iter().flat_map(|theirs| failed(theirs, "derper")));
        all
    }

    /// Numbers of cases that no test has in its name, and that are not tested elsewhere.
    fn untested(&self) -> Vec<u32> {
        let tested: Vec<_> = self.ours.keys().filter_map(|test| case_number(test)).collect();
        (1..=CASES)
            .filter(|case| !tested.contains(case) && !ELSEWHERE.iter().any(|(it, _)| it == case))
            .collect()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = |outcome: Option<&Outcome>| match outcome {
            None => "-",
            Some(Outcome::Passed) => "ok",
            Some(Outcome::Failed) => "FAILED",
            Some(Outcome::Differs(_)) => "differs",
            Some(Outcome::Skipped(_)) => "not run",
        };
        let mut rows: Vec<_> = self.ours.iter().collect();
        // Numbered ones first, in their order.
        rows.sort_by_key(|(test, _)| (case_number(test).unwrap_or(u32::MAX), (*test).clone()));
        writeln!(f, "{:<6}{:<9}{:<9}test", "case", "derpd", "derper")?;
        for (test, ours) in rows {
            let case = case_number(test).map(|number| number.to_string()).unwrap_or_default();
            let theirs = self.theirs.as_ref().and_then(|theirs| theirs.get(test));
            writeln!(f, "{case:<6}{:<9}{:<9}{test}", word(Some(ours)), word(theirs))?;
            for outcome in [Some(ours), theirs].into_iter().flatten() {
                if let Outcome::Differs(reason) | Outcome::Skipped(reason) = outcome {
                    writeln!(f, "{:24}{reason}", "")?;
                }
            }
        }
        let tested: Vec<_> = self.ours.keys().filter_map(|test| case_number(test)).collect();
        let elsewhere =
            ELSEWHERE.iter().filter(|(case, _)| self.is_whole && !tested.contains(case));
        for (case, place) in elsewhere {
            writeln!(f, "{case:<6}{:<9}{:<9}not among the protocol cases: {place}", "-", "-")?;
        }
        Ok(())
    }
}

/// The 46 in `mesh::case_46_a_forwarded_packet`.
fn case_number(test: &str) -> Option<u32> {
    let (_, rest) = test.split_once("::case_")?;
    rest.split('_').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_tests_become_a_table() {
        let lines = [
            "test mesh::case_46_one ... differs: mesh::case_46_one: it counts itself",
            "ok",
            "test limits::case_58_two ... skipped: half of case 63: no address",
            "skipped: limits::case_58_two: SIGHUP ends it",
            "test http::case_9_three ... FAILED",
            "test http::four ... ok",
            "---- http::case_9_three stdout ----",
            "test result: FAILED. 3 passed; 1 failed",
        ];
        let mut theirs = Outcomes::new();
        note(&lines.map(str::to_owned), &mut theirs);
        let expected = [
            ("http::case_9_three", Outcome::Failed),
            ("http::four", Outcome::Passed),
            ("limits::case_58_two", Outcome::Skipped("SIGHUP ends it".to_owned())),
            ("mesh::case_46_one", Outcome::Differs("it counts itself".to_owned())),
        ];
        assert_eq!(theirs, expected.map(|(test, it)| (test.to_owned(), it)).into());
        let ours = theirs.keys().map(|test| (test.clone(), Outcome::Passed)).collect();
        let table = Table { ours, theirs: Some(theirs), is_whole: false };
        assert_eq!(table.failures(), ["http::case_9_three against derper"]);
        let untested = table.untested();
        assert!(untested.contains(&1) && !untested.contains(&46) && !untested.contains(&71));
        let rows = table.to_json();
        assert_eq!(rows[2]["derper"], json!({ "outcome": "not run", "reason": "SIGHUP ends it" }));
        assert_eq!(rows[3]["case"], json!(46));
        let text = table.to_string();
        let first = text.lines().nth(1).unwrap();
        assert_eq!(first, "9     ok       FAILED   http::case_9_three");
        assert!(text.contains("46    ok       differs  mesh::case_46_one\n"), "{text}");
        assert!(text.contains("it counts itself"));
    }
}
