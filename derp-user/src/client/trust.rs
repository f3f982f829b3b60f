//! Which certificates a client accepts.

use std::{
    cell::OnceCell,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::ClientError;
use crate::{
    files,
    proto::keys::{decode_hex, encode_hex},
    tls::AcceptAny,
};

/// Which certificate a relay must show.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Trust {
    /// One that an authority known to this system has signed for the server's name.
    #[default]
    System,
    /// One that an authority in this PEM file has signed for the server's name.
    Roots(PathBuf),
    /// This one alone.
    Pinned(Pin),
    /// One of these: for several relays, each with a certificate of its own.
    PinnedAny(Vec<Pin>),
    /// Any. Whoever is between here and the relay can then pose as it.
    Anything,
}

/// The SHA-256 of one certificate, in the form that DERP maps have it in `CertName`.
///
/// The certificate must also be made out to the server's name, unless that is an IP address; its
/// dates do not matter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pin([u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256-raw:{}", encode_hex(&self.0))
    }
}

impl FromStr for Pin {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let digits = text.strip_prefix("sha256-raw:").map(decode_hex);
        match digits {
            Some(Ok(hash)) => Ok(Self(hash)),
            Some(Err(_)) | None => Err(ClientError::Pin(text.to_owned())),
        }
    }
}

impl Trust {
    /// The TLS settings of a client. As Tailscale's clients, it offers no ALPN; it never resumes a
    /// session, so that each connection costs the relay the same.
    pub(crate) fn tls_config(&self) -> Result<ClientConfig, ClientError> {
        Ok(self.judge()?.tls_config())
    }

    /// What judges certificates so.
    pub(super) fn judge(&self) -> Result<Judge, ClientError> {
        let accept_any = AcceptAny(provider());
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::System => by_authorities(system_roots()?)?,
            Self::Roots(path) => by_authorities(roots_in(path)?)?,
            Self::Pinned(pin) => Arc::new(Pinned { pins: vec![*pin], signatures: accept_any }),
            Self::PinnedAny(pins) => {
                Arc::new(Pinned { pins: pins.clone(), signatures: accept_any })
            }
            Self::Anything => Arc::new(accept_any),
        };
        let is_pinned = matches!(self, Self::Pinned(_) | Self::PinnedAny(_));
        Ok(Judge { verifier, is_pinned })
    }
}

/// Judges certificates, for any number of relays.
#[derive(Clone, Debug)]
pub(super) struct Judge {
    verifier: Arc<dyn ServerCertVerifier>,
    /// Whether it knows the certificate itself.
    pub(super) is_pinned: bool,
}

impl Judge {
    /// Judges by this name instead of the one that was asked for.
    pub(super) fn by_name(self, name: ServerName<'static>) -> Self {
        let verifier = Arc::new(Renamed { judge: self.verifier, name });
        Self { verifier, ..self }
    }

    pub(super) fn tls_config(&self) -> ClientConfig {
        tls_config(Arc::clone(&self.verifier))
    }

    /// Settings with which a handshake goes on whatever is shown, and who knows what the judge says of it.
    pub(super) fn overruled(&self) -> (ClientConfig, Arc<Witness>) {
        let judge = Arc::clone(&self.verifier);
        let witness = Arc::new(Witness { judge, verdict: Mutex::default() });
        (tls_config(Arc::<Witness>::clone(&witness)), witness)
    }
}

/// The judge of those relays of a map for which it names no certificate. There may be none, so it is made for
/// the first of them; it takes a while to read a system's authorities.
pub(crate) struct UsualJudge<'a> {
    trust: &'a Trust,
    made: OnceCell<Judge>,
}

impl<'a> UsualJudge<'a> {
    pub(crate) fn new(trust: &'a Trust) -> Self {
        Self { trust, made: OnceCell::new() }
    }

    pub(super) fn get(&self) -> Result<Judge, ClientError> {
        if let Some(judge) = self.made.get() {
            return Ok(judge.clone());
        }
        let judge = self.trust.judge()?;
        Ok(self.made.get_or_init(|| judge).clone())
    }

