//! Which DERP region this server is in, by the tailnet's DERP map.

use std::{collections::BTreeMap, net::IpAddr};

use super::response::{DerpNode, DerpRegion};
use crate::client::map::DERP_PORT;

/// What clients know this DERP server by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerNames {
    /// Its host name, or an IP address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// Returns the region with a relay that is this server. A name says more than an address, and a port decides between
/// several; by an address alone, the port must be right.
pub(super) fn of_server(regions: &BTreeMap<u32, DerpRegion>, server: &ServerNames) -> Option<u32> {
    let of_region = |(id, region): (&u32, &DerpRegion)| {
        let likeness = region.nodes.iter().map(|node| likeness(node, server)).max();
        // The lowest number of several that are equally like it.
        likeness.filter(|it| *it != Likeness::None).map(|it| (it, std::cmp::Reverse(*id)))
    };
    regions.iter().filter_map(of_region).max().map(|(_, id)| id.0)
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Likeness {
    None,
    Name,
    Address,
    NameAndPort,
}

fn likeness(node: &DerpNode, server: &ServerNames) -> Likeness {
    if node.stun_only {
        return Likeness::None;
    }
    let port = if node.derp_port == 0 { DERP_PORT } else { node.derp_port };
    let is_port = port == server.port;
    let texts = [&node.host_name, &node.ipv4, &node.ipv6];
    let mut addresses = texts.into_iter().filter_map(|text| text.parse::<IpAddr>().ok());
    let host: Option<IpAddr> = server.host.parse().ok();
    let is_own = |it: IpAddr| server.addresses.contains(&it) || host == Some(it);
    let is_named = host.is_none()
        && !server.host.is_empty()
        && node.host_name.eq_ignore_ascii_case(&server.host);
    match (is_named, is_port) {
        (true, true) => Likeness::NameAndPort,
        (false, true) if addresses.any(is_own) => Likeness::Address,
        (true, false) => Likeness::Name,
        (false, true | false) => Likeness::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(json: &str) -> BTreeMap<u32, DerpRegion> {
        serde_json::from_str(json).unwrap()
    }

    fn server(host: &str, port: u16) -> ServerNames {
        let addresses = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        ServerNames { host: host.to_owned(), port, addresses }
    }

    #[test]
    fn the_region_that_names_the_server() {
        let map = regions(
            r#"{"1":{"Nodes":[{"HostName":"derp1.example","IPv4":"198.51.100.1"}]},
                "900":{"Nodes":[{"HostName":"other.example"},{"HostName":"Derp.Example","DERPPort":8443}]},
                "901":{"Nodes":[{"HostName":"derp.example"}]},
                "902":{"Nodes":[{"HostName":"192.0.2.7","DERPPort":8444}]},
                "903":{"Nodes":[{"HostName":"x.example","IPv6":"2001:db8::7","DERPPort":8445}]},
                "904":{"Nodes":[{"HostName":"stun.example","STUNOnly":true}]},
                "905":{"Nodes":null}}"#,
        );
        for (host, port, region) in [
            ("derp.example", 443, Some(901)),
            ("derp.example", 8443, Some(900)),
            // Behind a proxy: no port is right, and the lowest number is as good as any.
            ("derp.example", 3340, Some(900)),
            ("elsewhere.example", 8444, Some(902)),
            ("elsewhere.example", 8445, Some(903)),
            ("elsewhere.example", 443, None),
            ("stun.example", 443, None),
            ("198.51.100.1", 443, Some(1)),
            ("198.51.100.1", 444, None),
            ("", 443, None),
        ] {
            assert_eq!(of_server(&map, &server(host, port)), region, "{host} {port}");
        }
        assert_eq!(of_server(&BTreeMap::new(), &server("derp.example", 443)), None);
    }
}
