//! The WireGuard implementations that run in userspace, each built from its registry, pinned.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::go::{Built, build};

/// Version of Cloudflare's implementation in Rust. That of wireguard-go is in `wireguard_go/go.mod`.
const BORINGTUN: &str = "0.7.1";

/// Which program a peer runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Implementation {
    /// Cloudflare's, with one socket for all peers.
    ///
    /// As it comes it connects a socket to the endpoint of each peer. Behind one relay all of them have the same
    /// endpoint, so the kernel hands what any peer sends to one of these sockets, and it is lost there.
    Boringtun,
    /// The same as it comes, good for one peer.
    BoringtunConnected,
    /// The reference implementation of those in userspace.
    WireguardGo,
}

/// Where the programs are.
pub(crate) struct Programs {
    boringtun: PathBuf,
    wireguard_go: PathBuf,
}

impl Programs {
    /// Builds them when they are first needed, or says why they cannot be had.
    pub(crate) fn find() -> Result<&'static Self, String> {
        static PROGRAMS: OnceLock<Result<Programs, String>> = OnceLock::new();
        static WIREGUARD_GO: Built = OnceLock::new();
        let find = || {
            if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
                return Err(format!("/dev/net/tun cannot be opened: {error}"));
            }
            let package = "golang.zx2c4.com/wireguard";
            let wireguard_go = WIREGUARD_GO
                .get_or_init(|| build("wireguard_go", "wireguard-go", &["build"], package));
            Ok(Self { boringtun: boringtun()?, wireguard_go: wireguard_go.clone()? })
        };
        PROGRAMS.get_or_init(find).as_ref().map_err(Clone::clone)
    }

    /// A command that runs a tunnel with this interface in the foreground.
    pub(crate) fn command(&self, implementation: Implementation, interface: &str) -> Command {
        let boringtun = || {
            let mut command = Command::new(&self.boringtun);
            command.args(["--foreground", "--disable-drop-privileges", "--threads", "2"]);
            command.args(["--verbosity", "debug"]);
            command
        };
        let mut command = match implementation {
            Implementation::Boringtun => {
                let mut command = boringtun();
                command.arg("--disable-connected-udp");
                command
            }
            Implementation::BoringtunConnected => boringtun(),
            Implementation::WireguardGo => {
                let mut command = Command::new(&self.wireguard_go);
                command.arg("--foreground").env("LOG_LEVEL", "verbose");
                command
            }
        };
        command.arg(interface);
        command
    }

    /// What `wg-quick` is told to start in place of the kernel's WireGuard.
    pub(crate) fn for_wg_quick(&self) -> &Path {
        &self.wireguard_go
    }
}

/// Installs the pinned version below the target directory unless it is there; `cargo xtask test` does the same
/// beforehand.
fn boringtun() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("boringtun");
    let program = root.join("bin").join("boringtun-cli");
    let version = Command::new(&program).arg("--version").output();
    if version.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1) == Some(BORINGTUN)
    }) {
        return Ok(program);
    }
    let output = Command::new(env!("CARGO"))
        .args(["install", "--locked", "--force", "boringtun-cli", "--version", BORINGTUN, "--root"])
        .arg(root)
        .output()
        .map_err(|error| format!("cargo cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(program);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    Err(format!("boringtun-cli {BORINGTUN} cannot be installed: {last}"))
}

/// Says that a test did nothing, past the harness, which hides what a passing test prints.
pub(crate) fn skip(what: &str, reason: &str) {
    // In one piece, so that other lines do not get in between.
    let line = format!("skipped: {what}: {}\n", reason.trim());
    io::stderr().write_all(line.as_bytes()).ok();
}
