//! What a certificate authority finds when it checks that a name leads here: RFC 8555 section 8.3 (http-01) and
//! RFC 8737 (tls-alpn-01). Without I/O.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use parking_lot::RwLock;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::{
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

use super::{Name, TlsError};

/// The application protocol of a validation by TLS.
pub const ACME_TLS_PROTOCOL: &[u8] = b"acme-tls/1";

/// The answers that are waiting to be asked for.
#[derive(Default)]
pub struct Challenges {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    /// Server name to the certificate that proves the key authorization.
    tls: HashMap<String, Arc<CertifiedKey>>,
    /// Token to key authorization.
    http: HashMap<String, String>,
}

/// An answer that can be asked for as long as this lives.
#[must_use]
pub struct Challenge<'a> {
    challenges: &'a Challenges,
    key: Key,
}

enum Key {
    Tls(String),
    Http(String),
}

impl Challenges {
    /// Answers TLS handshakes of the protocol `acme-tls/1` for `name`. `digest` is the SHA-256 of the key
    /// authorization.
    ///
    /// # Errors
    ///
    /// If the certificate cannot be made.
    pub fn offer_tls(&self, name: &Name, digest: &[u8]) -> Result<Challenge<'_>, TlsError> {
        let certificate = certificate(name, digest)?;
        let server_name = server_name(name);
        self.table.write().tls.insert(server_name.clone(), Arc::new(certificate));
        Ok(Challenge { challenges: self, key: Key::Tls(server_name) })
    }

    /// Answers HTTP requests for `token`.
    pub fn offer_http(&self, token: &str, key_authorization: &str) -> Challenge<'_> {
        self.table.write().http.insert(token.to_owned(), key_authorization.to_owned());
        Challenge { challenges: self, key: Key::Http(token.to_owned()) }
    }

    /// The certificate for a validating handshake.
    pub(super) fn certificate(&self, server_name: &str) -> Option<Arc<CertifiedKey>> {
        self.table.read().tls.get(&server_name.to_ascii_lowercase()).map(Arc::clone)
    }

    /// The key authorization for a token.
    pub fn key_authorization(&self, token: &str) -> Option<String> {
        self.table.read().http.get(token).cloned()
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.read();
        write!(formatter, "Challenges({} by TLS, {} by HTTP)", table.tls.len(), table.http.len())
    }
}

impl Drop for Challenge<'_> {
    fn drop(&mut self) {
        let mut table = self.challenges.table.write();
        match &self.key {
            Key::Tls(server_name) => drop(table.tls.remove(server_name)),
            Key::Http(token) => drop(table.http.remove(token)),
        }
    }
}

/// The server name by which an authority asks for `name`; for an address, its reverse (RFC 8738 section 6).
fn server_name(name: &Name) -> String {
    match name {
        Name::Dns(name) => name.to_ascii_lowercase(),
        Name::Address(IpAddr::V4(address)) => {
            let [a, b, c, d] = address.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        Name::Address(IpAddr::V6(address)) => {
            let nibbles =
                address.octets().into_iter().rev().flat_map(|byte| [byte & 15, byte >> 4]);
            nibbles.map(|nibble| format!("{nibble:x}.")).collect::<String>() + "ip6.arpa"
        }
    }
}

/// A self-signed certificate for `name` with the key authorization in it (RFC 8737 section 3).
fn certificate(name: &Name, digest: &[u8]) -> Result<CertifiedKey, TlsError> {
    let generate = |error: &dyn fmt::Display| TlsError::Generate(error.to_string());
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![match name {
        Name::Dns(name) => {
            let name = name.to_ascii_lowercase().try_into();
            SanType::DnsName(name.map_err(|error| generate(&error))?)
        }
        Name::Address(address) => SanType::IpAddress(*address),
    }];
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| generate(&error))?;
    let chain = vec![params.self_signed(&key).map_err(|error| generate(&error))?.into()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Not CertifiedKey::from_der: rustls does not know the extension, which is critical.
    let key =
        rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&key).map_err(TlsError::Configuration)?;
    Ok(CertifiedKey::new(chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_asks_for_an_address_by_its_reverse() {
        for (name, expected) in [
            ("Derp.Example.com", "derp.example.com"),
            ("192.0.2.7", "7.2.0.192.in-addr.arpa"),
            (
                "2001:db8::567:89ab",
                "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            ),
        ] {
            assert_eq!(server_name(&Name::new(name)), expected);
        }
    }

    #[test]
    fn an_answer_lives_as_long_as_its_challenge() {
        let challenges = Challenges::default();
        let http = challenges.offer_http("token", "token.thumbprint");
        let tls = challenges.offer_tls(&Name::new("Derp.example.com"), &[7; 32]).unwrap();
        assert_eq!(challenges.key_authorization("token").unwrap(), "token.thumbprint");
        assert!(challenges.key_authorization("other").is_none());
        assert!(challenges.certificate("DERP.example.com").is_some());
        assert!(challenges.certificate("other.example.com").is_none());
        drop((http, tls));
        assert!(challenges.key_authorization("token").is_none());
        assert!(challenges.certificate("derp.example.com").is_none());
    }

    #[test]
    fn the_certificate_proves_the_key_authorization() {
        for name in ["derp.example.com", "192.0.2.7"].map(Name::new) {
            let certificate = certificate(&name, &[7; 32]).unwrap();
            let [der] = certificate.cert.as_slice() else { panic!("one certificate") };
            let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
            let alternative = parsed.subject_alternative_name().unwrap().unwrap();
            assert_eq!(alternative.value.general_names.len(), 1);
            let proof = parsed
                .extensions()
                .iter()
                .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
                .unwrap();
            assert!(proof.critical);
            assert_eq!(proof.value, [&[4, 32][..], &[7; 32]].concat());
        }
    }
}
