//! The kernel program: its toolchain and its build.

mod privilege;
mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

pub(crate) use toolchain::Toolchain;

use crate::{process::CommandExt as _, reproducible, workspace};

const PACKAGE: &str = "derp-ebpf";
/// Programs of tests and benchmarks, which are built beside the one of derpd.
const PASS: &str = "xdp-pass";
const POLLS: &str = "polls";
const TARGET: &str = "bpfel-unknown-none";
/// Cargo's directory for this target, below the usual one: sharing that, a build here would wait for
/// one of the host. Apart from the object's, which the build script of `derp-user` watches.
const BUILD_DIRECTORY: &str = "ebpf-build";

/// `cargo xtask build-ebpf`.
pub(crate) fn command() -> Result<()> {
    let object = build(&Toolchain::find_or_install()?)?;
    println!("kernel program: {}", object.display());
    Ok(())
}

/// Builds the kernel program and returns the path that `derp-user` embeds it from.
pub(crate) fn build(toolchain: &Toolchain) -> Result<PathBuf> {
    build_in(toolchain, &workspace::root(), &workspace::target_dir()?)
}

/// Builds the kernel program of the sources at `root` and returns the path that `derp-user` embeds it from when it is
/// built with this target directory.
pub(crate) fn build_in(toolchain: &Toolchain, root: &Path, target: &Path) -> Result<PathBuf> {
    let build = target.join(BUILD_DIRECTORY);
    cargo(toolchain.cargo(), toolchain, &["build", "--release", "--bins"], root, &build).run()?;
    mark(target)?;
    let built = build.join(TARGET).join("release");
    for program in [PACKAGE, PASS, POLLS] {
        copy_if_changed(&built.join(program), &object(target, program))?;
    }
    Ok(object(target, PACKAGE))
}

/// Marks a target directory as cargo does when it makes one, but not when it finds one (a mounted volume, say): the build
/// script of `derp-user` looks for the mark to find the object.
fn mark(target: &Path) -> Result<()> {
    let file = target.join("CACHEDIR.TAG");
    if !file.exists() {
        fs::write(&file, "Signature: 8a477f597d28d172789f06886806bc55\n")
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Returns the path of the program that lets everything pass.
pub(crate) fn pass_program() -> Result<PathBuf> {
    Ok(object(&workspace::target_dir()?, PASS))
}

/// Returns the path of the programs that measure how long the kernel receives.
pub(crate) fn polls_program() -> Result<PathBuf> {
    Ok(object(&workspace::target_dir()?, POLLS))
}

/// Where a kernel program lies once it is built with this target directory.
fn object(target: &Path, program: &str) -> PathBuf {
    target.join("ebpf").join(format!("{program}.o"))
}

/// Builds the kernel program where that is possible; the inner error is why this process could not
/// use it. A program that does not compile is an outer error.
pub(crate) fn build_if_possible() -> Result<Result<(), String>> {
    match Toolchain::find_or_install() {
        Ok(toolchain) => build(&toolchain).map(|_| privilege::may_load()),
        Err(reason) => Ok(Err(format!("{reason:#}"))),
    }
}

/// Lints the kernel program for its own target. Needs the toolchain's clippy.
pub(crate) fn clippy(toolchain: &Toolchain) -> Result<()> {
    let build = workspace::target_dir()?.join(BUILD_DIRECTORY);
    cargo(toolchain.clippy()?, toolchain, &["clippy", "--bins"], &workspace::root(), &build)
        .args(["--", "-Dwarnings"])
        .run()
}

/// Completes `command` to a cargo subcommand on the kernel program.
fn cargo(
    mut command: Command,
    toolchain: &Toolchain,
    subcommand: &[&str],
    root: &Path,
    build: &Path,
) -> Command {
    // Debug information has paths, and the object is to be the same wherever it is built.
    let flags = [toolchain.rustflags(), reproducible::rust_flags(root, build)].concat();
    command
        .current_dir(root)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args(subcommand)
        .args(["--locked", "--package", PACKAGE, "--target", TARGET, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(build);
    command
}

/// Leaves an equal file alone, so that its date does not make cargo rebuild the daemon.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    to.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(to, new))
        .with_context(|| format!("writing {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regression_a_target_directory_that_cargo_did_not_make_is_marked() {
        let name = format!("derpd-mark-{}", std::process::id());
        let target = std::env::temp_dir().join(name);
        fs::create_dir(&target).expect("a directory");
        mark(&target).expect("marked");
        let file = target.join("CACHEDIR.TAG");
        assert!(fs::read_to_string(&file).expect("there").starts_with("Signature: "));
        fs::write(&file, "cargo's own").expect("written");
        mark(&target).expect("marked already");
        assert_eq!(fs::read_to_string(&file).expect("there"), "cargo's own");
        fs::remove_dir_all(&target).expect("removed");
    }
}
