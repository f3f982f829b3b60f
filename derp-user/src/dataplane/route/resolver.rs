//! Who wants which way, and what is known of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
};

use derp_common::flow::Side;
use parking_lot::Mutex;
use tokio::{sync::Notify, task::yield_now};

use super::{
    super::link::Link,
    Hop, Neighbour, Pair,
    facts::{Facts, Route},
    kernel::KernelHost,
    way::{Unresolved, refuse, way},
};
use crate::flow::{FlowId, Resolved, WayRequest};

/// After this many routes, other tasks of the thread have their turn.
const QUANTUM: usize = 128;

/// What the resolver knows of the machine, and what it has it do.
pub(super) trait Host {
    /// Returns the interfaces, by index.
    fn links(&mut self) -> io::Result<BTreeMap<u32, Link>>;

    /// Returns the addresses of this host.
    fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>>;

    /// Returns the route that packets of this pair take.
    fn route(&mut self, pair: Pair) -> Result<Route, Unresolved>;

    /// Returns what is known of a neighbour; nothing is known of one that is not in the table.
    fn neighbour(&mut self, hop: Hop) -> io::Result<Neighbour>;

    /// Has a neighbour asked for its address, now and time and again where the kernel can do that.
    fn keep_fresh(&mut self, hop: Hop) -> io::Result<()>;

    /// Ends [`Host::keep_fresh`].
    fn let_go(&mut self, hop: Hop) -> io::Result<()>;
}

/// More ways were asked for than the flow tables have legs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("no more than {0} ways are followed; this leg is left to userspace")]
pub struct TooManyWays(usize);

/// What has become of a request, or changed about it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer<C = (FlowId, Side)> {
    /// Who asked.
    pub claim: C,
    /// What for.
    pub pair: Pair,
    /// The way, or why there is none now.
    pub way: Result<Resolved, Unresolved>,
}

/// Asks a [`Resolver`] for ways and hears of them; cheap to clone.
///
/// `C` names who asks: the leg of a flow.
pub struct Ways<C = (FlowId, Side)>(Arc<Shared<C>>);

struct Shared<C> {
    book: Mutex<Book<C>>,
    /// Something was asked for.
    asked: Notify,
    /// Something is to be told.
    answered: Notify,
}

impl<C> Clone for Ways<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C: Copy + Ord> Ways<C> {
    fn new(capacity: usize) -> Self {
        Self(Arc::new(Shared {
            book: Mutex::new(Book::new(capacity)),
            asked: Notify::new(),
            answered: Notify::new(),
        }))
    }

    /// Asks for the way of a pair, or with `None` for nothing any more. It replaces what was asked for under
    /// this claim before, of which nothing is heard again.
    ///
    /// # Errors
    ///
    /// When there are as many claims as there may be, and this is a new one.
    pub fn want(&self, claim: C, pair: Option<Pair>) -> Result<(), TooManyWays> {
        let mut book = self.0.book.lock();
        book.want(claim, pair)?;
        let (must_ask, can_tell) = (!book.fresh.is_empty(), !book.untold.is_empty());
        // Pairs that nobody wants any more leave neighbours to be let go.
        if must_ask || pair.is_none() {
            self.0.asked.notify_one();
        }
        if can_tell {
            self.0.answered.notify_one();
        }
        Ok(())
    }

    /// Takes what has been found out or changed since the last time, at most once per claim.
    #[must_use]
    pub fn answers(&self) -> Vec<Answer<C>> {
        self.0.book.lock().tell()
    }

    /// Waits until [`Ways::answers`] has some.
    pub async fn answered(&self) {
        self.0.answered.notified().await;
    }

    /// Returns what is known of a claim now; for the admin page.
    #[must_use]
    pub fn known(&self, claim: C) -> Option<Result<Resolved, Unresolved>> {
        let book = self.0.book.lock();
        let pair = book.claims.get(&claim)?;
        book.pairs.get(pair)?.way.clone()
    }

