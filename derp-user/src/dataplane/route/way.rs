//! From what is known of the host to the way a frame takes, or why there is none.

use std::net::IpAddr;

use super::{
    super::link::Link,
    Hop, Pair,
    facts::{Facts, Route},
};
use crate::flow::Resolved;

/// Why packets to a far end cannot leave by the kernel program.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Unresolved {
    /// The far end is this host.
    #[error("{0} is an address of this host")]
    ThisHost(IpAddr),
    /// The far end is no single host.
    #[error("{0} is not the address of one host")]
    NotUnicast(IpAddr),
    /// The far end's address means nothing without an interface.
    #[error("{0} is link-local: it does not say on which interface")]
    LinkLocal(IpAddr),
    /// Packets cannot leave from this address to an address of the other family.
    #[error("{local} and {remote} are of different address families")]
    OtherFamily {
        /// The address of ours.
        local: IpAddr,
        /// The far end.
        remote: IpAddr,
    },
    /// The address of ours is not, or no longer, ours.
    #[error("{0} is on no interface of this host")]
    NotOurs(IpAddr),
    /// There is no route.
    #[error("no route leads to {remote} ({reason})")]
    NoRoute {
        /// The far end.
        remote: IpAddr,
        /// What the kernel said.
        reason: &'static str,
    },
    /// The route leads into a tunnel of its own.
    #[error("the route to {0} wraps packets up, which the kernel program cannot")]
    Encapsulated(IpAddr),
    /// The interface is not known, or was just removed.
    #[error("the interface with index {0} is gone")]
    NoInterface(u32),
    /// The interface has no Ethernet frames.
    #[error("{interface} ({kind}) carries no Ethernet frames with neighbours' addresses")]
    NoEthernet {
        /// The interface's name.
        interface: String,
        /// What kind of interface it is.
        kind: String,
    },
    /// The interface is down or has no carrier.
    #[error("{interface} is down or unplugged")]
    Down {
        /// The interface's name.
        interface: String,
    },
    /// The VLAN is one the kernel program cannot tag.
    #[error("{interface} is a VLAN inside another one, or not of IEEE 802.1Q")]
    UnusualVlan {
        /// The interface's name.
        interface: String,
    },
    /// The next hop has not said its MAC address.
    #[error(
        "the MAC address of {next_hop} on {interface} is not known: it does not answer, or not yet"
    )]
    NoNeighbour {
        /// The next hop.
        next_hop: IpAddr,
        /// The interface's name.
        interface: String,
    },
    /// The kernel could not be asked.
    #[error("the route to {remote} cannot be asked for: {reason}")]
    Unknown {
        /// The far end.
        remote: IpAddr,
        /// What the kernel said.
        reason: String,
    },
}

/// Says what is wrong with a pair, whatever the routes.
pub(super) fn refuse(pair: Pair) -> Option<Unresolved> {
    let Pair { local, remote } = pair;
    if remote.is_unspecified() || remote.is_multicast() || remote.is_loopback() {
        return Some(if remote.is_loopback() {
            Unresolved::ThisHost(remote)
        } else {
            Unresolved::NotUnicast(remote)
        });
    }
    let is_link_local = match remote {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if is_link_local {
        return Some(Unresolved::LinkLocal(remote));
    }
    let local = local.filter(|local| local.is_ipv4() != remote.is_ipv4())?;
    Some(Unresolved::OtherFamily { local, remote })
}

/// Finds the way of a pair for which the kernel has given this route.
pub(super) fn way(
    pair: Pair,
    route: &Result<Route, Unresolved>,
    facts: &Facts,
) -> Result<Resolved, Unresolved> {
    let Pair { local, remote } = pair;
    if facts.addresses.contains(&remote) {
        return Err(Unresolved::ThisHost(remote));
    }
    if let Some(local) = local.filter(|local| !facts.addresses.contains(local)) {
        return Err(Unresolved::NotOurs(local));
    }
    let (interface, source, mtu) = match *route.as_ref().map_err(Clone::clone)? {
        Route::Out { interface, source, mtu, .. } => (interface, source, mtu),
        Route::Local => return Err(Unresolved::ThisHost(remote)),
        Route::NotUnicast => return Err(Unresolved::NotUnicast(remote)),
        Route::Encapsulated => return Err(Unresolved::Encapsulated(remote)),
        Route::None => return Err(Unresolved::NoRoute { remote, reason: "the host drops them" }),
    };
    let Some(local) = local.or(source) else {
        return Err(Unresolved::NoRoute { remote, reason: "no address to send from" });
    };
    let link = usable(facts, interface)?;
    let (out, vlan) = untagged(facts, link)?;
    let Some(source_mac) = link.mac else { return Err(no_ethernet(link)) };
    let hop = route.as_ref().ok().and_then(|route| route.hop(remote));
    let neighbour = hop.and_then(|hop: Hop| facts.neighbours.get(&hop));
    let Some(destination_mac) = neighbour.and_then(|neighbour| neighbour.mac) else {
        let next_hop = hop.map_or(remote, |hop| hop.address);
        return Err(Unresolved::NoNeighbour { next_hop, interface: link.name.clone() });
    };
    let mtu = mtu.unwrap_or(link.mtu).min(link.mtu).min(out.mtu);
    let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
    Ok(Resolved { interface: out.index, source_mac, destination_mac, mtu, vlan, local })
}

/// Returns an interface that frames can leave by.
fn usable(facts: &Facts, index: u32) -> Result<&Link, Unresolved> {
    let link = facts.links.get(&index).ok_or(Unresolved::NoInterface(index))?;
    if link.is_loopback || link.mac.is_none() || !link.has_neighbours {
        Err(no_ethernet(link))
    } else if link.is_up {
        Ok(link)
    } else {
        Err(Unresolved::Down { interface: link.name.clone() })
    }
}

/// Returns the interface below a VLAN's and the VLAN, or the interface itself and 0.
fn untagged<'a>(facts: &'a Facts, link: &'a Link) -> Result<(&'a Link, u16), Unresolved> {
    let Some(vlan) = link.vlan else { return Ok((link, 0)) };
    let unusual = || Unresolved::UnusualVlan { interface: link.name.clone() };
    // The interface below may have been left in another namespace.
    let lower = link.lower.filter(|_| link.lower_namespace.is_none()).ok_or_else(unusual)?;
    let lower = usable(facts, lower)?;
    if lower.vlan.is_some() || !vlan.is_ordinary {
        return Err(unusual());
    }
    Ok((lower, vlan.id))
}

fn no_ethernet(link: &Link) -> Unresolved {
    let kind = if link.is_loopback { "loopback" } else { link.kind.as_str() };
    let kind = if kind.is_empty() { "hardware" } else { kind };
    Unresolved::NoEthernet { interface: link.name.clone(), kind: kind.to_owned() }
}
