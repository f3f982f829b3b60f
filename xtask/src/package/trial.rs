//! The Debian package on a Debian of its own, under a real systemd.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use super::deb;
use crate::{
    apt::{self, Program},
    ebpf,
    process::{self, CommandExt as _},
    workspace,
};

const RELEASE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
/// What a minimal system lacks: an init, and what the package depends on.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,procps,ca-certificates";
const PROGRAMS: [Program; 2] = [
    ("/usr/sbin/debootstrap", &["debootstrap"]),
    ("/usr/bin/systemd-nspawn", &["systemd-container"]),
];
/// Written when the system is complete.
const COMPLETE: &str = ".complete";

/// `cargo xtask package trial`: the tests that need the package and a machine to install it on.
pub(crate) fn command() -> Result<()> {
    if !geteuid().is_root() {
        bail!("a system can be installed and booted by root alone");
    }
    apt::ensure_programs(&PROGRAMS, "install and boot a Debian of its own")?;
    let package = deb::build()?;
    let root = debian()?;
    let mut tests = process::cargo();
    tests.current_dir(workspace::root());
    tests.env("DERPD_DEB", package).env("DERPD_DEBIAN_ROOT", root);
    if ebpf::build_if_possible()?.is_ok() {
        tests.env("DERPD_REQUIRE_XDP", "1");
    }
    tests.args(["test", "--locked", "--package", "derp-user", "--test", "upgrade"]);
    // The traffic of one must not be slowed down by the other.
    tests.args(["--", "--show-output", "--test-threads=1"]).run()
}

/// Installs a minimal system among the tools, unless it is there; returns its directory.
fn debian() -> Result<PathBuf> {
    let directory = workspace::tools_dir()?.join(format!("debian-{RELEASE}"));
    if directory.join(COMPLETE).exists() {
        return Ok(directory);
    }
    // Of an earlier attempt.
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    eprintln!("installing a Debian into {}; this takes minutes", directory.display());
    process::command("debootstrap")
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), RELEASE])
        .arg(&directory)
        .arg(MIRROR)
        .run()?;
    let done = directory.join(COMPLETE);
    fs::write(&done, "").with_context(|| format!("writing {}", done.display()))?;
    Ok(directory)
}
