//! One Tailscale client: `tailscaled` on one of the lab's hosts, driven by `tailscale`.

use std::{
    collections::BTreeMap,
    fs::File,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    CONTROL_PORT, PATIENCE, Programs,
    lab::{CONTROL, Daemon, Host, Lab, retry},
};
use crate::process::CommandExt as _;

/// Where the `tailscaled` of a host listens for its own programs.
pub(super) fn socket(lab: &Lab, host: Host) -> PathBuf {
    lab.directory().join(host.name()).join("socket")
}

/// The UDP port of every client.
pub(super) const WIREGUARD_PORT: u16 = 41641;

/// A logged-in client.
pub(super) struct Node<'lab> {
    lab: &'lab Lab,
    host: Host,
    tailscale: PathBuf,
    socket: PathBuf,
    daemon: Daemon,
    address: String,
}

/// How programs on a client's host send through the tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Device {
    /// They ask `tailscaled`.
    None,
    /// By an interface.
    Tun,
}

impl<'lab> Node<'lab> {
    /// Starts `tailscaled` and logs it in.
    pub(super) fn start(
        lab: &'lab Lab,
        host: Host,
        device: Device,
        programs: &Programs,
    ) -> Result<Self> {
        let tun = match device {
            Device::None => "userspace-networking",
            Device::Tun => "tailscale0",
        };
        let directory = lab.directory().join(host.name());
        let socket = socket(lab, host);
        let daemon = lab.start(
            &format!("tailscaled-{}", host.name()),
            lab.command(host, &programs.tailscaled)
                .arg(format!("-tun={tun}"))
                .arg(format!("-port={WIREGUARD_PORT}"))
                .arg(format!("-statedir={}", directory.display()))
                .arg(format!("-socket={}", socket.display()))
                // It shall neither look for a gateway nor for Tailscale's own services.
                .env("TS_NO_LOGS_NO_SUPPORT", "true")
                .env("TS_DISABLE_PORTMAPPER", "1")
                .env("TS_PANIC_IF_HIT_MAIN_CONTROL", "1"),
        )?;
        let tailscale = programs.tailscale.clone();
        let mut node = Self { lab, host, tailscale, socket, daemon, address: String::new() };
        node.address = node.log_in().with_context(|| {
            format!("logging in; tailscaled's log ends:\n{}", node.daemon.last_words())
        })?;
        Ok(node)
    }

    /// Logs in; returns the address in the tunnel.
    fn log_in(&self) -> Result<String> {
        retry("tailscaled's socket", PATIENCE, || {
            ensure!(self.socket.exists(), "no file {}", self.socket.display());
            Ok(())
        })?;
        let server = format!("--login-server=http://{CONTROL}:{CONTROL_PORT}");
        let hostname = format!("--hostname={}", self.host.name());
        self.tailscale(&["up", "--timeout=30s", &server, &hostname])
            // What is in /etc is not the namespace's own, and there are no filters in its way.
            .args(["--accept-dns=false", "--netfilter-mode=off"])
            .read()?;
        Ok(self.tailscale(&["ip", "-4"]).read()?.trim().to_owned())
    }

    /// Changes one of its settings, given as a flag.
    pub(super) fn set(&self, flag: &str) -> Result<()> {
        self.tailscale(&["set", flag]).read().map(drop)
    }

    /// Returns the process id of its `tailscaled`.
    pub(super) fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Waits until it knows of a peer relay.
    pub(super) fn await_peer_relay(&self) -> Result<()> {
        retry("a client to know of the peer relay", PATIENCE, || {
            let servers = self.tailscale(&["debug", "peer-relay-servers"]).read()?;
            ensure!(servers.contains(|c: char| c.is_ascii_digit()), "it knows of {servers:?}");
            Ok(())
        })
    }

    /// Returns its host.
    pub(super) fn host(&self) -> Host {
        self.host
    }

    /// Returns its address in the tunnel.
    pub(super) fn address(&self) -> Result<Ipv4Addr> {
        self.address.parse().with_context(|| format!("an address: {:?}", self.address))
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
        let status: Status = self.status()?;
        Ok(status.own.public_key)
    }

    /// Returns key and addresses of every other node that it knows by this name.
    pub(super) fn peers(&self, name: &str) -> Result<Vec<(String, Vec<String>)>> {
        #[derive(Deserialize)]
        struct Status {
            #[serde(rename = "Peer")]
            peers: BTreeMap<String, Peer>,
        }
        #[derive(Deserialize)]
        struct Peer {
            #[serde(rename = "HostName")]
            name: String,
            #[serde(rename = "TailscaleIPs")]
            addresses: Vec<String>,
        }
        let Status { peers } = self.status()?;
        let named = peers.into_iter().filter(|(_, peer)| peer.name == name);
        Ok(named.map(|(key, peer)| (key, peer.addresses)).collect())
    }

    fn status<T: DeserializeOwned>(&self) -> Result<T> {
        let text = self.tailscale(&["status", "--json"]).read()?;
        serde_json::from_str(&text)
            .with_context(|| format!("reading the answer of `tailscale status`: {text}"))
    }

    /// Returns the latency of the relay as `tailscale netcheck` sees it over STUN.
    pub(super) fn netcheck(&self) -> Result<Duration> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Report {
            #[serde(rename = "UDP")]
            udp: bool,
            /// Nanoseconds by region.
            region_latency: BTreeMap<String, u64>,
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
        self.ping_by(other, "DERP(")
    }

    /// The same for any way that begins with `way`, such as `peer-relay(`.
    pub(super) fn ping_by(&self, other: &Self, way: &str) -> Result<String> {
        let answer = self
            .tailscale(&["ping", "--until-direct=false", "-c=1", "--timeout=2s", &other.address])
            .read()?;
        let pong = answer.trim();
        ensure!(pong.contains(&format!(" via {way}")), "not via {way}...: {pong}");
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
