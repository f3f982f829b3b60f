//! The systemd unit, before systemd's own checker.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

const ANALYZE: &str = "/usr/bin/systemd-analyze";
const PROGRAM: &str = "/usr/bin/derpd";
/// What exists everywhere, in the place of [`PROGRAM`], which the checker looks for.
const STAND_IN: &str = "/bin/true";
/// Most that the unit may be exposed to, in tenths, as `systemd-analyze security` counts.
const MOST_EXPOSED: &str = "20";
/// The same with the drop-in for the kernel data plane.
const MOST_EXPOSED_WITH_KERNEL: &str = "25";

/// Checks the unit; with a reason if there is no systemd to do so.
pub(crate) fn check() -> Result<Result<(), String>> {
    if !Path::new(ANALYZE).exists() {
        return Ok(Err(format!("no {ANALYZE} (Debian package systemd)")));
    }
    let directory = workspace::target_dir()?.join("package").join("units");
    let unit = directory.join("derpd.service");
    let drop_ins = directory.join("derpd.service.d");
    // Of an earlier run.
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(&drop_ins).with_context(|| format!("creating {}", drop_ins.display()))?;
    let source = workspace::root().join("deploy").join("systemd");
    let text = fs::read_to_string(source.join("derpd.service")).context("reading the unit")?;
    if !text.contains(&format!("ExecStart={PROGRAM}\n")) {
        bail!("derpd.service does not start {PROGRAM}");
    }
    fs::write(&unit, text.replace(PROGRAM, STAND_IN)).context("writing the unit")?;
    analyze(&["verify", "--man=no"], &unit)?;
    println!("exposure of derpd.service: {}", exposure(&unit, MOST_EXPOSED)?);
    let socket = directory.join("derpd.socket");
    fs::copy(source.join("derpd.socket"), &socket).context("the socket unit")?;
    analyze(&["verify", "--man=no"], &socket)?;
    fs::copy(source.join("kernel.conf"), drop_ins.join("kernel.conf")).context("the drop-in")?;
    analyze(&["verify", "--man=no"], &unit)?;
    println!("with kernel.conf: {}", exposure(&unit, MOST_EXPOSED_WITH_KERNEL)?);
    Ok(Ok(()))
}

/// Runs the checker, which writes warnings and succeeds: they are faults, too.
fn analyze(arguments: &[&str], unit: &Path) -> Result<()> {
    let output = process::command(ANALYZE).args(arguments).arg(unit).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<_> = said.lines().filter(|line| line.contains("derpd")).collect();
    if !output.status.success() || !ours.is_empty() {
        bail!("systemd-analyze {}: {}: {said}", arguments.join(" "), output.status);
    }
    Ok(())
}

/// How much the unit is exposed to, of 10; fails if that is more than `most` tenths.
fn exposure(unit: &Path, most: &str) -> Result<String> {
    let text = process::command(ANALYZE)
        .args(["security", "--offline=yes", "--no-pager", "--threshold", most])
        .arg(unit)
        .read()?;
    let line = text.lines().rev().find(|line| line.contains("Overall exposure level"));
    let level = line.and_then(|line| line.split(':').nth(1)).context("no exposure level")?;
    Ok(level.trim().to_owned())
}