    /// Waits until something is asked for.
    pub(super) async fn asked(&self) {
        self.0.asked.notified().await;
    }
}

impl Ways {
    /// Asks for what the flow table asks for.
    ///
    /// # Errors
    ///
    /// As [`Ways::want`].
    pub fn request(&self, request: &WayRequest) -> Result<(), TooManyWays> {
        self.want((request.flow, request.side), Pair::of(request))
    }
}

/// What is wanted and known. All of it is bounded by the number of claims.
struct Book<C> {
    capacity: usize,
    claims: BTreeMap<C, Pair>,
    pairs: BTreeMap<Pair, Entry<C>>,
    /// Pairs whose route has not been asked for.
    fresh: BTreeSet<Pair>,
    /// Claims that have not heard the latest.
    untold: BTreeSet<C>,
}

struct Entry<C> {
    claims: BTreeSet<C>,
    route: Option<Result<Route, Unresolved>>,
    way: Option<Result<Resolved, Unresolved>>,
}

impl<C: Copy + Ord> Book<C> {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            claims: BTreeMap::new(),
            pairs: BTreeMap::new(),
            fresh: BTreeSet::new(),
            untold: BTreeSet::new(),
        }
    }

    fn want(&mut self, claim: C, pair: Option<Pair>) -> Result<(), TooManyWays> {
        self.untold.remove(&claim);
        if let Some(old) = self.claims.get(&claim).copied()
            && pair != Some(old)
        {
            self.claims.remove(&claim);
            self.leave(claim, old);
        }
        let Some(pair) = pair else { return Ok(()) };
        if self.claims.len() >= self.capacity && !self.claims.contains_key(&claim) {
            return Err(TooManyWays(self.capacity));
        }
        self.claims.insert(claim, pair);
        let entry = self.pairs.entry(pair).or_insert_with(|| {
            self.fresh.insert(pair);
            Entry { claims: BTreeSet::new(), route: None, way: None }
        });
        entry.claims.insert(claim);
        if entry.way.is_some() {
            self.untold.insert(claim);
        }
        Ok(())
    }

    fn leave(&mut self, claim: C, pair: Pair) {
        let Some(entry) = self.pairs.get_mut(&pair) else { return };
        entry.claims.remove(&claim);
        if entry.claims.is_empty() {
            self.pairs.remove(&pair);
            self.fresh.remove(&pair);
        }
    }

    /// Returns the pairs whose routes are to be asked for.
    fn take_unasked(&mut self, all: bool) -> Vec<Pair> {
        let fresh = std::mem::take(&mut self.fresh);
        if all { self.pairs.keys().copied().collect() } else { fresh.into_iter().collect() }
    }

    fn learn(&mut self, routes: Vec<(Pair, Result<Route, Unresolved>)>) {
        for (pair, route) in routes {
            // It may have been given up meanwhile.
            if let Some(entry) = self.pairs.get_mut(&pair) {
                entry.route = Some(route);
            }
        }
    }

    /// Returns whom frames are handed to.
    fn hops(&self) -> BTreeSet<Hop> {
        let hop = |(pair, entry): (&Pair, &Entry<C>)| {
            entry.route.as_ref()?.as_ref().ok()?.hop(pair.remote)
        };
        self.pairs.iter().filter_map(hop).collect()
    }

    /// Finds every way anew.
    fn conclude(&mut self, facts: &Facts) {
        for (pair, entry) in &mut self.pairs {
            let Some(route) = &entry.route else { continue };
            let now = way(*pair, route, facts);
            if entry.way.as_ref() != Some(&now) {
                match &now {
                    Ok(way) => tracing::debug!(remote = %pair.remote, ?way, "way"),
                    Err(reason) => tracing::debug!(remote = %pair.remote, %reason, "no way"),
                }
                entry.way = Some(now);
                self.untold.extend(&entry.claims);
            }
        }
    }

    fn tell(&mut self) -> Vec<Answer<C>> {
        let untold = std::mem::take(&mut self.untold);
        let answer = |claim: C| {
            let pair = *self.claims.get(&claim)?;
            let way = self.pairs.get(&pair)?.way.clone()?;
            Some(Answer { claim, pair, way })
        };
        untold.into_iter().filter_map(answer).collect()
    }
}

