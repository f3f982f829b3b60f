//! Certificates by ACME (RFC 8555): ordered when there is none, kept in a directory, renewed ahead of time, and
//! served from the next handshake on.
//!
//! One task does all of it on the control runtime, one name after the other. When it does what is decided in
//! `plan`, without I/O; the answers that the server looks for are in [`Challenges`](crate::tls::Challenges).

mod authority;
mod binding;
mod error;
mod plan;
mod store;
mod web;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use binding::{Binding, BindingKey};
pub use error::AcmeError;
use hyper::Uri;
use rustls::pki_types::CertificateDer;
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;

use self::{
    authority::{Authority, Issued},
    plan::Plan,
    store::Store,
    web::Web,
};
use crate::{
    client::Trust,
    tls::{Certificates, Lifetime, Name, ServerCertificate},
};

/// Time for one order, from the first request to the certificate.
const ORDER_TIMEOUT: Duration = Duration::from_secs(300);
/// Time to ask for a suggestion.
const LOOK_TIMEOUT: Duration = Duration::from_secs(60);
/// The clock of the system is looked at again after this, at the latest: it may have been set, or the machine
/// been asleep.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);
/// After this a certificate that could not be saved is tried to be saved again.
const SAVE_AGAIN: Duration = Duration::from_secs(10);
/// Orders of one name do not follow each other sooner.
const SHORTEST_SLEEP: Duration = Duration::from_secs(1);

/// Where certificates come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Address of the server's directory.
    pub directory: Uri,
    /// Whether the operator chose it, and not derper.
    pub own_directory: bool,
    /// Which certificates the server may show.
    pub trust: Trust,
    /// E-mail address that the server may write to.
    pub contact: Option<String>,
    /// External account that the server wants to see.
    pub binding: Option<Binding>,
    /// Profile of the certificates; the server's own choice if none is given.
    pub profile: Option<String>,
    /// Whether addresses get certificates too.
    pub addresses: bool,
    /// Whether there is a plain HTTP listener, which the server can ask.
    pub serves_http: bool,
}

/// Keeps the certificates of one relay.
pub struct Acme {
    settings: Settings,
    certificates: Arc<Certificates>,
    store: Store,
    web: Web,
}

/// The certificate of `hostname` that `directory` holds, if one was issued; makes nothing, and asks nobody.
///
/// # Errors
///
/// If the file is there and cannot be used.
pub fn stored_certificate(
    settings: &Settings,
    directory: &Path,
    hostname: &str,
) -> Result<Option<ServerCertificate>, AcmeError> {
    let store = Store::at(directory, &settings.directory, settings.own_directory);
    store.certificate(&Name::new(hostname))
}

impl Acme {
    /// Takes into use what `directory` holds for `hostname`. `meta` goes last into every chain. Asks nobody yet.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used, its account key is damaged, or the authorities for the server's own
    /// certificate cannot be had.
    pub fn new(
        settings: Settings,
        directory: &Path,
        hostname: &str,
        meta: CertificateDer<'static>,
    ) -> Result<Self, AcmeError> {
        let store = Store::open(directory, &settings.directory, settings.own_directory)?;
        store.account_key()?;
        let web = Web::new(&settings.trust)?;
        let mut certificates = Certificates::new(hostname, meta).with_challenges();
        if settings.addresses {
            // A server that somebody chose may well certify private addresses.
            certificates = certificates.with_addresses(settings.own_directory);
        }
        let acme = Self { settings, certificates: Arc::new(certificates), store, web };
        acme.load(acme.certificates.hostname());
        Ok(acme)
    }

    /// Where they are served from.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Takes the certificate of `name` into use that was kept earlier.
    fn load(&self, name: &Name) {
        match self.store.certificate(name) {
            Ok(Some(certificate)) => {
                let until = httpdate::fmt_http_date(certificate.lifetime.not_after);
                tracing::info!("ACME: certificate of {name}: from -certdir, valid until {until}");
                self.certificates.install(name, certificate);
            }
            Ok(None) => {}
            // It is only a copy: another can be had.
            Err(error) => tracing::warn!("ACME: certificate of {name}: {error}: not used"),
        }
    }

    /// Orders and renews. Runs for ever, on the control runtime.
    pub async fn run(&self) {
        let Some(challenges) = self.certificates.challenges() else { return };
        let mut authority =
            Authority::new(&self.settings, &self.store, challenges, self.web.clone());
        let mut plans: BTreeMap<Name, Plan> = BTreeMap::new();
        let mut unsaved = BTreeMap::new();
        loop {
            self.save_again(&mut unsaved);
            for name in self.certificates.names() {
                let plan = plans.entry(name.clone()).or_insert_with(|| self.first_plan(&name));
                self.attend(&name, plan, &mut authority, &mut unsaved).await;
            }
            let now = SystemTime::now();
            let next = plans.values().flat_map(|plan| [Some(plan.attempt_at(now)), plan.look_at()]);
            let pause = next
                .flatten()
                .min()
                .map_or(LONGEST_SLEEP, |next| next.duration_since(now).unwrap_or_default())
                .clamp(SHORTEST_SLEEP, if unsaved.is_empty() { LONGEST_SLEEP } else { SAVE_AGAIN });
            tokio::select! {
                () = sleep(pause) => {}
                () = self.certificates.more_wanted() => {}
            }
        }
    }

