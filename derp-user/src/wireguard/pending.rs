//! Initiations that wait for an answer.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    net::{IpAddr, SocketAddr},
};

use super::{Index, PeerId, message::MAC_LENGTH};

/// How long an initiation waits, in nanoseconds. Its sender tries again, with another one, after 5 s.
pub(super) const PENDING_LIFETIME: u64 = 10_000_000_000;

/// An initiation that has been seen.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// Who is to answer it.
    pub(super) target: PeerId,
    /// The receiver index of the answer.
    pub(super) index: Index,
    /// Where it came from.
    pub(super) from: SocketAddr,
    /// The address of this host it came to.
    pub(super) local: IpAddr,
    /// Tells it from others.
    pub(super) mac1: [u8; MAC_LENGTH],
    /// Where it was sent to: only from there can it be answered.
    pub(super) sent_to: Vec<SocketAddr>,
    /// Whether its source was not known to be a peer's.
    pub(super) is_stranger: bool,
    /// Where it was answered from. A wrong guess may answer, too, and sooner than the right one.
    pub(super) answered_from: Vec<SocketAddr>,
    pub(super) at: u64,
}

/// All of them, in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct PendingTable {
    next: u64,
    entries: BTreeMap<u64, Pending>,
    by_index: HashMap<Index, Vec<u64>>,
    by_stranger: HashMap<SocketAddr, Vec<u64>>,
    /// How many a source has for one target.
    by_sender: HashMap<(SocketAddr, PeerId), usize>,
    strangers: usize,
}

impl PendingTable {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns how many are of strangers.
    pub(super) const fn strangers(&self) -> usize {
        self.strangers
    }

    /// Returns how many are of one stranger.
    pub(super) fn of_stranger(&self, from: SocketAddr) -> usize {
        self.by_stranger.get(&from).map_or(0, Vec::len)
    }

    /// Returns how many a source has for one target.
    pub(super) fn between(&self, from: SocketAddr, target: PeerId) -> usize {
        self.by_sender.get(&(from, target)).copied().unwrap_or(0)
    }

    pub(super) fn insert(&mut self, pending: Pending) {
        let number = self.next;
        self.next += 1;
        self.link(number, pending);
    }

    fn link(&mut self, number: u64, pending: Pending) {
        self.by_index.entry(pending.index).or_default().push(number);
        *self.by_sender.entry((pending.from, pending.target)).or_default() += 1;
        if pending.is_stranger {
            self.by_stranger.entry(pending.from).or_default().push(number);
            self.strangers += 1;
        }
        self.entries.insert(number, pending);
    }

    /// Returns those whose answer has this receiver index, with their numbers.
    pub(super) fn with_index(&self, index: Index) -> impl Iterator<Item = (u64, &Pending)> {
        let numbers = self.by_index.get(&index).into_iter().flatten();
        numbers.filter_map(|number| Some((*number, self.entries.get(number)?)))
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Pending> {
        self.entries.get_mut(&number)
    }

    /// Returns the strangers that wait for an answer, each with those it has asked.
    pub(super) fn asked_by_strangers(
        &self,
    ) -> impl Iterator<Item = (SocketAddr, impl Iterator<Item = &Pending>)> {
        self.by_stranger.iter().map(|(from, numbers)| {
            (*from, numbers.iter().filter_map(|number| self.entries.get(number)))
        })
    }

    /// Forgets those that have waited long enough.
    pub(super) fn expire(&mut self, now: u64) {
        while let Some(entry) = self.entries.first_entry()
            && now.saturating_sub(entry.get().at) > PENDING_LIFETIME
        {
            let (number, pending) = entry.remove_entry();
            self.unlink(number, &pending);
        }
    }

    /// Gives every target its new name, and forgets those that have none.
    pub(super) fn rename(&mut self, name: impl Fn(PeerId) -> Option<PeerId>) {
        let entries = std::mem::take(&mut self.entries);
        *self = Self { next: self.next, ..Self::default() };
        for (number, mut pending) in entries {
            if let Some(target) = name(pending.target) {
                pending.target = target;
                self.link(number, pending);
            }
        }
    }

    fn unlink(&mut self, number: u64, pending: &Pending) {
        unlink(&mut self.by_index, &pending.index, number);
        let sender = (pending.from, pending.target);
        if let Some(count) = self.by_sender.get_mut(&sender) {
            *count -= 1;
            if *count == 0 {
                self.by_sender.remove(&sender);
            }
        }
        if pending.is_stranger {
            unlink(&mut self.by_stranger, &pending.from, number);
            self.strangers -= 1;
        }
    }
}

fn unlink<K: Eq + Hash>(lists: &mut HashMap<K, Vec<u64>>, key: &K, number: u64) {
    let Some(list) = lists.get_mut(key) else { return };
    list.retain(|it| *it != number);
    if list.is_empty() {
        lists.remove(key);
    }
}
