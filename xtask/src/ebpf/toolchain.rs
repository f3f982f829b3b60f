//! Finding or installing what compiles the kernel program.
//!
//! The target needs `core` built from source, which stable rustup toolchains refuse. Two compilers
//! can do it: a rustup nightly with `rust-src`, and Debian's own, whose packages hold the library
//! source. Both link with `bpf-linker`, built against one LLVM that must be at least as new as the
//! compiler's.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::apt;
use crate::{
    process::{self, CommandExt as _},
    workspace,
};

const BPF_LINKER: &str = "0.13.0";
const LLVM_MAJOR: u32 = 22;
const LLVM_PACKAGE: &str = "llvm-22-dev";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";

/// Compiler, library source, cargo, and what the linker needs: one installation for them all.
const DEBIAN_PACKAGES: [&str; 4] = ["rustc-web", "rust-web-src", "cargo-web", LLVM_PACKAGE];
const DEBIAN_CLIPPY: &str = "rust-web-clippy";
/// The oldest Debian compiler that reads this workspace (`rust-version`).
const DEBIAN_RUST_MINOR: u32 = 95;

/// A compiler and linker for the kernel target.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

enum Compiler {
    /// A rustup toolchain of this name.
    Nightly(String),
    /// `/usr/bin/rustc` with its library source.
    Debian,
}

impl Toolchain {
    /// Finds the toolchain, installing what is missing. Needs no network once it is there.
    pub(crate) fn find_or_install() -> Result<Self> {
        let compiler = match nightly_with_source() {
            Some(name) => Compiler::Nightly(name),
            None => debian_compiler()?,
        };
        Ok(Self { compiler, linker: linker()? })
    }

    /// Returns a command for this toolchain's cargo.
    pub(super) fn cargo(&self) -> Command {
        match &self.compiler {
            Compiler::Nightly(name) => nightly(name, "cargo"),
            Compiler::Debian => debian("/usr/bin/cargo"),
        }
    }

    /// Returns a command for this toolchain's `cargo clippy`, without the word `clippy`.
    pub(super) fn clippy(&self) -> Result<Command> {
        match &self.compiler {
            Compiler::Nightly(name) => Ok(nightly(name, "cargo")),
            Compiler::Debian => {
                apt::ensure(&[DEBIAN_CLIPPY], "lints the kernel program")?;
                // Through `cargo clippy`, rustup's proxy of the same name would be found first.
                let mut command = debian("/usr/bin/cargo-clippy");
                command.env("CARGO", "/usr/bin/cargo");
                Ok(command)
            }
        }
    }

    /// Returns the compiler flags for the kernel target.
    pub(super) fn rustflags(&self) -> Vec<String> {
        // BTF is made from debug information; aya needs it to load maps with types.
        ["-Cdebuginfo=2", "-Clink-arg=--btf"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("-Clinker={}", self.linker.display())])
            .collect()
    }
}

fn nightly(name: &str, program: &str) -> Command {
    let mut command = process::command("rustup");
    command.args(["run", name, program]).env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC");
    command
}

fn debian(program: &str) -> Command {
    let mut command = process::command(program);
    command
        .env("RUSTC", "/usr/bin/rustc")
        // The target needs unstable cargo and compiler options.
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTFLAGS");
    command
}

/// Returns the first nightly of rustup that has the library source and a bitcode format that the
/// linker reads.
fn nightly_with_source() -> Option<String> {
    let list = process::command("rustup").args(["toolchain", "list", "--quiet"]).read().ok()?;
    list.lines().map(str::trim).filter(|name| name.starts_with("nightly")).find_map(|name| {
        let rustc = |arguments: &[&str]| nightly(name, "rustc").args(arguments).read().ok();
        let sysroot = rustc(&["--print=sysroot"])?;
        let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        (source.exists() && llvm_major(&rustc(&["-vV"])?)? <= LLVM_MAJOR).then(|| name.to_owned())
    })
}

fn debian_compiler() -> Result<Compiler> {
    apt::ensure(
        &DEBIAN_PACKAGES,
        "build the kernel program (Debian's Rust with its library source; LLVM for the linker)",
    )?;
    let version = process::command("/usr/bin/rustc").arg("-vV").read()?;
    let (Some(minor), Some(llvm)) = (rust_minor(&version), llvm_major(&version)) else {
        bail!("`/usr/bin/rustc -vV` names no release or no LLVM version: {version}");
    };
    if minor < DEBIAN_RUST_MINOR {
        bail!(
            "Debian's rustc is 1.{minor}, and 1.{DEBIAN_RUST_MINOR} is needed; with the security archive among apt's sources, run: apt-get update && apt-get install {}",
            DEBIAN_PACKAGES.join(" ")
        );
    }
    if llvm > LLVM_MAJOR {
        bail!(
            "Debian's rustc uses LLVM {llvm}, and bpf-linker {BPF_LINKER} is pinned to LLVM {LLVM_MAJOR}"
        );
    }
    Ok(Compiler::Debian)
}

fn linker() -> Result<PathBuf> {
    workspace::pinned_tool("bpf-linker", BPF_LINKER, "it links the kernel program", |install| {
        let prefix = match std::env::var("LLVM_PREFIX") {
            Ok(prefix) => prefix,
            Err(_) => {
                apt::ensure(&[LLVM_PACKAGE], "is needed to build bpf-linker")?;
                LLVM_PREFIX.to_owned()
            }
        };
        install
            .args(["--no-default-features", "--features", LLVM_FEATURE])
            .env("PATH", path_with(&format!("{prefix}/bin")))
            .env("LLVM_PREFIX", prefix);
        Ok(())
    })
}

fn path_with(directory: &str) -> String {
    match std::env::var("PATH") {
        Ok(path) => format!("{directory}:{path}"),
        Err(_) => directory.to_owned(),
    }
}

/// Reads the minor number of `release: 1.96.0` in the output of `rustc -vV`.
fn rust_minor(version: &str) -> Option<u32> {
    field(version, "release: ")?.split('.').nth(1)?.parse().ok()
}

/// Reads the major number of `LLVM version: 22.1.8` in the output of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    field(version, "LLVM version: ")?.split('.').next()?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_compiler_versions() {
        let text = "rustc 1.96.0\nbinary: rustc\nrelease: 1.96.0-nightly\nLLVM version: 22.1.8\n";
        assert_eq!(rust_minor(text), Some(96));
        assert_eq!(llvm_major(text), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
