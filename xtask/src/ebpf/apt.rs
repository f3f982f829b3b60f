//! Installing Debian packages, or saying what to type.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, CommandExt as _};

const APT_GET: &str = "/usr/bin/apt-get";

/// Installs those of `packages` that are missing. `why` completes "... are needed to".
pub(crate) fn ensure(packages: &[&str], why: &str) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !Path::new(APT_GET).exists() {
        bail!("{list}: needed to {why}, and this system has no apt-get to install them with");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "{list}: needed to {why}; as root, run: apt-get update && apt-get install --no-install-recommends {list}"
        );
    }
    eprintln!("installing Debian packages {list} (needed to {why})");
    // A fresh system has no package lists, an old one has stale ones.
    apt(&["update"])?;
    // Without --no-remove, a conflict would take the user's other compiler away unasked.
    let mut install = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    install.extend(&missing);
    apt(&install).with_context(|| {
        format!("{list} could not be installed; with network access and Debian's security archive among apt's sources, run: apt-get update && apt-get install {list}")
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
