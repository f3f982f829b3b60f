//! Which keys are connected to which mesh peers (reference section 3.11).

use std::collections::{BTreeMap, BTreeSet};

use super::ConnectionId;
use crate::proto::keys::NodePublic;

/// Most keys behind one link: more than any server has connections. Others are not reachable.
const MAX_KEYS: usize = 1 << 22;

/// One thing that a mesh peer said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// The key is connected to it.
    Present(NodePublic),
    /// The key is not, or no longer, connected to it.
    Gone(NodePublic),
}

/// The links by which one key can be reached, in the order in which they announced it.
#[derive(Debug)]
enum Forwarders {
    One(ConnectionId),
    Several(Vec<ConnectionId>),
}

impl Forwarders {
    /// The link on which the key has been known longest.
    fn preferred(&self) -> Option<ConnectionId> {
        match self {
            Self::One(link) => Some(*link),
            Self::Several(links) => links.first().copied(),
        }
    }
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
    /// What it has announced.
    keys: BTreeSet<NodePublic>,
}

/// The links to mesh peers and the keys behind them.
pub(super) struct Forwarding<H> {
    links: BTreeMap<ConnectionId, Link<H>>,
    keys: BTreeMap<NodePublic, Forwarders>,
    pub(super) created: u64,
    pub(super) deleted: u64,
    pub(super) deleted_other: u64,
}

impl<H: Clone> Forwarding<H> {
    pub(super) fn new() -> Self {
        Self {
            links: BTreeMap::new(),
            keys: BTreeMap::new(),
            created: 0,
            deleted: 0,
            deleted_other: 0,
        }
    }

    pub(super) fn open(&mut self, link: ConnectionId, handle: H) {
        self.links.insert(link, Link { handle, keys: BTreeSet::new() });
    }

    /// Forgets a link all of whose keys have been removed.
    pub(super) fn close(&mut self, link: ConnectionId) {
        self.links.remove(&link);
    }

    /// One of the keys that a link has announced.
    pub(super) fn any_key(&self, link: ConnectionId) -> Option<NodePublic> {
        self.links.get(&link)?.keys.first().copied()
    }

    /// How many keys a link has announced.
    pub(super) fn announced(&self, link: ConnectionId) -> usize {
        self.links.get(&link).map_or(0, |link| link.keys.len())
    }

    /// Whether a link leads to the key.
    pub(super) fn reaches(&self, key: &NodePublic) -> bool {
        self.keys.contains_key(key)
    }

    /// The link that packets for the key take.
    pub(super) fn preferred(&self, key: &NodePublic) -> Option<H> {
        let link = self.keys.get(key)?.preferred()?;
        Some(self.links.get(&link)?.handle.clone())
    }

    pub(super) fn links(&self) -> usize {
        self.links.len()
    }

    /// Keys that some link leads to.
    pub(super) fn keys(&self) -> impl Iterator<Item = &NodePublic> {
        self.keys.keys()
    }

    pub(super) fn add(&mut self, link: ConnectionId, key: NodePublic) -> Change {
        let Some(Link { keys, .. }) = self.links.get_mut(&link) else { return Change::Nothing };
        if keys.len() >= MAX_KEYS || !keys.insert(key) {
            return Change::Nothing;
        }
        match self.keys.get_mut(&key) {
            None => {
                self.keys.insert(key, Forwarders::One(link));
                return Change::Rerouted;
            }
            Some(forwarders) => match forwarders {
                Forwarders::One(first) => {
                    *forwarders = Forwarders::Several(vec![*first, link]);
                    self.created += 1;
                }
                Forwarders::Several(links) => links.push(link),
            },
        }
        Change::Nothing
    }

    /// `local` tells whether the key is connected to this server itself.
    pub(super) fn remove(&mut self, link: ConnectionId, key: NodePublic, local: bool) -> Change {
        if let Some(Link { keys, .. }) = self.links.get_mut(&link) {
            keys.remove(&key);
        }
        let Some(forwarders) = self.keys.get_mut(&key) else {
            self.deleted_other += u64::from(local);
            return Change::Nothing;
        };
        match forwarders {
            Forwarders::One(only) if *only == link => {
                self.keys.remove(&key);
                Change::Lost
            }
            Forwarders::One(_) => {
                self.deleted_other += 1;
                Change::Nothing
            }
            Forwarders::Several(links) => {
                let was_preferred = links.first() == Some(&link);
                links.retain(|&other| other != link);
                if let [remaining] = **links {
                    *forwarders = Forwarders::One(remaining);
                    self.deleted += 1;
                }
                if was_preferred { Change::Rerouted } else { Change::Nothing }
            }
        }
    }

    /// Looks for contradictions between the tables.
    pub(super) fn check(&self) -> Result<(), String> {
        let announced: usize = self.links.values().map(|link| link.keys.len()).sum();
        let mut listed = 0;
        for (key, forwarders) in &self.keys {
            let links = match forwarders {
                Forwarders::One(only) => std::slice::from_ref(only),
                Forwarders::Several(links) => links.as_slice(),
            };
            listed += links.len();
            let stranger = links
                .iter()
                .find(|link| self.links.get(link).is_none_or(|link| !link.keys.contains(key)));
            if let Some(link) = stranger {
                return Err(format!("link {link} never announced {}", key.short()));
            }
        }
        if listed != announced {
            return Err(format!("links announced {announced} keys, but {listed} lead to them"));
        }
        Ok(())
    }
}
