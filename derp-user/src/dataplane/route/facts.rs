//! What the kernel says about routes and neighbours, read off its messages.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use rtnetlink::packet_route::{
    address::{AddressAttribute, AddressMessage},
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::super::link::Link;

/// What is known of this host, apart from its routes.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Its interfaces, by index.
    pub(super) links: BTreeMap<u32, Link>,
    /// Its addresses.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The neighbours that frames are to go to.
    pub(super) neighbours: BTreeMap<Hop, Neighbour>,
}

/// Whom a frame is handed to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(in crate::dataplane) struct Hop {
    /// Index of the interface.
    pub(in crate::dataplane) interface: u32,
    /// The neighbour's address.
    pub(in crate::dataplane) address: IpAddr,
}

/// What the kernel answers when asked for a route.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Route {
    /// Out of an interface.
    Out {
        /// Index of the interface.
        interface: u32,
        /// The next hop, if it is not the destination itself.
        gateway: Option<IpAddr>,
        /// The address of this host that packets leave from.
        source: Option<IpAddr>,
        /// Longest packet of this route, if it is less than the interface's.
        mtu: Option<u32>,
    },
    /// To this host itself.
    Local,
    /// To many, or to none.
    NotUnicast,
    /// Wrapped up by the route itself.
    Encapsulated,
    /// Nowhere.
    None,
}

impl Route {
    /// Reads the kernel's answer.
    pub(super) fn new(message: &RouteMessage) -> Self {
        let kind = message.header.kind;
        if kind == RouteType::Local {
            return Self::Local;
        }
        if matches!(kind, RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit) {
            return Self::None;
        }
        if kind != RouteType::Unicast {
            return Self::NotUnicast;
        }
        let (mut interface, mut gateway, mut source, mut mtu) = (0, None, None, None);
        for attribute in &message.attributes {
            if let RouteAttribute::Oif(index) = attribute {
                interface = *index;
            } else if let RouteAttribute::Gateway(address) = attribute {
                gateway = ip(address);
            } else if let RouteAttribute::Via(via) = attribute {
                gateway = if let RouteVia::Inet(address) = via {
                    Some((*address).into())
                } else if let RouteVia::Inet6(address) = via {
                    Some((*address).into())
                } else {
                    return Self::Encapsulated;
                };
            } else if let RouteAttribute::PrefSource(address) = attribute {
                source = ip(address);
            } else if let RouteAttribute::Metrics(metrics) = attribute {
                mtu = metrics.iter().find_map(|metric| {
                    let RouteMetric::Mtu(mtu) = metric else { return None };
                    Some(*mtu).filter(|mtu| *mtu != 0)
                });
            } else if matches!(attribute, RouteAttribute::Encap(_) | RouteAttribute::EncapType(_)) {
                return Self::Encapsulated;
            }
        }
        if interface == 0 { Self::None } else { Self::Out { interface, gateway, source, mtu } }
    }

    /// Returns whom frames to `remote` are handed to.
    pub(super) fn hop(&self, remote: IpAddr) -> Option<Hop> {
        match *self {
            Self::Out { interface, gateway, .. } => {
                Some(Hop { interface, address: gateway.unwrap_or(remote) })
            }
            Self::Local | Self::NotUnicast | Self::Encapsulated | Self::None => None,
        }
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(address) = address {
        return Some((*address).into());
    }
    let RouteAddress::Inet6(address) = address else { return None };
    Some((*address).into())
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(in crate::dataplane) struct Neighbour {
    /// Its MAC address, while that is believed to be right.
    pub(in crate::dataplane) mac: Option<[u8; 6]>,
    /// Set by hand: the kernel does not ask whether it still is there.
    pub(in crate::dataplane) is_fixed: bool,
    /// The kernel asks time and again whether it still is there.
    pub(in crate::dataplane) is_kept_fresh: bool,
}

impl Neighbour {
    /// Reads the kernel's entry, and whose it is.
    pub(in crate::dataplane) fn new(message: &NeighbourMessage) -> Option<(Hop, Self)> {
        let (mut address, mut mac, mut is_kept_fresh) = (None, None, false);
        for attribute in &message.attributes {
            if let NeighbourAttribute::Destination(destination) = attribute {
                if let NeighbourAddress::Inet(found) = destination {
                    address = Some(IpAddr::from(*found));
                } else if let NeighbourAddress::Inet6(found) = destination {
                    address = Some(IpAddr::from(*found));
                }
            } else if let NeighbourAttribute::LinkLayerAddress(bytes) = attribute {
                mac = bytes.as_slice().try_into().ok();
            } else if let NeighbourAttribute::ExtFlags(flags) = attribute {
                is_kept_fresh = flags.contains(NeighbourExtFlags::Managed);
            }
        }
        let state = message.header.state;
        let is_fixed = matches!(state, NeighbourState::Permanent | NeighbourState::Noarp);
        let is_believed = is_fixed
            || matches!(
                state,
                NeighbourState::Reachable
                    | NeighbourState::Stale
                    | NeighbourState::Delay
                    | NeighbourState::Probe
            );
        // Frames to a group's MAC address would go to everybody.
        let mac = mac.filter(|mac: &[u8; 6]| is_believed && *mac != [0; 6] && mac[0] & 1 == 0);
        let hop = Hop { interface: message.header.ifindex, address: address? };
        Some((hop, Self { mac, is_fixed, is_kept_fresh }))
    }
}

/// Reads an address of this host.
pub(super) fn address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        if let AddressAttribute::Local(address) = attribute {
            // On a point-to-point link, the other attribute is the far end's.
            return Some(*address);
        } else if let AddressAttribute::Address(address) = attribute {
            found = Some(*address);
        }
    }
    found
}
