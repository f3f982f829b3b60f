//! How many connections there may be, and which of them make room for others. Without I/O.
//!
//! Whoever has logged in stays. Among those that have not, when there are too many, the oldest of the source
//! that has the most of them goes: so one source that opens connections without end only pushes out its own,
//! and many sources that do need to be faster than a handshake takes to get in anybody's way. Nobody is
//! refused for his address alone unless the operator says so, since a proxy or a provider's NAT is one
//! address, too.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    num::NonZeroUsize,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::relay::ConnectionId;

/// Descriptors that are not for connections of the main listener: those of port 80, and whatever else is open.
const RESERVED_FILES: usize = 1024 + 256;
/// Most connections that have not logged in, unless the operator wants more: a whole crowd of clients that
/// returns at once is fewer than that at any one time, and memory for more would be an attacker's.
const MOST_ARRIVALS: usize = 16_384;

/// How many connections the main listener has at one time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnectionLimits {
    /// In all.
    pub connections: usize,
    /// Of these, connections that have not logged in, those of browsers among them.
    pub arrivals: usize,
    /// From one source, an IPv4 address or the /64 of an IPv6 address; `None` for as many as there may be.
    pub per_source: Option<NonZeroUsize>,
}

impl ConnectionLimits {
    /// What a process can have that may open this many files.
    pub fn for_files(files: u64) -> Self {
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        let connections = (files - RESERVED_FILES.min(files / 4)).max(1);
        Self { connections, arrivals: MOST_ARRIVALS.min(connections.div_ceil(2)), per_source: None }
    }
}

impl Default for ConnectionLimits {
    /// No limits.
    fn default() -> Self {
        Self { connections: usize::MAX, arrivals: usize::MAX, per_source: None }
    }
}

/// Why a connection is closed although it did nothing wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Crowded {
    /// There are as many as there may be, and all of them have logged in.
    #[error("{0} clients, as many as there may be (-connection-limit)")]
    Full(usize),
    /// The same for its source.
    #[error("{0} connections of one source, as many as there may be (-source-limit)")]
    Source(usize),
}

/// An IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Source(IpAddr);

impl Source {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// What one source has.
struct Share<H> {
    arrivals: BTreeMap<ConnectionId, H>,
    sessions: usize,
}

impl<H> Default for Share<H> {
    fn default() -> Self {
        Self { arrivals: BTreeMap::new(), sessions: 0 }
    }
}

impl<H> Share<H> {
    fn rank(&self, source: Source) -> Option<Rank> {
        let (&oldest, _) = self.arrivals.first_key_value()?;
        Some((self.arrivals.len(), Reverse(oldest), source))
    }
}

/// Orders sources by who has to make room; the last one does. Connections are numbered as they come.
type Rank = (usize, Reverse<ConnectionId>, Source);

/// All connections. `H` is what evicts one that has not logged in.
struct Crowd<H> {
    limits: ConnectionLimits,
    sources: BTreeMap<Source, Share<H>>,
    ranks: BTreeSet<Rank>,
    arrivals: usize,
    sessions: usize,
}

impl<H> Crowd<H> {
    fn new(limits: ConnectionLimits) -> Self {
        Self { limits, sources: BTreeMap::new(), ranks: BTreeSet::new(), arrivals: 0, sessions: 0 }
    }

    /// Takes in connection `id`, which must be newer than all others. Returns what evicts the one that makes
    /// room for it.
    fn arrive(
        &mut self,
        id: ConnectionId,
        source: Source,
        handle: H,
    ) -> Result<Option<H>, Crowded> {
        let own = self
            .sources
            .get(&source)
            .map_or((0, 0), |share| (share.arrivals.len(), share.arrivals.len() + share.sessions));
        let evicted = match self.limits.per_source {
            Some(most) if own.1 >= most.get() && own.0 == 0 => {
                return Err(Crowded::Source(most.get()));
            }
            Some(most) if own.1 >= most.get() => self.evict_from(source),
            Some(_) | None if self.arrivals + self.sessions >= self.limits.connections => {
                if self.arrivals == 0 {
                    return Err(Crowded::Full(self.limits.connections));
                }
                self.evict()
            }
            Some(_) | None if self.arrivals >= self.limits.arrivals => self.evict(),
            Some(_) | None => None,
        };
        self.arrivals += 1;
        self.change(source, |share| share.arrivals.insert(id, handle));
        Ok(evicted)
    }

