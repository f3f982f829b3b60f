//! Memory for many small records, each found by key or by number.

use std::{
    hash::{BuildHasher, RandomState},
    ops::{Index, IndexMut},
};

use hashbrown::HashTable;

use crate::proto::keys::NodePublic;

/// Names a [`Way`].
pub(super) type WayId = u32;

/// No way: the end of a list.
pub(super) const NONE: WayId = WayId::MAX;

/// Ways in one piece of memory.
const PIECE: usize = 1024;
/// A table that grows moves all its entries at once, so there are many small ones. A power of two.
const PARTS: usize = 256;

/// That a link leads to a key. There may be millions, so they are small: 48 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub(super) key: NodePublic,
    /// The link's place.
    pub(super) link: u32,
    /// The next link that announced the same key.
    pub(super) next: WayId,
    /// Neighbours among the ways of the same link.
    pub(super) newer: WayId,
    pub(super) older: WayId,
}

/// All ways, in memory that never moves.
#[derive(Debug, Default)]
pub(super) struct Ways {
    pieces: Vec<Vec<Way>>,
    free: Vec<WayId>,
}

impl Ways {
    pub(super) fn insert(&mut self, way: Way) -> WayId {
        if let Some(id) = self.free.pop() {
            self[id] = way;
            return id;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let before = (self.pieces.len() - 1) * PIECE;
        let Some(last) = self.pieces.last_mut() else { return NONE };
        last.push(way);
        (before + last.len() - 1) as WayId
    }

    /// Memory is given back once no way is left.
    pub(super) fn remove(&mut self, id: WayId) {
        self.free.push(id);
        let used =
            self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len());
        if self.free.len() == used {
            *self = Self::default();
        }
    }
}

impl Index<WayId> for Ways {
    type Output = Way;

    fn index(&self, id: WayId) -> &Way {
        &self.pieces[id as usize / PIECE][id as usize % PIECE]
    }
}

impl IndexMut<WayId> for Ways {
    fn index_mut(&mut self, id: WayId) -> &mut Way {
        &mut self.pieces[id as usize / PIECE][id as usize % PIECE]
    }
}

/// Finds the first way to a key. Clients choose keys, and so the hash has a secret; what follows
/// from it, where an entry stands, shows nowhere.
#[derive(Debug)]
pub(super) struct KeyIndex {
    parts: Vec<HashTable<WayId>>,
    hasher: RandomState,
}

impl KeyIndex {
    pub(super) fn new() -> Self {
        Self { parts: vec![HashTable::new(); PARTS], hasher: RandomState::new() }
    }

    /// The key's hash, and which part it belongs to. The tables go by the hash's other bits.
    fn place(&self, key: &NodePublic) -> (u64, usize) {
        let hash = self.hasher.hash_one(key);
        (hash, (hash >> 32) as usize % PARTS)
    }

    pub(super) fn first(&self, ways: &Ways, key: &NodePublic) -> Option<WayId> {
        let (hash, part) = self.place(key);
        self.parts[part].find(hash, |&way| ways[way].key == *key).copied()
    }

    /// Notes the first way to a key that has none.
    pub(super) fn insert(&mut self, ways: &Ways, way: WayId) {
        let (hash, part) = self.place(&ways[way].key);
        let hasher = &self.hasher;
        let rehash = |&other: &WayId| hasher.hash_one(ways[other].key);
        self.parts[part].insert_unique(hash, way, rehash);
    }

    /// Puts another way, or none, into the place of the first one.
    pub(super) fn replace(&mut self, ways: &Ways, first: WayId, by: Option<WayId>) {
        let (hash, part) = self.place(&ways[first].key);
        let Ok(mut entry) = self.parts[part].find_entry(hash, |&way| way == first) else { return };
        match by {
            Some(way) => *entry.get_mut() = way,
            None => drop(entry.remove()),
        }
        if self.parts[part].is_empty() {
            self.parts[part] = HashTable::new();
        }
    }
}
