//! DERP maps: which relays there are, in regions, as Tailscale's `tailcfg.DERPMap` has them.

mod error;
mod read;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Not,
};

use serde::{Deserialize, Deserializer, Serialize};

pub use self::error::MapError;
use super::Pin;

/// Where relays listen if their map does not say so.
pub const DERP_PORT: u16 = 443;
/// Where STUN is answered if the map does not say so.
pub const STUN_PORT: u16 = 3478;

/// The relays of a network. Names and meaning of the fields are Tailscale's; those that only concern a
/// node's choice of its home are not kept.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DerpMap {
    /// Regions by their number.
    #[serde(rename = "Regions", alias = "regions", deserialize_with = "without_empty")]
    pub regions: BTreeMap<u32, Region>,
    /// Whether Tailscale's own relays are left out.
    #[serde(
        rename = "omitDefaultRegions",
        alias = "OmitDefaultRegions",
        alias = "omitdefaultregions",
        default,
        skip_serializing_if = "Not::not"
    )]
    pub omit_default_regions: bool,
}

/// Relays that are near to each other and pass on packets among themselves.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Region {
    /// Number, from 1; 900 to 999 are for relays of one's own.
    #[serde(rename = "RegionID", alias = "regionid", default)]
    pub id: u32,
    /// Short name.
    #[serde(rename = "RegionCode", alias = "regioncode", default)]
    pub code: String,
    /// Long name.
    #[serde(rename = "RegionName", alias = "regionname", default)]
    pub name: String,
    /// Whether clients neither measure it nor make it their home.
    #[serde(
        rename = "NoMeasureNoHome",
        alias = "nomeasurenohome",
        default,
        skip_serializing_if = "Not::not"
    )]
    pub no_measure_no_home: bool,
    /// The relays, the best one first.
    #[serde(rename = "Nodes", alias = "nodes", default)]
    pub nodes: Vec<Node>,
}

/// One relay.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Node {
    /// Name, unlike that of any other relay of the map.
    #[serde(rename = "Name", alias = "name", default)]
    pub name: String,
    /// Number of its region.
    #[serde(rename = "RegionID", alias = "regionid", default)]
    pub region_id: u32,
    /// DNS name or IP address that TLS asks for.
    #[serde(rename = "HostName", alias = "hostname", default)]
    pub host_name: String,
    /// Name in the certificate, if it is another one, or `sha256-raw:` and the certificate's hash.
    #[serde(rename = "CertName", alias = "certname", default, skip_serializing_if = "is_empty")]
    pub cert_name: String,
    /// IPv4 address; empty to look up the name, anything else for none.
    #[serde(rename = "IPv4", alias = "ipv4", default, skip_serializing_if = "is_empty")]
    pub ipv4: String,
    /// IPv6 address; empty to look up the name, anything else for none.
    #[serde(rename = "IPv6", alias = "ipv6", default, skip_serializing_if = "is_empty")]
    pub ipv6: String,
    /// UDP port of STUN; 0 for the usual one, -1 for none.
    #[serde(rename = "STUNPort", alias = "stunport", default, skip_serializing_if = "is_zero")]
    pub stun_port: i32,
    /// Whether it only answers STUN.
    #[serde(rename = "STUNOnly", alias = "stunonly", default, skip_serializing_if = "Not::not")]
    pub stun_only: bool,
    /// TCP port of DERP over TLS; 0 for the usual one.
    #[serde(rename = "DERPPort", alias = "derpport", default, skip_serializing_if = "is_zero")]
    pub derp_port: u16,
    /// Whether any certificate is accepted.
    #[serde(
        rename = "InsecureForTests",
        alias = "insecurefortests",
        default,
        skip_serializing_if = "Not::not"
    )]
    pub insecure_for_tests: bool,
    /// Address of STUN, if it is another one.
    #[serde(
        rename = "STUNTestIP",
        alias = "stuntestip",
        default,
        skip_serializing_if = "is_empty"
    )]
    pub stun_test_ip: String,
    /// Whether plain HTTP is served on port 80, for captive portal checks.
    #[serde(rename = "CanPort80", alias = "canport80", default, skip_serializing_if = "Not::not")]
    pub can_port80: bool,
}

/// How a relay's address of one family is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeAddress {
    /// It is this one.
    Fixed(IpAddr),
    /// By looking up the name.
    OfName,
    /// It has none.
    None,
}

impl Node {
    /// TCP port of DERP over TLS.
    #[must_use]
    pub const fn derp_port(&self) -> u16 {
        if self.derp_port == 0 { DERP_PORT } else { self.derp_port }
    }

    /// UDP port of STUN, if it is answered.
    #[must_use]
    pub fn stun_port(&self) -> Option<u16> {
        if self.stun_port == 0 { Some(STUN_PORT) } else { u16::try_from(self.stun_port).ok() }
    }

    /// How its IPv4 address is found.
    #[must_use]
    pub fn ipv4(&self) -> NodeAddress {
        let host = self.host_name.parse::<IpAddr>().ok();
        address(&self.ipv4, host, |ip| ip.is_ipv4())
    }

    /// How its IPv6 address is found.
    #[must_use]
    pub fn ipv6(&self) -> NodeAddress {
        let host = self.host_name.parse::<IpAddr>().ok();
        address(&self.ipv6, host, |ip| ip.is_ipv6())
    }

