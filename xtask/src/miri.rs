//! The pure code under Miri, which finds undefined behaviour.

use anyhow::{Result, bail};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// What the kernel program is made of: no I/O, so all of it can be interpreted.
const PACKAGE: &str = "derp-common";
/// Miri is a thousand times slower than the processor: a few random cases of each property.
const CASES: &str = "4";
/// The property tests keep failures in files, which an isolated program cannot.
const FLAGS: &str = "-Zmiri-disable-isolation";

/// `cargo xtask miri`.
pub(crate) fn command() -> Result<()> {
    match run_if_possible()? {
        Ok(()) => Ok(()),
        Err(reason) => bail!("{reason}"),
    }
}

/// Runs it; the inner error is why this machine cannot.
pub(crate) fn run_if_possible() -> Result<Result<(), String>> {
    let Some(toolchain) = toolchain() else {
        return Ok(Err(
            "no nightly of rustup has Miri; with network access, run: rustup component add --toolchain nightly miri rust-src"
                .to_owned(),
        ));
    };
    process::command("rustup")
        .current_dir(workspace::root())
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("PROPTEST_CASES", CASES)
        .env("MIRIFLAGS", FLAGS)
        .args(["run", &toolchain, "cargo", "miri", "test", "--locked", "--package", PACKAGE])
        .arg("--target-dir")
        .arg(workspace::target_dir()?.join("miri-build"))
        .run()?;
    Ok(Ok(()))
}

/// The first nightly of rustup that has Miri and the library source.
fn toolchain() -> Option<String> {
    let list = process::command("rustup").args(["toolchain", "list", "--quiet"]).read().ok()?;
    list.lines().map(str::trim).filter(|name| name.starts_with("nightly")).find_map(|name| {
        let components = process::command("rustup")
            .args(["component", "list", "--installed", "--toolchain", name])
            .read()
            .ok()?;
        let has = |wanted: &str| components.lines().any(|line| line.starts_with(wanted));
        (has("miri") && has("rust-src")).then(|| name.to_owned())
    })
}
