//! derpd as a peer relay: what it is told, how clients come to know of it, its end and its return.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use serde_json::json;

use super::{
    super::{
        CONTROL_PORT, PATIENCE, Programs,
        lab::{CONTROL, Daemon, Host, Lab, RELAYS, retry, say},
        relay::{attach, prepare_links, relay_command, sample},
    },
    CLIENTS,
};
use crate::derp_map;

/// UDP port of the peer relay.
pub(in crate::e2e) const PORT: u16 = 40_000;
/// What clients call the relay's node.
pub(super) const NODE: &str = "relay";
/// Any number that the coordination server does not give to a client.
const NODE_ID: u16 = 0x1234;

/// How clients come to know of the relay's node.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(in crate::e2e) enum Join {
    /// derpd joins the tailnet by the control server
    Control,
    /// The control server is given derpd's keys by hand
    Keys,
}

impl Join {
    const ALL: [Self; 2] = [Self::Control, Self::Keys];

    /// Returns this way, or both where none is chosen.
    pub(in crate::e2e) fn chosen(choice: Option<Self>) -> Vec<Self> {
        choice.map_or_else(|| Self::ALL.to_vec(), |one| vec![one])
    }

    /// Returns its name on the command line.
    pub(in crate::e2e) fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Keys => "keys",
        }
    }
}

/// derpd as a peer relay, which can be started again.
pub(super) struct PeerRelay<'a> {
    lab: &'a Lab,
    derpd: &'a Path,
    xdp_mode: Option<&'a str>,
    join: Join,
    daemon: Daemon,
}

impl<'a> PeerRelay<'a> {
    pub(super) fn start(
        lab: &'a Lab,
        derpd: &'a Path,
        xdp_mode: Option<&'a str>,
        join: Join,
    ) -> Result<Self> {
        if xdp_mode.is_some() {
            prepare_links(lab)?;
        }
        let daemon = start_daemon(lab, derpd, xdp_mode, join)?;
        Ok(Self { lab, derpd, xdp_mode, join, daemon })
    }

    pub(super) fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Tells whether the kernel is to forward.
    pub(super) fn has_kernel(&self) -> bool {
        self.xdp_mode.is_some()
    }

    /// Starts the control server that tells clients of the relay.
    pub(super) fn start_control(&self, programs: &Programs, map_file: &Path) -> Result<Daemon> {
        let nodes = match self.join {
            Join::Control => None,
            Join::Keys => Some(await_keys(&self.daemon)?),
        };
        start_control(self.lab, programs, map_file, true, nodes.as_deref())
    }

    /// Waits until the relay's node is in the tailnet, and every client may use it. The auth key is used up then.
    pub(super) fn await_membership(&mut self) -> Result<()> {
        if self.join == Join::Keys {
            return Ok(());
        }
        retry("the relay to join the tailnet", PATIENCE, || {
            self.daemon.check()?;
            let granted = sample(self.lab, RELAYS[0], "derpd_tailnet_granted_peers")?;
            ensure!(granted == CLIENTS, "{granted} nodes may use it");
            Ok(())
        })?;
        let auth_key = auth_key_file(self.lab);
        if auth_key.exists() {
            fs::remove_file(auth_key).context("taking the auth key away")?;
        }
        Ok(())
    }

    /// Fails if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.daemon.check()
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.daemon.kill()
    }

    pub(super) fn start_again(&mut self) -> Result<()> {
        self.daemon = start_daemon(self.lab, self.derpd, self.xdp_mode, self.join)?;
        Ok(())
    }
}

fn start_daemon(lab: &Lab, derpd: &Path, xdp_mode: Option<&str>, join: Join) -> Result<Daemon> {
    say(&format!("starting {}", derpd.display()));
    let mut command = relay_command(lab, derpd, RELAYS[0]);
    command.arg("-log=debug").arg("-config").arg(config(lab, join)?);
    if let Some(mode) = xdp_mode {
        attach(&mut command, mode);
    }
    lab.start("peer-relay", &mut command)
}

/// Writes the configuration file of derpd as a peer relay, and at the first time what that names.
pub(in crate::e2e) fn config(lab: &Lab, join: Join) -> Result<PathBuf> {
    let keys = lab.directory().join("peer-relay.keys");
    let mut text = format!("[peer_relay]\nport = {PORT}\nkey_file = {keys:?}\n");
    match join {
        Join::Control => {
            let auth_key = auth_key_file(lab);
            text += &format!(
                "control_url = \"http://{CONTROL}:{CONTROL_PORT}\"\nauth_key_file = {auth_key:?}\nhostname = \"{NODE}\"\n"
            );
            if !keys.exists() {
                fs::write(&auth_key, "tskey-auth-any").context("writing the auth key")?;
            }
        }
        Join::Keys => text += "allow = \"any\"\n",
    }
    let file = lab.directory().join("derpd.toml");
    fs::write(&file, text).context("writing derpd.toml")?;
    Ok(file)
}

fn auth_key_file(lab: &Lab) -> PathBuf {
    lab.directory().join("auth.key")
}

/// Starts the control server, with the relay's node if it does not join by itself.
pub(in crate::e2e) fn start_control(
    lab: &Lab,
    programs: &Programs,
    map_file: &Path,
    is_relayed: bool,
    nodes: Option<&str>,
) -> Result<Daemon> {
    let mut command = lab.command(Host::Relay, &programs.control);
    command.arg(format!("-listen={CONTROL}:{CONTROL_PORT}")).arg("-derp-map").arg(map_file);
    if is_relayed {
        command.arg("-peer-relay");
    }
    if let Some(nodes) = nodes {
        let nodes_file = lab.directory().join("nodes.json");
        fs::write(&nodes_file, nodes).context("writing the relay's node")?;
        command.arg("-nodes").arg(&nodes_file);
    }
    lab.start("control", &mut command)
}

/// Waits for derpd's keys; returns what clients have to know of the relay, in the words of the control server.
pub(in crate::e2e) fn await_keys(derpd: &Daemon) -> Result<String> {
    let [key, disco] = retry("the relay's keys", PATIENCE, || {
        let log = derpd.log();
        let key = |prefix| {
            let mut words = log.split([' ', ',', '\n']);
            words.find(|word| word.starts_with(prefix)).map(str::to_owned).context("not in the log")
        };
        Ok([key("nodekey:")?, key("discokey:")?])
    })?;
    let [high, low] = NODE_ID.to_be_bytes();
    let address = format!("{}/32", Ipv4Addr::new(100, 64, high, low));
    let node = json!([{
        "ID": NODE_ID,
        "StableID": NODE,
        "Name": format!("{NODE}."),
        "Key": key,
        "DiscoKey": disco,
        "HomeDERP": derp_map::REGION,
        "Cap": 130,
        "Addresses": [address],
        "AllowedIPs": [address],
        "MachineAuthorized": true,
        // Without this, clients cannot answer `tailscale status`.
        "Hostinfo": { "Hostname": NODE },
    }]);
    Ok(node.to_string())
}