/// What has changed on this host, as far as is known.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::dataplane) struct News {
    /// Links or addresses.
    pub(in crate::dataplane) links: bool,
    /// Routes or rules.
    pub(in crate::dataplane) routes: bool,
    /// Neighbours may have changed unnoticed, or are to be asked again.
    pub(in crate::dataplane) neighbours: bool,
    /// Neighbours that changed.
    pub(in crate::dataplane) neighbour: BTreeMap<Hop, Neighbour>,
}

impl News {
    /// Most changes of neighbours that are kept; with more, all that matter are read.
    const MOST: usize = 1024;

    /// Returns that everything may have changed.
    pub(in crate::dataplane) fn everything() -> Self {
        Self { links: true, routes: true, neighbours: true, neighbour: BTreeMap::new() }
    }

    /// Adds the change of a neighbour.
    pub(in crate::dataplane) fn add(&mut self, hop: Hop, neighbour: Neighbour) {
        self.neighbour.insert(hop, neighbour);
        if self.neighbour.len() > Self::MOST {
            self.neighbour.clear();
            self.neighbours = true;
        }
    }

    /// Tells whether nothing has.
    pub(in crate::dataplane) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Finds ways, and follows them. [`Watcher`](crate::dataplane::Watcher) runs it.
pub struct Resolver<C = (FlowId, Side)>(Core<C, KernelHost>);

impl<C: Copy + Ord> Resolver<C> {
    /// Makes a resolver for the network namespace of this thread, for at most `capacity` claims: two for each
    /// slot of the flow tables.
    ///
    /// # Errors
    ///
    /// When no netlink socket can be had.
    pub fn new(capacity: usize) -> io::Result<(Self, Ways<C>)> {
        let ways = Ways::new(capacity);
        Ok((Self(Core::new(KernelHost::open()?, ways.clone())), ways))
    }

    /// Finds what has been asked for until now, for whoever cannot wait for the [`Watcher`](crate::dataplane::Watcher).
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked.
    pub fn find(&mut self) -> io::Result<()> {
        self.0.refresh_at_once(&News::everything())
    }

    /// Waits until something is asked for.
    pub(in crate::dataplane) async fn asked(&self) {
        self.0.ways.asked().await;
    }

    /// Finds what is asked for, and what has changed.
    ///
    /// # Errors
    ///
    /// When the kernel cannot be asked; the ways are then as they were.
    pub(in crate::dataplane) async fn refresh(&mut self, news: &News) -> io::Result<()> {
        self.0.refresh(news).await
    }
}

/// [`Resolver`] on any host.
pub(super) struct Core<C, H> {
    pub(super) host: H,
    pub(super) ways: Ways<C>,
    facts: Facts,
    /// Neighbours that are kept fresh because of us.
    kept: BTreeSet<Hop>,
}

impl<C: Copy + Ord, H: Host> Core<C, H> {
    pub(super) fn new(host: H, ways: Ways<C>) -> Self {
        Self { host, ways, facts: Facts::default(), kept: BTreeSet::new() }
    }

    #[cfg(test)]
    pub(super) fn with_capacity(host: H, capacity: usize) -> (Self, Ways<C>) {
        let ways = Ways::new(capacity);
        (Self::new(host, ways.clone()), ways)
    }

    /// Finds what is asked for, and what has changed; other tasks of the thread have their turn in between.
    pub(super) async fn refresh(&mut self, news: &News) -> io::Result<()> {
        let pairs = self.unasked(news)?;
        for pairs in pairs.chunks(QUANTUM) {
            self.ask(pairs);
            yield_now().await;
        }
        self.conclude(news);
        Ok(())
    }

