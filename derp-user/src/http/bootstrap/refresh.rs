//! Looks the names up, again and again.

use std::{collections::BTreeMap, io, net::IpAddr, sync::Arc, time::Duration};

use domain::{
    base::{Name, Rtype, iana::Rcode},
    rdata::Txt,
    resolv::{StubResolver, stub::conf::ResolvConf},
};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Addresses, BootstrapDns, Known, Names, Unpublished, names::Entry, page, rollout::Percentage,
};

/// How long look-ups take and rest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Time from the end of one round to the next.
    pub(super) rest: Duration,
    /// Time for all names of one list.
    pub(super) round: Duration,
}

/// derper's.
pub(super) const PACE: Pace =
    Pace { rest: Duration::from_secs(600), round: Duration::from_secs(60) };

/// Most addresses of one name that are told.
const MOST_ADDRESSES: usize = 64;

/// Asks for addresses and texts of names.
pub trait Lookup {
    /// Returns the addresses of a name, of both families.
    fn addresses(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>>;
    /// Returns the TXT records of a name, each as one text.
    fn texts(&self, name: &str) -> impl Future<Output = io::Result<Vec<String>>>;
}

/// The system's way to look up names: addresses as the C library finds them, TXT records from the servers in
/// `/etc/resolv.conf`, which is read again for each question.
#[derive(Clone, Debug, Default)]
pub struct SystemDns {
    #[cfg(test)]
    pub(super) server: Option<std::net::SocketAddr>,
}

impl SystemDns {
    fn configuration(&self) -> ResolvConf {
        #[cfg(test)]
        if let Some(server) = self.server {
            use domain::resolv::stub::conf::{ServerConf, Transport};
            let mut configuration = ResolvConf::new();
            configuration.servers.push(ServerConf::new(server, Transport::UdpTcp));
            return configuration;
        }
        ResolvConf::default()
    }
}

impl Lookup for SystemDns {
    async fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        Ok(tokio::net::lookup_host((name, 0)).await?.map(|address| address.ip()).collect())
    }

    async fn texts(&self, name: &str) -> io::Result<Vec<String>> {
        let name = Name::vec_from_str(name).map_err(io::Error::other)?;
        let resolver = StubResolver::from_conf(self.configuration());
        let answer = resolver.query((name, Rtype::TXT)).await?;
        if answer.header().rcode() != Rcode::NOERROR {
            return Err(io::Error::other(answer.header().rcode().to_string()));
        }
        let records = answer.answer().map_err(io::Error::other)?;
        let texts = records.limit_to::<Txt<_>>().map(|record| {
            let text: Vec<u8> = record.map_err(io::Error::other)?.data().text();
            Ok(String::from_utf8_lossy(&text).into_owned())
        });
        texts.collect()
    }
}

impl BootstrapDns {
    /// Keeps what is known of the names current, until dropped; on a Tokio runtime with time and network.
    pub async fn run(&self, lookup: &impl Lookup) {
        let Names { published, unpublished } = &self.names;
        if published.0.is_empty() && unpublished.0.is_empty() {
            return std::future::pending().await;
        }
        loop {
            self.refresh(lookup, || getrandom::u32().unwrap_or_default()).await;
            sleep(self.pace.rest).await;
        }
    }

    /// Looks every name up once. What is found replaces what was known; a name that fails is left out.
    pub(super) async fn refresh(&self, lookup: &impl Lookup, mut random: impl FnMut() -> u32) {
        if !self.names.published.0.is_empty() {
            let mut published = Addresses::new();
            let deadline = Instant::now() + self.pace.round;
            for Entry { name, .. } in &self.names.published.0 {
                if let Some(mut addresses) = addresses(lookup, name, deadline).await {
                    // So that no client takes IPv6 just because it comes first everywhere.
                    shuffle(&mut addresses, &mut random);
                    published.insert(name.clone(), addresses);
                }
            }
            let page = page(&published);
            self.change(|known| Known { published, page, unpublished: known.unpublished.clone() });
        }
        if !self.names.unpublished.0.is_empty() {
            let mut unpublished = BTreeMap::new();
            let deadline = Instant::now() + self.pace.round;
            for Entry { name, rollout } in &self.names.unpublished.0 {
                let Some(addresses) = addresses(lookup, name, deadline).await else { continue };
                let percentage = match rollout {
                    Some(rollout) => percentage(lookup, rollout, deadline).await,
                    None => Percentage::ALL,
                };
                unpublished.insert(name.clone(), Unpublished { addresses, percentage });
            }
            self.change(|known| Known {
                published: known.published.clone(),
                page: known.page.clone(),
                unpublished,
            });
        }
    }

    fn change(&self, change: impl FnOnce(&Known) -> Known) {
        let mut known = self.known.write();
        *known = Arc::new(change(&known));
    }
}

async fn addresses(lookup: &impl Lookup, name: &str, deadline: Instant) -> Option<Vec<IpAddr>> {
    let mut addresses = within(name, deadline, lookup.addresses(name)).await?;
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses.truncate(MOST_ADDRESSES);
    Some(addresses)
}

async fn percentage(lookup: &impl Lookup, name: &str, deadline: Instant) -> Percentage {
    let texts = within(name, deadline, lookup.texts(name)).await.unwrap_or_default();
    Percentage::of_texts(texts.iter().map(String::as_str))
}

/// Returns what is found before `deadline`, or says in the log why nothing is.
async fn within<T>(
    name: &str,
    deadline: Instant,
    lookup: impl Future<Output = io::Result<T>>,
) -> Option<T> {
    let found = timeout_at(deadline, lookup).await;
    let error = match found {
        Ok(Ok(found)) => return Some(found),
        Ok(Err(error)) => error,
        Err(_elapsed) => io::ErrorKind::TimedOut.into(),
    };
    tracing::warn!("bootstrap DNS lookup \"{name}\": {error}");
    None
}

/// Puts the elements into random order (Fisher and Yates). The bias of the remainder does not matter here.
fn shuffle<T>(elements: &mut [T], mut random: impl FnMut() -> u32) {
    for last in (1..elements.len()).rev() {
        elements.swap(last, random() as usize % (last + 1));
    }
}
