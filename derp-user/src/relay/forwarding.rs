//! Which keys are connected to which mesh peers (reference section 3.11).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ConnectionId,
    ways::{KeyIndex, NONE, Way, WayId, Ways},
};
use crate::proto::keys::NodePublic;

/// Most keys behind one link: more than any server has connections. Others are not reachable.
pub const MOST_KEYS: usize = 1 << 20;

/// One thing that a mesh peer said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// The key is connected to it.
    Present(NodePublic),
    /// The key is not, or no longer, connected to it.
    Gone(NodePublic),
}

/// What became of the way to a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Change {
    /// It is as it was.
    Nothing,
    /// Another link is preferred from now on, or for the first time one.
    Rerouted,
    /// No link leads to the key any more.
    Lost,
}

struct Link<H> {
    handle: H,
    /// The key of the server at its other end.
    server: NodePublic,
    /// How many keys it has announced, and the last of their ways.
    announced: usize,
    newest: WayId,
}

/// The links to mesh peers and the keys behind them.
pub(super) struct Forwarding<H> {
    /// A link's place among `slots`.
    places: BTreeMap<ConnectionId, u32>,
    slots: Vec<Option<Link<H>>>,
    /// Servers at the other ends of links.
    servers: BTreeSet<NodePublic>,
    ways: Ways,
    /// Leads to the way of the link on which a key has been known longest; others follow it, in the
    /// order in which they announced the key.
    index: KeyIndex,
    /// Most keys that one link may announce.
    most_keys: usize,
    /// Announcements beyond that.
    pub(super) refused: u64,
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) deleted_other: u64,
}

impl<H: Clone> Forwarding<H> {
    pub(super) fn new(most_keys: usize) -> Self {
        Self {
            places: BTreeMap::new(),
            slots: Vec::new(),
            servers: BTreeSet::new(),
            ways: Ways::default(),
            index: KeyIndex::new(),
            most_keys,
            refused: 0,
            created: 0,
            deleted: 0,
            deleted_other: 0,
        }
    }

    pub(super) fn open(&mut self, link: ConnectionId, handle: H, server: NodePublic) {
        let place = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if place == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[place] = Some(Link { handle, server, announced: 0, newest: NONE });
        self.places.insert(link, place as u32);
        self.servers.insert(server);
    }

    /// Forgets a link all of whose keys have been removed.
    pub(super) fn close(&mut self, link: ConnectionId) {
        if let Some(place) = self.places.remove(&link)
            && let Some(link) = self.slots[place as usize].take()
        {
            self.servers.remove(&link.server);
        }
    }

    /// Whether a link leads to the server whose own key this is.
    pub(super) fn is_server(&self, key: &NodePublic) -> bool {
        self.servers.contains(key)
    }

    /// One of the links that announced a key.
    pub(super) fn any_link(&self, key: &NodePublic) -> Option<ConnectionId> {
        let place = self.ways[self.index.first(&self.ways, key)?].link;
        self.places.iter().find(|(_, other)| **other == place).map(|(&link, _)| link)
    }

    /// One of the keys that a link has announced.
    pub(super) fn any_key(&self, link: ConnectionId) -> Option<NodePublic> {
        let newest = self.link(link)?.newest;
        (newest != NONE).then(|| self.ways[newest].key)
    }

    /// How many keys a link has announced.
    pub(super) fn announced(&self, link: ConnectionId) -> usize {
        self.link(link).map_or(0, |link| link.announced)
    }

    /// Whether a link leads to the key.
    pub(super) fn reaches(&self, key: &NodePublic) -> bool {
        self.index.first(&self.ways, key).is_some()
    }

    /// The link that packets for the key take.
    pub(super) fn preferred(&self, key: &NodePublic) -> Option<H> {
        let first = self.index.first(&self.ways, key)?;
        Some(self.slots[self.ways[first].link as usize].as_ref()?.handle.clone())
    }

    pub(super) fn links(&self) -> usize {
        self.places.len()
    }

    /// Keys that some link leads to, each once.
    pub(super) fn keys(&self) -> impl Iterator<Item = NodePublic> {
        let ways = self.slots.iter().flatten().flat_map(|link| self.ways_of(link));
        ways.filter(|&way| self.index.first(&self.ways, &self.ways[way].key) == Some(way))
            .map(|way| self.ways[way].key)
    }

