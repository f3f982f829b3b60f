//! The kernel program: its toolchain and its build.

mod apt;
mod privilege;
mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

pub(crate) use privilege::may_load;
pub(crate) use toolchain::Toolchain;

use crate::{process::CommandExt as _, workspace};

const PACKAGE: &str = "derp-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// `cargo xtask build-ebpf`.
pub(crate) fn command() -> Result<()> {
    let object = build(&Toolchain::find_or_install()?)?;
    println!("kernel program: {}", object.display());
    Ok(())
}

/// Builds the kernel program and returns the path that `derp-user` embeds it from.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    let directory = workspace::target_dir()?.join("ebpf");
    cargo(toolchain, toolchain.cargo(), &["build", "--release", "--bins"], &directory).run()?;
    let built = directory.join(TARGET).join("release").join(PACKAGE);
    let object = directory.join("derp-ebpf.o");
    copy_if_changed(&built, &object)?;
    Ok(object)
}

/// Lints the kernel program for its own target. Needs the toolchain's clippy.
pub(crate) fn clippy(toolchain: &Toolchain) -> Result<()> {
    let directory = workspace::target_dir()?.join("ebpf");
    let mut command = cargo(toolchain, toolchain.clippy()?, &["clippy", "--bins"], &directory);
    command.args(["--", "-D", "warnings"]).run()
}

/// A cargo subcommand on the kernel program. It has a target directory of its own, so that it
/// never waits for a host build nor throws its results away.
fn cargo(
    toolchain: &Toolchain,
    program: Command,
    subcommand: &[&str],
    directory: &Path,
) -> Command {
    let mut command = program;
    command
        .current_dir(workspace::root())
        .env("CARGO_ENCODED_RUSTFLAGS", toolchain.rustflags().join("\u{1f}"))
        .args(subcommand)
        .args(["--locked", "--package", PACKAGE, "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(directory);
    command
}

/// Leaves an equal file alone, so that its date does not make cargo rebuild the daemon.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::write(to, new).with_context(|| format!("writing {}", to.display()))
}
