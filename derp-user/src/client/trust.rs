//! Which certificates a client accepts.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use super::ClientError;
use crate::{files, proto::keys::decode_hex, tls::AcceptAny};

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
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let accept_any = AcceptAny(Arc::clone(&provider));
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|source| ClientError::Tls { host: "this machine".to_owned(), source })?;
        let verifier: Arc<dyn ServerCertVerifier> = match self {
            Self::System => return Ok(finished(builder.with_root_certificates(system_roots()?))),
            Self::Roots(path) => {
                return Ok(finished(builder.with_root_certificates(roots_in(path)?)));
            }
            Self::Pinned(pin) => Arc::new(Pinned { pins: vec![*pin], signatures: accept_any }),
            Self::PinnedAny(pins) => {
                Arc::new(Pinned { pins: pins.clone(), signatures: accept_any })
            }
            Self::Anything => Arc::new(accept_any),
        };
        Ok(finished(builder.dangerous().with_custom_certificate_verifier(verifier)))
    }
}

fn finished(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
) -> ClientConfig {
    let mut config = builder.with_no_client_auth();
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
    let text = files::read_bounded(path).map_err(|error| fault(error.to_string()))?;
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

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signatures.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn pins_are_read_as_in_a_derp_map() {
        let digits = "0a".repeat(32);
        assert_eq!(format!("sha256-raw:{digits}").parse::<Pin>().unwrap(), Pin([10; 32]));
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