    /// A connection has logged in; whether it had not been evicted before.
    fn log_in(&mut self, id: ConnectionId, source: Source) -> bool {
        let is_counted = self.limits.per_source.is_some();
        let was_there = self.change(source, |share| {
            let was_there = share.arrivals.remove(&id).is_some();
            share.sessions += usize::from(was_there && is_counted);
            was_there
        });
        self.arrivals -= usize::from(was_there);
        self.sessions += usize::from(was_there);
        was_there
    }

    /// A connection that has not logged in is gone, if it had not been evicted before.
    fn leave(&mut self, id: ConnectionId, source: Source) {
        let was_there = self.change(source, |share| share.arrivals.remove(&id).is_some());
        self.arrivals -= usize::from(was_there);
    }

    /// A connection that had logged in is gone.
    fn log_out(&mut self, source: Source) {
        self.sessions -= 1;
        if self.limits.per_source.is_some() {
            self.change(source, |share| share.sessions -= 1);
        }
    }

    fn evict(&mut self) -> Option<H> {
        let &(_, _, source) = self.ranks.last()?;
        self.evict_from(source)
    }

    fn evict_from(&mut self, source: Source) -> Option<H> {
        let (_, handle) = self.change(source, |share| share.arrivals.pop_first())?;
        self.arrivals -= 1;
        Some(handle)
    }

    /// Changes what a source has, and keeps everything else in step.
    fn change<T>(&mut self, source: Source, change: impl FnOnce(&mut Share<H>) -> T) -> T {
        let share = self.sources.entry(source).or_default();
        let before = share.rank(source);
        let result = change(share);
        let after = share.rank(source);
        if share.arrivals.is_empty() && share.sessions == 0 {
            self.sources.remove(&source);
        }
        if before != after {
            before.map(|rank| self.ranks.remove(&rank));
            after.map(|rank| self.ranks.insert(rank));
        }
        result
    }
}

/// What all workers know of the crowd.
pub(super) struct Door(Arc<Mutex<Crowd<oneshot::Sender<()>>>>);

impl Door {
    /// A door that lets in as many as there may be.
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self(Arc::new(Mutex::new(Crowd::new(limits))))
    }

    /// Sets the limits, before there is any connection.
    pub(super) fn set_limits(&self, limits: ConnectionLimits) {
        self.0.lock().limits = limits;
    }

    /// How many connections have not logged in.
    pub(super) fn arrivals(&self) -> u64 {
        self.0.lock().arrivals as u64
    }

    /// Lets connection `id` in; also whether another one had to go for it.
    ///
    /// # Errors
    ///
    /// If it must be closed.
    pub(super) fn enter(&self, id: ConnectionId, from: IpAddr) -> Result<(Ticket, bool), Crowded> {
        let source = Source::of(from);
        let (handle, evicted) = oneshot::channel();
        // What is evicted notices when its handle is dropped.
        let other = self.0.lock().arrive(id, source, handle)?;
        let crowd = Arc::clone(&self.0);
        Ok((Ticket { crowd, id, source, evicted: Some(evicted) }, other.is_some()))
    }
}

/// A connection's place in the crowd, for as long as this lives.
pub(super) struct Ticket {
    crowd: Arc<Mutex<Crowd<oneshot::Sender<()>>>>,
    id: ConnectionId,
    source: Source,
    /// `None` once it has logged in.
    evicted: Option<oneshot::Receiver<()>>,
}

impl Ticket {
    /// Waits until the connection has to make room for another one. Not to be called when it has logged in.
    pub(super) async fn evicted(&mut self) {
        match &mut self.evicted {
            // Nothing is ever sent.
            Some(evicted) => drop(evicted.await),
            None => std::future::pending().await,
        }
    }

