//! One admitted flow as it is now, and the legs that follow from it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use derp_common::{
    Address,
    flow::{
        Control, Leg, LegStatistics, Side, Source,
        table::{Senders, wireguard_sender},
    },
};

use super::{EndSpec, FlowId, FlowSpec, Kind, Remote, Resolved};

/// The two implementations that forward.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Plane {
    /// The XDP program.
    Kernel,
    /// The userspace forwarder.
    Userspace,
}

impl Plane {
    /// Both, in order.
    pub const ALL: [Self; 2] = [Self::Kernel, Self::Userspace];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Userspace => "userspace",
        }
    }
}

/// An admitted flow.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) id: FlowId,
    pub(super) spec: FlowSpec,
    /// 0 when it has none.
    pub(super) vni: u32,
    /// Whether it forwards nothing although its ends are known.
    pub(super) is_held: bool,
    pub(super) ends: [End; 2],
}

/// What is known about one end.
#[derive(Clone, Debug)]
pub(super) struct End {
    /// Where it is, once that is known.
    pub(super) remote: Option<SocketAddr>,
    /// Whether `remote` was taken from a packet.
    pub(super) is_learnt: bool,
    /// Whether `remote` is an address of this host.
    pub(super) is_this_host: bool,
    /// The address of ours it was seen to use.
    pub(super) used_local: Option<IpAddr>,
    /// When that last changed.
    pub(super) local_moved: Option<u64>,
    pub(super) way: Option<Resolved>,
    /// Whether somebody is looking after its way.
    pub(super) way_requested: bool,
    /// When it was last heard of, at the latest when it was bound.
    pub(super) last_seen: u64,
    /// Whether it was ever heard of.
    pub(super) was_seen: bool,
    /// What has come from it by [`Plane`], when that was last looked at.
    pub(super) observed: [LegStatistics; 2],
}

impl End {
    pub(super) fn new(spec: &EndSpec, now: u64) -> Self {
        let remote = match &spec.remote {
            Remote::Fixed(remote) => Some(canonical(*remote)),
            Remote::Learn(_) => None,
        };
        Self {
            remote,
            is_learnt: false,
            is_this_host: false,
            used_local: None,
            local_moved: None,
            way: None,
            way_requested: false,
            last_seen: now,
            was_seen: false,
            observed: [LegStatistics::default(); 2],
        }
    }

    /// Puts the end at another remote address, or nowhere. What was known about the way is void.
    pub(super) fn place(&mut self, remote: Option<SocketAddr>, is_this_host: bool, now: u64) {
        let is_ipv4 = |remote: Option<SocketAddr>| remote.map(|remote| remote.is_ipv4());
        if is_ipv4(self.remote) != is_ipv4(remote) {
            self.used_local = None;
        }
        self.remote = remote;
        self.is_this_host = is_this_host;
        self.is_learnt = false;
        self.way = None;
        self.last_seen = now;
        self.was_seen = false;
    }

    /// Notes that it was heard of.
    pub(super) fn seen(&mut self, when: u64) {
        self.last_seen = self.last_seen.max(when);
        self.was_seen = true;
    }

    /// Returns the address of ours that packets to it should leave from, if that is settled.
    pub(super) fn preferred_local(&self, spec: &EndSpec) -> Option<IpAddr> {
        spec.local.ip.map(|ip| ip.to_canonical()).or(self.used_local)
    }

    /// Returns the address of ours that it uses, where that is not configured.
    pub(super) fn local(&self) -> Option<IpAddr> {
        self.used_local.or(self.usable_way().map(|way| way.local))
    }

    /// Returns the way, as far as it can be used for this remote address.
    pub(super) fn usable_way(&self) -> Option<&Resolved> {
        let remote = self.remote?;
        self.way.as_ref().filter(|way| {
            !self.is_this_host && way.interface != 0 && way.local.is_ipv4() == remote.is_ipv4()
        })
    }

