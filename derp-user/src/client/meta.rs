//! The relay's key in its TLS handshake: the meta certificate, which lets a client log in with its first
//! bytes (reference section 2.3).

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::proto::{
    keys::{NodePublic, decode_hex},
    login::{PROTOCOL_VERSION, is_degenerate},
};

/// What the common name of a meta certificate begins with.
const PREFIX: &str = "derpkey";

/// The relay's key, if one of these certificates has it for the version of the protocol that is spoken here.
///
/// They must be from a handshake of TLS 1.3: only there are they under the server's signature as a whole.
pub(super) fn relay_key(certificates: &[CertificateDer<'_>]) -> Option<NodePublic> {
    certificates.iter().find_map(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
        let key = decode_hex(name.strip_prefix(PREFIX)?).ok()?;
        let version = certificate.raw_serial() == [PROTOCOL_VERSION];
        (version && !is_degenerate(&key)).then(|| NodePublic::from_bytes(key))
    })
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use rcgen::{CertificateParams, DnType, KeyPair, SerialNumber};

    use super::*;
    use crate::{proto::keys::NodePrivate, tls::meta_certificate};

    fn certificate(name: &str, serial: &[u8]) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().into()
    }

    #[test]
    fn the_key_is_found_behind_other_certificates() {
        let key = NodePrivate::from_random([7; 32]).public();
        let other = certificate("relay.test", &[2]);
        let meta = meta_certificate(&key, SystemTime::now()).unwrap();
        assert_eq!(relay_key(&[other.clone(), meta]), Some(key));
        assert_eq!(relay_key(&[other]), None);
    }

    #[test]
    fn other_versions_and_keys_that_are_none_are_left_alone() {
        let name = |digits: &str| format!("derpkey{}", digits.repeat(32));
        assert!(relay_key(&[certificate(&name("ab"), &[2])]).is_some());
        for (name, serial) in [
            (name("ab"), vec![3]),
            (name("ab"), vec![2, 0]),
            (name("00"), vec![2]),
            (name("a"), vec![2]),
        ] {
            assert_eq!(relay_key(&[certificate(&name, &serial)]), None, "{name} {serial:?}");
        }
        assert_eq!(relay_key(&[CertificateDer::from(vec![0x30, 0x80])]), None);
    }
}
