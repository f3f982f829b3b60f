//! What the links to the other servers of a region are doing: for the debug pages, and in the
//! Prometheus text.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;

use super::families::{Families, Sample};

/// The mesh of one server.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct MeshView {
    /// In the order of the configuration; empty without a mesh.
    pub peers: Vec<PeerView>,
}

/// One configured peer, which is as many servers as its name has addresses.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PeerView {
    /// As the operator wrote it, without the dial host.
    pub name: String,
    /// Name and port that are looked up and dialled.
    pub dials: String,
    /// Why the last lookup of that name failed, if it did.
    pub look_up_fault: Option<String>,
    /// What the name stands for.
    pub addresses: Vec<AddressView>,
}

/// One address of a peer.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct AddressView {
    /// What is dialled.
    pub address: SocketAddr,
    /// What has become of that.
    pub state: LinkState,
    /// For how many seconds.
    pub seconds: u64,
    /// The key of the server there, as text, once it has been heard.
    pub server_key: Option<String>,
    /// Links that came to stand, the one that stands now included.
    pub connects: u64,
    /// Attempts that failed, and links that broke.
    pub failures: u64,
    /// The last of these, in words.
    pub last_failure: Option<String>,
    /// Keys that the peer has announced on the link that stands.
    pub clients: usize,
    /// Packets handed to links to this address.
    pub forwarded_packets: u64,
    /// Their bytes.
    pub forwarded_bytes: u64,
    /// Those among them that were dropped because the link was full or had ended.
    pub dropped_packets: u64,
}

/// What has become of dialling an address.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkState {
    /// It is dialled, or will be after a pause.
    Down,
    /// A link stands.
    Up,
    /// It leads to a server that has a link already; this one is kept in reserve.
    Reserve,
    /// It leads to this server itself.
    Own,
}

impl LinkState {
    /// The word on pages.
    pub fn label(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Up => "up",
            Self::Reserve => "in reserve",
            Self::Own => "this server",
        }
    }
}

impl MeshView {
    /// How many links stand, and how many should.
    pub fn links(&self) -> (usize, usize) {
        let addresses = || self.peers.iter().flat_map(|peer| &peer.addresses);
        let count = |state| addresses().filter(|address| address.state == state).count();
        let up = count(LinkState::Up);
        (up, up + count(LinkState::Down))
    }

    /// Addresses that have a link or want one, by their labels: a peer that is configured twice is one.
    fn wanted(&self) -> BTreeMap<(&str, String), &AddressView> {
        let mut wanted: BTreeMap<_, &AddressView> = BTreeMap::new();
        for peer in &self.peers {
            for address in &peer.addresses {
                let labels = (peer.name.as_str(), address.address.to_string());
                match address.state {
                    LinkState::Up => drop(wanted.insert(labels, address)),
                    LinkState::Down => drop(wanted.entry(labels).or_insert(address)),
                    LinkState::Reserve | LinkState::Own => {}
                }
            }
        }
        wanted
    }

    pub(super) fn add_to(&self, families: &mut Families) {
        let wanted = self.wanted();
        let samples = |value: fn(&AddressView) -> u64| {
            wanted.iter().map(move |((peer, address), view)| Sample {
                labels: [("peer", *peer), ("address", address.as_str())],
                value: value(view) as f64,
            })
        };
        families.gauges(
            "derpd_mesh_link_up",
            "Whether the link to this address of a mesh peer stands.",
            samples(|view| u64::from(view.state == LinkState::Up)),
        );
        families.gauges(
            "derpd_mesh_link_clients",
            "Keys that a mesh peer has announced.",
            samples(|view| view.clients as u64),
        );
        families.counters(
            "derpd_mesh_link_connects_total",
            "Links to this address of a mesh peer that came to stand.",
            samples(|view| view.connects),
        );
        families.counters(
            "derpd_mesh_link_forwarded_packets_total",
            "Packets handed to links to this address of a mesh peer.",
            samples(|view| view.forwarded_packets),
        );
        families.counters(
            "derpd_mesh_link_forwarded_bytes_total",
            "Bytes of packets handed to links to this address of a mesh peer.",
            samples(|view| view.forwarded_bytes),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8, state: LinkState) -> AddressView {
        AddressView {
            address: SocketAddr::from(([192, 0, 2, last], 443)),
            state,
            seconds: 5,
            server_key: None,
            connects: 2,
            failures: 1,
            last_failure: None,
            clients: 7,
            forwarded_packets: 3,
            forwarded_bytes: 300,
            dropped_packets: 0,
        }
    }

    fn peer(name: &str, addresses: Vec<AddressView>) -> PeerView {
        PeerView { name: name.to_owned(), dials: name.to_owned(), look_up_fault: None, addresses }
    }

    #[test]
    fn an_address_has_one_sample_however_often_it_is_configured() {
        let view = MeshView {
            peers: vec![
                peer("a", vec![address(1, LinkState::Down), address(2, LinkState::Own)]),
                peer("a", vec![address(1, LinkState::Up), address(3, LinkState::Reserve)]),
                peer("b", vec![address(1, LinkState::Reserve), address(4, LinkState::Down)]),
            ],
        };
        assert_eq!(view.links(), (1, 3));
        let mut families = Families::default();
        view.add_to(&mut families);
        let text = prometheus::TextEncoder::new().encode_to_string(families.as_slice()).unwrap();
        let up: Vec<_> =
            text.lines().filter(|line| line.starts_with("derpd_mesh_link_up")).collect();
        assert_eq!(
            up,
            [
                "derpd_mesh_link_up{peer=\"a\",address=\"192.0.2.1:443\"} 1",
                "derpd_mesh_link_up{peer=\"b\",address=\"192.0.2.4:443\"} 0",
            ]
        );
        assert!(text.contains(
            "derpd_mesh_link_forwarded_bytes_total{peer=\"a\",address=\"192.0.2.1:443\"} 300\n"
        ));
    }

    #[test]
    fn without_a_mesh_there_are_no_families() {
        let mut families = Families::default();
        MeshView::default().add_to(&mut families);
        assert!(families.as_slice().is_empty());
    }
}
