//! Orders certificates of an ACME server (RFC 8555).

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, Key, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::{AcmeError, Settings, plan::Window, store::Store, web::Web};
use crate::{
    admit::in_words,
    tls::{Challenges, Name, ServerCertificate},
};

/// How the server is asked whether it is done: more and more rarely, for a minute in all.
const POLLS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(60));
/// The profile of certificates for addresses, where the server has it; Let's Encrypt issues them under no other.
const ADDRESS_PROFILE: &str = "shortlived";
/// What the server says if it does not know the account (RFC 8555 section 6.7).
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";
/// What it says if it has been asked too often.
const RATE_LIMITED: &str = "urn:ietf:params:acme:error:rateLimited";

/// The ways in which a name is checked, in the order in which they are tried.
const METHODS: [Method; 2] = [Method::Tls, Method::Http];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Method {
    /// On the TLS listener (RFC 8737).
    Tls,
    /// On the plain listener (RFC 8555 section 8.3).
    Http,
}

impl Method {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls-alpn-01",
            Self::Http => "http-01",
        }
    }

    fn kind(self) -> ChallengeType {
        match self {
            Self::Tls => ChallengeType::TlsAlpn01,
            Self::Http => ChallengeType::Http01,
        }
    }
}

/// The server, as seen by this account.
pub(super) struct Authority<'a> {
    settings: &'a Settings,
    store: &'a Store,
    challenges: &'a Challenges,
    web: Web,
    account: Option<Account>,
    /// How each name was last checked with success.
    worked: BTreeMap<Name, Method>,
}

/// A certificate as issued, and as it is kept.
pub(super) struct Issued {
    pub(super) certificate: ServerCertificate,
    pub(super) key_pem: Zeroizing<String>,
    pub(super) chain_pem: String,
}

