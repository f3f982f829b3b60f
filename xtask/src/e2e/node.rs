//! One Tailscale client: `tailscaled` on one of the lab's hosts, driven by `tailscale`.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::{
    CONTROL_PORT, PATIENCE, Programs,
    lab::{CONTROL, Daemon, Host, Lab, retry},
};
use crate::process::CommandExt as _;

/// Where the `tailscaled` of a host listens for its own programs.
pub(super) fn socket(lab: &Lab, host: Host) -> PathBuf {
    lab.directory().join(host.name()).join("socket")
}

/// A logged-in client.
pub(super) struct Node<'lab> {
    lab: &'lab Lab,
    host: Host,
    tailscale: PathBuf,
    socket: PathBuf,
    daemon: Daemon,
    address: String,
}

impl<'lab> Node<'lab> {
    /// Starts `tailscaled` and logs it in.
    pub(super) fn start(lab: &'lab Lab, host: Host, programs: &Programs) -> Result<Self> {
        let directory = lab.directory().join(host.name());
        let socket = socket(lab, host);
        let daemon = lab.start(
            &format!("tailscaled-{}", host.name()),
            lab.command(host, &programs.tailscaled)
                .arg("-tun=userspace-networking")
                .arg(format!("-statedir={}", directory.display()))
                .arg(format!("-socket={}", socket.display()))
                // It shall neither look for a gateway nor for Tailscale's own services.
                .env("TS_NO_LOGS_NO_SUPPORT", "true")
                .env("TS_DISABLE_PORTMAPPER", "1")
                .env("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
        )?;
        let tailscale = programs.tailscale.clone();
        let mut node = Self { lab, host, tailscale, socket, daemon, address: String::new() };
        node.log_in().with_context(|| {
            format!("logging in; tailscaled's log ends:\n{}", node.daemon.last_words())
        })?;
        node.address = node.tailscale(&["ip", "-4"]).read()?.trim().to_owned();
        Ok(node)
    }

    fn log_in(&self) -> Result<()> {
        retry("tailscaled's socket", PATIENCE, || {
            ensure!(self.socket.exists(), "no file {}", self.socket.display());
            Ok(())
        })?;
        let server = format!("--login-server=http://{CONTROL}:{CONTROL_PORT}");
        let hostname = format!("--hostname={}", self.host.name());
        self.tailscale(&["up", "--timeout=30s", &server, &hostname]).read().map(drop)
    }

    fn tailscale(&self, arguments: &[&str]) -> Command {
        let mut command = self.lab.command(self.host, &self.tailscale);
        command.arg(format!("--socket={}", self.socket.display())).args(arguments);
        command
    }

    /// Returns the client's key, as text.
    pub(super) fn key(&self) -> Result<String> {
        #[derive(Deserialize)]
        struct Status {
            #[serde(rename = "Self")]
            own: Own,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Own {
            public_key: String,
        }
        let text = self.tailscale(&["status", "--json"]).read()?;
        let status: Status =
            serde_json::from_str(&text).context("reading the answer of `tailscale status`")?;
        Ok(status.own.public_key)
    }

    /// Returns the latency of the relay as `tailscale netcheck` sees it over STUN.
    pub(super) fn netcheck(&self) -> Result<Duration> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Report {
            #[serde(rename = "UDP")]
            udp: bool,
            /// Nanoseconds by region.
            region_latency: std::collections::BTreeMap<String, u64>,
        }
        let text = self.tailscale(&["netcheck", "--format=json"]).read()?;
        let report: Report = serde_json::from_str(&text)
            .with_context(|| format!("reading the answer of `tailscale netcheck`: {text}"))?;
        ensure!(report.udp, "`tailscale netcheck` found no UDP: {text}");
        match report.region_latency.first_key_value() {
            Some((_, latency)) if *latency > 0 => Ok(Duration::from_nanos(*latency)),
            Some(_) | None => bail!("`tailscale netcheck` found no latency: {text}"),
        }
    }

    /// Pings another client, which has to answer through the relay; returns the answer's line.
    pub(super) fn ping(&self, other: &Self) -> Result<String> {
        let answer =
            self.tailscale(&["ping", "--until-direct=false", "-c=1", &other.address]).read()?;
        let pong = answer.trim();
        ensure!(pong.contains(" via DERP("), "not through the relay: {pong}");
        Ok(pong.to_owned())
    }

    /// Copies what another client's host sends on a local port into a file.
    pub(super) fn fetch(&self, other: &Self, port: u16, file: &Path) -> Result<()> {
        let output = File::create(file).with_context(|| format!("creating {}", file.display()))?;
        let mut command = self.tailscale(&["nc", &other.address, &port.to_string()]);
        // It ends at the end of its input, so that has to stay open.
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(output)
            .spawn()
            .with_context(|| format!("starting `{}`", command.describe()))?;
        let _input = child.stdin.take();
        let status = child.wait().context("waiting for `tailscale nc`")?;
        ensure!(status.success(), "`{}` failed: {status}", command.describe());
        Ok(())
    }
}
