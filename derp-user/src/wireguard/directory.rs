//! Who may talk to whom, as configured.

use std::{collections::HashMap, net::SocketAddr};

use super::{Mac1, Mac1Key, PublicKey};

/// Most peers in all networks: what a stranger's initiation may cost is a MAC per peer.
pub const MOST_PEERS: usize = 1000;

/// A network of peers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Network {
    /// What people call it.
    pub name: String,
    /// Its peers; those of other networks are out of reach.
    pub peers: Vec<PeerSettings>,
    /// Which of them may talk to each other.
    pub pairs: Pairs,
}

/// A peer as configured.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerSettings {
    /// What people call it.
    pub label: String,
    /// Its public key.
    pub key: PublicKey,
    /// The only address it is served at; `None` for wherever it is.
    pub address: Option<SocketAddr>,
}

/// Which peers of a network may talk to each other, by their place in [`Network::peers`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Pairs {
    /// All of them.
    All,
    /// One with all others.
    Star(usize),
    /// These.
    List(Vec<[usize; 2]>),
}

impl Network {
    /// Returns who may talk to the peer at this place, in order.
    #[must_use]
    pub fn partners(&self, place: usize) -> Vec<usize> {
        let others = (0..self.peers.len()).filter(|other| *other != place);
        match &self.pairs {
            Pairs::All => others.collect(),
            Pairs::Star(hub) if *hub == place => others.collect(),
            Pairs::Star(hub) => vec![*hub],
            Pairs::List(pairs) => {
                let other = |&[a, b]: &[usize; 2]| match (a == place, b == place) {
                    (true, false) => Some(b),
                    (false, true) => Some(a),
                    _ => None,
                };
                let mut partners: Vec<_> = pairs.iter().filter_map(other).collect();
                partners.sort_unstable();
                partners.dedup();
                partners
            }
        }
    }
}

/// A peer's place in the directory.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PeerId(u32);

/// Every peer, ready for looking up.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    peers: Vec<Peer>,
    by_key: HashMap<PublicKey, PeerId>,
    by_pin: HashMap<SocketAddr, PeerId>,
}

/// A peer in the directory.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) label: String,
    pub(super) network: String,
    pub(super) key: PublicKey,
    pub(super) pinned: Option<SocketAddr>,
    mac1: Mac1Key,
    /// In order.
    partners: Vec<PeerId>,
}

impl Directory {
    /// Enters every peer of these networks. Of two with the same key the first one counts; no more than [`MOST_PEERS`]
    /// are taken.
    #[must_use]
    pub fn new(networks: &[Network]) -> Self {
        let mut directory = Self::default();
        for network in networks {
            let first = directory.peers.len();
            let id = |place: usize| u32::try_from(first + place).ok().map(PeerId);
            let room = MOST_PEERS.saturating_sub(first);
            for (place, peer) in network.peers.iter().take(room).enumerate() {
                let partners = network.partners(place).into_iter().filter(|it| *it < room);
                let Some(own) = id(place) else { continue };
                let pinned =
                    peer.address.map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
                directory.by_key.entry(peer.key).or_insert(own);
                if let Some(pinned) = pinned {
                    directory.by_pin.entry(pinned).or_insert(own);
                }
                directory.peers.push(Peer {
                    label: peer.label.clone(),
                    network: network.name.clone(),
                    key: peer.key,
                    pinned,
                    mac1: Mac1Key::of(&peer.key),
                    partners: partners.filter_map(id).collect(),
                });
            }
        }
        directory
    }

