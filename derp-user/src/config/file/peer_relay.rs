//! The section `[peer_relay]`.

use std::{net::SocketAddr, path::PathBuf};

use derp_common::flow::table::MAX_SLOTS;

use super::{
    control::{self, ControlSettings},
    reader::{Fault, Section, Value},
};
use crate::peer_relay::{Allowed, Limits, disco::MAX_ADDRESSES};

/// Most nodes that are allowed by name.
const MOST_NODES: usize = 65_536;

/// The section `[peer_relay]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerRelaySettings {
    /// The UDP port, in both families.
    pub port: u16,
    /// The file with the keys of the relay's node.
    pub key_file: PathBuf,
    /// Who may ask for endpoints. With a control server, who may of those to whom the tailnet's policy grants it;
    /// [`Allowed::Any`] if the policy alone decides.
    pub allow: Allowed,
    /// How the node joins a tailnet, if it does.
    pub control: Option<ControlSettings>,
    /// Addresses that clients are told besides those of this host's interfaces.
    pub addresses: Vec<SocketAddr>,
    /// What anybody may use.
    pub limits: Limits,
}

/// Reads the section; `None` when it is switched off. `port` is the one of `[relay]`.
pub(super) fn read(
    section: &Section<'_>,
    port: Option<u16>,
) -> Result<Option<PeerRelaySettings>, Fault> {
    let keys = [
        "enabled",
        "port",
        "key_file",
        "allow",
        "addresses",
        "max_endpoints",
        "max_endpoints_per_node",
    ];
    section.expect_only(&[&keys[..], &control::KEYS].concat())?;
    let missing = |key| section.fault(format!("{key} is missing"));
    let port = match section.value("port") {
        Some(value) => value.number(1..=u16::MAX)?,
        None => port.ok_or_else(|| {
            section.fault("needs a port, here or as the port of [relay] for all flows")
        })?,
    };
    let key_file = section.value("key_file").ok_or_else(|| missing("key_file"))?;
    let control = control::read(section)?;
    let allow = match (section.value("allow"), &control) {
        (Some(allow), Some(_)) if allow.as_text().is_some() => {
            return Err(allow.fault(
                "with control_url the tailnet's policy decides; leave it out, or list those of its nodes that may",
            ));
        }
        (Some(allow), _) => read_allowed(&allow)?,
        (None, Some(_)) => Allowed::Any,
        (None, None) => return Err(missing("allow")),
    };
    let mut limits = Limits::default();
    let bound = |key: &str| section.value(key).map(|value| value.number(1..=MAX_SLOTS)).transpose();
    let count = |number| usize::try_from(number).unwrap_or(usize::MAX);
    if let Some(most) = bound("max_endpoints")? {
        limits.endpoints = count(most);
    }
    if let Some(most) = bound("max_endpoints_per_node")? {
        limits.endpoints_per_node = count(most);
    }
    let settings = PeerRelaySettings {
        port,
        key_file: control::absolute(&key_file)?,
        allow,
        control,
        addresses: section.value("addresses").map_or(Ok(Vec::new()), |it| read_addresses(&it))?,
        limits,
    };
    let enabled = section.value("enabled").map_or(Ok(true), |value| value.boolean())?;
    Ok(enabled.then_some(settings))
}

fn read_allowed(value: &Value<'_>) -> Result<Allowed, Fault> {
    match value.as_text() {
        Some("any") => return Ok(Allowed::Any),
        Some(_) => return Err(value.fault("must be a list of node keys, or \"any\"")),
        None => {}
    }
    let nodes = value.list()?;
    if nodes.len() > MOST_NODES {
        return Err(value.fault(format!("may have at most {MOST_NODES} keys")));
    }
    let node = |value: &Value<'_>| value.parsed("a node key, like nodekey: and 64 digits");
    nodes.iter().map(node).collect::<Result<_, _>>().map(Allowed::Nodes)
}

fn read_addresses(value: &Value<'_>) -> Result<Vec<SocketAddr>, Fault> {
    let addresses = value.list()?;
    if addresses.len() > MAX_ADDRESSES {
        return Err(value.fault(format!("may have at most {MAX_ADDRESSES} addresses")));
    }
    let address =
        |value: &Value<'_>| value.parsed("an address with a port, like 203.0.113.1:40000");
    addresses.iter().map(address).collect()
}