impl<'a> Authority<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        store: &'a Store,
        challenges: &'a Challenges,
        web: Web,
    ) -> Self {
        Self { settings, store, challenges, web, account: None, worked: BTreeMap::new() }
    }

    /// Orders a certificate for `name`, to replace the one with the leaf `replaced`.
    pub(super) async fn order(
        &mut self,
        name: &Name,
        replaced: Option<&CertificateDer<'static>>,
    ) -> Result<Issued, AcmeError> {
        // Of an earlier request, which had nothing to do with this order.
        self.web.take_wish();
        let result = self.try_methods(name, replaced).await;
        if result.is_err() {
            // The account and the server's addresses are read anew.
            self.account = None;
        }
        result
    }

    /// When the server that refused an order wants to be asked again.
    pub(super) fn take_wish(&self) -> Option<SystemTime> {
        self.web.take_wish()
    }

    /// When the server suggests to renew the certificate with this leaf, and when it wants to be asked again
    /// (RFC 9773); nothing if it makes no suggestions.
    pub(super) async fn suggestion(
        &mut self,
        leaf: &CertificateDer<'static>,
    ) -> Result<Option<(Window, Duration)>, AcmeError> {
        let Ok(id) = CertificateIdentifier::try_from(leaf) else { return Ok(None) };
        let Some(account) = self.known_account().await? else { return Ok(None) };
        match account.renewal_info(&id).await {
            Ok((info, pause)) => {
                let window = info.suggested_window;
                Ok(Some((Window { start: window.start.into(), end: window.end.into() }, pause)))
            }
            Err(Error::Unsupported(_)) => Ok(None),
            Err(error) => Err(fault("renewal information")(error)),
        }
    }

    async fn try_methods(
        &mut self,
        name: &Name,
        replaced: Option<&CertificateDer<'static>>,
    ) -> Result<Issued, AcmeError> {
        let account = self.account().await?;
        let last = self.worked.get(name).copied();
        let others = METHODS.into_iter().filter(|method| Some(*method) != last);
        let mut reasons = Vec::new();
        for method in last.into_iter().chain(others) {
            if method == Method::Http && !self.settings.serves_http {
                continue;
            }
            match self.try_method(&account, name, method, replaced).await {
                Ok(issued) => {
                    self.worked.insert(name.clone(), method);
                    return Ok(issued);
                }
                Err(Failure::Validation(reason)) => {
                    reasons.push(format!("by {}: {reason}", method.as_str()));
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        Err(AcmeError::Validation(reasons.join("; ")))
    }

    async fn try_method(
        &self,
        account: &Account,
        name: &Name,
        method: Method,
        replaced: Option<&CertificateDer<'static>>,
    ) -> Result<Issued, Failure> {
        let identifiers = [match name {
            Name::Dns(name) => Identifier::Dns(name.to_ascii_lowercase()),
            Name::Address(address) => Identifier::Ip(*address),
        }];
        let mut request = NewOrder::new(&identifiers);
        if let Some(id) = replaced.and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()) {
            request = request.replaces(id);
        }
        let is_offered = |profile| account.profiles().any(|offered| offered.name == profile);
        match (&self.settings.profile, name) {
            (Some(profile), _) => request = request.profile(profile),
            (None, Name::Address(_)) if is_offered(ADDRESS_PROFILE) => {
                request = request.profile(ADDRESS_PROFILE);
            }
            (None, Name::Address(_) | Name::Dns(_)) => {}
        }
        let mut order = match account.new_order(&request).await {
            // That it replaces a certificate is a courtesy, which the server may not want or believe.
            Err(error) if replaced.is_some() && !is_about_rate(&error) => {
                tracing::debug!("ACME: certificate of {name}: as a replacement: {error}");
                return Box::pin(self.try_method(account, name, method, None)).await;
            }
            result => result.map_err(fault("new order"))?,
        };

        // They can be asked for until the server has decided.
        let mut answers = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization.map_err(fault("authorization"))?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                other @ (AuthorizationStatus::Invalid
                | AuthorizationStatus::Revoked
                | AuthorizationStatus::Expired
                | AuthorizationStatus::Deactivated) => {
                    return Err(Failure::Validation(format!("the authorization is {other:?}")));
                }
            }
            let Some(mut challenge) = authorization.challenge(method.kind()) else {
                return Err(Failure::Validation("the server does not offer it".to_owned()));
            };
            let proof = challenge.key_authorization();
            answers.push(match method {
                Method::Tls => self.challenges.offer_tls(name, proof.digest().as_ref())?,
                Method::Http => self.challenges.offer_http(&challenge.token, proof.as_str()),
            });
            challenge.set_ready().await.map_err(fault("challenge"))?;
        }
        match order.poll_ready(&POLLS).await {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(Error::Api(_)) => {
                return Err(Failure::Validation(reason_of_refusal(&mut order).await));
            }
            Err(error) => return Err(fault("validation")(error).into()),
        }
        drop(answers);

        let (key, request) = signing_request(name)?;
        order.finalize_csr(&request).await.map_err(fault("finalize"))?;
        let chain_pem = order.poll_certificate(&POLLS).await.map_err(fault("certificate"))?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        let certificate = self.store.check(name, &key_pem, &chain_pem)?;
        Ok(Issued { certificate, key_pem, chain_pem })
    }

    /// The account, which is made if there is none. The server's terms of service are agreed to.
    async fn account(&mut self) -> Result<Account, AcmeError> {
        if let Some(account) = self.known_account().await? {
            return Ok(account);
        }
        let contact = self.settings.contact.as_ref().map(|address| format!("mailto:{address}"));
        let contact: Vec<_> = contact.iter().map(String::as_str).collect();
        let request = NewAccount {
            contact: &contact,
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let binding = self
            .settings
            .binding
            .as_ref()
            .map(|binding| ExternalAccountKey::new(binding.id.clone(), binding.key.as_bytes()));
        let directory = self.settings.directory.to_string();
        let (account, credentials) = Account::builder_with_http(Box::new(self.web.clone()))
            .create(&request, directory, binding.as_ref())
            .await
            .map_err(fault("new account"))?;
        self.store.keep_account_key(credentials.private_key())?;
        Ok(self.account.insert(account).clone())
    }

    /// The account that was made before, if the server still knows it.
    async fn known_account(&mut self) -> Result<Option<Account>, AcmeError> {
        if let Some(account) = &self.account {
            return Ok(Some(account.clone()));
        }
        let Some(pkcs8) = self.store.account_key()? else { return Ok(None) };
        let key = Key::from_pkcs8_der(pkcs8.clone_key()).map_err(fault("account key"))?;
        let directory = self.settings.directory.to_string();
        let known = Account::builder_with_http(Box::new(self.web.clone()))
            .from_key((key, PrivateKeyDer::Pkcs8(pkcs8)), directory)
            .await;
        match known {
            Ok((account, _)) => Ok(Some(self.account.insert(account).clone())),
            Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => Ok(None),
            Err(error) => Err(fault("account")(error)),
        }
    }
}

/// Why an order came to nothing.
enum Failure {
    /// The server could not check the name in this way; another may do.
    Validation(String),
    Other(AcmeError),
}

impl<E: Into<AcmeError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Whether the server wants to be left alone.
fn is_about_rate(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if problem.r#type.as_deref() == Some(RATE_LIMITED))
}

fn fault(step: &'static str) -> impl FnOnce(Error) -> AcmeError {
    move |error| AcmeError::Server { step, reason: in_words(&error) }
}

/// What the server says about an order that it refused.
async fn reason_of_refusal(order: &mut Order) -> String {
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        let Ok(state) = authorization.refresh().await else { break };
        let problem = state.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = problem {
            return problem.to_string();
        }
    }
    match &order.state().error {
        Some(problem) => problem.to_string(),
        None => "the server gives no reason".to_owned(),
    }
}

/// A new key, and the request that its certificate be signed.
fn signing_request(name: &Name) -> Result<(KeyPair, Vec<u8>), AcmeError> {
    let generate = |error: rcgen::Error| crate::tls::TlsError::Generate(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![match name {
        Name::Dns(name) => {
            SanType::DnsName(name.to_ascii_lowercase().try_into().map_err(generate)?)
        }
        Name::Address(address) => SanType::IpAddress(*address),
    }];
    let key = KeyPair::generate().map_err(generate)?;
    let request = params.serialize_request(&key).map_err(generate)?;
    Ok((key, request.der().to_vec()))
}
