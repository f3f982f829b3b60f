//! Programs from the Go modules `interop/` (Tailscale's own, and tests against them) and `pebble/`.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Oldest Go that builds the reference.
const GO_MINOR: u32 = 26;

/// A program that is built when it is first needed, or why it cannot be.
pub(crate) type Built = OnceLock<Result<PathBuf, String>>;

/// Builds a program from the module `interop` once, or says why its tests are skipped.
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
pub(crate) fn go_binary(
    built: &Built,
    name: &str,
    command: &[&str],
    package: &str,
) -> Result<PathBuf, String> {
    built.get_or_init(|| build("interop", name, command, package)).clone()
}

/// Builds a program of the module `module`, or says why its tests are skipped.
pub(crate) fn build(
    module: &str,
    name: &str,
    command: &[&str],
    package: &str,
) -> Result<PathBuf, String> {
    let run_go = |arguments: &[&str]| run_go(module, arguments);
    let version = run_go(&["env", "GOVERSION"])?;
    let minor = version.trim().strip_prefix("go1.").and_then(|rest| rest.split('.').next());
    if minor.and_then(|minor| minor.parse().ok()).is_none_or(|minor: u32| minor < GO_MINOR) {
        return Err(format!("needs Go 1.{GO_MINOR}, found {}", version.trim()));
    }
    // Needs the sources of every module, but compiles nothing: a failure here is the network's.
    let tags = command.iter().copied().filter(|flag| flag.starts_with("-tags="));
    let list = ["list", "-deps", "-test"].into_iter().chain(tags).chain([package]);
    run_go(&list.collect::<Vec<_>>())
        .map_err(|error| format!("the Go modules cannot be had: {error}"))?;
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = path.display().to_string();
    run_go(&[command, &["-o", &output, package]].concat())
        .unwrap_or_else(|error| panic!("building {package}: {error}"));
    Ok(path)
}

fn run_go(module: &str, arguments: &[&str]) -> Result<String, String> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(module);
    let output = Command::new("go")
        .args(arguments)
        .current_dir(module)
        .env("GOTOOLCHAIN", "local")
        .env("GOFLAGS", "-buildvcs=false")
        .output()
        .map_err(|error| format!("go cannot be run: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
