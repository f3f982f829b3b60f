//! Which probes there are to make. Without I/O.

use std::net::SocketAddr;

use super::Arguments;
use crate::client::map::{DerpMap, Node, Region};

/// One probe.
#[derive(Clone, Debug)]
pub(super) struct Task<'a> {
    /// As derpprobe calls it.
    pub(super) name: String,
    pub(super) kind: Kind<'a>,
}

/// What a probe looks at.
#[derive(Clone, Debug)]
pub(super) enum Kind<'a> {
    /// The certificate.
    Tls(&'a Node),
    /// The page that clients measure the latency by.
    Http(&'a Node),
    /// STUN.
    Stun(SocketAddr),
    /// A packet from a client of one relay to one of another, or of the same one.
    Mesh(Pair<'a>),
    /// Many bytes.
    Bandwidth(Pair<'a>),
    /// A steady flow of small packets.
    Delay(Pair<'a>),
    /// Nothing: what is wrong is known already.
    Failed(String),
}

/// Two relays of one region.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<'a> {
    pub(super) from: &'a Node,
    pub(super) to: &'a Node,
}

impl Pair<'_> {
    /// Whether it is one and the same.
    pub(super) fn is_single(&self) -> bool {
        self.from.name == self.to.name
    }
}

impl Kind<'_> {
    /// derpprobe's class of it.
    pub(super) const fn class(&self) -> &'static str {
        match self {
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::Stun(_) => "derp_udp",
            Self::Mesh(_) => "derp_mesh",
            Self::Bandwidth(_) => "derp_bw",
            Self::Delay(_) => "derp_qd",
            Self::Failed(_) => "dns",
        }
    }

    /// Whether others at the same time would falsify it.
    pub(super) const fn wants_to_be_alone(&self) -> bool {
        matches!(self, Self::Bandwidth(_) | Self::Delay(_))
    }
}

/// The probes of a map; `stun` has the addresses of each of its relays, in their order.
pub(super) fn plan<'a>(
    map: &'a DerpMap,
    stun: &[Result<Vec<SocketAddr>, String>],
    arguments: &Arguments,
) -> Vec<Task<'a>> {
    let mut tasks = Vec::new();
    let mut stun = stun.iter();
    for region in map.regions.values() {
        for node in &region.nodes {
            let mut add = |what: &str, kind| {
                tasks.push(Task {
                    name: format!("derp/{}/{}/{what}", region.code, node.name),
                    kind,
                });
            };
            if !node.stun_only {
                add("tls", Kind::Tls(node));
                add("http", Kind::Http(node));
            }
            match stun.next() {
                Some(Ok(addresses)) => {
                    for &address in addresses {
                        match address.is_ipv6() {
                            true if arguments.patience.no_ipv6 => {}
                            true => add("udp6", Kind::Stun(address)),
                            false => add("udp", Kind::Stun(address)),
                        }
                    }
                }
                Some(Err(error)) => add("dns", Kind::Failed(error.clone())),
                None => {}
            }
        }
        add_pairs(region, arguments, &mut tasks);
    }
    tasks
}

/// Every relay of the region with every one, itself among them.
fn add_pairs<'a>(region: &'a Region, arguments: &Arguments, tasks: &mut Vec<Task<'a>>) {
    let relays = || region.nodes.iter().filter(|node| !node.stun_only);
    for from in relays() {
        for to in relays() {
            let pair = Pair { from, to };
            let mut add = |what: &str, kind| {
                let name = format!("derp/{}/{}/{}/{what}", region.code, from.name, to.name);
                tasks.push(Task { name, kind });
            };
            add("mesh", Kind::Mesh(pair));
            if arguments.delay_packets > 0 {
                add("qd", Kind::Delay(pair));
            }
            if arguments.bandwidth_size > 0 {
                add("bw", Kind::Bandwidth(pair));
            }
        }
    }
}
