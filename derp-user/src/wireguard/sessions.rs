//! The sessions between peers, each of which has a flow in the flow table.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use derp_common::flow::Side;

use super::{Index, MOST_PLACES, PeerId, message::MAC_LENGTH};
use crate::flow::{EndSpec, FlowId, FlowSource, FlowSpec, Kind, Lifetime, Local, Remote};

/// How long a session is kept without data, in nanoseconds. Its ends themselves give it up after 180 s.
pub const SESSION_LIFETIME: u64 = 240_000_000_000;
/// Sessions of one pair at a time. Its ends use up to three: the last one, this one, the next one. That may have been
/// answered from as many places as an initiation is sent to.
pub const SESSIONS_PER_PAIR: usize = 3 + MOST_PLACES;
/// After how long a session without data both ways was in vain, in nanoseconds.
const IN_VAIN: u64 = 15_000_000_000;

/// One end of a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SessionEnd {
    pub(super) peer: PeerId,
    pub(super) remote: SocketAddr,
    /// The address of this host that it used in the handshake.
    pub(super) local: IpAddr,
    /// The receiver index of what it sends, which the other end has chosen.
    pub(super) index: Index,
    /// When it was last heard of; 0 if never.
    pub(super) heard: u64,
    /// Packets and bytes that have been counted so far.
    pub(super) counted: (u64, u64),
}

/// A session: what came of one handshake.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) flow: FlowId,
    /// The initiator, who is side A of the flow, and the responder.
    pub(super) ends: [SessionEnd; 2],
    /// The initiation's, to recognise it when it is replayed; zeros if that is not known.
    pub(super) mac1: [u8; MAC_LENGTH],
    /// Whether the responder answered from where it was known to be.
    pub(super) is_attested: bool,
    pub(super) made: u64,
    /// When data was last seen, or when it was made.
    pub(super) heard: u64,
}

impl Session {
    /// Returns the end on one side of the flow.
    pub(super) const fn end(&self, side: Side) -> &SessionEnd {
        let [a, b] = &self.ends;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    /// Tells whether data went both ways.
    pub(super) const fn is_confirmed(&self) -> bool {
        self.ends[0].heard != 0 && self.ends[1].heard != 0
    }

    /// Tells whether it should have had data both ways by now.
    pub(super) const fn is_in_vain(&self, now: u64) -> bool {
        !self.is_confirmed() && now.saturating_sub(self.made) > IN_VAIN
    }

    /// Tells whether it is over. Whoever begins a session sends something at once.
    pub(super) const fn is_over(&self, now: u64) -> bool {
        let was_heard = self.ends[0].heard != 0 || self.ends[1].heard != 0;
        let lifetime = if was_heard { SESSION_LIFETIME } else { IN_VAIN };
        now.saturating_sub(self.heard) > lifetime
    }

    fn pair(&self) -> [PeerId; 2] {
        pair_of(self.ends[0].peer, self.ends[1].peer)
    }
}

/// Returns the flow of a session between these ends, on one port of this host.
pub(super) fn flow_of(name: String, ends: &[SessionEnd; 2], port: u16) -> FlowSpec {
    let end = |end: &SessionEnd| EndSpec {
        remote: Remote::Fixed(end.remote),
        local: Local { ip: None, port },
        sender: 0,
    };
    FlowSpec {
        name,
        source: FlowSource::WireGuard,
        kind: Kind::WireGuard { indexes: ends.map(|end| end.index) },
        ends: ends.each_ref().map(end),
        rate: None,
        // It is the sessions' own review that ends it.
        lifetime: Lifetime::Configured,
    }
}

fn pair_of(a: PeerId, b: PeerId) -> [PeerId; 2] {
    if a < b { [a, b] } else { [b, a] }
}

/// Every session.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    next: u64,
    /// In the order in which they were made.
    entries: BTreeMap<u64, Session>,
    by_pair: HashMap<[PeerId; 2], Vec<u64>>,
    /// By source and receiver index of data.
    by_source: HashMap<(SocketAddr, Index), u64>,
    /// How many sessions have a peer at an address.
    in_use: HashMap<(PeerId, SocketAddr), usize>,
}

