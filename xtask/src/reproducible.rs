//! Builds that come out the same wherever they are made: no path of the machine and no date is in them.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::{
    ebpf,
    process::{self, CommandExt as _},
    workspace,
};

/// Where the two builds are, below the target directory: paths of different lengths.
const PLACES: [&str; 2] = ["a", "another/place"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build the kernel program alone
    #[arg(long)]
    kernel_program: bool,
    /// Cargo's profile of the daemon
    #[arg(long, default_value = "release")]
    profile: String,
}

impl Options {
    /// Leaves the daemon out.
    pub(crate) fn of_the_kernel_program() -> Self {
        Self { kernel_program: true, profile: "release".to_owned() }
    }
}

/// `cargo xtask reproducible`: builds the sources twice, in two directories, and compares every byte.
pub(crate) fn command(options: &Options) -> Result<()> {
    let top = workspace::target_dir()?.join("reproducible");
    if top.exists() {
        fs::remove_dir_all(&top).with_context(|| format!("removing {}", top.display()))?;
    }
    let toolchain = ebpf::Toolchain::find_or_install()?;
    // Both before the first build: in the minutes that it takes, somebody may change a file or commit.
    let roots = PLACES.map(|place| top.join(place).join("derpd"));
    for root in &roots {
        copy_sources(root)?;
    }
    let time = commit_time()?;
    let mut programs: Vec<Vec<PathBuf>> = Vec::new();
    for root in &roots {
        let target = root.join("target");
        let mut built = vec![ebpf::build_in(&toolchain, root, &target)?];
        if !options.kernel_program {
            let mut build = process::cargo();
            build
                .current_dir(root)
                .args(["build", "--locked", "--package", "derp-user", "--bin", "derpd"])
                .args(["--profile", &options.profile, "--target-dir"])
                .arg(&target);
            apply(&mut build, root, &target)?;
            build.env("SOURCE_DATE_EPOCH", &time).run()?;
            let directory = if options.profile == "dev" { "debug" } else { &options.profile };
            built.push(target.join(directory).join("derpd"));
        }
        programs.push(built);
    }
    let [first, second] = &programs[..] else { bail!("there were not two builds") };
    let mut differing = Vec::new();
    for (one, other) in first.iter().zip(second) {
        let name = one.file_name().unwrap_or_default().display().to_string();
        let hashes = [hash(one)?, hash(other)?];
        if hashes[0] == hashes[1] {
            println!("{}  {name}", hashes[0]);
        } else {
            differing.push(format!("{} and {}", one.display(), other.display()));
        }
    }
    if !differing.is_empty() {
        bail!("not the same: {}", differing.join("; "));
    }
    fs::remove_dir_all(&top).with_context(|| format!("removing {}", top.display()))
}

/// Prepares a build of the daemon for the host, so that nothing of this machine gets into it.
///
/// # Errors
///
/// When the compiler cannot be asked, or the time of the commit cannot be had.
pub(crate) fn apply(command: &mut Command, root: &Path, target: &Path) -> Result<()> {
    let mut c_flags = std::env::var_os("CFLAGS").unwrap_or_default();
    for (from, to) in prefixes(root, target) {
        c_flags.push(format!(" -ffile-prefix-map={}={to}", from.display()));
    }
    let mut flags = rust_flags(root, target);
    flags.push(library_source()?);
    command
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CFLAGS", c_flags)
        // The AWS-LC that the lock file names, not one that the system may have.
        .env("AWS_LC_SYS_USE_SYSTEM", "0")
        .env("SOURCE_DATE_EPOCH", commit_time()?);
    Ok(())
}

/// The flag by which places in the standard library are called the same whether its source is installed or not.
fn library_source() -> Result<String> {
    let source = process::rust_sysroot()?.join("lib/rustlib/src/rust");
    let commit = process::rust_version("commit-hash")?;
    Ok(format!("--remap-path-prefix={}=/rustc/{commit}", source.display()))
}

/// The compiler's flags that take the machine's paths out.
pub(crate) fn rust_flags(root: &Path, target: &Path) -> Vec<String> {
    let flag = |(from, to): (PathBuf, &str)| format!("--remap-path-prefix={}={to}", from.display());
    prefixes(root, target).into_iter().map(flag).collect()
}

/// Directories, and what is to stand for them. Of several that fit, the last counts.
fn prefixes(root: &Path, target: &Path) -> Vec<(PathBuf, &'static str)> {
    let directory = |variable: &str, below_home: &str| {
        let named = std::env::var_os(variable).map(PathBuf::from);
        named.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(below_home)))
    };
    let cargo = directory("CARGO_HOME", ".cargo").map(|path| (path, "/cargo"));
    let rustup = directory("RUSTUP_HOME", ".rustup").map(|path| (path, "/rustup"));
    let own = [(root.to_owned(), "/derpd"), (target.to_owned(), "/derpd/target")];
    [cargo, rustup].into_iter().flatten().chain(own).collect()
}

/// The time of the commit, in seconds since the epoch, unless the caller has set another.
pub(crate) fn commit_time() -> Result<OsString> {
    if let Some(time) = std::env::var_os("SOURCE_DATE_EPOCH") {
        return Ok(time);
    }
    let mut log = process::command("git");
    log.current_dir(workspace::root()).args(["log", "-1", "--format=%ct"]);
    Ok(log.read().context("the time of the commit")?.trim().into())
}

/// Copies what git knows of, as it is now.
fn copy_sources(to: &Path) -> Result<()> {
    let root = workspace::root();
    let mut list = process::command("git");
    list.current_dir(&root).args(["ls-files", "-z"]);
    for name in list.read()?.split('\0').filter(|name| !name.is_empty()) {
        let (from, to) = (root.join(name), to.join(name));
        if !from.is_file() {
            continue;
        }
        let parent = to.parent().unwrap_or(&to);
        fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        fs::copy(&from, &to).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_further_down_is_named_later() {
        let flags = rust_flags(Path::new("/home/me/derpd"), Path::new("/home/me/derpd/target"));
        let place = |part: &str| flags.iter().position(|flag| flag.contains(part));
        let (root, target) = (place("derpd=/derpd"), place("/target=/derpd/target"));
        assert!(root.is_some() && root < target, "{flags:?}");
        assert!(flags.iter().all(|flag| flag.starts_with("--remap-path-prefix=/")), "{flags:?}");
    }
}