    fn first_plan(&self, name: &Name) -> Plan {
        if self.certificates.lifetime(name).is_none() {
            self.load(name);
        }
        Plan::new(self.certificates.lifetime(name), fraction())
    }

    /// Does what is due for one name.
    async fn attend(
        &self,
        name: &Name,
        plan: &mut Plan,
        authority: &mut Authority<'_>,
        unsaved: &mut BTreeMap<Name, Text>,
    ) {
        let now = SystemTime::now();
        let leaf = self.certificates.chain(name).and_then(|chain| chain.into_iter().next());
        if let Some(leaf) = &leaf
            && plan.look_at().is_some_and(|at| at <= now)
        {
            let looked = timeout(LOOK_TIMEOUT, authority.suggestion(leaf)).await;
            let suggestion = match looked {
                Ok(Ok(suggestion)) => suggestion,
                Ok(Err(error)) => {
                    tracing::debug!("ACME: certificate of {name}: {error}");
                    None
                }
                Err(_elapsed) => None,
            };
            plan.suggested(SystemTime::now(), suggestion);
        }
        if plan.attempt_at(now) > now {
            return;
        }
        tracing::info!("ACME: certificate of {name}: ordering one from {}", self.settings.host());
        let ordered = timeout(ORDER_TIMEOUT, authority.order(name, leaf.as_ref()))
            .await
            .unwrap_or_else(|_| Err(AcmeError::TooLong(ORDER_TIMEOUT.as_secs())));
        let now = SystemTime::now();
        match ordered {
            Ok(issued) => {
                let lifetime = self.take(name, issued, unsaved);
                if lifetime.not_after <= now {
                    tracing::warn!("ACME: certificate of {name}: expired by this machine's clock");
                }
                *plan = Plan::issued(lifetime, now, fraction());
            }
            Err(error) => {
                plan.failed(now, authority.take_wish(), fraction());
                self.certificates.count(false);
                let pause = plan.attempt_at(now).duration_since(now).unwrap_or_default();
                let consequence = match self.certificates.lifetime(name) {
                    Some(lifetime) => {
                        let until = httpdate::fmt_http_date(lifetime.not_after);
                        format!("the one in use stays, valid until {until}")
                    }
                    None => "there is none yet, so clients are refused".to_owned(),
                };
                tracing::error!(
                    "ACME: certificate of {name}: {error}: {consequence}; next attempt in {} s",
                    pause.as_secs()
                );
            }
        }
    }

    /// Takes a new certificate into use, and keeps it.
    fn take(&self, name: &Name, issued: Issued, unsaved: &mut BTreeMap<Name, Text>) -> Lifetime {
        let Issued { certificate, key_pem, chain_pem } = issued;
        let lifetime = certificate.lifetime;
        match self.store.keep_certificate(name, &key_pem, &chain_pem) {
            Ok(()) => {
                unsaved.remove(name);
            }
            Err(error) => {
                // Better to have it until the next start than not at all.
                if unsaved.insert(name.clone(), Text { key_pem, chain_pem }).is_none() {
                    tracing::error!(
                        "ACME: certificate of {name}: {error}: it is served, but a restart would lose it; saving is \
                         tried again every {} s",
                        SAVE_AGAIN.as_secs()
                    );
                }
            }
        }
        self.certificates.set_unsaved(unsaved.len());
        self.certificates.install(name, certificate);
        self.certificates.count(true);
        let until = httpdate::fmt_http_date(lifetime.not_after);
        match name {
            Name::Dns(_) => {
                tracing::info!("ACME: certificate of {name}: got one, valid until {until}")
            }
            // Worded as derper's: scripts search for it.
            Name::Address(_) => tracing::info!(
                "derper: acme: got cert for {name} (expires {until}). Configure it in DERPMap using \
                 (https://tailscale.com/s/custom-derp):\n  \
                 {{\"Name\":\"custom\",\"RegionID\":900,\"HostName\":\"{name}\"}}"
            ),
        }
        lifetime
    }

    /// Keeps what could not be kept when it came.
    fn save_again(&self, unsaved: &mut BTreeMap<Name, Text>) {
        unsaved.retain(|name, Text { key_pem, chain_pem }| {
            let kept = self.store.keep_certificate(name, key_pem, chain_pem);
            if kept.is_ok() {
                tracing::info!("ACME: certificate of {name}: saved now");
            }
            kept.is_err()
        });
        self.certificates.set_unsaved(unsaved.len());
    }
}

/// A certificate with its key, as it is kept.
struct Text {
    key_pem: Zeroizing<String>,
    chain_pem: String,
}

impl Settings {
    /// The server's name.
    fn host(&self) -> &str {
        self.directory.host().unwrap_or_default()
    }
}

/// A random number in [0, 1).
fn fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all relays renew at the same moment, which does no harm to this one.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
