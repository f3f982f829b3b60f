//! Installing Debian packages, or saying what to type.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, CommandExt as _};

const APT_GET: &str = "/usr/bin/apt-get";
/// Debian asks this program whether it may start the services of new packages.
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// What it ends with for "no".
const FORBIDDEN: &str = "#!/bin/sh\nexit 101\n";

/// A program, and the Debian packages that bring it.
pub(crate) type Program = (&'static str, &'static [&'static str]);

/// Installs what is missing of `programs`, or says what to type. Starts none of the services that the packages bring.
/// `purpose` completes "which ...".
pub(crate) fn ensure_programs(programs: &[Program], purpose: &str) -> Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|(program, _)| !Path::new(program).exists())
        .flat_map(|(_, packages)| packages.iter().copied())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let _quiet = NoServices::new()?;
    ensure(&missing, purpose)
}

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

/// Keeps packages from starting services, as long as it lives. A web server on port 80 is not what
/// somebody expects who runs tests.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        // Whoever has a policy of their own keeps it, and others could not install anyway.
        if Path::new(POLICY).exists() || !nix::unistd::geteuid().is_root() {
            return Ok(Self { ours: false });
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("creating {POLICY} for the time of the installation"))?;
        let guard = Self { ours: true };
        file.write_all(FORBIDDEN.as_bytes()).with_context(|| format!("writing {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("{POLICY} could not be removed, please do: {error}");
        }
    }
}
