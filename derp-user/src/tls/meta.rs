//! The meta certificate: a throw-away certificate whose common name carries the server's DERP key, so that a
//! client knows the key before the first byte of DERP and can send its login with the HTTP request.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ED25519, SerialNumber};
use rustls::pki_types::CertificateDer;

use super::{TlsError, self_signed::basic_constraints};
use crate::proto::keys::NodePublic;

/// Protocol version that clients read from the serial number.
const PROTOCOL_VERSION: u8 = 2;
const COMMON_NAME_PREFIX: &str = "derpkey";
const VALID_EITHER_SIDE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Makes the meta certificate for `server_key` with a fresh Ed25519 key, valid 30 days either side of `now`.
///
/// Its only extension is BasicConstraints, which macOS wants. There are no key identifiers: Tailscale's
/// prober skips the expiry check of certificates where both are equal or absent.
pub fn meta_certificate(
    server_key: &NodePublic,
    now: SystemTime,
) -> Result<CertificateDer<'static>, TlsError> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{COMMON_NAME_PREFIX}{}", server_key.to_hex()));
    params.serial_number = Some(SerialNumber::from_slice(&[PROTOCOL_VERSION]));
    params.not_before = (now - VALID_EITHER_SIDE).into();
    params.not_after = (now + VALID_EITHER_SIDE).into();
    params.custom_extensions = vec![basic_constraints()];
    let generate = |error: rcgen::Error| TlsError::Generate(error.to_string());
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(generate)?;
    Ok(params.self_signed(&key).map_err(generate)?.into())
}