    /// The connection has logged in, and stays now; whether it had not to go before.
    pub(super) fn log_in(&mut self) -> bool {
        let stays = self.crowd.lock().log_in(self.id, self.source);
        if stays {
            self.evicted = None;
        }
        stays
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut crowd = self.crowd.lock();
        match self.evicted {
            Some(_) => crowd.leave(self.id, self.source),
            None => crowd.log_out(self.source),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    fn limits(connections: usize, arrivals: usize, per_source: usize) -> ConnectionLimits {
        ConnectionLimits { connections, arrivals, per_source: NonZeroUsize::new(per_source) }
    }

    #[test]
    fn limits_leave_descriptors_for_everything_else() {
        let of = |files| {
            let ConnectionLimits { connections, arrivals, .. } = ConnectionLimits::for_files(files);
            (connections, arrivals)
        };
        assert_eq!(of(524_288), (523_008, 16_384));
        assert_eq!(of(20_000), (18_720, 9360));
        assert_eq!(of(1024), (768, 384));
        assert_eq!(of(1), (1, 1));
    }

    #[test]
    fn the_oldest_of_the_largest_source_makes_room() {
        let mut crowd = Crowd::new(limits(100, 4, 0));
        let (honest, other, flood) =
            (source("192.0.2.1"), source("192.0.2.2"), source("2001:db8::1"));
        for (id, source) in [(1, honest), (2, flood), (3, other), (4, flood)] {
            assert_eq!(crowd.arrive(id, source, id), Ok(None));
        }
        assert_eq!(crowd.arrive(5, source("2001:db8::2"), 5), Ok(Some(2)), "one /64 is one source");
        assert_eq!(crowd.arrive(6, flood, 6), Ok(Some(4)));
        assert!(!crowd.log_in(4, flood), "it was evicted");
        assert!(crowd.log_in(6, flood));
        assert_eq!(crowd.arrive(7, source("192.0.2.3"), 7), Ok(None));
        assert_eq!(
            crowd.arrive(8, source("192.0.2.4"), 8),
            Ok(Some(1)),
            "all have one: the oldest"
        );
    }

    #[test]
    fn who_has_logged_in_stays() {
        let mut crowd = Crowd::new(limits(2, 2, 0));
        let here = source("192.0.2.1");
        for id in [1, 2] {
            assert_eq!(crowd.arrive(id, here, id), Ok(None));
        }
        assert!(crowd.log_in(1, here));
        assert_eq!(crowd.arrive(3, here, 3), Ok(Some(2)));
        assert!(crowd.log_in(3, here));
        assert_eq!(crowd.arrive(4, here, 4), Err(Crowded::Full(2)));
        crowd.log_out(here);
        assert_eq!(crowd.arrive(5, here, 5), Ok(None));
    }

    #[test]
    fn a_source_may_be_limited() {
        let mut crowd = Crowd::new(limits(100, 100, 2));
        let (one, other) = (source("192.0.2.1"), source("192.0.2.2"));
        for id in [1, 2] {
            assert_eq!(crowd.arrive(id, one, id), Ok(None));
            assert!(crowd.log_in(id, one));
        }
        assert_eq!(crowd.arrive(3, one, 3), Err(Crowded::Source(2)));
        assert_eq!(crowd.arrive(4, other, 4), Ok(None));
        crowd.log_out(one);
        assert_eq!(crowd.arrive(5, one, 5), Ok(None));
        assert_eq!(crowd.arrive(6, one, 6), Ok(Some(5)), "its own arrival makes room");
    }

    proptest! {
        #[test]
        fn the_books_balance(steps in prop::collection::vec((0u8..4, 0u8..6), 1..200)) {
            let limits = limits(12, 8, 5);
            let mut crowd = Crowd::new(limits);
            let (mut arrivals, mut sessions) = (Vec::<(u64, Source)>::new(), Vec::new());
            for (id, (what, number)) in (0u64..).zip(steps) {
                let from = source(&format!("192.0.2.{number}"));
                let some = usize::from(number) % arrivals.len().max(1);
                match what {
                    0 | 1 => if let Ok(evicted) = crowd.arrive(id, from, id) {
                        arrivals.retain(|&(id, _)| Some(id) != evicted);
                        arrivals.push((id, from));
                    },
                    2 => if some < arrivals.len() {
                        let (id, from) = arrivals.remove(some);
                        prop_assert!(crowd.log_in(id, from));
                        sessions.push(from);
                    },
                    _ => if number % 2 == 0 && some < arrivals.len() {
                        let (id, from) = arrivals.remove(some);
                        crowd.leave(id, from);
                    } else if let Some(from) = sessions.pop() {
                        crowd.log_out(from);
                    },
                }
                prop_assert_eq!(crowd.arrivals, arrivals.len());
                prop_assert_eq!(crowd.sessions, sessions.len());
                prop_assert!(arrivals.len() <= limits.arrivals);
                prop_assert!(arrivals.len() + sessions.len() <= limits.connections);
                prop_assert_eq!(crowd.ranks.len(), crowd.sources.values().filter(|share| !share.arrivals.is_empty()).count());
                for share in crowd.sources.values() {
                    prop_assert!(share.arrivals.len() + share.sessions <= 5);
                    prop_assert!(share.arrivals.len() + share.sessions > 0);
                }
            }
        }
    }
}
