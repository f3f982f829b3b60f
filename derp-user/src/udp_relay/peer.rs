//! The peer relay at work: what comes by DERP and by UDP goes to the state machine, what it decides goes out.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc::Receiver, watch},
    time::{MissedTickBehavior, interval},
};

use super::{
    cloud::CloudSurveyor,
    elsewhere::{Arrived, DerpServers, Elsewhere},
    interfaces::interface_addresses,
    mappings::Surveyor,
    monitor::PeerRelayMonitor,
};
use crate::{
    flow::socket_address,
    forward::{ControlPacket, Outlet, StunAnswer},
    peer_relay::{
        Allowed, Arrival, CloudChoice, Datagram, Ended, Limits, Mapping, Permission, Ports,
        Reachable, Reaction, Refusal, Response, advertised,
    },
    proto::keys::{NodePrivate, NodePublic},
    quiet::Quiet,
    server::{LocalClient, LocalPacket},
    stun::StunTarget,
    tailnet::TailnetHandle,
    udp::now,
};

/// How often this host's addresses are read and endpoints reviewed.
const REVIEW: Duration = Duration::from_secs(5);
/// Most addresses that clients are told: they send a message to each.
const MOST_ADDRESSES: usize = 16;

/// What the operator may change while the relay is at work.
#[derive(Clone, PartialEq)]
pub struct PeerRelayRules {
    /// Who may ask for endpoints.
    pub allow: Allowed,
    /// Addresses that clients are told first.
    pub addresses: Vec<SocketAddr>,
    /// STUN servers that say with which addresses they see the relay.
    pub stun: Vec<StunTarget>,
    /// Which cloud's metadata service says what this host's addresses are.
    pub cloud: CloudChoice,
    /// Other DERP servers that the relay's node is a client of.
    pub derp: DerpServers,
    /// What anybody may use.
    pub limits: Limits,
}

/// A peer relay with everything it is connected to.
pub struct PeerRelayService {
    /// The relay, its flows, and what others see of both.
    pub monitor: PeerRelayMonitor,
    /// The relay's node, as a client of the DERP server.
    pub client: LocalClient,
    /// Makes the node one under another key.
    pub join: Box<dyn Fn(NodePublic) -> LocalClient + Send>,
    /// The key of that node.
    pub node: NodePrivate,
    /// The tailnet that the node is in, whose policy must grant requests, too.
    pub tailnet: Option<TailnetHandle>,
    /// The key of the DERP server in this process.
    pub own_server: NodePublic,
    /// What the forwarder has received of handshakes.
    pub control: Receiver<ControlPacket>,
    /// What it has received of STUN servers.
    pub stun_answers: Receiver<StunAnswer>,
    /// Sends from the relay's port.
    pub outlet: Outlet,
    /// The rules, now and whenever they change.
    pub rules: watch::Receiver<Arc<PeerRelayRules>>,
    /// The UDP ports.
    pub ports: Ports,
    /// The only addresses that packets are taken at; empty if that is every one of this host.
    pub bound: Vec<IpAddr>,
}

impl PeerRelayService {
    /// Goes on until dropped; on a Tokio runtime with I/O and time.
    pub async fn run(self) {
        let (sender, mappings) = watch::channel(Vec::new());
        let surveyor = Surveyor {
            rules: self.rules.clone(),
            answers: self.stun_answers,
            outlet: self.outlet.clone(),
            ports: self.ports,
            mappings: sender,
        };
        let (sender, cloud) = watch::channel(Vec::new());
        let cloud_surveyor = CloudSurveyor { rules: self.rules.clone(), addresses: sender };
        let rules = Arc::clone(&self.rules.borrow());
        let elsewhere = Elsewhere::nowhere(self.monitor.connections());
        let scans_interfaces = self.bound.is_empty();
        let work = Work {
            monitor: self.monitor,
            client: self.client,
            join: self.join,
            node: self.node,
            tailnet: self.tailnet,
            own_server: self.own_server,
            outlet: self.outlet,
            elsewhere,
            rules,
            reachable: Reachable {
                ports: self.ports,
                interfaces: self.bound,
                ..Reachable::default()
            },
            scans_interfaces,
            full: Quiet::lasting(),
        };
        let others = Others { rules: self.rules, mappings, cloud };
        let cloud_survey = async {
            // What a cloud translates to may be an address that packets are not taken at.
            if scans_interfaces {
                cloud_surveyor.run().await;
            }
        };
        tokio::join!(surveyor.run(), cloud_survey, work.run(others, self.control));
    }
}

