//! Which addresses clients are told.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::Serialize;

/// Most addresses of one IPv6 network that are told: some hosts have a great many.
const MOST_OF_NETWORK: usize = 2;

/// What is known about where the relay can be reached.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reachable {
    /// The ports of the relay's sockets.
    pub ports: Ports,
    /// What the operator says.
    pub configured: Vec<SocketAddr>,
    /// The addresses of this host's interfaces.
    pub interfaces: Vec<IpAddr>,
    /// What STUN servers have seen of the relay's own sockets.
    pub mappings: Vec<Mapping>,
    /// What the metadata service of this host's cloud calls its addresses.
    pub cloud: Vec<IpAddr>,
}

/// The relay's UDP ports by family, 0 where it has no socket.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Ports {
    /// For IPv4.
    pub ipv4: u16,
    /// For IPv6.
    pub ipv6: u16,
}

/// Where a STUN server has seen a packet of the relay come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub struct Mapping {
    /// The STUN server.
    pub server: SocketAddr,
    /// The source it has seen.
    pub seen: SocketAddr,
}

/// Returns the addresses that clients are told, each once, at most `most`: those of the configuration, those that
/// STUN servers have seen, those that the cloud has given, those of interfaces.
///
/// Behind a NAT that maps differently for different destinations, nobody else can use what a STUN server has
/// seen; but the operator may have forwarded the relay's own port, so that the public address is told
/// with that port, too.
///
/// Of the last two, addresses that lead back to the client itself (loopback) are left out, and Tailscale's own, since a
/// relay must not be reached through what it relays; of one IPv6 network only two are told. IPv4's link-local
/// addresses and IPv6's unique local ones are told if an interface has no others, and IPv6's link-local ones, which need
/// an interface to be named, never. All of that is as in the reference.
#[must_use]
pub fn advertised(reachable: &Reachable, most: usize) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    let mut tell = |address: SocketAddr| {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if addresses.len() < most && address.port() != 0 && !addresses.contains(&address) {
            addresses.push(address);
        }
    };
    reachable.configured.iter().copied().filter(|it| is_one_host(it.ip())).for_each(&mut tell);
    for is_ipv4 in [true, false] {
        let mappings = reachable.mappings.iter();
        let mut seen: Vec<_> = mappings.map(|mapping| canonical(mapping.seen)).collect();
        seen.retain(|seen| seen.is_ipv4() == is_ipv4 && is_one_host(seen.ip()));
        seen.iter().copied().for_each(&mut tell);
        if let Some(first) = seen.first()
            && seen.iter().any(|other| other != first)
        {
            tell(SocketAddr::new(first.ip(), reachable.ports.of(first.ip())));
        }
    }
    for ip in usual(&[&reachable.cloud[..], &reachable.interfaces].concat()) {
        tell(SocketAddr::new(ip, reachable.ports.of(ip)));
    }
    addresses
}

/// Returns the addresses of interfaces that clients may be able to use.
fn usual(interfaces: &[IpAddr]) -> Vec<IpAddr> {
    let usable = interfaces.iter().map(IpAddr::to_canonical);
    let usable = usable.filter(|ip| is_one_host(*ip) && !ip.is_loopback() && !is_tailscale(*ip));
    let (last_resort, mut usual): (Vec<_>, Vec<_>) = usable.partition(|ip| is_private_like(*ip));
    if usual.is_empty() {
        usual = last_resort;
        usual.retain(|ip| matches!(ip, IpAddr::V4(_)) || !is_link_local(*ip));
    }
    let mut networks: HashMap<u64, usize> = HashMap::new();
    usual.retain(|ip| {
        let IpAddr::V6(ip) = ip else { return true };
        let network = u64::try_from(ip.to_bits() >> 64).unwrap_or_default();
        let told = networks.entry(network).or_default();
        *told += 1;
        *told <= MOST_OF_NETWORK
    });
    usual
}

