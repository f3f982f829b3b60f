//! The section `[peer_relay]`.

use std::{net::SocketAddr, path::PathBuf};

use derp_common::flow::table::MAX_SLOTS;

use super::{
    control::{self, ControlSettings},
    reader::{Fault, Section, Value},
};
use crate::{
    client::{Pin, Target, Trust},
    peer_relay::{Allowed, Cloud, CloudChoice, Limits, disco::MAX_ADDRESSES},
    stun::StunTarget,
};

/// Most nodes that are allowed by name.
const MOST_NODES: usize = 65_536;
/// Most STUN servers and most other DERP servers.
const MOST_SERVERS: usize = 16;

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
    /// STUN servers that say with which addresses they see the relay.
    pub stun: Vec<StunTarget>,
    /// Which cloud's metadata service says what this host's addresses are.
    pub cloud: CloudChoice,
    /// Other DERP servers that the relay's node is a client of.
    pub derp: Vec<Target>,
    /// Which certificates those must show.
    pub derp_trust: Trust,
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
        "stun",
        "cloud",
        "derp",
        "derp_ca_file",
        "derp_pin",
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
    let derp = section.value("derp").map_or(Ok(Vec::new()), |it| read_derp(&it))?;
    let stun = match section.value("stun") {
        Some(value) => read_stun(&value)?,
        // Whoever runs these answers STUN as well, as a rule.
        None => derp.iter().map(stun_of).collect(),
    };
    let settings = PeerRelaySettings {
        port,
        key_file: control::absolute(&key_file)?,
        allow,
        control,
        addresses: section.value("addresses").map_or(Ok(Vec::new()), |it| read_addresses(&it))?,
        stun,
        cloud: section.value("cloud").map_or(Ok(CloudChoice::default()), |it| read_cloud(&it))?,
        derp_trust: read_trust(section, &derp)?,
        derp,
        limits,
    };
    let enabled = section.value("enabled").map_or(Ok(true), |value| value.boolean())?;
    Ok(enabled.then_some(settings))
}

fn read_allowed(value: &Value<'_>) -> Result<Allowed, Fault> {
    match value.as_text() {
        Some("any") => return Ok(Allowed::Any),
        Some("admitted") => return Ok(Allowed::Admitted),
        Some(_) => {
            return Err(value.fault("must be a list of node keys, \"any\" or \"admitted\""));
        }
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

fn read_stun(value: &Value<'_>) -> Result<Vec<StunTarget>, Fault> {
    let servers = value.list()?;
    if servers.len() > MOST_SERVERS {
        return Err(value.fault(format!("may have at most {MOST_SERVERS} servers")));
    }
    let server = |value: &Value<'_>| value.parsed("a STUN server, like stun.example.com:3478");
    servers.iter().map(server).collect()
}

fn read_cloud(value: &Value<'_>) -> Result<CloudChoice, Fault> {
    match value.as_text() {
        Some("detect") => Ok(CloudChoice::Detect),
        Some("aws") => Ok(CloudChoice::Given(Cloud::Aws)),
        Some("off") => Ok(CloudChoice::Off),
        Some(_) | None => Err(value.fault("must be \"detect\", \"aws\" or \"off\"")),
    }
}

fn stun_of(derp: &Target) -> StunTarget {
    StunTarget { host: derp.host.clone(), port: StunTarget::PORT }
}

/// Reads one server, or a list.
fn read_derp(value: &Value<'_>) -> Result<Vec<Target>, Fault> {
    let server =
        |value: &Value<'_>| value.parsed("a DERP server, like https://derp.example.com/derp");
    if value.as_text().is_some() {
        return Ok(vec![server(value)?]);
    }
    let values = value.list()?;
    if values.len() > MOST_SERVERS {
        return Err(value.fault(format!("may have at most {MOST_SERVERS} servers")));
    }
    let mut servers = Vec::new();
    for value in &values {
        let target = server(value)?;
        if servers.contains(&target) {
            return Err(value.fault(format!("{target} is there twice")));
        }
        servers.push(target);
    }
    Ok(servers)
}

fn read_trust(section: &Section<'_>, derp: &[Target]) -> Result<Trust, Fault> {
    let (file, pin) = (section.value("derp_ca_file"), section.value("derp_pin"));
    let given = file.as_ref().or(pin.as_ref());
    if let Some(given) = given.filter(|_| !derp.iter().any(|target| target.tls)) {
        return Err(given.fault("has no meaning without a derp that begins with https://"));
    }
    match (file, pin) {
        (None, None) => Ok(Trust::System),
        (Some(file), None) => {
            let path = PathBuf::from(file.text()?);
            if !path.is_absolute() {
                return Err(file.fault("must be an absolute path"));
            }
            Ok(Trust::Roots(path))
        }
        (None, Some(pin)) => {
            let example = "a pin, like sha256-raw: and 64 digits";
            let parsed = |value: &Value<'_>| value.parsed::<Pin>(example);
            if pin.as_text().is_some() {
                return Ok(Trust::Pinned(parsed(&pin)?));
            }
            let pins = pin.list()?;
            if pins.is_empty() {
                return Err(pin.fault("must name a pin"));
            }
            Ok(Trust::PinnedAny(pins.iter().map(parsed).collect::<Result<_, _>>()?))
        }
        (Some(_), Some(pin)) => {
            Err(pin.fault("cannot be given together with derp_ca_file: no authority is asked"))
        }
    }
}
