//! What relays between the two clients.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use super::super::{
    PATIENCE, Programs,
    lab::{Daemon, Host, Lab, RELAYS, retry},
    node::{Device, Node, socket},
    peer_relay::{Join, PORT, WAY, await_keys, config, start_control},
    relay::{attach, certificate, page, relay_command},
};
use crate::derp_map;

/// A relay in one of its ways.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Contestant {
    /// Tailscale's DERP server.
    Derper,
    /// derpd as DERP server.
    Derpd,
    /// tailscaled as peer relay.
    Tailscaled,
    /// derpd as peer relay, without the kernel program.
    Userspace,
    /// derpd as peer relay with the kernel program behind the network stack's first steps.
    Generic,
    /// derpd as peer relay with the kernel program in the driver.
    Native,
    /// tailscaled as peer relay, with derpd beside it, whose kernel program is in the driver.
    Companion,
}

impl Contestant {
    pub(super) const ALL: [Self; 7] = [
        Self::Derper,
        Self::Derpd,
        Self::Tailscaled,
        Self::Userspace,
        Self::Generic,
        Self::Native,
        Self::Companion,
    ];

    fn is_derp(self) -> bool {
        matches!(self, Self::Derper | Self::Derpd)
    }

    /// Whether derpd is the peer relay.
    fn is_ours(self) -> bool {
        matches!(self, Self::Userspace | Self::Generic | Self::Native)
    }

    /// Whether tailscaled is the peer relay.
    fn is_theirs(self) -> bool {
        matches!(self, Self::Tailscaled | Self::Companion)
    }

    pub(super) fn xdp_mode(self) -> Option<&'static str> {
        match self {
            Self::Generic => Some("generic"),
            Self::Native | Self::Companion => Some("native"),
            Self::Derper | Self::Derpd | Self::Tailscaled | Self::Userspace => None,
        }
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Derper => "(a) derper, DERP",
            Self::Derpd => "(b) derpd, DERP",
            Self::Tailscaled => "(c) tailscaled, peer relay",
            Self::Userspace => "(d) derpd, peer relay, userspace",
            Self::Generic => "(e) derpd, peer relay, XDP generic",
            Self::Native => "(e) derpd, peer relay, XDP native",
            Self::Companion => "(f) tailscaled, derpd as companion, XDP native",
        })
    }
}

/// The relay programs.
pub(super) struct Relays<'a> {
    pub(super) derpd: &'a Path,
    pub(super) derper: &'a Path,
}

/// A contestant and two clients that use it.
pub(super) struct Running<'lab> {
    pub(super) left: Node<'lab>,
    pub(super) right: Node<'lab>,
    /// Ids of the processes that relay.
    processes: Vec<u32>,
    daemons: Vec<Daemon>,
    _beside: Option<Node<'lab>>,
}

impl<'lab> Running<'lab> {
    /// Starts everything and waits until the clients reach each other by the contestant.
    pub(super) fn start(
        lab: &'lab Lab,
        contestant: Contestant,
        relays: &Relays<'_>,
        programs: &Programs,
    ) -> Result<Self> {
        let program = if contestant == Contestant::Derper { relays.derper } else { relays.derpd };
        let mut command = relay_command(lab, program, RELAYS[0]);
        if contestant.is_ours() {
            command.arg("-config").arg(config(lab, Join::Keys)?);
        } else if contestant == Contestant::Companion {
            command.arg("-config").arg(companion_config(lab)?);
        }
        if let Some(mode) = contestant.xdp_mode() {
            attach(&mut command, mode);
        }
        let relay = lab.start("relay", &mut command)?;
        let map = retry("a certificate", PATIENCE, || {
            let server = (RELAYS[0].parse()?, certificate(lab, RELAYS[0])?);
            derp_map::of_nodes(&[server], 443, Some(3478))
        })?;
        let map_file = lab.directory().join("derpmap.json");
        fs::write(&map_file, map).context("writing the DERP map")?;
        let node = if contestant.is_ours() { Some(await_keys(&relay)?) } else { None };
        let control =
            start_control(lab, programs, &map_file, !contestant.is_derp(), node.as_deref())?;
        let beside = if contestant.is_theirs() {
            let node = Node::start(lab, Host::Relay, Device::None, programs)?;
            node.set(&format!("--relay-server-port={PORT}"))?;
            Some(node)
        } else {
            None
        };
        let left = Node::start(lab, Host::Left, Device::Tun, programs)?;
        let right = Node::start(lab, Host::Right, Device::Tun, programs)?;
        let way = if contestant.is_derp() { "DERP(" } else { WAY };
        if !contestant.is_derp() {
            left.await_peer_relay()?;
            right.await_peer_relay()?;
        }
        retry(&format!("a ping via {way}"), PATIENCE, || left.ping_by(&right, way))?;
        if contestant.xdp_mode().is_some() {
            retry("the kernel to forward", PATIENCE, || {
                left.ping_by(&right, way)?;
                ensure!(forwarded(lab)? > 0, "the kernel has forwarded nothing");
                Ok(())
            })?;
        }
        let processes = std::iter::once(relay.id()).chain(beside.as_ref().map(Node::id)).collect();
        let daemons = vec![relay, control];
        Ok(Self { left, right, processes, daemons, _beside: beside })
    }

    /// Returns the ids of the processes that relay.
    pub(super) fn processes(&self) -> &[u32] {
        &self.processes
    }

    /// Checks that everything has gone as it should, for a contestant through which so many bytes have gone.
    pub(super) fn check(&mut self, lab: &Lab, contestant: Contestant, bytes: u64) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::check)?;
        if contestant.xdp_mode().is_some() {
            let (forwarded, least) = (forwarded(lab)?, bytes / MOST_BYTES);
            ensure!(forwarded >= least, "of {least} packets, the kernel has forwarded {forwarded}");
        }
        let way = if contestant.is_derp() { "DERP(" } else { WAY };
        let pong = self.left.ping_by(&self.right, way)?;
        ensure!(pong.contains(RELAYS_NETWORK) || contestant.is_derp(), "another relay: {pong}");
        Ok(())
    }
}

/// What all addresses of the relay's host begin with.
const RELAYS_NETWORK: &str = "10.77.";

/// More than a packet has of what is delivered.
const MOST_BYTES: u64 = 1500;

/// Writes the configuration file of derpd beside the tailscaled of its host.
fn companion_config(lab: &Lab) -> Result<PathBuf> {
    let socket = socket(lab, Host::Relay);
    let file = lab.directory().join("derpd.toml");
    let text = format!("[companion]\nenabled = true\nsocket = {socket:?}\n");
    fs::write(&file, text).context("writing derpd.toml")?;
    Ok(file)
}

/// Returns how many packets the kernel program has sent on.
fn forwarded(lab: &Lab) -> Result<u64> {
    let page = page(lab, RELAYS[0].parse()?, "/debug/varz")?;
    let packets = page.lines().filter(|line| {
        line.starts_with("xdp_stun_server_packets_total")
            && ["forwarded", "redirected"]
                .iter()
                .any(|end| line.contains(&format!("prog_end=\"{end}\"")))
    });
    packets
        .map(|line| {
            let value = line.rsplit_once(' ').map_or(line, |(_, value)| value);
            value.parse::<f64>().map(|count| count as u64).with_context(|| line.to_owned())
        })
        .sum()
}