/// By which DERP server a request has come.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The one in this process.
    Here,
    /// Another one, by its number.
    Elsewhere(usize),
}

/// What others say while the relay is at work.
struct Others {
    rules: watch::Receiver<Arc<PeerRelayRules>>,
    mappings: watch::Receiver<Vec<Mapping>>,
    cloud: watch::Receiver<Vec<IpAddr>>,
}

/// What answers.
struct Work {
    monitor: PeerRelayMonitor,
    client: LocalClient,
    join: Box<dyn Fn(NodePublic) -> LocalClient + Send>,
    node: NodePrivate,
    tailnet: Option<TailnetHandle>,
    own_server: NodePublic,
    outlet: Outlet,
    elsewhere: Elsewhere,
    rules: Arc<PeerRelayRules>,
    reachable: Reachable,
    /// Whether packets are taken at every address of this host, whatever these are.
    scans_interfaces: bool,
    /// What to say of requests that there is no room for.
    full: Quiet,
}

impl Work {
    async fn run(mut self, others: Others, mut control: Receiver<ControlPacket>) {
        let Others { mut rules, mut mappings, mut cloud } = others;
        let mut reviews = interval(REVIEW);
        reviews.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!("peer relay: {} may ask for endpoints", self.who_may_ask());
        self.elsewhere.connect(&self.rules.derp, &self.node, self.own_server);
        self.review();
        loop {
            tokio::select! {
                Some(packet) = control.recv() => self.handshake(&packet),
                packet = self.client.receive() => self.request(&packet, Way::Here),
                Arrived { packet, server } = self.elsewhere.receive() => {
                    self.request(&packet, Way::Elsewhere(server));
                }
                Ok(()) = mappings.changed() => {
                    self.reachable.mappings.clone_from(&mappings.borrow_and_update());
                    self.advertise();
                }
                Ok(()) = cloud.changed() => {
                    self.reachable.cloud.clone_from(&cloud.borrow_and_update());
                    self.advertise();
                }
                Ok(()) = rules.changed() => {
                    let rules = Arc::clone(&rules.borrow_and_update());
                    self.follow(rules);
                }
                node = next_node(self.tailnet.as_mut()) => self.change_node(node),
                _ = reviews.tick() => self.review(),
            }
        }
    }

    fn request(&mut self, packet: &LocalPacket, way: Way) {
        let LocalPacket { from, packet } = packet;
        let is_admitted = matches!(way, Way::Here) && self.client.is_neighbour(from);
        let permission = self.permission(from, is_admitted);
        let region = self.tailnet.as_ref().and_then(TailnetHandle::home_region);
        let region = region.and_then(|it| u16::try_from(it).ok()).unwrap_or(0);
        let answered = self.monitor.update(|relay, table| {
            relay.set_home_region(region);
            relay.request(table, *from, permission, packet, now())
        });
        match answered {
            Ok(Response { to, packet }) => {
                let is_sent = match way {
                    Way::Here => self.client.send(&to, &packet),
                    Way::Elsewhere(server) => self.elsewhere.send(server, to, packet),
                };
                tracing::debug!(node = %from.short(), ?way, is_sent, "answered");
            }
            Err(refusal) => {
                let reason = refusal.label();
                if refusal == Refusal::Full
                    && let Some(suffix) = self.full.suffix(std::time::Instant::now())
                {
                    tracing::warn!(
                        "peer relay: there is no room for another endpoint ([relay] slots, max_endpoints): those that there are \
                         go on{suffix}"
                    );
                }
                tracing::debug!(node = %from.short(), ?way, reason, "no answer");
            }
        }
    }

    fn permission(&self, node: &NodePublic, is_admitted: bool) -> Permission {
        match (self.rules.allow.permission(node, is_admitted), &self.tailnet) {
            (denied @ Permission::Denied(_), _) => denied,
            (_, Some(tailnet)) => tailnet.permission(node),
            (allowed, None) => allowed,
        }
    }