    fn leg(&self, spec: &EndSpec, flow: &FlowSpec) -> Leg {
        let Some(remote) = self.remote else { return Leg::UNBOUND };
        let way = self.usable_way();
        let local = spec.local.ip.map(|ip| ip.to_canonical()).or(self.local());
        let unspecified = match remote {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let mut leg = Leg {
            remote: remote.ip().into(),
            local: local.unwrap_or(unspecified).into(),
            remote_port: remote.port().to_be(),
            local_port: spec.local.port.to_be(),
            ..Leg::UNBOUND
        };
        if let Some(rate) = flow.rate {
            leg.nanoseconds_per_kibibyte = rate.nanoseconds_per_kibibyte();
            leg.burst_microseconds = rate.burst_microseconds();
        }
        if let Some(way) = way {
            leg.interface = way.interface;
            leg.source_mac = mac_words(way.source_mac);
            leg.destination_mac = mac_words(way.destination_mac);
            leg.mtu = way.mtu;
            leg.vlan = way.vlan;
        }
        leg
    }
}

impl Kind {
    /// Returns what packets from this end have as index in the key of their source; `None` if they are not recognised
    /// by that.
    pub(super) const fn source_index(self, side: Side) -> Option<u32> {
        match (self, side) {
            (Self::Geneve { .. }, _) => None,
            (Self::Any, _) => Some(0),
            (Self::WireGuard { indexes: [a, _] }, Side::A) => Some(a),
            (Self::WireGuard { indexes: [_, b] }, Side::B) => Some(b),
        }
    }
}

impl Flow {
    pub(super) const fn end(&self, side: Side) -> &End {
        let [a, b] = &self.ends;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    pub(super) const fn end_mut(&mut self, side: Side) -> &mut End {
        let [a, b] = &mut self.ends;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// Tells whether both ends are known.
    pub(super) fn is_bound(&self) -> bool {
        self.ends.iter().all(|end| end.remote.is_some())
    }

    /// Tells whether an end is still to be learnt.
    pub(super) fn is_learning(&self) -> bool {
        Side::ALL.into_iter().any(|side| self.learns(side))
    }

    /// Tells whether this end is still to be learnt.
    pub(super) fn learns(&self, side: Side) -> bool {
        let may = match &self.spec.end(side).remote {
            Remote::Fixed(_) => false,
            Remote::Learn(networks) => !networks.is_empty(),
        };
        may && self.end(side).remote.is_none()
    }

    /// Returns the legs as the tables should have them.
    pub(super) fn legs(&self) -> [Leg; 2] {
        let leg = |side| self.end(side).leg(self.spec.end(side), &self.spec);
        Side::ALL.map(leg)
    }

    /// Returns the control word as the tables should have it, for this copy of the legs.
    pub(super) fn control(&self, copy: u32) -> Control {
        if self.is_held {
            Control::off(self.vni)
        } else if self.is_bound() {
            Control::forward(self.vni, copy)
        } else if self.is_learning() {
            Control::learning(self.vni, copy)
        } else {
            Control::off(self.vni)
        }
    }

    /// Returns the senders as the tables should have them.
    pub(super) fn senders(&self) -> Senders {
        match self.spec.kind {
            Kind::Geneve { .. } | Kind::Any => Side::ALL.map(|side| self.spec.end(side).sender),
            Kind::WireGuard { indexes } => indexes.map(wireguard_sender),
        }
    }

    /// Returns the sources that lead to this flow once it forwards.
    pub(super) fn sources(&self) -> [Option<Source>; 2] {
        if !self.is_bound() {
            return [None; 2];
        }
        Side::ALL.map(|side| self.source(side))
    }

    /// Returns the source that stands for this end, if the flow is recognised by sources.
    pub(super) fn source(&self, side: Side) -> Option<Source> {
        let index = self.spec.kind.source_index(side)?;
        Some(source_of(self.end(side).remote?, self.spec.end(side).local.port, index))
    }
}

/// Returns the key of packets from `remote` to our port `local_port`, with this receiver index or 0.
pub(crate) fn source_of(remote: SocketAddr, local_port: u16, index: u32) -> Source {
    Source {
        address: remote.ip().into(),
        port: remote.port().to_be(),
        local_port: local_port.to_be(),
        index,
    }
}

/// Returns the address without IPv4 in IPv6's clothes, scope or flow label.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Returns an address and port (big-endian) as they lie in the tables.
pub(crate) fn socket_address(address: Address, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be(port))
}

pub(super) fn mac_words([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

pub(super) fn mac_bytes([a, b, c]: [u16; 3]) -> [u8; 6] {
    let ([a, b], [c, d], [e, f]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    [a, b, c, d, e, f]
}
