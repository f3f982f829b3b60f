//! The resolver's view of this machine, over rtnetlink.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use rtnetlink::{
    packet_core::{NLM_F_CREATE, NLM_F_REPLACE},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        neighbour::{
            NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags,
            NeighbourMessage, NeighbourState,
        },
        route::{RouteAttribute, RouteMessage, RouteType},
    },
};

use super::{
    super::{
        link::{Link, links},
        netlink::Netlink,
    },
    Hop, Neighbour, Pair,
    facts::{Route, address},
    resolver::Host,
    way::Unresolved,
};

/// The network namespace of the thread that opened it.
pub(super) struct KernelHost(Netlink);

impl KernelHost {
    /// Opens it.
    pub(super) fn open() -> io::Result<Self> {
        Netlink::route().map(Self)
    }
}

impl Host for KernelHost {
    fn links(&mut self) -> io::Result<BTreeMap<u32, Link>> {
        links(&mut self.0)
    }

    fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let messages = self.0.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let read = |message: &RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewAddress(message) = message else { return None };
            address(message)
        };
        Ok(messages.iter().filter_map(read).collect())
    }

    fn route(&mut self, pair: Pair) -> Result<Route, Unresolved> {
        let remote = pair.remote;
        match self.0.ask(RouteNetlinkMessage::GetRoute(route_request(pair)), 0) {
            Ok(messages) => {
                let read = |message: &RouteNetlinkMessage| {
                    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
                    Some(Route::new(message))
                };
                messages.iter().find_map(read).ok_or(Unresolved::NoRoute { remote, reason: "none" })
            }
            Err(error) => Err(match (error.raw_os_error(), pair.local) {
                (Some(libc::ENETUNREACH), _) => {
                    Unresolved::NoRoute { remote, reason: "network unreachable" }
                }
                (Some(libc::EHOSTUNREACH), _) => {
                    Unresolved::NoRoute { remote, reason: "host unreachable" }
                }
                (Some(libc::EACCES), _) => Unresolved::NoRoute { remote, reason: "prohibited" },
                // IPv4 says so of a blackhole, and of a source that is not ours.
                (Some(libc::EINVAL), None) => Unresolved::NoRoute { remote, reason: "blackhole" },
                (Some(libc::EINVAL), Some(local)) if local.is_ipv4() => Unresolved::NotOurs(local),
                _ => Unresolved::Unknown { remote, reason: error.to_string() },
            }),
        }
    }

    fn neighbour(&mut self, hop: Hop) -> io::Result<Neighbour> {
        let messages = match self.0.ask(RouteNetlinkMessage::GetNeighbour(neighbour(hop)), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                return Ok(Neighbour::default());
            }
            messages => messages?,
        };
        let read = |message: &RouteNetlinkMessage| {
            let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
            Neighbour::new(message)
        };
        Ok(messages.iter().find_map(read).map(|(_, neighbour)| neighbour).unwrap_or_default())
    }

    fn keep_fresh(&mut self, hop: Hop) -> io::Result<()> {
        let mut message = neighbour(hop);
        // Before Linux 5.16, which knows no managed neighbours and ignores the attribute, this asks once.
        message.header.flags = NeighbourFlags::Use;
        message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
        self.change(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn let_go(&mut self, hop: Hop) -> io::Result<()> {
        let mut message = neighbour(hop);
        // Keeps the entry and its state, without the flag.
        message.header.flags = NeighbourFlags::Use;
        self.change(message, NLM_F_REPLACE)
    }
}

impl KernelHost {
    fn change(&mut self, message: NeighbourMessage, flags: u16) -> io::Result<()> {
        self.0.ask(RouteNetlinkMessage::NewNeighbour(message), flags).map(|_| ())
    }
}

fn route_request(pair: Pair) -> RouteMessage {
    let mut request = RouteMessage::default();
    request.header.address_family = family(pair.remote);
    request.header.destination_prefix_length = bits(pair.remote);
    request.attributes.push(RouteAttribute::Destination(pair.remote.into()));
    if let Some(local) = pair.local {
        request.header.source_prefix_length = bits(local);
        request.attributes.push(RouteAttribute::Source(local.into()));
    }
    request
}

fn neighbour(hop: Hop) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(hop.address);
    message.header.ifindex = hop.interface;
    message.header.state = NeighbourState::None;
    message.header.kind = RouteType::Unspec;
    let address = match hop.address {
        IpAddr::V4(address) => NeighbourAddress::Inet(address),
        IpAddr::V6(address) => NeighbourAddress::Inet6(address),
    };
    message.attributes.push(NeighbourAttribute::Destination(address));
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}
