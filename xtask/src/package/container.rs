//! The container image, from the static program.
//!
//! `deploy/container/Containerfile` compiles derpd in an image of Rust's, which has to come from a registry of
//! images. Here its last stage is built alone, from files of this machine.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context as _, Result, bail};

use super::static_program;
use crate::{
    apt,
    process::{self, CommandExt as _},
    workspace,
};

const CONTAINERFILE: &str = "deploy/container/Containerfile";
const LAST_STAGE: &str = "FROM scratch";
const FROM_BUILD: &str = "COPY --from=build";
const OUTPUT: &str = " /out/";
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
const IMAGE: &str = "localhost/derpd";

/// `cargo xtask package container`.
pub(crate) fn command() -> Result<()> {
    apt::ensure_programs(&[("/usr/bin/buildah", &["buildah"])], "builds the container image")?;
    let program = static_program::build(static_program::X86_64)?;
    let context = workspace::target_dir()?.join("package").join("container");
    for directory in ["state", "certs"] {
        let directory = context.join(directory);
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
    }
    fs::copy(program, context.join("derpd")).context("copying the program")?;
    fs::copy(AUTHORITIES, context.join("ca-certificates.crt"))
        .with_context(|| format!("copying {AUTHORITIES} (Debian package ca-certificates)"))?;
    let whole = fs::read_to_string(workspace::root().join(CONTAINERFILE))
        .with_context(|| format!("reading {CONTAINERFILE}"))?;
    let containerfile = context.join("Containerfile");
    fs::write(&containerfile, last_stage(&whole)?).context("writing the Containerfile")?;
    process::command("buildah")
        .args(["build", "--isolation=chroot", "--format=docker", "--tag", IMAGE])
        .arg("--file")
        .args([&containerfile, &context])
        .run()
}

/// The stage that is delivered, with what it has of the other one in the context instead.
fn last_stage(containerfile: &str) -> Result<String> {
    let Some(start) = containerfile.find(LAST_STAGE) else {
        bail!("{CONTAINERFILE} has no stage `{LAST_STAGE}`");
    };
    let lines = containerfile[start..].lines().map(|line| {
        if line.starts_with(FROM_BUILD) {
            line.replacen(FROM_BUILD, "COPY", 1).replacen(OUTPUT, " ", 1)
        } else {
            line.to_owned()
        }
    });
    Ok(lines.collect::<Vec<_>>().join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_stage_stands_alone() {
        let whole = include_str!("../../../deploy/container/Containerfile");
        let stage = last_stage(whole).expect("a stage");
        assert!(stage.starts_with("FROM scratch\nCOPY derpd /derpd\n"), "{stage}");
        assert!(stage.contains("\nCOPY --chown=65532:65532 state /var/lib/derper\n"), "{stage}");
        assert!(!stage.contains("--from=build") && !stage.contains("/out/"), "{stage}");
        assert!(last_stage("FROM rust\n").is_err());
    }
}
