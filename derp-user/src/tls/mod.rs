//! TLS as derper serves it: certificates from files or made on the spot, and the meta certificate that tells
//! clients the server's DERP key during the handshake.

mod accept_any;
mod error;
mod manual;
mod meta;
mod self_signed;
pub(crate) mod session;

use std::{net::IpAddr, sync::Arc};

pub(crate) use accept_any::AcceptAny;
pub use error::TlsError;
pub use manual::{FilePair, ServerCertificate, load_or_create, shown_certificate};
pub use meta::meta_certificate;
use rustls::{
    ServerConfig,
    pki_types::CertificateDer,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Builds the configuration of the TLS listener: TLS 1.2 and 1.3, no client certificates, HTTP/1.1 only.
///
/// `meta` goes last into the chain of every handshake. Sessions cannot be resumed: DERP connections live for
/// hours, so tickets would cost a record per handshake and memory per client for nothing.
pub fn server_config(
    certificate: ServerCertificate,
    meta: CertificateDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let ServerCertificate { hostname, mut key, .. } = certificate;
    key.cert.push(meta);
    let resolver = match hostname.parse::<IpAddr>() {
        Ok(_) => Resolver::AnyName(Arc::new(key)),
        Err(_) => Resolver::OneName { hostname, key: Arc::new(key) },
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configuration)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // The server goes on with the keys alone once a connection is established.
    config.enable_secret_extraction = true;
    Ok(config)
}

/// Chooses the certificate by the server name (SNI) that the client asks for.
#[derive(Debug)]
enum Resolver {
    /// For an IP address: clients send no name for those, and whatever else they send does not matter.
    AnyName(Arc<CertifiedKey>),
    /// For a DNS name: another name, or none, fails the handshake. Case does not matter in DNS names.
    OneName { hostname: String, key: Arc<CertifiedKey> },
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::AnyName(key) => Some(Arc::clone(key)),
            Self::OneName { hostname, key } => {
                let matches = hello.server_name()?.eq_ignore_ascii_case(hostname);
                matches.then(|| Arc::clone(key))
            }
        }
    }
}

#[cfg(test)]
mod tests;