    fn who_may_ask(&self) -> String {
        match (&self.rules.allow, &self.tailnet) {
            (Allowed::Any, Some(_)) => {
                "every node that the tailnet's policy grants it to".to_owned()
            }
            (allow, Some(_)) => format!("{allow}, if the tailnet's policy grants it"),
            (allow, None) => allow.to_string(),
        }
    }

    /// Is a node under another key from now on.
    fn change_node(&mut self, node: NodePrivate) {
        self.client = (self.join)(node.public());
        self.monitor.set_node(node.public());
        self.node = node;
        self.elsewhere.connect(&self.rules.derp, &self.node, self.own_server);
    }

    fn handshake(&mut self, packet: &ControlPacket) {
        let datagram = &packet.datagram;
        let arrival = Arrival {
            from: socket_address(datagram.source, datagram.source_port),
            local: socket_address(datagram.destination, datagram.destination_port),
            payload: &packet.payload,
        };
        if packet.is_data() {
            match self.monitor.update(|relay, _| relay.early(&arrival)) {
                Some(onward) => self.send(&onward),
                None => tracing::debug!(from = %arrival.from, vni = packet.vni, "too early"),
            }
            return;
        }
        match self.monitor.update(|relay, table| relay.handshake(table, &arrival, now())) {
            Ok(Reaction::Challenge(challenge)) => self.send(&challenge),
            Ok(Reaction::Bound(bound)) => {
                tracing::debug!(vni = bound.vni, side = ?bound.side, remote = %bound.remote, "bound");
            }
            Err(refusal) => {
                let reason = refusal.label();
                tracing::debug!(from = %arrival.from, vni = packet.vni, reason, "no handshake");
            }
        }
    }

    fn send(&self, datagram: &Datagram) {
        if let Err(error) = self.outlet.send(datagram.from, datagram.to, &datagram.payload) {
            tracing::debug!(to = %datagram.to, %error, "cannot send to a client");
        }
    }

    /// Has other rules from now on.
    fn follow(&mut self, rules: Arc<PeerRelayRules>) {
        let before = std::mem::replace(&mut self.rules, rules);
        let rules = Arc::clone(&self.rules);
        if rules.derp != before.derp {
            self.elsewhere.connect(&rules.derp, &self.node, self.own_server);
        }
        let ended = self.monitor.update_observed(|relay, table| {
            relay.set_limits(rules.limits);
            if rules.allow == before.allow {
                return Vec::new();
            }
            // By which server the requests of a node have come is not remembered.
            let may = |node: &NodePublic| match &rules.allow {
                Allowed::Any | Allowed::Admitted => true,
                Allowed::Nodes(nodes) => nodes.contains(node),
            };
            relay.retain(table, may)
        });
        log_ended(&ended);
        self.advertise();
    }

    fn review(&mut self) {
        if self.scans_interfaces {
            match interface_addresses() {
                Ok(interfaces) => self.reachable.interfaces = interfaces,
                Err(error) => tracing::warn!("peer relay: cannot read interfaces: {error}"),
            }
        }
        self.advertise();
        log_ended(&self.monitor.update_observed(|relay, table| relay.review(table, now())));
    }

    /// Has clients told where the relay can be reached now.
    fn advertise(&mut self) {
        self.reachable.configured.clone_from(&self.rules.addresses);
        let addresses = advertised(&self.reachable, MOST_ADDRESSES);
        if !self.monitor.advertise(&addresses, &self.reachable, self.who_may_ask()) {
            return;
        }
        if addresses.is_empty() {
            tracing::warn!(
                "peer relay: no address is known that clients could use: none is served"
            );
        } else {
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            tracing::info!("peer relay: clients are told {}", addresses.join(", "));
        }
    }
}

fn log_ended(ended: &[Ended]) {
    for ended in ended {
        let by = ended.by.label();
        tracing::debug!(vni = ended.vni, endpoint = ended.name, by, "an endpoint has ended");
    }
}

/// Waits until the node has another key.
async fn next_node(tailnet: Option<&mut TailnetHandle>) -> NodePrivate {
    match tailnet {
        Some(tailnet) => tailnet.next_node().await,
        None => std::future::pending().await,
    }
}
