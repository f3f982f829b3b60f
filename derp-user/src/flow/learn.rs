//! What packets that no flow has say about the flows.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use derp_common::flow::{Class, Datagram, Side};
use ipnet::IpNet;

use super::{
    EndSpec, FlowId, FlowTable, Remote,
    check::{check_address, check_ends, same_family},
    state::{Flow, socket_address, source_of},
};

/// How often the local address of one end may follow its packets, in nanoseconds.
const LOCAL_INTERVAL: u64 = 1_000_000_000;

/// What has become of a packet that was not forwarded because no flow had it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The tables are about to change because of it: with the changes of the next
    /// [`FlowTable::poll`], it may be forwarded.
    Learnt {
        /// The flow it is of.
        flow: FlowId,
        /// The end it came from.
        side: Side,
        /// What was learnt from it.
        what: Learnt,
    },
    /// It is of a flow, and would be forwarded now: whoever looked was late.
    Known {
        /// The flow it is of.
        flow: FlowId,
        /// The end it came from.
        side: Side,
    },
    /// Nothing comes of it.
    Refused(Refusal),
}

/// What was learnt from a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Learnt {
    /// Where the end is.
    Remote(SocketAddr),
    /// Which address of this host the end uses.
    Local(IpAddr),
}

/// Why nothing was learnt from a packet.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Refusal {
    /// It is none of a kind that is learnt from.
    OtherKind,
    /// Its source is no single host's address.
    UnusableSource,
    /// It arrived at no address of this host.
    NotLocal,
    /// No flow has its VNI.
    UnknownVni,
    /// No end that is to be learnt may be at its source, or it came to another port or address than that end's.
    NotAllowed,
    /// Several ends may be at its source.
    Ambiguous,
    /// Its flow is known, but not where the other end is.
    Unbound,
    /// It came to another address of this host than the one that is configured for its end.
    OtherLocal,
    /// The local address of its end has just changed.
    TooSoon,
}

impl Refusal {
    /// Every refusal, in order.
    pub const ALL: [Self; 9] = [
        Self::OtherKind,
        Self::UnusableSource,
        Self::NotLocal,
        Self::UnknownVni,
        Self::NotAllowed,
        Self::Ambiguous,
        Self::Unbound,
        Self::OtherLocal,
        Self::TooSoon,
    ];

    /// Returns the metric label and log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::OtherKind => "other_kind",
            Self::UnusableSource => "unusable_source",
            Self::NotLocal => "not_local",
            Self::UnknownVni => "unknown_vni",
            Self::NotAllowed => "not_allowed",
            Self::Ambiguous => "ambiguous",
            Self::Unbound => "unbound",
            Self::OtherLocal => "other_local",
            Self::TooSoon => "too_soon",
        }
    }
}

/// One arrival: who sent it, and where it arrived.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    source: SocketAddr,
    local: SocketAddr,
}

impl FlowTable {
    /// Looks at a packet that [`admit`](derp_common::flow::admit()) has refused because no flow has its source or
    /// its local address, and learns from it what may be learnt: where an end is, or which address of this host it
    /// uses.
    ///
    /// The cost does not grow with the number of flows, only with the number of different lengths of the networks
    /// that ends are learnt from.
    pub fn unknown(&mut self, datagram: &Datagram, class: Class, now: u64) -> Outcome {
        let arrival = Arrival {
            source: socket_address(datagram.source, datagram.source_port),
            local: socket_address(datagram.destination, datagram.destination_port),
        };
        if check_address(arrival.source).is_err() {
            return Outcome::Refused(Refusal::UnusableSource);
        }
        if !self.is_this_host(arrival.local.ip())
            || !same_family(arrival.local.ip(), arrival.source.ip())
        {
            return Outcome::Refused(Refusal::NotLocal);
        }
        let outcome = match class {
            Class::Geneve { vni } => self.unknown_by_vni(arrival, vni, now),
            Class::Any | Class::Known { .. } => self.unknown_by_source(arrival, now),
            Class::WireGuard { index } => self.unknown_by_index(arrival, index, now),
            Class::Stun | Class::Control { .. } => Err(Refusal::OtherKind),
        };
        outcome.unwrap_or_else(Outcome::Refused)
    }

