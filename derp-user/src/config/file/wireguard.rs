//! The section `[wireguard]`.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    path::PathBuf,
};

use super::reader::{Fault, Section, Value};
use crate::{
    flow::check_address,
    wireguard::{MOST_PEERS, Network, Pairs, PeerSettings, PublicKey, PublicKeyError},
};

/// Most bytes of a name or label.
const LONGEST_NAME: usize = 64;
/// The port of WireGuard's examples.
const DEFAULT_PORT: u16 = 51_820;

/// The section `[wireguard]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WireGuardSettings {
    /// The UDP port, in both families.
    pub port: u16,
    /// What peers have as `Endpoint`, with its port; for snippets only.
    pub endpoint: Option<String>,
    /// Where addresses and sessions are kept over restarts.
    pub state_file: Option<PathBuf>,
    /// The networks.
    pub networks: Vec<Network>,
}

/// Names that are taken, keys and addresses with whose they are.
#[derive(Default)]
struct Taken {
    networks: HashSet<String>,
    keys: HashMap<PublicKey, String>,
    addresses: HashMap<SocketAddr, String>,
}

/// Reads the section.
pub(super) fn read(section: &Section<'_>) -> Result<WireGuardSettings, Fault> {
    section.expect_only(&["port", "endpoint", "state_file", "network"])?;
    let port = section.value("port").map(|value| value.number(1..=u16::MAX)).transpose()?;
    let port = port.unwrap_or(DEFAULT_PORT);
    let endpoint = section.value("endpoint").map(|value| read_endpoint(&value)).transpose()?;
    let state_file = section.value("state_file").map(|value| read_path(&value)).transpose()?;
    let mut taken = Taken::default();
    let mut networks = Vec::new();
    for mut network in section.tables("network", "wireguard.network")? {
        networks.push(read_network(&mut network, &mut taken)?);
    }
    if networks.is_empty() {
        return Err(section.fault("needs a [[wireguard.network]]"));
    }
    Ok(WireGuardSettings { port, endpoint, state_file, networks })
}

fn read_endpoint(value: &Value<'_>) -> Result<String, Fault> {
    let text = value.text()?;
    let is_host = |host: &str| !host.is_empty() && !host.contains(char::is_whitespace);
    let port = text.rsplit_once(':').filter(|(host, _)| is_host(host)).map(|(_, port)| port);
    match port.and_then(|port| port.parse::<u16>().ok()) {
        Some(1..) => Ok(text.to_owned()),
        Some(0) | None => Err(value.fault(format!(
            "{text:?} is not a host with a port, like relay.example.com:{DEFAULT_PORT}"
        ))),
    }
}

fn read_path(value: &Value<'_>) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(value.text()?);
    if path.is_absolute() { Ok(path) } else { Err(value.fault("must be an absolute path")) }
}

fn read_network(section: &mut Section<'_>, taken: &mut Taken) -> Result<Network, Fault> {
    section.expect_only(&["name", "pairs", "hub", "peer"])?;
    let name = section.value("name").ok_or_else(|| section.fault("name is missing"))?;
    let text = read_name(&name)?;
    if !taken.networks.insert(text.to_owned()) {
        return Err(name.fault("another network has this name"));
    }
    section.name = format!("{} {text:?}", section.name);
    let mut peers = Vec::new();
    let mut labels = HashSet::new();
    for mut peer in section.tables("peer", "wireguard.network.peer")? {
        peers.push(read_peer(&mut peer, text, &mut labels, taken)?);
    }
    if peers.len() < 2 {
        return Err(section.fault("needs at least two [[wireguard.network.peer]]"));
    }
    if taken.keys.len() > MOST_PEERS {
        return Err(
            section.fault(format!("at most {MOST_PEERS} peers are possible in all networks"))
        );
    }
    let pairs = read_pairs(section, &peers)?;
    Ok(Network { name: text.to_owned(), peers, pairs })
}

fn read_name<'a>(value: &Value<'a>) -> Result<&'a str, Fault> {
    let text = value.text()?;
    if text.is_empty() || text.len() > LONGEST_NAME || text.chars().any(char::is_control) {
        return Err(value.fault(format!("must be a word or two, of at most {LONGEST_NAME} bytes")));
    }
    Ok(text)
}

fn read_peer(
    section: &mut Section<'_>,
    network: &str,
    labels: &mut HashSet<String>,
    taken: &mut Taken,
) -> Result<PeerSettings, Fault> {
    section.expect_only(&["label", "public_key", "address"])?;
    let label = section.value("label");
    let text = label.as_ref().map(read_name).transpose()?;
    if let Some(text) = text {
        section.name = format!("{} {text:?}", section.name);
    }
    let key_value =
        section.value("public_key").ok_or_else(|| section.fault("public_key is missing"))?;
    let key: PublicKey = key_value
        .text()?
        .parse()
        .map_err(|error: PublicKeyError| key_value.fault(error.to_string()))?;
    let label_text = text.map_or_else(|| key.short(), str::to_owned);
    if !labels.insert(label_text.clone()) {
        let place = label.as_ref().unwrap_or(&key_value);
        return Err(place.fault("another peer of this network has this label"));
    }
    let owner = format!("{label_text:?} of network {network:?}");
    if let Some(other) = taken.keys.insert(key, owner.clone()) {
        return Err(key_value.fault(format!("the peer {other} has this key")));
    }
    let address = section.value("address").map(|value| {
        let address: SocketAddr = value.parsed("an address with a port, like 203.0.113.5:51820")?;
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        check_address(address).map_err(|fault| value.fault(format!("{address} {fault}")))?;
        match taken.addresses.insert(address, owner) {
            Some(other) => Err(value.fault(format!("the peer {other} has this address"))),
            None => Ok(address),
        }
    });
    Ok(PeerSettings { label: label_text, key, address: address.transpose()? })
}

fn read_pairs(section: &Section<'_>, peers: &[PeerSettings]) -> Result<Pairs, Fault> {
    let find = |value: &Value<'_>| {
        let label = value.text()?;
        let place = peers.iter().position(|peer| peer.label == label);
        place.ok_or_else(|| value.fault(format!("no peer of this network has the label {label:?}")))
    };
    let (pairs, hub) = (section.value("pairs"), section.value("hub"));
    let Some(pairs) = pairs else {
        return match hub {
            Some(hub) => Err(hub.fault("has no meaning without pairs = \"star\"")),
            None => Ok(Pairs::All),
        };
    };
    match (pairs.as_text(), hub) {
        (Some("star"), Some(hub)) => return find(&hub).map(Pairs::Star),
        (Some("star"), None) => {
            return Err(section.fault("pairs = \"star\" needs a hub, the label of a peer"));
        }
        (_, Some(hub)) => return Err(hub.fault("has no meaning without pairs = \"star\"")),
        (Some("all"), None) => return Ok(Pairs::All),
        (Some(_), None) => {
            return Err(pairs.fault(
                "must be \"all\", \"star\" or a list of pairs like [[\"laptop\", \"nas\"]]",
            ));
        }
        (None, None) => {}
    }
    let mut list = Vec::new();
    for pair in pairs.list()? {
        let labels = pair.list()?;
        let [a, b] = &labels[..] else {
            return Err(pair.fault("must be two labels, like [\"laptop\", \"nas\"]"));
        };
        let (a, b) = (find(a)?, find(b)?);
        if a == b {
            return Err(pair.fault("must be two different peers"));
        }
        list.push([a, b]);
    }
    Ok(Pairs::List(list))
}