    /// The pin of its certificate, if it has one.
    ///
    /// # Errors
    ///
    /// If what should be one is none.
    pub fn pin(&self) -> Result<Option<Pin>, super::ClientError> {
        if self.cert_name.starts_with("sha256-raw:") {
            self.cert_name.parse().map(Some)
        } else {
            Ok(None)
        }
    }
}

fn address(text: &str, host: Option<IpAddr>, is_family: fn(&IpAddr) -> bool) -> NodeAddress {
    let found = match (text, host) {
        ("", None) => return NodeAddress::OfName,
        ("", Some(host)) => Some(host),
        (text, _) => text.parse().ok(),
    };
    found.filter(is_family).map_or(NodeAddress::None, NodeAddress::Fixed)
}

impl DerpMap {
    /// A map of one relay that is named as a user names it, by host and port.
    #[must_use]
    pub fn of_host(host: &str, derp_port: u16, stun_port: i32, cert_name: &str) -> Self {
        let node = Node {
            name: "1a".to_owned(),
            region_id: 1,
            host_name: host.to_owned(),
            cert_name: cert_name.to_owned(),
            derp_port,
            stun_port,
            ..Node::default()
        };
        let (code, name) = (host.to_owned(), host.to_owned());
        let region = Region { id: 1, code, name, nodes: vec![node], ..Region::default() };
        Self { regions: BTreeMap::from([(1, region)]), omit_default_regions: true }
    }

    /// The region with this code or number.
    #[must_use]
    pub fn region(&self, code_or_id: &str) -> Option<&Region> {
        let mut regions = self.regions.values();
        regions.find(|it| it.code == code_or_id || it.id.to_string() == code_or_id)
    }

    /// Fills in what is said by where it stands, and checks the rest.
    fn checked(mut self) -> Result<Self, MapError> {
        let mut names = BTreeMap::new();
        for (&id, region) in &mut self.regions {
            let fault = |field: &str, reason: String| MapError::Content {
                place: format!("Regions.{id}.{field}"),
                reason,
            };
            if id == 0 {
                return Err(fault("RegionID", "regions are numbered from 1".to_owned()));
            }
            if region.id != 0 && region.id != id {
                let reason = format!("is {}, but the region stands under {id}", region.id);
                return Err(fault("RegionID", reason));
            }
            region.id = id;
            for (field, text) in [("RegionCode", &region.code), ("RegionName", &region.name)] {
                if text.contains(char::is_control) {
                    return Err(fault(field, format!("{text:?} has control characters")));
                }
            }
            for (at, node) in region.nodes.iter_mut().enumerate() {
                if node.region_id == 0 {
                    node.region_id = id;
                }
                if let Some((field, reason)) = node.fault(id) {
                    return Err(fault(&format!("Nodes[{at}].{field}"), reason));
                }
                match names.entry(node.name.clone()) {
                    Entry::Vacant(entry) => _ = entry.insert(id),
                    Entry::Occupied(entry) => {
                        let reason = format!("{:?} is also in region {}", node.name, entry.get());
                        return Err(fault(&format!("Nodes[{at}].Name"), reason));
                    }
                }
            }
        }
        Ok(self)
    }
}

impl Node {
    /// The field that cannot be used, and why.
    fn fault(&self, region: u32) -> Option<(&'static str, String)> {
        if self.region_id != region {
            let reason = format!("is {}, but the relay stands in region {region}", self.region_id);
            return Some(("RegionID", reason));
        }
        if self.name.is_empty() {
            return Some(("Name", "is missing".to_owned()));
        }
        if self.name.contains(char::is_control) {
            return Some(("Name", format!("{:?} has control characters", self.name)));
        }
        if self.host_name.is_empty() {
            return Some(("HostName", "is missing".to_owned()));
        }
        if !(-1..=i32::from(u16::MAX)).contains(&self.stun_port) {
            return Some(("STUNPort", format!("is {}, but must be -1 to 65535", self.stun_port)));
        }
        if let Err(error) = self.pin() {
            return Some(("CertName", error.to_string()));
        }
        if !self.stun_test_ip.is_empty() && self.stun_test_ip.parse::<IpAddr>().is_err() {
            return Some(("STUNTestIP", format!("{:?} is no IP address", self.stun_test_ip)));
        }
        // A name there is not "none", it is a mistake.
        if is_mistake::<Ipv4Addr>(&self.ipv4) {
            return Some(("IPv4", format!("{:?} is neither an IPv4 address nor none", self.ipv4)));
        }
        if is_mistake::<Ipv6Addr>(&self.ipv6) {
            return Some(("IPv6", format!("{:?} is neither an IPv6 address nor none", self.ipv6)));
        }
        None
    }
}

fn is_mistake<A: std::str::FromStr>(text: &str) -> bool {
    !text.is_empty() && text != "none" && text.parse::<A>().is_err()
}

fn is_empty(text: &str) -> bool {
    text.is_empty()
}

fn is_zero<N: Default + PartialEq>(number: &N) -> bool {
    *number == N::default()
}

/// A region without contents takes away one of Tailscale's; here it is as if it were not there.
fn without_empty<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u32, Region>, D::Error> {
    let regions = BTreeMap::<u32, Option<Region>>::deserialize(deserializer)?;
    Ok(regions.into_iter().filter_map(|(id, region)| Some((id, region?))).collect())
}
