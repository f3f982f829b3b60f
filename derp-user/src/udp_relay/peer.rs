//! The peer relay at work: what comes by DERP and by UDP goes to the state machine, what it decides goes out.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    sync::mpsc::Receiver,
    time::{MissedTickBehavior, interval},
};

use super::Keeper;
use crate::{
    dataplane,
    forward::{ControlPacket, Outlet},
    peer_relay::{Allowed, Arrival, PeerRelay, Permission, Ports, Reachable, Reaction, advertised},
    proto::keys::NodePublic,
    server::{LocalClient, LocalPacket},
    tailnet::TailnetHandle,
    udp::now,
};

/// How often this host's addresses are read and endpoints reviewed.
const REVIEW: Duration = Duration::from_secs(5);
/// Most addresses that clients are told: they send a message to each.
const MOST_ADDRESSES: usize = 16;

/// A peer relay with everything it is connected to.
pub struct PeerRelayService {
    /// Decides.
    pub relay: PeerRelay,
    /// Keeps the flows.
    pub keeper: Keeper,
    /// The relay's node, as a client of the DERP server.
    pub client: LocalClient,
    /// Makes it one under another key.
    pub join: Box<dyn Fn(NodePublic) -> LocalClient + Send>,
    /// What the forwarder has received of handshakes.
    pub control: Receiver<ControlPacket>,
    /// Sends from the relay's port.
    pub outlet: Outlet,
    /// Who may ask for endpoints.
    pub allow: Allowed,
    /// The tailnet that the node is in, whose policy must grant it, too.
    pub tailnet: Option<TailnetHandle>,
    /// Addresses that clients are told first.
    pub addresses: Vec<SocketAddr>,
    /// The UDP ports.
    pub ports: Ports,
}

impl PeerRelayService {
    /// Goes on until dropped; on a Tokio runtime with time.
    pub async fn run(mut self) {
        let mut reviews = interval(REVIEW);
        reviews.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.review();
        loop {
            tokio::select! {
                Some(packet) = self.control.recv() => self.handshake(&packet),
                packet = self.client.receive() => self.request(&packet),
                node = next_node(self.tailnet.as_mut()) => self.client = (self.join)(node),
                _ = reviews.tick() => self.review(),
            }
        }
    }

    fn request(&mut self, packet: &LocalPacket) {
        let LocalPacket { from, packet } = packet;
        let permission = self.permission(from);
        let relay = &mut self.relay;
        let request = |table: &mut _| relay.request(table, *from, permission, packet, now());
        match self.keeper.update(request) {
            Ok(response) => {
                let is_sent = self.client.send(&response.to, &response.packet);
                tracing::debug!(node = %from.short(), is_sent, "answered");
            }
            Err(refusal) => {
                let reason = refusal.label();
                tracing::debug!(node = %from.short(), reason, "no answer");
            }
        }
    }

    fn permission(&self, node: &NodePublic) -> Permission {
        match (self.allow.permission(node), &self.tailnet) {
            (denied @ Permission::Denied(_), _) => denied,
            (_, Some(tailnet)) => tailnet.permission(node),
            (allowed, None) => allowed,
        }
    }

    fn handshake(&mut self, packet: &ControlPacket) {
        let datagram = &packet.datagram;
        let address =
            |ip: derp_common::Address, port: u16| SocketAddr::new(ip.into(), u16::from_be(port));
        let arrival = Arrival {
            from: address(datagram.source, datagram.source_port),
            local: address(datagram.destination, datagram.destination_port),
            payload: &packet.payload,
        };
        let relay = &mut self.relay;
        let handshake = |table: &mut _| relay.handshake(table, &arrival, now());
        match self.keeper.update(handshake) {
            Ok(Reaction::Challenge(challenge)) => {
                let sent = self.outlet.send(challenge.from, challenge.to, &challenge.payload);
                if let Err(error) = sent {
                    tracing::debug!(to = %challenge.to, %error, "cannot send a challenge");
                }
            }
            Ok(Reaction::Bound(bound)) => {
                tracing::debug!(vni = bound.vni, side = ?bound.side, remote = %bound.remote, "bound");
            }
            Err(refusal) => {
                let reason = refusal.label();
                tracing::debug!(from = %arrival.from, vni = packet.vni, reason, "no handshake");
            }
        }
    }

    fn review(&mut self) {
        match dataplane::local_addresses() {
            Ok(interfaces) => {
                let reachable = Reachable {
                    ports: self.ports,
                    configured: self.addresses.clone(),
                    interfaces: interfaces.into_iter().collect(),
                    mappings: Vec::new(),
                };
                self.relay.set_addresses(advertised(&reachable, MOST_ADDRESSES));
            }
            Err(error) => tracing::warn!("{error}"),
        }
        let region = self.tailnet.as_ref().and_then(TailnetHandle::home_region);
        self.relay.set_home_region(region.and_then(|it| u16::try_from(it).ok()).unwrap_or(0));
        let relay = &mut self.relay;
        for ended in self.keeper.update_observed(|table| relay.review(table, now())) {
            tracing::debug!(vni = ended.vni, endpoint = ended.name, by = ?ended.by, "an endpoint has ended");
        }
    }
}

/// Waits until the node has another key.
async fn next_node(tailnet: Option<&mut TailnetHandle>) -> NodePublic {
    match tailnet {
        Some(tailnet) => tailnet.next_node().await,
        None => std::future::pending().await,
    }
}
