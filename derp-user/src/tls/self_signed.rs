//! The self-signed certificate of a server that is reached by IP address and pinned by its clients.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::{AsDer, EcPrivateKeyRfc5915Der},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair},
};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{PrivateKeyDer, PrivateSec1KeyDer};
use zeroize::Zeroizing;

use super::TlsError;

/// Longest a year can be; only used when the same day does not exist in the next year.
const LEAP_YEAR: Duration = Duration::from_secs(366 * 24 * 3600);

/// A new certificate and its private key, as they are written to files.
pub(super) struct SelfSigned {
    /// PEM block `CERTIFICATE`.
    pub(super) certificate_pem: String,
    /// PEM block `EC PRIVATE KEY`.
    pub(super) key_pem: Zeroizing<String>,
}

/// Makes an ECDSA P-256 certificate for `address`, valid one calendar year from `now`.
pub(super) fn self_signed(address: IpAddr, now: SystemTime) -> Result<SelfSigned, TlsError> {
    let generate = |error: &dyn std::fmt::Display| TlsError::Generate(error.to_string());
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
        .map_err(|error| generate(&error))?;
    let sec1: EcPrivateKeyRfc5915Der<'_> =
        key.private_key().as_der().map_err(|error| generate(&error))?;
    let sec1 = PrivateKeyDer::Sec1(PrivateSec1KeyDer::from(sec1.as_ref()));
    let signer = KeyPair::from_der_and_sign_algo(&sec1, &PKCS_ECDSA_P256_SHA256)
        .map_err(|error| generate(&error))?;

    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(|error| generate(&error))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, address.to_string());
    params.subject_alt_names = vec![SanType::IpAddress(address)];
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.into();
    params.not_after = params
        .not_before
        .replace_year(params.not_before.year() + 1)
        .unwrap_or(params.not_before + LEAP_YEAR);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.custom_extensions = vec![basic_constraints()];
    let certificate = params.self_signed(&signer).map_err(|error| generate(&error))?;

    let key_block = pem::Pem::new("EC PRIVATE KEY", sec1.secret_der());
    Ok(SelfSigned {
        certificate_pem: certificate.pem(),
        key_pem: Zeroizing::new(pem::encode_config(
            &key_block,
            pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
        )),
    })
}

/// BasicConstraints, critical, not a CA: an empty sequence (RFC 5280 section 4.2.1.9).
///
/// Written by hand because rcgen's own way of saying "not a CA" adds a subject key identifier.
pub(super) fn basic_constraints() -> CustomExtension {
    const EMPTY_SEQUENCE: [u8; 2] = [0x30, 0x00];
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 19], EMPTY_SEQUENCE.to_vec());
    extension.set_criticality(true);
    extension
}
