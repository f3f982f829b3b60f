//! What peers have to write into their `wg-quick` files.

use std::fmt::Write as _;

use super::Network;

/// Returns, for each peer of the networks, the sections of the others it may talk to, with the relay at `endpoint`.
#[must_use]
pub fn snippets(networks: &[Network], endpoint: &str) -> String {
    let mut text = String::new();
    for network in networks {
        for (place, peer) in network.peers.iter().enumerate() {
            let partners = network.partners(place);
            let _ = writeln!(
                text,
                "# ---- {} of network {}: goes into its wg-quick file ----",
                peer.label, network.name
            );
            if let Some(address) = peer.address {
                let port = address.port();
                let _ = writeln!(
                    text,
                    "# Served at {address} only: its [Interface] needs ListenPort = {port}, or a NAT that keeps it."
                );
            }
            if partners.is_empty() {
                text.push_str("# It may talk to nobody.\n\n");
            }
            for partner in partners.into_iter().filter_map(|it| network.peers.get(it)) {
                let _ = writeln!(
                    text,
                    "[Peer]\n# {}\nPublicKey = {}\nEndpoint = {endpoint}\nPersistentKeepalive = 25\n\
                     # The addresses of {} inside the tunnel, as in its own [Interface] section:\n\
                     AllowedIPs = CHANGE-ME/32\n",
                    partner.label, partner.key, partner.label
                );
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::{PublicKey, tests::star};

    #[test]
    fn a_hub_has_all_spokes_and_a_spoke_the_hub() {
        let text = snippets(&[star()], "relay.example.com:51820");
        let sections: Vec<_> = text.split("# ---- ").skip(1).collect();
        let count = |section: &str, what: &str| section.matches(what).count();
        assert_eq!(sections.iter().map(|it| count(it, "[Peer]")).collect::<Vec<_>>(), [2, 1, 1]);
        assert!(sections[0].starts_with("nas of network home"), "{text}");
        assert!(sections[0].contains("ListenPort = 51820"), "{text}");
        for section in sections {
            let peers = count(section, "[Peer]");
            assert_eq!(count(section, "Endpoint = relay.example.com:51820\n"), peers);
            assert_eq!(count(section, "PersistentKeepalive = 25\n"), peers);
            assert_eq!(count(section, "AllowedIPs = CHANGE-ME/32\n"), peers);
        }
        let nas = PublicKey::from_bytes([1; 32]).to_string();
        assert_eq!(count(&text, &format!("PublicKey = {nas}\n")), 2);
    }
}