    pub(super) fn add(&mut self, link: ConnectionId, key: NodePublic) -> Change {
        let Some(&place) = self.places.get(&link) else { return Change::Nothing };
        let first = self.index.first(&self.ways, &key);
        let mut last = first;
        let mut at = first.unwrap_or(NONE);
        while at != NONE {
            let way = &self.ways[at];
            if way.link == place {
                return Change::Nothing;
            }
            last = Some(at);
            at = way.next;
        }
        if self.announced(link) >= self.most_keys {
            self.refused += 1;
            return Change::Nothing;
        }
        let way = self.insert(place, key);
        let Some(last) = last else {
            self.index.insert(&self.ways, way);
            return Change::Rerouted;
        };
        self.ways[last].next = way;
        self.created += u64::from(first == Some(last));
        Change::Nothing
    }

    /// `local` tells whether the key is connected to this server itself.
    pub(super) fn remove(&mut self, link: ConnectionId, key: NodePublic, local: bool) -> Change {
        let Some(first) = self.index.first(&self.ways, &key) else {
            self.deleted_other += u64::from(local);
            return Change::Nothing;
        };
        let place = self.places.get(&link).copied();
        let (mut before, mut at) = (None, first);
        while Some(self.ways[at].link) != place {
            before = Some(at);
            at = self.ways[at].next;
            if at == NONE {
                self.deleted_other += u64::from(before == Some(first));
                return Change::Nothing;
            }
        }
        let next = self.ways[at].next;
        let is_last = next == NONE;
        let change = match before {
            None if is_last => {
                self.index.replace(&self.ways, at, None);
                Change::Lost
            }
            None => {
                self.index.replace(&self.ways, at, Some(next));
                self.deleted += u64::from(self.ways[next].next == NONE);
                Change::Rerouted
            }
            Some(before) => {
                self.ways[before].next = next;
                self.deleted += u64::from(is_last && before == first);
                Change::Nothing
            }
        };
        self.take(at);
        change
    }

    fn link(&self, link: ConnectionId) -> Option<&Link<H>> {
        self.slots[*self.places.get(&link)? as usize].as_ref()
    }

    fn ways_of(&self, link: &Link<H>) -> impl Iterator<Item = WayId> {
        let some = |way: WayId| (way != NONE).then_some(way);
        std::iter::successors(some(link.newest), move |&way| some(self.ways[way].older))
    }

    /// Makes a way, and notes it with its link.
    fn insert(&mut self, place: u32, key: NodePublic) -> WayId {
        let Some(link) = &mut self.slots[place as usize] else { return NONE };
        let older = link.newest;
        let way = Way { key, link: place, next: NONE, newer: NONE, older };
        link.newest = self.ways.insert(way);
        link.announced += 1;
        if older != NONE {
            self.ways[older].newer = link.newest;
        }
        link.newest
    }

    /// Takes a way, to which nothing leads any more, from its link.
    fn take(&mut self, id: WayId) {
        let Way { link, newer, older, .. } = self.ways[id];
        if older != NONE {
            self.ways[older].newer = newer;
        }
        if newer != NONE {
            self.ways[newer].older = older;
        }
        if let Some(link) = &mut self.slots[link as usize] {
            link.announced -= 1;
            if newer == NONE {
                link.newest = older;
            }
        }
        self.ways.remove(id);
    }

    /// Looks for contradictions between the tables.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut listed = 0;
        for (&name, &place) in &self.places {
            let Some(link) = self.slots.get(place as usize).and_then(Option::as_ref) else {
                return Err(format!("link {name} has no place"));
            };
            let mut announced = 0;
            for id in self.ways_of(link) {
                announced += 1;
                let Way { key, link, .. } = self.ways[id];
                if link != place {
                    return Err(format!("link {name} never announced {}", key.short()));
                }
                let Some(first) = self.index.first(&self.ways, &key) else {
                    return Err(format!("nothing leads to {}", key.short()));
                };
                if first == id {
                    let some = |way: WayId| (way != NONE).then_some(way);
                    listed +=
                        std::iter::successors(Some(id), |&way| some(self.ways[way].next)).count();
                }
            }
            if announced != link.announced {
                return Err(format!(
                    "link {name} announced {announced} keys, not {}",
                    link.announced
                ));
            }
        }
        let announced: usize = self.slots.iter().flatten().map(|link| link.announced).sum();
        if listed != announced {
            return Err(format!("links announced {announced} keys, but {listed} lead to them"));
        }
        Ok(())
    }
}
