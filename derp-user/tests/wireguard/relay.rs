//! The relay of a lab, and what it says of its peers.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    builds,
    internet::{Internet, RELAY_PORT, interface},
    lab::Daemon,
    peer::{Identity, Peer, base64},
};

/// Where data is forwarded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Plane {
    Userspace,
    /// In XDP of this mode, `native` or `generic`.
    Kernel(&'static str),
}

/// A running derpd with a network of peers.
pub(crate) struct Relay<'a> {
    internet: &'a Internet,
    configuration: String,
    flags: Vec<String>,
    program: PathBuf,
    daemon: Option<Daemon>,
}

impl<'a> Relay<'a> {
    /// Starts it for these peers; `pairs` are lines of their network's section. `pin` is a directory for the kernel part,
    /// or `false`.
    pub(crate) fn start(
        internet: &'a Internet,
        peers: &[Peer],
        pairs: &str,
        plane: Plane,
        pin: &str,
    ) -> Self {
        let identities: Vec<_> = peers.iter().map(Peer::identity).collect();
        Self::start_for(internet, &identities, pairs, plane, pin)
    }

    /// The same for peers that are not there yet.
    pub(crate) fn start_for(
        internet: &'a Internet,
        peers: &[Identity],
        pairs: &str,
        plane: Plane,
        pin: &str,
    ) -> Self {
        let mut flags = vec!["-stun=false".to_owned()];
        match plane {
            Plane::Userspace => flags.push("-xdp-mode=off".to_owned()),
            Plane::Kernel(mode) => {
                flags.push(format!("-xdp-mode={mode}"));
                let interfaces = internet.sites.iter().map(|site| interface(site.number));
                flags.extend(interfaces.map(|interface| format!("-xdp-interface={interface}")));
            }
        }
        let configuration = configuration(internet, peers, pairs, pin);
        let program = builds::THIS.into();
        let mut relay = Self { internet, configuration, flags, program, daemon: None };
        relay.launch();
        relay
    }

    fn launch(&mut self) {
        let flags: Vec<_> = self.flags.iter().map(String::as_str).collect();
        let Internet { relay, .. } = self.internet;
        let directory = self.internet.directory();
        let (program, configuration) = (&self.program, &self.configuration);
        self.daemon = Some(Daemon::start_build(program, relay, directory, configuration, &flags));
    }

    /// Ends the process with a signal, and starts another one with what it has left.
    pub(crate) fn restart(&mut self, signal: Signal) {
        if let Some(daemon) = self.daemon.take() {
            daemon.end(signal);
        }
        self.launch();
    }

    /// The same with another build from now on. Returns what the new process has logged.
    pub(crate) fn replace_by(&mut self, program: &Path) -> String {
        let before = self.daemon().log().len();
        program.clone_into(&mut self.program);
        self.restart(Signal::SIGTERM);
        self.daemon().log().split_off(before)
    }

    pub(crate) fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("it runs")
    }

    /// What it says of itself.
    pub(crate) fn view(&self) -> Value {
        let text = self.daemon().get("/debug/wireguard?format=json").expect("the page");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Handshakes that the peer with this number took part in, as far as this process knows.
    pub(crate) fn handshakes(&self, number: usize) -> u64 {
        self.view()["peers"][number - 1]["handshakes"].as_u64().expect("a number")
    }

    /// Where it has this peer, and where it may be.
    pub(crate) fn places(&self, number: usize) -> BTreeSet<String> {
        let peer = &self.view()["peers"][number - 1];
        let candidates = peer["candidates"].as_array().expect("a list");
        let places = candidates.iter().chain([&peer["address"]]);
        places.filter_map(|place| place.as_str().map(str::to_owned)).collect()
    }

    /// Packets that a data plane has forwarded.
    pub(crate) fn forwarded(&self, plane: &str) -> u64 {
        let flows = self.daemon().counted_flows();
        let ends = flows.iter().flat_map(|flow| flow["ends"].as_array().expect("ends"));
        ends.map(|end| end[plane]["packets"].as_u64().expect("a count")).sum()
    }
}

/// A configuration in which the peers are called `peer1` and so on.
fn configuration(internet: &Internet, peers: &[Identity], pairs: &str, pin: &str) -> String {
    let state = internet.directory().join("wireguard.json");
    let mut text = format!(
        "[dataplane]\npin = {pin}\n\n[wireguard]\nport = {RELAY_PORT}\nendpoint = \"198.51.100.1:{RELAY_PORT}\"\n\
         state_file = \"{}\"\n\n[[wireguard.network]]\nname = \"lab\"\n{pairs}\n",
        state.display()
    );
    for peer in peers {
        let (number, key) = (peer.number, base64(peer.public.as_bytes()));
        write!(
            text,
            "\n[[wireguard.network.peer]]\nlabel = \"peer{number}\"\npublic_key = \"{key}\"\n"
        )
        .expect("a string");
    }
    text
}