    /// The same without giving way.
    pub(super) fn refresh_at_once(&mut self, news: &News) -> io::Result<()> {
        let pairs = self.unasked(news)?;
        self.ask(&pairs);
        self.conclude(news);
        Ok(())
    }

    /// Returns the pairs whose routes are to be asked for.
    fn unasked(&mut self, news: &News) -> io::Result<Vec<Pair>> {
        let mut all = news.routes;
        if news.links || self.facts.links.is_empty() {
            all |= self.read_links()?;
        }
        Ok(self.ways.0.book.lock().take_unasked(all))
    }

    fn ask(&mut self, pairs: &[Pair]) {
        let ask = |&pair: &Pair| match refuse(pair) {
            Some(reason) => (pair, Err(reason)),
            None => (pair, self.host.route(pair)),
        };
        let routes = pairs.iter().map(ask).collect();
        self.ways.0.book.lock().learn(routes);
    }

    /// Finds the ways by the routes, and says so.
    fn conclude(&mut self, news: &News) {
        self.follow_neighbours(news);
        let mut book = self.ways.0.book.lock();
        book.conclude(&self.facts);
        if !book.untold.is_empty() {
            self.ways.0.answered.notify_one();
        }
    }

    /// Returns whether anything about links and addresses has changed.
    fn read_links(&mut self) -> io::Result<bool> {
        let mut links = self.host.links()?;
        links.values_mut().for_each(|link| link.sent = 0);
        let addresses = self.host.addresses()?;
        let changed = links != self.facts.links || addresses != self.facts.addresses;
        self.facts.links = links;
        self.facts.addresses = addresses;
        Ok(changed)
    }

    /// Sees to it that whoever frames are handed to is known, and nobody else is asked for.
    fn follow_neighbours(&mut self, news: &News) {
        let mut hops = self.ways.0.book.lock().hops();
        hops.retain(|hop| {
            let link = self.facts.links.get(&hop.interface);
            link.is_some_and(|link| link.has_neighbours && link.mac.is_some())
        });
        let gone: Vec<_> =
            self.facts.neighbours.keys().filter(|hop| !hops.contains(hop)).copied().collect();
        for hop in gone {
            let was = self.facts.neighbours.remove(&hop);
            // One that was fixed by hand meanwhile would lose that.
            if self.kept.remove(&hop) && was.is_some_and(|neighbour| !neighbour.is_fixed) {
                note(hop, self.host.let_go(hop));
            }
        }
        for hop in hops {
            let known = self.facts.neighbours.get(&hop).copied();
            let changed = news.neighbour.get(&hop).copied();
            let mut neighbour = match known {
                Some(known) if !news.neighbours => changed.unwrap_or(known),
                Some(_) | None => note(hop, self.host.neighbour(hop)).unwrap_or_default(),
            };
            let must_ask = !neighbour.is_kept_fresh || news.neighbours && neighbour.mac.is_none();
            // One that has not changed is not asked for at every change of something else.
            let is_news = known.is_none() || changed.is_some() || news.neighbours || news.links;
            if must_ask && is_news && !neighbour.is_fixed {
                if note(hop, self.host.keep_fresh(hop)).is_some() {
                    self.kept.insert(hop);
                }
                neighbour = note(hop, self.host.neighbour(hop)).unwrap_or(neighbour);
            }
            self.facts.neighbours.insert(hop, neighbour);
        }
    }
}

/// A neighbour that cannot be asked for, because its interface has just gone down, say, is asked for again
/// at the next occasion.
fn note<T>(hop: Hop, result: io::Result<T>) -> Option<T> {
    result
        .inspect_err(|error| {
            tracing::debug!(address = %hop.address, interface = hop.interface, %error, "neighbour");
        })
        .ok()
}
