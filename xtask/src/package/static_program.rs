//! Programs that are linked statically, with musl, for routers, small boards and containers.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

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
/// Runs programs for 64-bit ARM (Debian package qemu-user-static).
const AARCH64_EMULATOR: &str = "/usr/bin/qemu-aarch64-static";
/// How long a relay may take to serve, emulated on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// `cargo xtask package static`.
pub(crate) fn command(all: bool, output: Option<&Path>) -> Result<()> {
    let targets: &[_] = if all { &[X86_64, AARCH64] } else { &[X86_64] };
    for target in targets {
        let program = build(target)?;
        let size = fs::metadata(&program).context("the program that was built")?.len();
        println!("{}: {size} bytes", program.display());
        match emulator(target) {
            Ok(emulator) => {
                let memory = try_out(emulator, &program)
                    .with_context(|| format!("trying {}", program.display()))?;
                println!("it serves, and has {memory} resident");
            }
            Err(reason) => println!("skipped: trying it: {reason}"),
        }
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

/// What runs programs for a target here, if anything is needed; the error is why nothing can.
fn emulator(target: &str) -> Result<Option<&'static str>, String> {
    if target.starts_with(std::env::consts::ARCH) {
        Ok(None)
    } else if target == AARCH64 && Path::new(AARCH64_EMULATOR).exists() {
        Ok(Some(AARCH64_EMULATOR))
    } else {
        Err(format!("{AARCH64_EMULATOR} is missing (Debian package qemu-user-static)"))
    }
}

/// Has the program serve on this machine until it answers, and end; returns how much memory it had, with its unit.
fn try_out(emulator: Option<&str>, program: &Path) -> Result<String> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .context("looking for a free port")?
        .port();
    let directory = std::env::temp_dir().join(format!("derpd-static-{}", std::process::id()));
    fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let derpd = |arguments: &[&str]| {
        let mut command = emulator.map_or_else(
            || process::command(program),
            |emulator| {
                let mut command = process::command(emulator);
                command.arg(program);
                command
            },
        );
        command.args(arguments).arg(format!("-a=127.0.0.1:{port}")).arg("-stun=false");
        command.arg(format!("-c={}", directory.join("key").display()));
        command.stdin(Stdio::null());
        command
    };
    let result = serve(&mut derpd(&[]), || {
        derpd(&["healthcheck"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    });
    fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    result
}

/// Runs a relay until it serves; returns its resident memory.
fn serve(relay: &mut Command, is_serving: impl Fn() -> bool) -> Result<String> {
    let mut child = relay.spawn().with_context(|| format!("starting `{}`", relay.describe()))?;
    let memory = await_service(&mut child, is_serving);
    let id = i32::try_from(child.id()).context("a strange process id")?;
    // It may have ended by itself, which the first error then says.
    kill(Pid::from_raw(id), Signal::SIGTERM).ok();
    let status = child.wait().context("waiting for the relay")?;
    let memory = memory?;
    ensure!(status.success(), "`{}` ended with {status}", relay.describe());
    Ok(memory)
}

fn await_service(child: &mut Child, is_serving: impl Fn() -> bool) -> Result<String> {
    let start = Instant::now();
    while !is_serving() {
        ensure!(child.try_wait().context("waiting for the relay")?.is_none(), "it has ended");
        ensure!(start.elapsed() < PATIENCE, "it does not serve after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))
        .context("the status of the relay")?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    Ok(memory.context("the kernel does not tell how much memory the relay has")?.trim().to_owned())
}
