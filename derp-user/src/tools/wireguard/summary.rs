//! What `derpd wireguard check` says of a whole file.

use std::path::Path;

use serde_json::{Value, json};

use crate::wireguard::Network;

/// Returns a line on the whole file, as a comment.
pub(super) fn line(path: &Path, port: u16, networks: &[Network]) -> String {
    let peers: usize = networks.iter().map(|network| network.peers.len()).sum();
    let pairs: usize = networks.iter().map(pairs_of).sum();
    let (path, networks) = (path.display(), networks.len());
    format!(
        "# {path} is right. UDP port {port}; networks: {networks}, peers: {peers}, pairs: {pairs}.\n"
    )
}

fn pairs_of(network: &Network) -> usize {
    (0..network.peers.len()).map(|place| network.partners(place).len()).sum::<usize>() / 2
}

/// Returns the networks, with everybody's partners.
pub(super) fn json(port: u16, endpoint: Option<&str>, networks: &[Network]) -> String {
    let network = |network: &Network| {
        let label = |place: usize| network.peers.get(place).map(|peer| &peer.label);
        let peer = |place: usize| {
            let peer = network.peers.get(place)?;
            let partners: Vec<_> = network.partners(place).into_iter().map(label).collect();
            Some(json!({
                "label": peer.label,
                "public_key": peer.key.to_string(),
                "address": peer.address,
                "partners": partners,
            }))
        };
        let peers: Vec<_> = (0..network.peers.len()).filter_map(peer).collect();
        json!({"name": network.name, "peers": peers})
    };
    let networks: Vec<Value> = networks.iter().map(network).collect();
    let all = json!({"port": port, "endpoint": endpoint, "networks": networks});
    format!("{}\n", serde_json::to_string_pretty(&all).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::{PublicKey, tests::star};

    #[test]
    fn everybody_has_his_partners() {
        let networks = [star()];
        assert_eq!(
            line(Path::new("derpd.toml"), 51_820, &networks),
            "# derpd.toml is right. UDP port 51820; networks: 1, peers: 3, pairs: 2.\n"
        );
        let value: Value =
            serde_json::from_str(&json(51_820, Some("relay:51820"), &networks)).unwrap();
        assert_eq!(value["endpoint"], "relay:51820");
        let peers = &value["networks"][0]["peers"];
        assert_eq!(peers[0]["partners"], json!(["phone", "laptop"]));
        assert_eq!(peers[0]["address"], "192.0.2.1:51820");
        assert_eq!(peers[2]["partners"], json!(["nas"]));
        assert_eq!(peers[2]["public_key"], PublicKey::from_bytes([3; 32]).to_string());
    }
}