    /// Returns how many peers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Tells whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PeerId> + use<> {
        (0..u32::try_from(self.peers.len()).unwrap_or(u32::MAX)).map(PeerId)
    }

    pub(super) fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(id.index())
    }

    pub(super) fn find(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(key).copied()
    }

    /// Returns who is pinned to an address.
    pub(super) fn pinned_to(&self, address: SocketAddr) -> Option<PeerId> {
        self.by_pin.get(&address).copied()
    }

    pub(super) fn partners(&self, id: PeerId) -> &[PeerId] {
        self.peer(id).map(|peer| peer.partners.as_slice()).unwrap_or_default()
    }

    pub(super) fn are_partners(&self, a: PeerId, b: PeerId) -> bool {
        self.partners(a).binary_search(&b).is_ok()
    }

    /// Tells whether a peer may be at an address, as far as the configuration says.
    pub(super) fn may_be_at(&self, id: PeerId, address: SocketAddr) -> bool {
        let pinned = self.peer(id).and_then(|peer| peer.pinned);
        pinned.map_or_else(
            || self.pinned_to(address).is_none_or(|owner| owner == id),
            |pinned| pinned == address,
        )
    }

    /// Finds the one of these peers whom a message was made for.
    pub(super) fn addressee(
        &self,
        mac1: &Mac1<'_>,
        among: impl IntoIterator<Item = PeerId>,
    ) -> Option<PeerId> {
        among.into_iter().find(|id| self.peer(*id).is_some_and(|peer| peer.mac1.verifies(mac1)))
    }

    /// Returns a peer's name for log lines and pages.
    pub(super) fn name(&self, id: PeerId) -> &str {
        self.peer(id).map(|peer| peer.label.as_str()).unwrap_or_default()
    }
}

impl PeerId {
    pub(super) const fn new(number: u32) -> Self {
        Self(number)
    }

    pub(super) const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(count: usize, pairs: Pairs) -> Network {
        let peer = |number: usize| PeerSettings {
            label: number.to_string(),
            key: PublicKey::from_bytes([(number % 255) as u8 + 1; 32]),
            address: None,
        };
        Network { name: "test".to_owned(), peers: (0..count).map(peer).collect(), pairs }
    }

    fn partners(network: &Network) -> Vec<Vec<usize>> {
        (0..network.peers.len()).map(|place| network.partners(place)).collect()
    }

    #[test]
    fn pairs_are_a_mesh_a_star_or_a_list() {
        let all = partners(&network(3, Pairs::All));
        assert_eq!(all, [vec![1, 2], vec![0, 2], vec![0, 1]]);
        let star = partners(&network(3, Pairs::Star(1)));
        assert_eq!(star, [vec![1], vec![0, 2], vec![1]]);
        let list = partners(&network(4, Pairs::List(vec![[2, 0], [0, 1], [1, 0]])));
        assert_eq!(list, [vec![1, 2], vec![0], vec![0], vec![]]);
    }

    #[test]
    fn networks_do_not_see_each_other() {
        let mut second = network(2, Pairs::All);
        for (peer, number) in second.peers.iter_mut().zip(10..) {
            peer.key = PublicKey::from_bytes([number; 32]);
        }
        let directory = Directory::new(&[network(3, Pairs::All), second]);
        assert_eq!(directory.len(), 5);
        let id = |number| directory.find(&PublicKey::from_bytes([number; 32])).unwrap();
        assert!(directory.are_partners(id(1), id(3)) && directory.are_partners(id(10), id(11)));
        assert!(!directory.are_partners(id(1), id(10)) && !directory.are_partners(id(1), id(1)));
    }

    #[test]
    fn a_pinned_address_is_one_peers_alone() {
        let mut network = network(2, Pairs::All);
        let pinned = "192.0.2.1:51820".parse().unwrap();
        network.peers[0].address = Some(pinned);
        let directory = Directory::new(&[network]);
        let other = "192.0.2.2:51820".parse().unwrap();
        let may = |id, address| directory.may_be_at(PeerId(id), address);
        assert_eq!([may(0, pinned), may(0, other)], [true, false]);
        assert_eq!([may(1, pinned), may(1, other)], [false, true]);
        assert_eq!(directory.pinned_to(pinned), Some(PeerId(0)));
    }

    #[test]
    fn there_are_no_more_peers_than_are_tried() {
        let mut network = network(MOST_PEERS + 5, Pairs::All);
        for (peer, number) in network.peers.iter_mut().zip(1_u32..) {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_le_bytes());
            peer.key = PublicKey::from_bytes(key);
        }
        let directory = Directory::new(&[network]);
        assert_eq!(directory.len(), MOST_PEERS);
        assert_eq!(directory.partners(PeerId(0)).len(), MOST_PEERS - 1);
    }
}
