//! The Debian package.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::{documents, sbom};
use crate::{
    ebpf,
    process::{self, CommandExt as _},
    workspace,
};

const CARGO_DEB: &str = "3.8.0";
/// What the package must hold, among other things.
const CONTENTS: [&str; 11] = [
    "./etc/default/derpd",
    "./etc/derpd/derpd.toml",
    "./usr/bin/derpd",
    "./usr/lib/systemd/system/derpd.service",
    "./usr/lib/systemd/system/derpd.socket",
    "./usr/lib/sysusers.d/derpd.conf",
    "./usr/share/bash-completion/completions/derpd",
    "./usr/share/derpd/kernel.conf",
    "./usr/share/doc/derpd/derpd.cdx.json",
    "./usr/share/man/man8/derpd-bench.8.gz",
    "./usr/share/man/man8/derpd.8.gz",
];

/// `cargo xtask package deb`.
pub(crate) fn command() -> Result<()> {
    let package = build()?;
    println!("{}", package.display());
    Ok(())
}

/// Builds the package, looks into it, and returns its path.
pub(super) fn build() -> Result<PathBuf> {
    if let Err(reason) = ebpf::build_if_possible()? {
        println!("derpd will be without its XDP program: {reason}");
    }
    let cargo_deb =
        workspace::pinned_tool("cargo-deb", CARGO_DEB, "it makes the Debian package", |_| Ok(()))?;
    documents::write(&workspace::build_derpd()?)?;
    sbom::write()?;
    let printed = process::command(cargo_deb)
        .current_dir(workspace::root())
        .args(["deb", "--no-build", "--locked", "--package", "derp-user"])
        .read()?;
    let Some(path) = printed.lines().last().map(str::trim).filter(|path| !path.is_empty()) else {
        bail!("cargo-deb does not say where the package is: {printed:?}");
    };
    let path = PathBuf::from(path);
    let list = process::command("dpkg-deb").arg("--contents").arg(&path).read()?;
    let has = |file: &str| list.lines().any(|line| line.ends_with(&format!(" {file}")));
    let missing: Vec<_> = CONTENTS.into_iter().filter(|file| !has(file)).collect();
    if !missing.is_empty() {
        bail!("{} lacks {}:\n{list}", path.display(), missing.join(", "));
    }
    Ok(path)
}
