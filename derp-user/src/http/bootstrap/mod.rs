//! `/bootstrap-dns`: addresses of names that clients need before they have DNS themselves.
//!
//! Published names are told to everybody; unpublished ones only to those who ask for them by name, and while their
//! rollout percentage is below 100, only to that share of the client addresses. [`BootstrapDns::answer`] decides by
//! what [`BootstrapDns::run`] has looked up; it never waits for DNS. The rules are derper's (reference section 5.3).

mod names;
mod refresh;
mod rollout;

use std::{
    collections::{BTreeMap, HashSet},
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use serde::Serialize as _;

pub use self::{
    names::{NameList, Names, NamesError},
    refresh::{Lookup, SystemDns},
};
use self::{
    refresh::{PACE, Pace},
    rollout::Percentage,
};

/// Distinct names asked for that are counted; beyond, counting begins anew.
const MOST_QUERIED: usize = 500;

/// What the page has counted. `published_hits` and so on are about questions with a name (`?q=`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct BootstrapCounts {
    /// Requests.
    pub requests: u64,
    /// Questions for a published name with addresses.
    pub published_hits: u64,
    /// Questions for a published name without.
    pub published_misses: u64,
    /// Questions for an unpublished name with addresses, told or held back.
    pub unpublished_hits: u64,
    /// Questions for a name that is not published.
    pub unpublished_misses: u64,
    /// Questions for an unpublished name that its percentage held back.
    pub unpublished_percent_misses: u64,
    /// Distinct names asked for lately.
    pub queried_domains: u64,
}

/// The names of one list, as last looked up.
type Addresses = BTreeMap<String, Vec<IpAddr>>;

/// One unpublished name, as last looked up.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Unpublished {
    addresses: Vec<IpAddr>,
    percentage: Percentage,
}

#[derive(Debug, Default)]
struct Known {
    published: Addresses,
    /// The whole published answer; empty until the first look-up is done.
    page: Bytes,
    unpublished: BTreeMap<String, Unpublished>,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    published_hits: AtomicU64,
    published_misses: AtomicU64,
    unpublished_hits: AtomicU64,
    unpublished_misses: AtomicU64,
    unpublished_percent_misses: AtomicU64,
}

/// The names, what is known of them, and what was asked.
#[derive(Debug)]
pub struct BootstrapDns {
    names: Names,
    pace: Pace,
    known: RwLock<Arc<Known>>,
    counters: Counters,
    /// Hashes of the names asked for: those can be long, and are anybody's.
    queried: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl BootstrapDns {
    /// Knows nothing of the names yet.
    #[must_use]
    pub fn new(names: Names) -> Self {
        Self {
            names,
            pace: PACE,
            known: RwLock::default(),
            counters: Counters::default(),
            queried: Mutex::default(),
            hasher: RandomState::new(),
        }
    }

    /// Returns the body of the answer to a client at `from` that asks with this query string. `coin` decides for
    /// loopback clients, so that both outcomes can be tried on one machine.
    pub(super) fn answer(
        &self,
        query: Option<&str>,
        from: IpAddr,
        coin: impl FnOnce() -> bool,
    ) -> Bytes {
        count(&self.counters.requests);
        let known = Arc::clone(&self.known.read());
        let parsed = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let name = parsed.into_iter().find(|(key, _)| key == "q").map(|(_, name)| name);
        let Some(name) = name.filter(|name| !name.is_empty()) else { return known.page.clone() };
        self.note_queried(&name);
        let name = name.as_ref();
        let unpublished =
            known.unpublished.get_key_value(name).filter(|(_, found)| !found.addresses.is_empty());
        if let Some((name, found)) = unpublished {
            count(&self.counters.unpublished_hits);
            if found.percentage.includes(from, coin) {
                return page(&BTreeMap::from([(name, &found.addresses)]));
            }
            count(&self.counters.unpublished_percent_misses);
        }
        count(match known.published.get(name) {
            Some(addresses) if addresses.is_empty() => &self.counters.published_misses,
            Some(_) => &self.counters.published_hits,
            None => &self.counters.unpublished_misses,
        });
        known.page.clone()
    }

    /// Returns what was asked so far.
    #[must_use]
    pub fn counts(&self) -> BootstrapCounts {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        BootstrapCounts {
            requests: value(&counters.requests),
            published_hits: value(&counters.published_hits),
            published_misses: value(&counters.published_misses),
            unpublished_hits: value(&counters.unpublished_hits),
            unpublished_misses: value(&counters.unpublished_misses),
            unpublished_percent_misses: value(&counters.unpublished_percent_misses),
            queried_domains: self.queried.lock().len() as u64,
        }
    }

    fn note_queried(&self, name: &str) {
        let mut queried = self.queried.lock();
        queried.insert(self.hasher.hash_one(name));
        if queried.len() > MOST_QUERIED {
            queried.clear();
        }
    }
}

impl Default for BootstrapDns {
    /// Has no names.
    fn default() -> Self {
        Self::new(Names::default())
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Returns names with their addresses as derper writes them: tabs, names sorted, IPv4 never inside IPv6.
fn page(names: &BTreeMap<impl AsRef<str> + Ord, impl AsRef<[IpAddr]>>) -> Bytes {
    let texts: BTreeMap<&str, Vec<String>> = names
        .iter()
        .map(|(name, addresses)| {
            let texts = addresses.as_ref().iter().map(|ip| ip.to_canonical().to_string());
            (name.as_ref(), texts.collect())
        })
        .collect();
    let mut json = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, formatter);
    match texts.serialize(&mut serializer) {
        Ok(()) => Bytes::from(json),
        Err(error) => {
            tracing::error!("bootstrap DNS: {error}");
            Bytes::new()
        }
    }
}

#[cfg(test)]
mod tests;
