//! `cargo xtask test`: every test that this machine can run, and why it could not run the others.

mod tally;

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    browser, clock, ebpf, go, monitoring, namespaces,
    process::{self, CommandExt as _},
    proxies, wireguard, workspace,
};
use tally::Tally;

/// Runs the tests; `arguments` go to `cargo test`.
pub(crate) fn command(arguments: &[String]) -> Result<()> {
    let mut tally = Tally::default();
    let mut tests = process::cargo();
    tests.current_dir(workspace::root());
    tests.args(["test", "--locked", "--no-fail-fast"]).args(arguments);
    // Shows what passing tests print, which is where a test says that it skipped itself.
    tests.args(["--", "--show-output"]);
    let complete = ebpf::build_if_possible()?
        .and_then(|()| namespaces::ensure_programs().map_err(|reason| format!("{reason:#}")));
    match complete {
        // With everything there, a kernel test that skips itself would hide a fault.
        Ok(()) => drop(tests.env("DERPD_REQUIRE_XDP", "1")),
        Err(reason) => {
            tally.skip(&format!("all or some tests on the loaded kernel program: {reason}"))
        }
    }
    for ensure in [
        proxies::ensure_programs,
        browser::ensure_programs,
        monitoring::ensure_programs,
        clock::ensure_programs,
        wireguard::ensure_programs,
    ] {
        if let Err(reason) = ensure() {
            // Each of the tests that need one says so itself, but not what to type.
            eprintln!("{reason:#}");
        }
    }
    compile_interop_tests()?;
    compile_ts_derp_client()?;

    let succeeded = stream(&mut tests, &mut tally)?;
    print!("{tally}");
    if !succeeded && tally.failed() == 0 {
        bail!("`{}` failed before or between tests: see above", tests.describe());
    }
    if !succeeded {
        bail!("{} of the tests failed", tally.failed());
    }
    Ok(())
}

/// The Rust tests start the Go ones. Compiling them first keeps those minutes out of a test.
fn compile_interop_tests() -> Result<()> {
    let module = workspace::interop_module();
    if go::check_modules(&module).is_err() {
        // Each of the tests says so itself.
        return Ok(());
    }
    let arguments = ["test", go::TAGS, "-count=1", "-run=^$", "./..."];
    go::command().current_dir(module).args(arguments).run()
}

/// Likewise the client made of another project's crates, a workspace of its own.
fn compile_ts_derp_client() -> Result<()> {
    let directory = workspace::ts_derp_client();
    let cargo = |subcommand: &[&str]| {
        let mut command = process::cargo();
        command.current_dir(&directory).args(subcommand).arg("--locked");
        command
    };
    if cargo(&["fetch"]).read().is_err() {
        return Ok(());
    }
    // The directory that cargo gives to integration tests (`CARGO_TARGET_TMPDIR`).
    let target = workspace::target_dir()?.join("tmp").join("ts_derp_client");
    cargo(&["build"]).arg("--target-dir").arg(target).run()
}

/// Runs `tests`, showing and counting its output line by line. Returns whether it succeeded.
fn stream(tests: &mut Command, tally: &mut Tally) -> Result<bool> {
    eprintln!("+ {}", tests.describe());
    // One pipe for both streams keeps their lines in order.
    let (output, writer) = std::io::pipe().context("making a pipe")?;
    tests.stdin(Stdio::null()).stdout(writer.try_clone().context("sharing a pipe")?).stderr(writer);
    let mut child = tests.spawn().context("starting cargo")?;
    // The command still holds the writing end, and would keep the reading one from ending.
    tests.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the output of the tests")?;
        let text = String::from_utf8_lossy(&line);
        if tally.line(&text) {
            println!("{text}");
        }
    }
    Ok(child.wait().context("waiting for cargo")?.success())
}