    fn unknown_by_vni(&mut self, arrival: Arrival, vni: u32, now: u64) -> Result<Outcome, Refusal> {
        let slot = self.slots.slot_of(vni);
        let flow = self.flows.get(&slot).filter(|flow| vni != 0 && flow.vni == vni);
        let flow = flow.ok_or(Refusal::UnknownVni)?;
        let is_from = |side: &Side| flow.end(*side).remote == Some(arrival.source);
        if let Some(side) = Side::ALL.into_iter().find(is_from) {
            return self.known_end(slot, side, arrival, now);
        }
        let side = choose_end(flow, arrival)?;
        self.learn(slot, side, arrival, now)
    }

    /// Data proves nothing about where its sender is, but of a known source the local address is learnt.
    fn unknown_by_index(
        &mut self,
        arrival: Arrival,
        index: u32,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        let source = source_of(arrival.source, arrival.local.port(), index);
        let &(slot, side) = self.owners.get(&source).ok_or(Refusal::NotAllowed)?;
        self.known_end(slot, side, arrival, now)
    }

    fn unknown_by_source(&mut self, arrival: Arrival, now: u64) -> Result<Outcome, Refusal> {
        let source = source_of(arrival.source, arrival.local.port(), 0);
        if let Some(&(slot, side)) = self.owners.get(&source) {
            return self.known_end(slot, side, arrival, now);
        }
        let found = self.learners.find(arrival);
        let (slot, side) = match found[..] {
            [] => return Err(Refusal::NotAllowed),
            [one] => one,
            // Two ends of one flow that differ in nothing: it does not matter which of them this is.
            [(slot, side), (other, _)] if slot == other && self.has_equal_ends(slot) => {
                (slot, side)
            }
            _ => return Err(Refusal::Ambiguous),
        };
        self.learn(slot, side, arrival, now)
    }

    fn has_equal_ends(&self, slot: u32) -> bool {
        self.flows.get(&slot).is_some_and(has_equal_ends)
    }

    /// Puts an end where this came from.
    fn learn(
        &mut self,
        slot: u32,
        side: Side,
        arrival: Arrival,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        let flow = self.flows.get(&slot).ok_or(Refusal::NotAllowed)?;
        if let Some(other) = flow.end(side.other()).remote {
            check_ends(&flow.spec, arrival.source, other).map_err(|_| Refusal::NotAllowed)?;
        }
        self.place_end(slot, side, Some(arrival.source), now);
        let flow = self.flows.get_mut(&slot).ok_or(Refusal::NotAllowed)?;
        let id = flow.id;
        let end = flow.end_mut(side);
        end.is_learnt = true;
        end.used_local = Some(arrival.local.ip());
        end.seen(now);
        Ok(Outcome::Learnt { flow: id, side, what: Learnt::Remote(arrival.source) })
    }

    /// Looks at a packet from an end that is known: why was it not forwarded?
    fn known_end(
        &mut self,
        slot: u32,
        side: Side,
        arrival: Arrival,
        now: u64,
    ) -> Result<Outcome, Refusal> {
        let flow = self.flows.get_mut(&slot).ok_or(Refusal::NotAllowed)?;
        let (id, is_bound) = (flow.id, flow.is_bound());
        let local = flow.spec.end(side).local;
        if arrival.local.port() != local.port {
            return Err(Refusal::OtherLocal);
        }
        let end = flow.end_mut(side);
        if !is_bound {
            // Nobody else counts its packets while they are not forwarded.
            end.seen(now);
        }
        let ip = arrival.local.ip();
        let current = local.ip.map(|ip| ip.to_canonical()).or(end.local());
        if current != Some(ip) {
            if local.ip.is_some() {
                return Err(Refusal::OtherLocal);
            }
            if end.local_moved.is_some_and(|then| now.saturating_sub(then) < LOCAL_INTERVAL) {
                return Err(Refusal::TooSoon);
            }
            end.local_moved = Some(now);
            if self.set_local(id, side, ip) && is_bound {
                return Ok(Outcome::Learnt { flow: id, side, what: Learnt::Local(ip) });
            }
        }
        if is_bound { Ok(Outcome::Known { flow: id, side }) } else { Err(Refusal::Unbound) }
    }
}

