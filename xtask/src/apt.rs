//! Installing Debian packages, or saying what to type.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, CommandExt as _};

const APT_GET: &str = "/usr/bin/apt-get";

/// Installs those of `packages` that are missing. `purpose` completes "which ...".
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    let typed = format!("apt-get update && apt-get install --no-install-recommends {list}");
    if !Path::new(APT_GET).exists() {
        bail!(
            "{list} missing, which {purpose}, and no apt-get to install Debian packages; docs/TESTING.md names the alternatives"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("{list} missing, which {purpose}; as root, run: {typed}");
    }
    eprintln!("installing the Debian packages {list}, which {purpose}");
    // A fresh system has no package lists, an old one has stale ones.
    apt(&["update"])?;
    // Without --no-remove, a conflict would take the user's other compiler away unasked.
    let mut install = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    install.extend(&missing);
    apt(&install).with_context(|| {
        format!("{list} could not be installed; with network access and Debian's security archive among apt's sources, run: {typed}")
    })
}

fn apt(arguments: &[&str]) -> Result<()> {
    process::command(APT_GET)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--quiet", "--quiet", "-o", "Dpkg::Use-Pty=0"])
        .args(arguments)
        .run()
}

fn is_installed(package: &str) -> bool {
    process::command("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .read()
        .is_ok_and(|status| status == "installed")
}
