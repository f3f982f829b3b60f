//! Programs that are linked statically, with musl, for routers, small boards and containers.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    ebpf,
    process::{self, CommandExt as _},
    workspace,
};

const CARGO_ZIGBUILD: &str = "0.24.1";
/// The C compiler and linker; it brings musl for every processor.
const ZIG: &str = "0.15.2";
/// The machine that the packages are built on.
pub(crate) const X86_64: &str = "x86_64-unknown-linux-musl";
const AARCH64: &str = "aarch64-unknown-linux-musl";

/// `cargo xtask package static`.
pub(crate) fn command(all: bool, output: Option<&Path>) -> Result<()> {
    let targets: &[_] = if all { &[X86_64, AARCH64] } else { &[X86_64] };
    for target in targets {
        let program = build(target)?;
        let size = fs::metadata(&program).context("the program that was built")?.len();
        println!("{}: {} bytes", program.display(), size);
    }
    if let Some(directory) = output {
        fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        fs::copy(place(X86_64)?, directory.join("derpd")).context("copying the program")?;
    }
    Ok(())
}

/// Builds derpd for a target with musl, and returns the program's path.
pub(crate) fn build(target: &str) -> Result<PathBuf> {
    if let Err(reason) = ebpf::build_if_possible()? {
        println!("derpd will be without its XDP program: {reason}");
    }
    ensure_target(target)?;
    let zigbuild = workspace::pinned_tool(
        "cargo-zigbuild",
        CARGO_ZIGBUILD,
        "it builds static programs",
        |install| {
            install.arg("--no-default-features");
            Ok(())
        },
    )?;
    process::command(zigbuild)
        .current_dir(workspace::root())
        .env("CARGO_ZIGBUILD_ZIG_PATH", zig()?)
        .args(["zigbuild", "--release", "--locked", "--target", target])
        .args(["--package", "derp-user", "--bin", "derpd"])
        .run()?;
    place(target)
}

fn place(target: &str) -> Result<PathBuf> {
    Ok(workspace::target_dir()?.join(target).join("release").join("derpd"))
}

/// Rust's own library for the target, which rustup has.
fn ensure_target(target: &str) -> Result<()> {
    let directory =
        process::command("rustc").args(["--print=target-libdir", "--target", target]).read()?;
    if Path::new(directory.trim()).exists() {
        return Ok(());
    }
    let add = ["target", "add", target];
    process::command("rustup").args(add).run().with_context(|| {
        format!(
            "Rust's library for {target} is missing; with network access, run: rustup {}",
            add.join(" ")
        )
    })
}

/// Installs zig, which Python's registry has as a package, unless it is there.
fn zig() -> Result<PathBuf> {
    let zig = workspace::python_package("ziglang", ZIG, "it compiles and links static programs")?
        .join("ziglang")
        .join("zig");
    if !zig.exists() {
        bail!("{} is missing in the Python package ziglang {ZIG}", zig.display());
    }
    Ok(zig)
}
