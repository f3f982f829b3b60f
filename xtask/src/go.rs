//! The Go toolchain, for tests and comparisons against Tailscale's own programs.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::process::{self, CommandExt as _};

/// The oldest minor release of Go 1 that builds `tailscale.com` v1.103.0-pre.
const OLDEST_MINOR: u32 = 26;

/// With this tag, which the tests name too, Tailscale's client can speak WebSocket outside of browsers.
pub(crate) const TAGS: &str = "-tags=ts_debug_websockets";

/// Returns a command for `go`.
pub(crate) fn command() -> Command {
    process::command("go")
}

/// Returns Go's version, or says what is missing when there is none that is new enough.
pub(crate) fn check_version() -> Result<String> {
    let version = command().args(["env", "GOVERSION"]).read().with_context(|| {
        format!("Go 1.{OLDEST_MINOR} or newer is needed; install it from https://go.dev/dl/")
    })?;
    let version = version.trim();
    if minor(version).is_none_or(|minor| minor < OLDEST_MINOR) {
        bail!(
            "{version} is too old: Go 1.{OLDEST_MINOR} or newer is needed; install it from https://go.dev/dl/"
        );
    }
    Ok(version.to_owned())
}

/// Returns why the tests of `module` cannot be compiled, when Go or a module they use is missing.
pub(crate) fn check_modules(module: &Path) -> Result<()> {
    check_version()?;
    command()
        .current_dir(module)
        .args(["list", TAGS, "-deps", "-test", "./..."])
        .read()
        .map(drop)
        .context("the Go modules that the tests use are not there and cannot be downloaded")
}

/// Reads the 26 in `go1.26.5`.
fn minor(version: &str) -> Option<u32> {
    let rest = version.strip_prefix("go1.")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_minor_release() {
        assert_eq!(minor("go1.26.5"), Some(26));
        assert_eq!(minor("go1.27rc1"), Some(27));
        assert_eq!(minor("devel +abc"), None);
    }
}
