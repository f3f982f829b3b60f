//! The library's unit tests with a sanitizer of the compiler, which sees what they do to memory and between threads.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// This looks at what the C library's allocator does, in whose place the sanitizers have their own.
const LEFT_OUT: &str = "pages_go_back_that_only_a_threads_cache_keeps";
/// The packages whose library tests are run.
const PACKAGES: [&str; 2] = ["derp-common", "derp-user"];

#[derive(Clone, Copy, ValueEnum)]
enum Sanitizer {
    /// Data races: two threads at the same memory, one of which writes, and nothing orders them
    Thread,
    /// Memory that is used after its end, beyond its bounds, or never freed
    Address,
}

#[derive(Args)]
pub(crate) struct Options {
    sanitizer: Sanitizer,
    /// Arguments of the test programs, such as a part of a test's name
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// `cargo xtask sanitize`.
pub(crate) fn command(options: &Options) -> Result<()> {
    // Without that in the library, what its locks and channels order would look like races.
    if !process::rust_sysroot()?.join("lib/rustlib/src/rust/library/std").exists() {
        bail!("the library is built with the sanitizer too; run: rustup component add rust-src");
    }
    let name = match options.sanitizer {
        Sanitizer::Thread => "thread",
        Sanitizer::Address => "address",
    };
    let mut test = process::cargo();
    test.current_dir(workspace::root())
        // The sanitizers are unstable options of a stable compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", format!("-Zsanitizer={name}"))
        .args(["test", "--locked", "--lib", "-Zbuild-std", "--target"])
        .arg(process::rust_version("host")?);
    for package in PACKAGES {
        test.args(["--package", package]);
    }
    test.arg("--target-dir").arg(workspace::target_dir()?.join(format!("sanitize-{name}")));
    test.args(["--", "--skip", LEFT_OUT]).args(&options.arguments).run()
}