impl Sessions {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &Session)> {
        self.entries.iter().map(|(number, session)| (*number, session))
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.entries.values_mut()
    }

    /// Returns the peers that have a session.
    pub(super) fn peers(&self) -> HashSet<PeerId> {
        self.entries.values().flat_map(|session| session.ends).map(|end| end.peer).collect()
    }

    /// Tells whether a peer has a session at an address.
    pub(super) fn uses(&self, peer: PeerId, remote: SocketAddr) -> bool {
        self.in_use.contains_key(&(peer, remote))
    }

    /// Finds the session of data from a source with a receiver index, and the side that sends it.
    pub(super) fn by_source(&self, from: SocketAddr, index: Index) -> Option<(&Session, Side)> {
        let session = self.entries.get(self.by_source.get(&(from, index))?)?;
        let is_a = session.ends[0].remote == from && session.ends[0].index == index;
        Some((session, if is_a { Side::A } else { Side::B }))
    }

    /// Returns the session that has to go so that the pair may have another one: one that was in vain, else one that
    /// nobody who was known has given his word for, else the oldest. The newest one that is in use stays.
    pub(super) fn surplus(&self, a: PeerId, b: PeerId, now: u64) -> Option<u64> {
        let numbers = self.by_pair.get(&pair_of(a, b))?;
        if numbers.len() < SESSIONS_PER_PAIR {
            return None;
        }
        let of = |number: &&u64| self.entries.get(number);
        let newest = numbers.iter().rev().find(|it| of(it).is_some_and(Session::is_confirmed));
        let in_vain = numbers.iter().find(|it| of(it).is_some_and(|it| it.is_in_vain(now)));
        let oldest = || numbers.iter().find(|it| Some(*it) != newest);
        in_vain.or_else(|| self.doubtful(numbers)).or_else(oldest).copied()
    }

    /// Returns the oldest of these sessions that nobody has given his word for, of the host that has begun most of those,
    /// so that nobody pushes out the one of somebody else.
    fn doubtful<'a>(&self, numbers: &'a [u64]) -> Option<&'a u64> {
        let begun_from = |number: &u64| {
            let session = self.entries.get(number)?;
            let is_doubtful = !session.is_attested && !session.is_confirmed();
            is_doubtful.then_some(session.ends[0].remote.ip())
        };
        let count = |host| numbers.iter().filter(|it| begun_from(it) == Some(host)).count();
        let doubtful = numbers.iter().filter_map(|it| Some((it, begun_from(it)?)));
        // The last of the greatest ones, which reversed is the first.
        doubtful.rev().max_by_key(|(_, host)| count(*host)).map(|(number, _)| number)
    }

    /// Returns the first session that was in vain, if there is one.
    pub(super) fn in_vain(&self, now: u64) -> Option<u64> {
        self.iter().find(|(_, session)| session.is_in_vain(now)).map(|(number, _)| number)
    }

    pub(super) fn insert(&mut self, session: Session) {
        let number = self.next;
        self.next += 1;
        self.link(number, &session);
        self.entries.insert(number, session);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Session> {
        let session = self.entries.remove(&number)?;
        if let Some(list) = self.by_pair.get_mut(&session.pair()) {
            list.retain(|it| *it != number);
            if list.is_empty() {
                self.by_pair.remove(&session.pair());
            }
        }
        for end in &session.ends {
            self.by_source.remove(&(end.remote, end.index));
            let place = (end.peer, end.remote);
            if let Some(count) = self.in_use.get_mut(&place) {
                *count -= 1;
                if *count == 0 {
                    self.in_use.remove(&place);
                }
            }
        }
        Some(session)
    }

    /// Gives every peer its new name. Sessions of peers that have none any more, or are no pair, are taken out and
    /// returned.
    pub(super) fn rename(
        &mut self,
        name: impl Fn([PeerId; 2], [SocketAddr; 2]) -> Option<[PeerId; 2]>,
    ) -> Vec<Session> {
        let entries = std::mem::take(&mut self.entries);
        *self = Self { next: self.next, ..Self::default() };
        let mut gone = Vec::new();
        for (number, mut session) in entries {
            let [a, b] = &mut session.ends;
            match name([a.peer, b.peer], [a.remote, b.remote]) {
                Some(peers) => {
                    [a.peer, b.peer] = peers;
                    self.link(number, &session);
                    self.entries.insert(number, session);
                }
                None => gone.push(session),
            }
        }
        gone
    }

    fn link(&mut self, number: u64, session: &Session) {
        self.by_pair.entry(session.pair()).or_default().push(number);
        for end in &session.ends {
            self.by_source.insert((end.remote, end.index), number);
            *self.in_use.entry((end.peer, end.remote)).or_default() += 1;
        }
    }
}
