//! Where peers are.
//!
//! An address is believed in two steps. A response, from where a partner is known to be, to something that only the peer
//! could have asked *names* an address; data in both directions *confirms* it, because an honest end sends none to an
//! impostor. What is only named is tried beside what is confirmed, and does not replace it before that has fallen silent.
//!
//! Two impostors that play two silent peers to each other can take their places. So nobody is shut out: an address that
//! was replaced is tried beside the new one for an hour, so is every other one that has data both ways, and strangers who
//! ask for each other meet whoever else is believed to be who they are. `address` in the configuration spares all this.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{Directory, PeerId};

/// How long an address counts as alive after it was last heard of, in nanoseconds: a keepalive is due every 25 s.
pub(super) const SILENCE: u64 = 35_000_000_000;
/// Addresses of a peer besides its own that are kept.
const MOST_OTHERS: usize = 3;
/// How long an address that was named is kept without a flow, in nanoseconds.
const NAMED: u64 = 15_000_000_000;
/// How long one that was replaced is tried as well, in nanoseconds.
const FORMER: u64 = 3_600_000_000_000;

/// An address of a peer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) remote: SocketAddr,
    /// The address of this host that the peer uses; unspecified if that is not known.
    pub(super) local: IpAddr,
    /// When it was named, or last heard of.
    pub(super) heard: u64,
}

impl Place {
    fn is_alive(&self, now: u64) -> bool {
        now.saturating_sub(self.heard) <= SILENCE
    }
}

/// One peer's addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    /// Its own: configured or confirmed.
    pub(super) home: Option<Place>,
    /// Those that were named, or confirmed while it had another one, oldest first.
    pub(super) others: Vec<Place>,
    /// Its own one before, and when that was replaced.
    pub(super) former: Option<(Place, u64)>,
}

impl Whereabouts {
    pub(super) fn places(&self) -> impl Iterator<Item = &Place> {
        self.home.iter().chain(self.besides())
    }

    /// Those besides its own, the most likely first.
    pub(super) fn besides(&self) -> impl Iterator<Item = &Place> {
        let former = self.former.iter().map(|(place, _)| place);
        former.chain(self.others.iter().rev())
    }

    /// Tells whether the peer has lately been heard of at its own address.
    pub(super) fn is_alive(&self, now: u64) -> bool {
        self.home.is_some_and(|home| home.is_alive(now))
    }

    /// Notes that the peer is said to be at an address.
    fn name(&mut self, place: Place) {
        if let Some(home) = self.home.as_mut().filter(|home| home.remote == place.remote) {
            home.local = place.local;
            return;
        }
        self.others.retain(|other| other.remote != place.remote);
        if self.others.len() >= MOST_OTHERS {
            self.others.remove(0);
        }
        self.others.push(place);
    }

    /// Notes that data came from an address of the peer.
    fn heard(&mut self, remote: SocketAddr, when: u64) {
        let former = self.former.iter_mut().map(|(place, _)| place);
        for place in self.home.iter_mut().chain(former).chain(&mut self.others) {
            if place.remote == remote {
                place.heard = place.heard.max(when);
            }
        }
    }

    /// Notes that data went both ways through an address. Returns whether that is the peer's own from now on and was
    /// not before.
    fn confirm(&mut self, place: Place, now: u64) -> bool {
        if self.home.is_some_and(|home| home.remote == place.remote) {
            return false;
        }
        if self.home.is_some_and(|home| home.is_alive(now) || home.heard >= place.heard) {
            let is_known = self.besides().any(|other| other.remote == place.remote);
            if !is_known && place.is_alive(now) {
                self.name(place);
            }
            return false;
        }
        self.others.retain(|other| other.remote != place.remote);
        self.former = self.home.map(|home| (home, now));
        self.home = Some(place);
        true
    }
}

/// Every peer's addresses.
#[derive(Debug, Default)]
pub(super) struct Atlas {
    /// By peer.
    peers: Vec<Whereabouts>,
    /// Whose own address this is: the last one it was confirmed for.
    owners: HashMap<SocketAddr, PeerId>,
}

impl Atlas {
    /// Makes an atlas in which peers that are pinned are where that is, and the others nowhere.
    pub(super) fn new(directory: &Directory) -> Self {
        let mut atlas = Self { peers: Vec::new(), owners: HashMap::new() };
        for id in directory.ids() {
            let pinned = directory.peer(id).and_then(|peer| peer.pinned);
            let home = pinned.map(|remote| {
                atlas.owners.insert(remote, id);
                Place { remote, local: unspecified(remote), heard: 0 }
            });
            atlas.peers.push(Whereabouts { home, ..Whereabouts::default() });
        }
        atlas
    }

    pub(super) fn of(&self, id: PeerId) -> Option<&Whereabouts> {
        self.peers.get(id.index())
    }

    /// Returns whose own address this is.
    pub(super) fn owner(&self, remote: SocketAddr) -> Option<PeerId> {
        self.owners.get(&remote).copied()
    }

    pub(super) fn name(&mut self, id: PeerId, remote: SocketAddr, local: IpAddr, now: u64) {
        if let Some(peer) = self.peers.get_mut(id.index()) {
            peer.name(Place { remote, local, heard: now });
        }
    }

    pub(super) fn heard(&mut self, id: PeerId, remote: SocketAddr, when: u64) {
        if let Some(peer) = self.peers.get_mut(id.index()) {
            peer.heard(remote, when);
        }
    }

    /// Notes that data went both ways through an address; see [`Whereabouts::confirm`]. Returns the address that the
    /// peer has left, or that there was none.
    pub(super) fn confirm(
        &mut self,
        id: PeerId,
        place: Place,
        now: u64,
    ) -> Option<Option<SocketAddr>> {
        let peer = self.peers.get_mut(id.index())?;
        let before = peer.home.map(|home| home.remote);
        if !peer.confirm(place, now) {
            return None;
        }
        if let Some(before) = before
            && self.owners.get(&before) == Some(&id)
        {
            self.owners.remove(&before);
        }
        self.owners.insert(place.remote, id);
        Some(before)
    }

    /// Forgets what was named and neither confirmed nor has a flow.
    pub(super) fn expire(&mut self, has_flow: impl Fn(PeerId, SocketAddr) -> bool, now: u64) {
        for (peer, number) in self.peers.iter_mut().zip(0..) {
            peer.former = peer.former.filter(|(_, since)| now.saturating_sub(*since) <= FORMER);
            peer.others.retain(|other| {
                now.saturating_sub(other.heard) <= NAMED
                    || has_flow(PeerId::new(number), other.remote)
            });
        }
    }

    /// Puts a peer where it was, unless it is pinned.
    pub(super) fn put(&mut self, id: PeerId, whereabouts: Whereabouts, directory: &Directory) {
        let Some(peer) = self.peers.get_mut(id.index()) else { return };
        let may = |place: &Place| directory.may_be_at(id, place.remote);
        if let Some(home) = whereabouts.home.filter(may) {
            self.owners.insert(home.remote, id);
            peer.home = Some(home);
        }
        peer.others.extend(whereabouts.others.into_iter().filter(may));
        peer.former = whereabouts.former.filter(|(place, _)| may(place));
    }

    pub(super) fn take(&mut self, id: PeerId) -> Whereabouts {
        self.peers.get_mut(id.index()).map(std::mem::take).unwrap_or_default()
    }
}

/// Returns the address that leaves the choice of this host's address to routing.
pub(super) const fn unspecified(remote: SocketAddr) -> IpAddr {
    match remote {
        SocketAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}
