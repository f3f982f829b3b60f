//! The flows as operators see them.

use std::net::{IpAddr, SocketAddr};

use derp_common::flow::{LegStatistics, Side};
use serde::Serialize;

use super::{
    FlowSource, FlowTable, Kind, Remote,
    state::{Flow, Plane},
};

/// All flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FlowsView {
    /// How long ago what the data planes have counted was read, in seconds; `None` if never.
    pub counted_seconds: Option<f64>,
    /// The flows, by slot.
    pub flows: Vec<FlowView>,
}

/// One flow.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct FlowView {
    /// Its name.
    pub name: String,
    /// Who asks for it.
    pub source: FlowSource,
    /// How its packets are recognised.
    pub kind: KindView,
    /// Its VNI, if it has one.
    pub vni: Option<u32>,
    /// Its place in the tables.
    pub slot: u32,
    /// Whether it forwards.
    pub state: StateView,
    /// Its ends, A first.
    pub ends: [EndView; 2],
}

/// How a flow's packets are recognised.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KindView {
    /// By VNI and source.
    Geneve,
    /// By source.
    Any,
    /// By source and WireGuard's receiver index.
    WireGuard,
}

/// Whether a flow forwards.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StateView {
    /// It does.
    Forwarding,
    /// It will as soon as a packet has told where an end is.
    Learning,
    /// Not before somebody says where an end is.
    Unbound,
    /// Not now, though both ends are known: it is being watched whether they move.
    Held,
}

impl StateView {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Forwarding, Self::Learning, Self::Unbound, Self::Held];

    /// Returns the metric label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Forwarding => "forwarding",
            Self::Learning => "learning",
            Self::Unbound => "unbound",
            Self::Held => "held",
        }
    }
}

/// One end of a flow.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct EndView {
    /// Where it is, if that is known.
    pub remote: Option<SocketAddr>,
    /// Whether that was learnt from a packet.
    pub is_learnt: bool,
    /// The networks it may be learnt from.
    pub learn: Vec<String>,
    /// The address of this host that it uses, if that is known.
    pub local: Option<IpAddr>,
    /// The port of this host that it uses.
    pub local_port: u16,
    /// The interface that leads to it, if that is known: its name, or its index where it has none any more.
    pub interface: Option<String>,
    /// Who forwards packets to it.
    pub forwarder: Forwarder,
    /// What has come from it through the kernel.
    pub kernel: CountView,
    /// What has come from it through the userspace forwarder.
    pub userspace: CountView,
    /// How long ago it was last heard of, in whole seconds; `None` if never.
    pub last_seen_seconds: Option<u64>,
}

/// Who forwards packets to an end, and why it is not the kernel.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forwarder {
    /// The kernel.
    Kernel,
    /// Nobody: an end is not known.
    Nobody,
    /// Userspace: there is no XDP program.
    NoXdp,
    /// Userspace: the end is on this host.
    ThisHost,
    /// Userspace: the ends are of different address families.
    CrossFamily,
    /// Userspace: the way to the end is not known.
    Unresolved,
    /// The process that the companion accompanies.
    OtherProcess,
}

impl Forwarder {
    /// Returns one line for people.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Nobody => "nobody: an end is not known",
            Self::NoXdp => "userspace: no XDP program",
            Self::ThisHost => "userspace: the end is on this host",
            Self::CrossFamily => "userspace: IPv4 to IPv6",
            Self::Unresolved => "userspace: the way is not resolved",
            Self::OtherProcess => "tailscaled",
        }
    }
}

/// What one data plane has counted of one end's packets.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct CountView {
    /// Packets forwarded.
    pub packets: u64,
    /// Bytes of their UDP payloads.
    pub bytes: u64,
    /// Packets dropped because the end had used up its allowance.
    pub dropped_over_rate: u64,
}

impl From<&LegStatistics> for CountView {
    fn from(statistics: &LegStatistics) -> Self {
        Self {
            packets: statistics.packets,
            bytes: statistics.bytes,
            dropped_over_rate: statistics.over_rate,
        }
    }
}

impl FlowTable {
    /// Returns the state of every flow, by slot.
    #[must_use]
    pub fn states(&self) -> Vec<StateView> {
        self.flows.values().map(state).collect()
    }

    /// Returns all flows by slot, with what the last [`FlowTable::observe`] has told.
    #[must_use]
    pub fn views(&self, viewer: &Viewer<'_>) -> Vec<FlowView> {
        self.flows.values().map(|flow| viewer.flow(flow)).collect()
    }
}

fn state(flow: &Flow) -> StateView {
    if flow.is_held {
        StateView::Held
    } else if flow.is_bound() {
        StateView::Forwarding
    } else if flow.is_learning() {
        StateView::Learning
    } else {
        StateView::Unbound
    }
}

/// What is needed besides the flow table to show it.
pub struct Viewer<'a> {
    /// Whether the XDP program is there.
    pub has_kernel: bool,
    /// Returns the name of an interface by its index.
    pub interface_name: &'a dyn Fn(u32) -> Option<String>,
    /// The time.
    pub now: u64,
}

impl Viewer<'_> {
    fn flow(&self, flow: &Flow) -> FlowView {
        FlowView {
            name: flow.spec.name.clone(),
            source: flow.spec.source,
            kind: match flow.spec.kind {
                Kind::Geneve { .. } => KindView::Geneve,
                Kind::Any => KindView::Any,
                Kind::WireGuard { .. } => KindView::WireGuard,
            },
            vni: (flow.vni != 0).then_some(flow.vni),
            slot: flow.id.slot(),
            state: state(flow),
            ends: Side::ALL.map(|side| self.end(flow, side)),
        }
    }

    fn end(&self, flow: &Flow, side: Side) -> EndView {
        let (end, spec) = (flow.end(side), flow.spec.end(side));
        let count = |plane: Plane| CountView::from(&end.observed[plane as usize]);
        let interface = end.usable_way().map(|way| {
            (self.interface_name)(way.interface).unwrap_or_else(|| way.interface.to_string())
        });
        EndView {
            remote: end.remote,
            is_learnt: end.is_learnt,
            learn: match &spec.remote {
                Remote::Fixed(_) => Vec::new(),
                Remote::Learn(networks) => networks.iter().map(ToString::to_string).collect(),
            },
            local: spec.local.ip.or(end.local()),
            local_port: spec.local.port,
            interface,
            forwarder: self.forwarder(flow, side),
            kernel: count(Plane::Kernel),
            userspace: count(Plane::Userspace),
            last_seen_seconds: end
                .was_seen
                .then(|| self.now.saturating_sub(end.last_seen) / 1_000_000_000),
        }
    }

    fn forwarder(&self, flow: &Flow, side: Side) -> Forwarder {
        let forwarder = self.unless_other_process(flow, side);
        let is_kernels = forwarder == Forwarder::Kernel && !flow.is_held;
        if flow.spec.source == FlowSource::Companion && !is_kernels {
            return Forwarder::OtherProcess;
        }
        forwarder
    }

    fn unless_other_process(&self, flow: &Flow, side: Side) -> Forwarder {
        let (end, other) = (flow.end(side), flow.end(side.other()));
        let (Some(remote), Some(from)) = (end.remote, other.remote) else {
            return Forwarder::Nobody;
        };
        if !self.has_kernel {
            Forwarder::NoXdp
        } else if end.is_this_host || other.is_this_host {
            Forwarder::ThisHost
        } else if remote.is_ipv4() != from.is_ipv4() {
            Forwarder::CrossFamily
        } else if end.usable_way().is_none() {
            Forwarder::Unresolved
        } else {
            Forwarder::Kernel
        }
    }
}