fn has_equal_ends(flow: &Flow) -> bool {
    let [a, b] = &flow.spec.ends;
    a == b
}

/// Chooses which end of a flow, of those to be learnt, a packet came from: the one with the longest network.
fn choose_end(flow: &Flow, arrival: Arrival) -> Result<Side, Refusal> {
    let length = |side: Side| {
        let spec = flow.spec.end(side);
        let fits = flow.learns(side)
            && spec.local.port == arrival.local.port()
            && spec.local.ip.is_none_or(|ip| ip.to_canonical() == arrival.local.ip());
        let networks = networks(spec).iter().filter(|_| fits);
        let matching = networks.filter(|network| network.contains(&arrival.source.ip()));
        matching.map(IpNet::prefix_len).max()
    };
    match (length(Side::A), length(Side::B)) {
        (None, None) => Err(Refusal::NotAllowed),
        (Some(a), Some(b)) if a == b && !has_equal_ends(flow) => Err(Refusal::Ambiguous),
        (a, b) if a >= b => Ok(Side::A),
        _ => Ok(Side::B),
    }
}

fn networks(spec: &EndSpec) -> &[IpNet] {
    match &spec.remote {
        Remote::Fixed(_) => &[],
        Remote::Learn(networks) => networks,
    }
}

/// Ends to be learnt by source alone, by the networks they may be in.
#[derive(Clone, Debug, Default)]
pub(super) struct Learners {
    ends: HashMap<Place, BTreeSet<(u32, Side)>>,
    /// How many keys of `ends` have a network of this family (IPv4?) and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

/// Where packets of an end to be learnt come from and arrive.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Place {
    network: IpNet,
    local: Option<IpAddr>,
    port: u16,
}

impl Learners {
    pub(super) fn insert(&mut self, spec: &EndSpec, end: (u32, Side)) {
        for place in places(spec) {
            let ends = self.ends.entry(place).or_default();
            if ends.is_empty() {
                *self.lengths.entry(kind_of(place.network)).or_default() += 1;
            }
            ends.insert(end);
        }
    }

    pub(super) fn remove(&mut self, spec: &EndSpec, end: (u32, Side)) {
        for place in places(spec) {
            let Some(ends) = self.ends.get_mut(&place) else { continue };
            ends.remove(&end);
            if !ends.is_empty() {
                continue;
            }
            self.ends.remove(&place);
            let kind = kind_of(place.network);
            if let Some(count) = self.lengths.get_mut(&kind) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&kind);
                }
            }
        }
    }

    /// Returns the ends with the longest network around the source, at most three of them.
    fn find(&self, arrival: Arrival) -> Vec<(u32, Side)> {
        let is_ipv4 = arrival.source.is_ipv4();
        for (&(_, length), _) in self.lengths.range((is_ipv4, 0)..=(is_ipv4, u8::MAX)).rev() {
            let Ok(network) = IpNet::new(arrival.source.ip(), length) else { continue };
            let network = network.trunc();
            let port = arrival.local.port();
            let found: Vec<_> = [Some(arrival.local.ip()), None]
                .into_iter()
                .filter_map(|local| self.ends.get(&Place { network, local, port }))
                .flatten()
                .copied()
                .take(3)
                .collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }
}

fn places(spec: &EndSpec) -> impl Iterator<Item = Place> {
    let local = spec.local.ip.map(|ip| ip.to_canonical());
    let port = spec.local.port;
    networks(spec).iter().map(move |network| Place { network: network.trunc(), local, port })
}

fn kind_of(network: IpNet) -> (bool, u8) {
    (matches!(network, IpNet::V4(_)), network.prefix_len())
}
