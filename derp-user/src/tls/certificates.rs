//! The certificates that are served, each of which may be replaced at any time. Without I/O.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Instant, SystemTime},
};

use parking_lot::RwLock;
use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use tokio::sync::Notify;

use super::{Challenges, Lifetime, ServerCertificate};
use crate::quiet::Quiet;

/// Addresses of this machine that may have a certificate each; more must be somebody's mistake.
const MAX_ADDRESSES: usize = 16;

/// Whom a certificate is for.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Name {
    /// A DNS name.
    Dns(String),
    /// An IP address.
    Address(IpAddr),
}

impl Name {
    /// The name that `-hostname` means.
    pub fn new(hostname: &str) -> Self {
        match hostname.parse::<IpAddr>() {
            Ok(address) => Self::Address(address.to_canonical()),
            Err(_) => Self::Dns(hostname.to_owned()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => formatter.write_str(name),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// What is known about the certificates that are served.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CertificateFigures {
    /// Each certificate's name and the end of its life.
    pub expiries: Vec<(String, SystemTime)>,
    /// New certificates that were taken into use while the relay ran, the first by ACME included.
    pub updates: u64,
    /// New certificates that could not be had, or not be used.
    pub failures: u64,
    /// Certificates that are served but could not be saved, so that a restart would lose them.
    pub unsaved: u64,
}

/// Every certificate of the TLS listener.
#[derive(Debug)]
pub struct Certificates {
    hostname: Name,
    meta: CertificateDer<'static>,
    /// By name; `None` where there is none yet.
    held: RwLock<BTreeMap<Name, Option<Held>>>,
    challenges: Option<Challenges>,
    addresses: Option<Addresses>,
    refusals: Quiet,
    updates: AtomicU64,
    failures: AtomicU64,
    unsaved: AtomicU64,
}

/// Certificates for the addresses that clients connect to.
#[derive(Debug)]
struct Addresses {
    /// Whether private ones can have them too.
    private: bool,
    wanted: Notify,
}

#[derive(Clone, Debug)]
struct Held {
    key: Arc<CertifiedKey>,
    lifetime: Lifetime,
}

impl Certificates {
    /// A place for the certificate of `hostname`. `meta` goes last into every chain.
    pub fn new(hostname: &str, meta: CertificateDer<'static>) -> Self {
        let hostname = Name::new(hostname);
        Self {
            held: RwLock::new(BTreeMap::from([(hostname.clone(), None)])),
            hostname,
            meta,
            challenges: None,
            addresses: None,
            refusals: Quiet::default(),
            updates: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            unsaved: AtomicU64::new(0),
        }
    }

    /// The same, with answers for an authority that checks names.
    pub fn with_challenges(mut self) -> Self {
        self.challenges = Some(Challenges::default());
        self
    }

    /// The same, with certificates for the addresses that clients connect to without a name. No public authority
    /// issues certificates for private addresses; `private` says whether they may be asked for all the same.
    pub fn with_addresses(mut self, private: bool) -> Self {
        self.addresses = Some(Addresses { private, wanted: Notify::new() });
        self
    }

    /// The name of the server.
    pub fn hostname(&self) -> &Name {
        &self.hostname
    }

    /// The names that certificates are wanted for.
    pub fn names(&self) -> Vec<Name> {
        self.held.read().keys().cloned().collect()
    }

    /// Waits until a further name is wanted.
    pub async fn more_wanted(&self) {
        match &self.addresses {
            Some(addresses) => addresses.wanted.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Answers for an authority that checks names.
    pub fn challenges(&self) -> Option<&Challenges> {
        self.challenges.as_ref()
    }

    /// Serves `certificate` for `name` from the next handshake on. Connections that stand are left alone.
    pub fn install(&self, name: &Name, certificate: ServerCertificate) {
        let ServerCertificate { mut key, lifetime, .. } = certificate;
        key.cert.push(self.meta.clone());
        let held = Held { key: Arc::new(key), lifetime };
        self.held.write().insert(name.clone(), Some(held));
    }

    /// The chain that is served for `name`, without the meta certificate.
    pub fn chain(&self, name: &Name) -> Option<Vec<CertificateDer<'static>>> {
        let held = self.held.read();
        let chain = &held.get(name)?.as_ref()?.key.cert;
        Some(chain[..chain.len() - 1].to_vec())
    }

    /// When the certificate of `name` is valid.
    pub fn lifetime(&self, name: &Name) -> Option<Lifetime> {
        Some(self.held.read().get(name)?.as_ref()?.lifetime)
    }

    /// Counts a new certificate that was taken into use while the relay ran, or should have been.
    pub fn count(&self, is_used: bool) {
        let counter = if is_used { &self.updates } else { &self.failures };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how many of those that are served could not be saved.
    pub fn set_unsaved(&self, count: usize) {
        self.unsaved.store(count as u64, Ordering::Relaxed);
    }

    /// What is known about the certificates.
    pub fn figures(&self) -> CertificateFigures {
        let expiry = |(name, held): (&Name, &Option<Held>)| {
            Some((name.to_string(), held.as_ref()?.lifetime.not_after))
        };
        CertificateFigures {
            expiries: self.held.read().iter().filter_map(expiry).collect(),
            updates: self.updates.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            unsaved: self.unsaved.load(Ordering::Relaxed),
        }
    }

    /// Whether the certificate of a connection may depend on the address it came to.
    pub(super) fn depend_on_address(&self) -> bool {
        self.addresses.is_some()
    }

    /// The certificate for a client that asks for `server_name` at the address `local`.
    pub(super) fn choose(
        &self,
        server_name: Option<&str>,
        local: Option<IpAddr>,
    ) -> Option<Arc<CertifiedKey>> {
        match (server_name, &self.hostname, &self.addresses) {
            // Case does not matter in DNS names.
            (Some(asked), Name::Dns(name), _) if asked.eq_ignore_ascii_case(name) => {
                self.key(&self.hostname)
            }
            (None, hostname, Some(addresses)) => {
                let name = Name::Address(local?);
                self.want(&name, addresses);
                // Behind address translation, clients know the hostname's address and not this one.
                let is_address = matches!(hostname, Name::Address(_)) && name != *hostname;
                self.key(&name).or_else(|| self.key(hostname).filter(|_| is_address))
            }
            // Clients send no name for an address, and whatever else they send does not matter.
            (_, Name::Address(_), None) => self.key(&self.hostname),
            (Some(_), Name::Dns(_) | Name::Address(_), _) | (None, Name::Dns(_), None) => None,
        }
    }

    fn key(&self, name: &Name) -> Option<Arc<CertifiedKey>> {
        if let Some(held) = self.held.read().get(name)? {
            return Some(Arc::clone(&held.key));
        }
        if let Some(suffix) = self.refusals.suffix(Instant::now()) {
            tracing::warn!("TLS: there is no certificate for {name} yet{suffix}");
        }
        None
    }

    /// Notes that a client came to an address, which may want a certificate.
    fn want(&self, name: &Name, addresses: &Addresses) {
        let Name::Address(address) = name else { return };
        if self.held.read().contains_key(name) || !(addresses.private || is_public(*address)) {
            return;
        }
        let mut held = self.held.write();
        if held.len() <= MAX_ADDRESSES {
            held.entry(name.clone()).or_default();
            addresses.wanted.notify_one();
        }
    }
}

/// Whether public authorities may issue certificates for an address, roughly: it is not reserved for private use.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                // Shared address space (RFC 6598), which carriers and Tailscale use.
                || (address.octets()[0] == 100 && address.octets()[1] & 0xc0 == 64))
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unspecified()
                || address.is_unique_local()
                || address.is_unicast_link_local())
        }
    }
}
