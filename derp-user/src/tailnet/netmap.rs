//! What is known of the tailnet: this node, its peers, whom the policy lets ask for endpoints, and the DERP regions.
//!
//! Messages say what has changed; the rules are those of Tailscale's `tailcfg.MapResponse`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::SystemTime,
};

use ipnet::IpNet;

use super::{
    filter::{Grant, Granted},
    response::{DerpRegion, FilterRule, MapResponse, Node, PeerChange, Text, Time},
};
use crate::{
    peer_relay::{Permission, Refusal, disco::DiscoPublic},
    proto::keys::NodePublic,
};

/// Most peers that are remembered.
pub(super) const MAX_PEERS: usize = 250_000;
/// Most parts of the packet filter that are remembered.
const MAX_FILTERS: usize = 4096;
/// Most networks in the grants of all these parts.
const MAX_NETWORKS: usize = 1_000_000;
/// Most characters of this node's name; those of DNS names are fewer.
const MAX_NAME: usize = 255;
/// Most addresses of this node.
const MAX_ADDRESSES: usize = 64;
/// The name of the part that comes without one.
const BASE: &str = "base";
/// In the place of a name: all parts so far.
const EVERY: &str = "*";

/// The server says more than is remembered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the tailnet has more than {most} {what}")]
pub(super) struct TooMany {
    what: &'static str,
    most: usize,
}

/// This node as the server sees it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Own {
    /// Its name in the tailnet, without the dot at the end.
    pub(super) name: String,
    /// Its addresses in the tailnet.
    pub(super) addresses: Vec<IpAddr>,
    /// Until when its key is good, if not forever.
    pub(super) key_expiry: Option<SystemTime>,
    /// Whether the server says that this is over.
    pub(super) is_expired: bool,
    /// Whether an administrator has let it in, where that is needed.
    pub(super) is_authorized: bool,
}

impl Own {
    /// Tells whether its key is no longer good.
    pub(super) fn is_over(&self, now: SystemTime) -> bool {
        self.is_expired || self.key_expiry.is_some_and(|expiry| expiry <= now)
    }
}

/// A peer.
#[derive(Clone, Debug)]
struct Peer {
    key: NodePublic,
    disco: Option<DiscoPublic>,
    key_expiry: Option<SystemTime>,
    is_expired: bool,
    /// Not covered by tailnet lock: it has no capabilities.
    is_unsigned: bool,
    /// The first of each family, in order.
    addresses: [Option<IpAddr>; 2],
}

impl Peer {
    fn of(node: &Node) -> Option<Self> {
        let mut addresses = [None; 2];
        for address in single_addresses(&node.addresses) {
            match addresses {
                [None, _] => addresses[0] = Some(address),
                [Some(first), None] if first.is_ipv4() != address.is_ipv4() => {
                    addresses[1] = Some(address);
                }
                _ => {}
            }
        }
        Some(Self {
            key: good_node(node.key)?,
            disco: good_disco(node.disco_key),
            key_expiry: node.key_expiry.0,
            is_expired: node.expired,
            is_unsigned: node.unsigned_peer_api_only,
            addresses,
        })
    }
}

fn good_node(key: Text<NodePublic>) -> Option<NodePublic> {
    key.0.filter(|key| !key.is_zero())
}

fn good_disco(key: Text<DiscoPublic>) -> Option<DiscoPublic> {
    key.0.filter(|key| !key.is_degenerate())
}

/// The addresses among networks.
fn single_addresses(networks: &[String]) -> impl Iterator<Item = IpAddr> {
    let networks = networks.iter().filter_map(|text| text.parse::<IpNet>().ok());
    networks.filter(|it| it.prefix_len() == it.max_prefix_len()).map(|it| it.addr())
}

/// What is known of the tailnet.
#[derive(Clone, Debug, Default)]
pub(super) struct Netmap {
    own: Option<Own>,
    peers: HashMap<i64, Peer>,
    by_key: HashMap<NodePublic, i64>,
    filters: BTreeMap<String, Vec<Grant>>,
    granted: Granted,
    regions: BTreeMap<u32, DerpRegion>,
    has_lock: bool,
}

impl Netmap {
    /// Takes over what a message says. One that only keeps the connection alive says nothing.
    pub(super) fn apply(&mut self, response: MapResponse) -> Result<(), TooMany> {
        if response.keep_alive {
            return Ok(());
        }
        self.apply_peers(&response.peers, &response.peers_changed, &response.peers_removed)?;
        response.peers_changed_patch.iter().for_each(|change| self.patch(change));
        let has_filters = response.packet_filter.is_some() || response.packet_filters.is_some();
        self.apply_filters(response.packet_filter, response.packet_filters)?;
        if let Some(node) = &response.node {
            self.own = Some(Own {
                name: node.name.trim_end_matches('.').chars().take(MAX_NAME).collect(),
                addresses: single_addresses(&node.addresses).take(MAX_ADDRESSES).collect(),
                key_expiry: node.key_expiry.0,
                is_expired: node.expired,
                is_authorized: node.machine_authorized,
            });
        }
        if has_filters || response.node.is_some() {
            let own = self.own.as_ref().map(|own| own.addresses.as_slice()).unwrap_or_default();
            self.granted = Granted::new(self.filters.values().flatten(), own);
        }
        if let Some(regions) = response.derp_map.and_then(|map| map.regions) {
            let regions = regions.into_iter();
            self.regions = regions.filter_map(|(id, region)| Some((id, region?))).collect();
        }
        if let Some(lock) = response.tka_info {
            self.has_lock = !lock.disabled && !lock.head.is_empty();
        }
        Ok(())
    }

