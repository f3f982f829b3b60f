//! TLS as derper serves it: certificates from files or made on the spot, and the meta certificate that tells
//! clients the server's DERP key during the handshake.

mod accept_any;
mod certificates;
mod challenges;
mod error;
mod manual;
mod meta;
mod self_signed;
pub(crate) mod session;
mod watch;

use std::{io, net::IpAddr, sync::Arc};

pub(crate) use accept_any::AcceptAny;
pub use certificates::{CertificateFigures, Certificates, Name};
pub use challenges::{ACME_TLS_PROTOCOL, Challenge, Challenges};
pub use error::TlsError;
pub use manual::{
    FilePair, Lifetime, ServerCertificate, load_certificate, load_or_create, shown_certificate,
};
pub use meta::meta_certificate;
use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
pub use watch::{Fresh, ManualCertificate};

const HTTP: &[u8] = b"http/1.1";

/// The configuration of a listener that always serves `certificate`, with `meta` last in its chain.
///
/// # Errors
///
/// If the TLS library refuses it.
pub fn server_config(
    certificate: ServerCertificate,
    meta: CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let certificates = Certificates::new(&certificate.hostname, meta);
    certificates.install(certificates.hostname(), certificate);
    config(Arc::new(certificates))
}

/// What the TLS listener does with connections. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
}

impl Acceptor {
    /// Serves what `certificates` holds at the time of each handshake.
    ///
    /// # Errors
    ///
    /// If the TLS library refuses the settings.
    pub fn new(certificates: Arc<Certificates>) -> Result<Self, TlsError> {
        Ok(Self { config: Arc::new(config(Arc::clone(&certificates))?), certificates })
    }

    /// The configuration for one connection. `local`, the address it came to, is only asked for where
    /// certificates depend on it.
    pub(crate) fn config(
        &self,
        local: impl FnOnce() -> io::Result<IpAddr>,
    ) -> io::Result<Arc<ServerConfig>> {
        if !self.certificates.depend_on_address() {
            return Ok(Arc::clone(&self.config));
        }
        let certificates = Arc::clone(&self.certificates);
        let mut config = ServerConfig::clone(&self.config);
        config.cert_resolver =
            Arc::new(Resolver { certificates, local: Some(local()?.to_canonical()) });
        Ok(Arc::new(config))
    }
}

/// TLS 1.2 and 1.3, no client certificates, HTTP/1.1 only. Sessions cannot be resumed: DERP connections live
/// for hours, so tickets would cost a record per handshake and memory per client for nothing.
fn config(certificates: Arc<Certificates>) -> Result<ServerConfig, TlsError> {
    let validates = certificates.challenges().is_some();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver { certificates, local: None }));
    config.alpn_protocols = vec![HTTP.to_vec()];
    if validates {
        // After HTTP: a client that offers both is no validating authority.
        config.alpn_protocols.push(ACME_TLS_PROTOCOL.to_vec());
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // The server goes on with the keys alone once a connection is established.
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Chooses the certificate of a handshake.
#[derive(Debug)]
struct Resolver {
    certificates: Arc<Certificates>,
    /// The address that the connection came to, where that matters.
    local: Option<IpAddr>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let (Some(challenges), Some(mut offers)) = (self.certificates.challenges(), hello.alpn())
            && offers.any(|protocol| protocol == ACME_TLS_PROTOCOL)
        {
            let offers = || hello.alpn().into_iter().flatten();
            if offers().all(|protocol| protocol == ACME_TLS_PROTOCOL) {
                return challenges.certificate(hello.server_name()?);
            }
            // Offered beside others it must not be agreed on (RFC 8737 section 3).
            if !offers().any(|protocol| protocol == HTTP) {
                return None;
            }
        }
        self.certificates.choose(hello.server_name(), self.local)
    }
}

/// Key and certificate, both PEM, as manual mode makes them and derper keeps them.
#[cfg(test)]
pub(crate) fn self_signed_pem(address: IpAddr) -> (String, String) {
    let pair = self_signed::self_signed(address, std::time::SystemTime::now()).expect("a pair");
    (pair.key_pem.to_string(), pair.certificate_pem)
}

#[cfg(test)]
pub(crate) mod tests;
