//! Where things are: the checkout, its target directory, the tools cache.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::process::{self, CommandExt as _};

/// Packages built for the host. The kernel program is built apart, for another target.
pub(crate) const HOST_PACKAGES: [&str; 3] = ["derp-common", "derp-user", "xtask"];

/// Written into the directory of a Python package when everything else is there.
const INSTALLED: &str = ".installed";

/// Returns the top directory of the checkout.
pub(crate) fn root() -> PathBuf {
    // Set by `cargo run`; the compiled-in path serves when the program is started by hand.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Returns cargo's target directory, wherever the user's settings put it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        target_directory: PathBuf,
    }
    let text = process::cargo()
        .current_dir(root())
        .args(["metadata", "--no-deps", "--format-version=1"])
        .read()?;
    let metadata: Metadata = serde_json::from_str(&text).context("reading `cargo metadata`")?;
    Ok(metadata.target_directory)
}

/// Builds the daemon as it is shipped and returns the program's path.
pub(crate) fn build_derpd() -> Result<PathBuf> {
    process::cargo()
        .current_dir(root())
        .args(["build", "--release", "--locked", "--package", "derp-user", "--bin", "derpd"])
        .run()?;
    Ok(target_dir()?.join("release").join("derpd"))
}

/// Returns the directory of the Go module that holds the tests with Tailscale's own clients.
pub(crate) fn interop_module() -> PathBuf {
    root().join("derp-user").join("tests").join("interop")
}

/// Returns the directory of the test client that is made of Tailscale's Rust crates.
pub(crate) fn ts_derp_client() -> PathBuf {
    root().join("derp-user").join("tests").join("ts_derp_client")
}

/// Returns the directory that pinned tools are installed into, kept across checkouts.
pub(crate) fn tools_dir() -> Result<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name).map(PathBuf::from).filter(|path: &PathBuf| path.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: no place to keep tools; set HOME")?;
    Ok(cache.join("derpd").join("tools"))
}

/// Installs `name` at `version` into the tools directory unless that version is there; returns
/// the program's path.
pub(crate) fn pinned_tool(
    name: &str,
    version: &str,
    why: &str,
    prepare: impl FnOnce(&mut Command) -> Result<()>,
) -> Result<PathBuf> {
    let tools = tools_dir()?;
    let program = tools.join("bin").join(name);
    if installed_version(&program).as_deref() == Some(version) {
        return Ok(program);
    }
    let mut install = process::cargo();
    install
        .args(["install", "--locked", "--force", name, "--version", version, "--root"])
        .arg(&tools);
    prepare(&mut install)?;
    eprintln!("installing {name} {version} into {} ({why}); this takes minutes", tools.display());
    install.run().with_context(|| {
        format!("{name} {version} could not be installed; with network access, run the same command again")
    })?;
    Ok(program)
}

/// Installs a package of Python's registry into a directory of its own among the tools, unless it is there; returns
/// that directory.
pub(crate) fn python_package(name: &str, version: &str, why: &str) -> Result<PathBuf> {
    let directory = python_directory(name, version)?;
    if is_python_package_there(name, version)? {
        return Ok(directory);
    }
    eprintln!("installing {name} {version} into {} ({why})", directory.display());
    process::command("python3")
        .args(["-m", "pip", "install", "--quiet", "--upgrade", "--root-user-action=ignore"])
        .arg("--target")
        .arg(&directory)
        .arg(format!("{name}=={version}"))
        .run()
        .with_context(|| {
            format!("{name} {version} could not be installed: python3 with pip (Debian package python3-pip) and network access are needed")
        })?;
    let done = directory.join(INSTALLED);
    std::fs::write(&done, "").with_context(|| format!("writing {}", done.display()))?;
    Ok(directory)
}

/// Whether [`python_package`] has installed it.
pub(crate) fn is_python_package_there(name: &str, version: &str) -> Result<bool> {
    Ok(python_directory(name, version)?.join(INSTALLED).exists())
}

fn python_directory(name: &str, version: &str) -> Result<PathBuf> {
    Ok(tools_dir()?.join(format!("{name}-{version}")))
}

fn installed_version(program: &Path) -> Option<String> {
    let text = process::command(program).arg("--version").read().ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}