    fn apply_peers(
        &mut self,
        all: &[Node],
        changed: &[Node],
        removed: &[i64],
    ) -> Result<(), TooMany> {
        let changed = if all.is_empty() {
            for id in removed {
                self.remove(*id);
            }
            changed
        } else {
            self.peers.clear();
            self.by_key.clear();
            all
        };
        for node in changed {
            self.remove(node.id);
            if self.peers.len() >= MAX_PEERS {
                return Err(TooMany { what: "nodes", most: MAX_PEERS });
            }
            if let Some(peer) = Peer::of(node) {
                self.insert(node.id, peer);
            }
        }
        Ok(())
    }

    fn insert(&mut self, id: i64, peer: Peer) {
        self.by_key.insert(peer.key, id);
        self.peers.insert(id, peer);
    }

    fn remove(&mut self, id: i64) -> Option<Peer> {
        let peer = self.peers.remove(&id)?;
        // Another node may have the key by now.
        if self.by_key.get(&peer.key) == Some(&id) {
            self.by_key.remove(&peer.key);
        }
        Some(peer)
    }

    fn patch(&mut self, change: &PeerChange) {
        let Some(mut peer) = self.remove(change.node_id) else { return };
        if let Some(key) = change.key.and_then(good_node) {
            peer.key = key;
        }
        if let Some(key) = change.disco_key {
            peer.disco = good_disco(key);
        }
        if let Some(Time(expiry)) = change.key_expiry {
            peer.key_expiry = expiry;
        }
        self.insert(change.node_id, peer);
    }

    fn apply_filters(
        &mut self,
        base: Option<Vec<FilterRule>>,
        parts: Option<BTreeMap<String, Option<Vec<FilterRule>>>>,
    ) -> Result<(), TooMany> {
        if let Some(rules) = base {
            self.filters.insert(BASE.to_owned(), Grant::of(&rules));
        }
        let parts = parts.unwrap_or_default();
        if let Some(None) = parts.get(EVERY) {
            self.filters.clear();
        }
        for (name, rules) in parts {
            match rules {
                _ if name == EVERY => {}
                Some(rules) => _ = self.filters.insert(name, Grant::of(&rules)),
                None => _ = self.filters.remove(&name),
            }
        }
        if self.filters.len() > MAX_FILTERS {
            return Err(TooMany { what: "parts of the packet filter", most: MAX_FILTERS });
        }
        let networks = self.filters.values().flatten().map(Grant::networks).sum::<usize>();
        if networks > MAX_NETWORKS {
            return Err(TooMany { what: "networks in the packet filter", most: MAX_NETWORKS });
        }
        Ok(())
    }

    /// Returns whether a node may ask for endpoints: it is a peer, its key is good, the policy grants it the relay's
    /// capability towards this node, and its disco key is this one.
    pub(super) fn permission(&self, node: &NodePublic, now: SystemTime) -> Permission {
        let peer = self.by_key.get(node).and_then(|id| self.peers.get(id));
        let Some(peer) = peer else { return Permission::Denied(Refusal::UnknownNode) };
        if peer.is_expired || peer.key_expiry.is_some_and(|expiry| expiry <= now) {
            return Permission::Denied(Refusal::ExpiredNode);
        }
        if !self.is_granted(peer) {
            return Permission::Denied(Refusal::NotGranted);
        }
        // Without a disco key nobody can ask.
        peer.disco.map_or(Permission::Denied(Refusal::OtherKey), Permission::Key)
    }

    /// As the reference's `nodeHasCap`: the first address whose family this node has, too, decides.
    fn is_granted(&self, peer: &Peer) -> bool {
        let own = self.own.as_ref().map(|own| own.addresses.as_slice()).unwrap_or_default();
        let has_family = |it: &IpAddr| own.iter().any(|own| own.is_ipv4() == it.is_ipv4());
        let address = peer.addresses.into_iter().flatten().find(has_family);
        !peer.is_unsigned && address.is_some_and(|address| self.granted.contains(address))
    }

    /// Returns this node, if the server has told of it.
    pub(super) const fn own(&self) -> Option<&Own> {
        self.own.as_ref()
    }

    /// Returns how many peers there are.
    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Returns how many of them may ask for endpoints.
    pub(super) fn granted_peers(&self, now: SystemTime) -> usize {
        let peers = self.peers.values();
        let may = |peer: &&Peer| matches!(self.permission(&peer.key, now), Permission::Key(_));
        peers.filter(may).count()
    }

    /// Returns the DERP regions by number.
    pub(super) const fn regions(&self) -> &BTreeMap<u32, DerpRegion> {
        &self.regions
    }

    /// Tells whether the tailnet has tailnet lock, so that peers see this node only if somebody has signed it.
    pub(super) const fn has_lock(&self) -> bool {
        self.has_lock
    }
}