impl Ports {
    const fn of(self, ip: IpAddr) -> u16 {
        match ip {
            IpAddr::V4(_) => self.ipv4,
            IpAddr::V6(_) => self.ipv6,
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_one_host(ip: IpAddr) -> bool {
    let is_broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(ip.is_unspecified() || ip.is_multicast() || is_broadcast)
}

const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// Tells whether an address is of those that rarely lead anywhere.
const fn is_private_like(ip: IpAddr) -> bool {
    let is_unique_local = match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unique_local(),
    };
    is_unique_local || is_link_local(ip)
}

/// Tells whether an address is of those that Tailscale gives its nodes: 100.64.0.0/10, fd7a:115c:a1e0::/48.
fn is_tailscale(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.to_bits() >> 22 == Ipv4Addr::new(100, 64, 0, 0).to_bits() >> 22,
        IpAddr::V6(ip) => {
            let range = Ipv6Addr::new(0xfd7a, 0x115c, 0xa1e0, 0, 0, 0, 0, 0);
            ip.to_bits() >> 80 == range.to_bits() >> 80
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { ipv4: 40000, ipv6: 40006 };

    fn told(reachable: &Reachable) -> Vec<String> {
        advertised(reachable, 16).iter().map(ToString::to_string).collect()
    }

    fn mappings(seen: &[&str]) -> Vec<Mapping> {
        let server = "198.51.100.1:3478".parse().unwrap();
        seen.iter().map(|seen| Mapping { server, seen: seen.parse().unwrap() }).collect()
    }

    fn interfaces(ips: &[&str]) -> Vec<IpAddr> {
        ips.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_known_is_nothing_told() {
        assert_eq!(told(&Reachable::default()), [""; 0]);
    }

    #[test]
    fn configured_addresses_come_first_then_those_seen_then_the_clouds_then_interfaces_each_once() {
        let reachable = Reachable {
            ports: PORTS,
            configured: vec!["203.0.113.9:41000".parse().unwrap()],
            mappings: mappings(&["203.0.113.1:40000", "203.0.113.1:40000", "[2001:db8::1]:40006"]),
            cloud: interfaces(&["203.0.113.2", "2001:db8::1", "127.0.0.1"]),
            interfaces: interfaces(&["192.168.1.2", "2001:db8::1", "::ffff:192.168.1.2"]),
        };
        let expected = [
            "203.0.113.9:41000",
            "203.0.113.1:40000",
            "[2001:db8::1]:40006",
            "203.0.113.2:40000",
            "192.168.1.2:40000",
        ];
        assert_eq!(told(&reachable), expected);
        assert_eq!(advertised(&reachable, 2).len(), 2);
    }

    #[test]
    fn behind_a_nat_that_differs_by_destination_the_own_port_is_told_too() {
        let seen = ["203.0.113.1:61001", "203.0.113.1:61002"];
        let reachable =
            Reachable { ports: PORTS, mappings: mappings(&seen), ..Reachable::default() };
        let expected = ["203.0.113.1:61001", "203.0.113.1:61002", "203.0.113.1:40000"];
        assert_eq!(told(&reachable), expected);
        // One address for all destinations: an ordinary NAT keeps the mapping for everybody.
        let reachable = Reachable { mappings: mappings(&seen[..1]), ..reachable };
        assert_eq!(told(&reachable), ["203.0.113.1:61001"]);
    }

    #[test]
    fn interfaces_that_no_client_can_use_are_left_out() {
        let ips = [
            "127.0.0.1",
            "::1",
            "169.254.1.1",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
            "100.64.0.1",
            "100.127.255.254",
            "fd7a:115c:a1e0::1",
            "10.0.0.1",
            "100.128.0.1",
            "fd00::1",
            "2001:db8::1",
            "2001:db8::2",
            "2001:db8::3",
            "2001:db8:0:1::1",
        ];
        let reachable =
            Reachable { ports: PORTS, interfaces: interfaces(&ips), ..Reachable::default() };
        let expected = [
            "10.0.0.1:40000",
            "100.128.0.1:40000",
            "[2001:db8::1]:40006",
            "[2001:db8::2]:40006",
            "[2001:db8:0:1::1]:40006",
        ];
        assert_eq!(told(&reachable), expected);
    }

    #[test]
    fn local_addresses_are_told_where_there_are_no_others() {
        let ips = ["127.0.0.1", "169.254.1.1", "fe80::1", "fd00::1", "fd7a:115c:a1e0::1"];
        let reachable =
            Reachable { ports: PORTS, interfaces: interfaces(&ips), ..Reachable::default() };
        assert_eq!(told(&reachable), ["169.254.1.1:40000", "[fd00::1]:40006"]);
    }

    #[test]
    fn a_family_without_a_socket_is_not_told() {
        let reachable = Reachable {
            ports: Ports { ipv6: 0, ..PORTS },
            interfaces: interfaces(&["10.0.0.1", "2001:db8::1"]),
            ..Reachable::default()
        };
        assert_eq!(told(&reachable), ["10.0.0.1:40000"]);
    }

    #[test]
    fn what_is_configured_may_be_anything_a_client_could_use() {
        let configured = ["127.0.0.1:1", "100.64.0.1:2", "0.0.0.0:3", "10.0.0.1:0"];
        let reachable = Reachable {
            configured: configured.iter().map(|it| it.parse().unwrap()).collect(),
            ..Reachable::default()
        };
        assert_eq!(told(&reachable), ["127.0.0.1:1", "100.64.0.1:2"]);
    }
}
