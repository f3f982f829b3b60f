//! `cargo xtask package`: what derpd is delivered as, and whether that is sound.

mod check;
mod container;
mod deb;
mod documents;
mod helm;
mod sbom;
mod static_program;
mod trial;
mod unit;

use std::path::PathBuf;

use anyhow::Result;
pub(crate) use check::quick as check_quickly;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Package {
    /// Build programs that need nothing of the system, for x86-64 and, with --all, 64-bit ARM
    Static {
        /// For 64-bit ARM, too
        #[arg(long)]
        all: bool,
        /// Copy the program for this machine into this directory
        #[arg(long, value_name = "DIRECTORY")]
        output: Option<PathBuf>,
    },
    /// Build the Debian package
    Deb,
    /// Build the container image, from the static program, without any other image
    Container,
    /// Install, run, upgrade under load, and remove the Debian package on a Debian of its own, which systemd boots
    Trial,
    /// List everything that is in derpd, in CycloneDX
    Sbom,
    /// Hold the systemd unit and the Helm chart against the real tools
    Check,
}

pub(crate) fn command(package: &Package) -> Result<()> {
    match package {
        Package::Static { all, output } => static_program::command(*all, output.as_deref()),
        Package::Deb => deb::command(),
        Package::Container => container::command(),
        Package::Trial => trial::command(),
        Package::Sbom => sbom::command(),
        Package::Check => check::command(),
    }
}