    /// Reads the authorities now, and not while something is measured.
    ///
    /// # Errors
    ///
    /// If those cannot be read that an operator has named. Whether the system's can matters only to relays that
    /// need them.
    pub(crate) fn prepare(&self) -> Result<(), ClientError> {
        match (self.get(), self.trust) {
            (Err(error), Trust::Roots(_)) => Err(error),
            (Ok(_) | Err(_), _) => Ok(()),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn by_authorities(roots: RootCertStore) -> Result<Arc<dyn ServerCertVerifier>, ClientError> {
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = builder.build().map_err(|error| ClientError::Tls {
        host: "this machine".to_owned(),
        source: Error::General(error.to_string()),
    })?;
    Ok(verifier)
}

fn tls_config(verifier: Arc<dyn ServerCertVerifier>) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    // The server's mesh reduces its connections to their keys.
    config.enable_secret_extraction = true;
    config
}

fn system_roots() -> Result<RootCertStore, ClientError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reasons: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        let reason = if reasons.is_empty() { "none found".to_owned() } else { reasons.join("; ") };
        return Err(ClientError::NoSystemRoots(reason));
    }
    Ok(roots)
}

fn roots_in(path: &Path) -> Result<RootCertStore, ClientError> {
    let fault = |reason: String| ClientError::Roots { path: path.to_owned(), reason };
    let text = files::read_bounded(path)
        .map_err(|source| ClientError::RootsRead { path: path.to_owned(), source })?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| fault(format!("no PEM: {error}")))?;
        roots.add(certificate).map_err(|error| fault(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(fault("it holds no certificate".to_owned()));
    }
    Ok(roots)
}

/// Leaves signatures to another verifier.
macro_rules! signatures_of {
    ($field:ident) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.$field.verify_tls12_signature(message, certificate, signature)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.$field.verify_tls13_signature(message, certificate, signature)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.$field.supported_verify_schemes()
        }
    };
}

/// Accepts the pinned certificates alone.
#[derive(Debug)]
struct Pinned {
    pins: Vec<Pin>,
    signatures: AcceptAny,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let hash = digest(&SHA256, certificate);
        if !self.pins.iter().any(|pin| hash.as_ref() == pin.0) {
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        if matches!(name, ServerName::DnsName(_)) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures_of!(signatures);
}

/// Judges a certificate by another name than the one that the server was asked for.
#[derive(Debug)]
struct Renamed {
    judge: Arc<dyn ServerCertVerifier>,
    name: ServerName<'static>,
}

/// Judges nothing itself: keeps what another says of the certificate, and goes on whatever that is.
#[derive(Debug)]
pub(super) struct Witness {
    judge: Arc<dyn ServerCertVerifier>,
    verdict: Mutex<Option<Error>>,
}

impl Witness {
    /// What is wrong with the certificate.
    pub(super) fn verdict(&self) -> Option<Error> {
        self.verdict.lock().clone()
    }
}

impl ServerCertVerifier for Renamed {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Self { judge, name } = self;
        judge.verify_server_cert(certificate, intermediates, name, ocsp_response, now)
    }

    signatures_of!(judge);
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let judged =
            self.judge.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        *self.verdict.lock() = judged.err();
        Ok(ServerCertVerified::assertion())
    }

    signatures_of!(judge);
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pins_are_read_as_in_a_derp_map() {
        let digits = "0a".repeat(32);
        let text = format!("sha256-raw:{digits}");
        assert_eq!(text.parse::<Pin>().unwrap(), Pin([10; 32]));
        assert_eq!(Pin([10; 32]).to_string(), text);
        for text in [digits.as_str(), "sha256-raw:", "sha256-raw:0a", "SHA256-RAW:00"] {
            let error = text.parse::<Pin>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("64 hex"), "{error}");
        }
    }

    #[test]
    fn a_pin_accepts_one_certificate_under_its_own_name() {
        let certificate = |name: &str| {
            rcgen::generate_simple_self_signed([name.to_owned()]).unwrap().cert.der().clone()
        };
        let (pinned, other) = (certificate("relay.test"), certificate("relay.test"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut pin = [0; 32];
        pin.copy_from_slice(digest(&SHA256, &pinned).as_ref());
        let verifier =
            Pinned { pins: vec![Pin([0; 32]), Pin(pin)], signatures: AcceptAny(provider) };
        let accepts = |certificate, name: &str| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            verifier.verify_server_cert(certificate, &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(accepts(&pinned, "relay.test"));
        assert!(accepts(&pinned, "192.0.2.1"));
        assert!(!accepts(&pinned, "other.test"));
        assert!(!accepts(&other, "relay.test"));
    }

    #[test]
    fn faults_of_a_root_file_name_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("roots.pem");
        let fault = || Trust::Roots(path.clone()).tls_config().unwrap_err().to_string();
        assert!(fault().contains("roots.pem"));
        fs::write(&path, "nothing").unwrap();
        assert!(fault().contains("holds no certificate"), "{}", fault());
    }
}
