use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ED25519, UnparsedPublicKey, VerificationAlgorithm,
};
use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, ServerConnection,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};
use x509_parser::{
    certificate::X509Certificate,
    prelude::{FromDer, GeneralName, X509Version},
};

use super::{manual::FilePair, *};
use crate::proto::keys::NodePublic;

fn now() -> std::time::SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_770_000_000)
}

fn server_key() -> NodePublic {
    NodePublic::from_bytes([0xab; 32])
}

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

fn verify_signature(
    certificate: &X509Certificate<'_>,
    algorithm: &'static dyn VerificationAlgorithm,
) {
    let key = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(algorithm, key)
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A PEM pair for a DNS name, as an operator would install it.
fn dns_pair(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn install(directory: &Path, name: &str) -> (String, String) {
    let pair = dns_pair(name);
    fs::write(directory.join(format!("{name}.crt")), &pair.0).unwrap();
    fs::write(directory.join(format!("{name}.key")), &pair.1).unwrap();
    pair
}

#[test]
fn meta_certificate_is_what_clients_look_for() {
    let der = meta_certificate(&server_key(), now()).unwrap();
    let certificate = parse(&der);
    let name = format!("CN=derpkey{}", "ab".repeat(32));
    assert_eq!(certificate.subject().to_string(), name);
    assert_eq!(certificate.issuer().to_string(), name);
    assert_eq!(certificate.version(), X509Version::V3);
    assert_eq!(certificate.raw_serial(), [2]);
    assert_eq!(certificate.public_key().algorithm.algorithm.to_id_string(), "1.3.101.112");
    assert_eq!(certificate.extensions().len(), 1);
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let days = 30 * 24 * 3600;
    assert_eq!(certificate.validity().not_before.timestamp(), 1_770_000_000 - days);
    assert_eq!(certificate.validity().not_after.timestamp(), 1_770_000_000 + days);
    verify_signature(&certificate, &ED25519);
}

#[test]
fn an_ip_address_gets_a_certificate_of_its_own() {
    let parent = tempfile::tempdir().unwrap();
    let directory = parent.path().join("certs");
    let loaded = load_or_create(&directory, "192.0.2.7", now()).unwrap();

    assert_eq!(mode(&directory), 0o700);
    assert_eq!(mode(&directory.join("192.0.2.7.crt")), 0o644);
    assert_eq!(mode(&directory.join("192.0.2.7.key")), 0o600);
    let key_pem = fs::read_to_string(directory.join("192.0.2.7.key")).unwrap();
    assert!(key_pem.starts_with("-----BEGIN EC PRIVATE KEY-----\n"));
    assert!(key_pem.ends_with("-----END EC PRIVATE KEY-----\n"));

    let certificate = parse(&loaded.key.cert[0]);
    assert_eq!(certificate.subject().to_string(), "CN=192.0.2.7");
    assert!(certificate.raw_serial().len() >= 8);
    let alternative = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(alternative.value.general_names, [GeneralName::IPAddress(&[192, 0, 2, 7])]);
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment());
    assert_eq!(usage.flags.count_ones(), 2);
    assert!(certificate.extended_key_usage().unwrap().unwrap().value.server_auth);
    assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
    assert_eq!(certificate.extensions().len(), 4, "no key identifiers");
    let validity = certificate.validity();
    assert_eq!(validity.not_before.timestamp(), 1_770_000_000);
    assert_eq!(validity.not_after.timestamp(), 1_770_000_000 + 365 * 24 * 3600);
    verify_signature(&certificate, &ECDSA_P256_SHA256_ASN1);

    let again = load_or_create(&directory, "192.0.2.7", now()).unwrap();
    assert_eq!(again.key.cert, loaded.key.cert, "the saved pair is loaded, not replaced");
    assert_eq!(again.pinning_hint(), loaded.pinning_hint());
}

#[test]
fn the_pinning_hint_is_the_one_scripts_look_for() {
    let directory = tempfile::tempdir().unwrap();
    let loaded = load_or_create(directory.path(), "2001:db8::1", now()).unwrap();
    assert!(directory.path().join("2001db81.crt").exists());
    let fingerprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &loaded.key.cert[0]);
    let fingerprint: String =
        fingerprint.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let hint = loaded.pinning_hint().unwrap();
    let lines: Vec<&str> = hint.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "Using self-signed certificate for IP address \"2001:db8::1\". Configure it in DERPMap \
             using: (https://tailscale.com/s/custom-derp)",
            &format!(
                r#"{{"Name":"custom","RegionID":900,"HostName":"2001:db8::1","CertName":"sha256-raw:{fingerprint}"}}"#
            ),
        ]
    );
}

#[test]
fn loads_a_named_pair_and_refuses_wrong_ones() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    install(path, "derp.example.com");
    let loaded = load_or_create(path, "derp.example.com", now()).unwrap();
    assert!(loaded.pinning_hint().is_none());

    let refused = |name: &str| load_or_create(path, name, now()).unwrap_err();
    assert!(matches!(refused("none.example.com"), TlsError::Missing { .. }));

    let (other_chain, other_key) = dns_pair("other.example.com");
    fs::write(path.join("derp.example.com.key"), &other_key).unwrap();
    assert!(matches!(refused("derp.example.com"), TlsError::Mismatch { .. }));
    fs::write(path.join("derp.example.com.crt"), &other_chain).unwrap();
    assert!(matches!(refused("derp.example.com"), TlsError::WrongName { .. }));
    fs::write(path.join("derp.example.com.crt"), "junk").unwrap();
    assert!(matches!(refused("derp.example.com"), TlsError::CertificateFormat { .. }));
    fs::write(path.join("other.example.com.crt"), &other_chain).unwrap();
    fs::write(path.join("other.example.com.key"), "").unwrap();
    assert!(matches!(refused("other.example.com"), TlsError::KeyFormat { .. }));
    fs::remove_file(path.join("other.example.com.key")).unwrap();
    fs::create_dir(path.join("other.example.com.key")).unwrap();
    assert!(matches!(refused("other.example.com"), TlsError::Read { .. }));
}

#[test]
fn half_a_pair_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    load_or_create(path, "192.0.2.7", now()).unwrap();
    let key = fs::read(path.join("192.0.2.7.key")).unwrap();
    fs::remove_file(path.join("192.0.2.7.crt")).unwrap();
    let error = load_or_create(path, "192.0.2.7", now()).unwrap_err();
    assert!(matches!(error, TlsError::HalfPair { .. }));
    assert_eq!(fs::read(path.join("192.0.2.7.key")).unwrap(), key);
    assert!(!path.join("192.0.2.7.crt").exists());
}

/// Runs a handshake in memory and returns the chain the client saw, if it succeeded.
fn handshake(
    config: &Arc<ServerConfig>,
    server_name: &'static str,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<(usize, CertificateDer<'static>, bool), rustls::Error> {
    let client = shake_hands(config, server_name, versions, &[])?;
    let chain = client.peer_certificates().unwrap();
    let ticket = client.tls13_tickets_received() > 0;
    Ok((chain.len(), chain.last().unwrap().clone().into_owned(), ticket))
}

/// An authority that checks a name: it knows the extension that rustls does not, and so cannot leave the
/// certificate to it.
#[derive(Debug)]
pub(crate) struct Validator(pub(crate) AcceptAny);

impl ServerCertVerifier for Validator {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Runs a handshake in memory with a client that offers these application protocols.
fn shake_hands(
    config: &Arc<ServerConfig>,
    server_name: &str,
    versions: &[&'static rustls::SupportedProtocolVersion],
    protocols: &[&[u8]],
) -> Result<ClientConnection, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let accept_any = AcceptAny(provider);
    let verifier: Arc<dyn ServerCertVerifier> = match protocols {
        [ACME_TLS_PROTOCOL] => Arc::new(Validator(accept_any)),
        _ => Arc::new(accept_any),
    };
    client.dangerous().set_certificate_verifier(verifier);
    client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name)?;
    let mut server = ServerConnection::new(Arc::clone(config))?;
    let mut wire = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut cursor = wire.as_slice();
        while !cursor.is_empty() {
            server.read_tls(&mut cursor).unwrap();
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut cursor = wire.as_slice();
        while !cursor.is_empty() {
            client.read_tls(&mut cursor).unwrap();
            client.process_new_packets()?;
        }
    }
    Ok(client)
}

const TLS12: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];
const TLS13: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn config_for(hostname: &str) -> Arc<ServerConfig> {
    let directory = tempfile::tempdir().unwrap();
    if hostname.parse::<IpAddr>().is_err() {
        install(directory.path(), hostname);
    }
    let certificate = load_or_create(directory.path(), hostname, now()).unwrap();
    let meta = meta_certificate(&server_key(), now()).unwrap();
    Arc::new(server_config(certificate, meta).unwrap())
}

#[test]
fn every_handshake_ends_with_the_meta_certificate() {
    let config = config_for("192.0.2.7");
    for versions in [TLS12, TLS13] {
        for name in ["192.0.2.7", "any.example.com"] {
            let (length, last, ticket) = handshake(&config, name, versions).unwrap();
            assert_eq!(length, 2);
            assert!(parse(&last).subject().to_string().starts_with("CN=derpkeyabab"));
            assert!(!ticket);
        }
    }
}

#[test]
fn a_named_server_answers_to_its_name_only() {
    let config = config_for("derp.example.com");
    for versions in [TLS12, TLS13] {
        assert!(handshake(&config, "derp.example.com", versions).is_ok());
        assert!(handshake(&config, "DERP.example.com", versions).is_ok());
        assert!(handshake(&config, "other.example.com", versions).is_err());
        // No SNI is sent for an address.
        assert!(handshake(&config, "192.0.2.7", versions).is_err());
    }
}

/// A certificate for `name` as an authority would issue it.
fn issued(name: &str) -> ServerCertificate {
    let (chain, key) = dns_pair(name);
    let files = FilePair::new(Path::new("/"), name);
    ServerCertificate::from_pem(name, &files, chain.as_bytes(), key.as_bytes()).unwrap()
}

fn with_challenges(hostname: &str) -> Certificates {
    let meta = meta_certificate(&server_key(), now()).unwrap();
    Certificates::new(hostname, meta).with_challenges()
}

fn leaf(
    config: &Arc<ServerConfig>,
    name: &str,
    protocols: &[&[u8]],
) -> Option<CertificateDer<'static>> {
    let client = shake_hands(config, name, TLS13, protocols).ok()?;
    Some(client.peer_certificates().unwrap()[0].clone().into_owned())
}

#[test]
fn a_new_certificate_is_served_from_the_next_handshake_on() {
    let certificates = Arc::new(with_challenges("derp.example.com"));
    let acceptor = Acceptor::new(Arc::clone(&certificates)).unwrap();
    let config = acceptor.config(|| panic!("the address does not matter")).unwrap();
    assert_eq!(leaf(&config, "derp.example.com", &[]), None, "there is none yet");
    for _ in 0..2 {
        let certificate = issued("derp.example.com");
        let expected = certificate.key.cert[0].clone();
        certificates.install(certificates.hostname(), certificate);
        assert_eq!(leaf(&config, "derp.example.com", &[]), Some(expected.clone()));
        assert_eq!(certificates.chain(certificates.hostname()).unwrap(), [expected]);
        assert_eq!(certificates.figures().expiries.len(), 1);
    }
    assert_eq!(leaf(&config, "other.example.com", &[]), None);
}

#[test]
fn only_an_authority_that_says_so_gets_the_challenge_certificate() {
    let certificates = Arc::new(with_challenges("derp.example.com"));
    certificates.install(certificates.hostname(), issued("derp.example.com"));
    let acceptor = Acceptor::new(Arc::clone(&certificates)).unwrap();
    let config = acceptor.config(|| panic!("the address does not matter")).unwrap();
    let normal = leaf(&config, "derp.example.com", &[]).unwrap();
    let validate = |name: &str| leaf(&config, name, &[ACME_TLS_PROTOCOL]);
    assert_eq!(validate("derp.example.com"), None, "nothing is being checked");

    let challenges = certificates.challenges().unwrap();
    let challenge = challenges.offer_tls(certificates.hostname(), &[7; 32]).unwrap();
    let proof = validate("Derp.example.com").unwrap();
    assert_ne!(proof, normal);
    let client = shake_hands(&config, "derp.example.com", TLS12, &[ACME_TLS_PROTOCOL]).unwrap();
    assert_eq!(client.alpn_protocol(), Some(ACME_TLS_PROTOCOL));
    assert_eq!(client.peer_certificates().unwrap().len(), 1);
    assert_eq!(validate("other.example.com"), None);
    // Everybody else is served as ever.
    for protocols in [&[][..], &[HTTP], &[HTTP, ACME_TLS_PROTOCOL], &[ACME_TLS_PROTOCOL, HTTP]] {
        assert_eq!(leaf(&config, "derp.example.com", protocols), Some(normal.clone()));
    }
    let client =
        shake_hands(&config, "derp.example.com", TLS13, &[ACME_TLS_PROTOCOL, HTTP]).unwrap();
    assert_eq!(client.alpn_protocol(), Some(HTTP));
    assert_eq!(leaf(&config, "derp.example.com", &[ACME_TLS_PROTOCOL, b"h2"]), None);
    drop(challenge);
    assert_eq!(validate("derp.example.com"), None);
}

#[test]
fn manual_mode_knows_no_challenges() {
    let config = config_for("derp.example.com");
    assert_eq!(config.alpn_protocols, [HTTP]);
    assert_eq!(leaf(&config, "derp.example.com", &[ACME_TLS_PROTOCOL]), None);
}

#[test]
fn addresses_get_certificates_when_clients_come_to_them() {
    let certificates = Arc::new(with_challenges("derp.example.com").with_addresses(false));
    certificates.install(certificates.hostname(), issued("derp.example.com"));
    let acceptor = Acceptor::new(Arc::clone(&certificates)).unwrap();
    let at = |local: &str| acceptor.config(|| Ok(local.parse().unwrap())).unwrap();
    assert!(leaf(&at("10.0.0.1"), "derp.example.com", &[]).is_some());

    // No server name is sent for an address.
    for private in ["10.0.0.1", "127.0.0.1", "169.254.1.1", "100.64.0.1", "fe80::1", "fd00::1"] {
        assert_eq!(leaf(&at(private), "192.0.2.7", &[]), None);
    }
    assert_eq!(certificates.names().len(), 1);
    let address = Name::new("8.8.8.8");
    assert_eq!(leaf(&at("::ffff:8.8.8.8"), "8.8.8.8", &[]), None, "there is none yet");
    assert_eq!(certificates.names().len(), 2);
    let certificate = issued("8.8.8.8");
    let expected = certificate.key.cert[0].clone();
    certificates.install(&address, certificate);
    assert_eq!(leaf(&at("8.8.8.8"), "8.8.8.8", &[]), Some(expected));

    for last in 0..100 {
        leaf(&at(&format!("8.8.4.{last}")), "8.8.8.8", &[]);
    }
    assert_eq!(certificates.names().len(), 17, "somebody's mistake has limits");
}

#[test]
fn behind_address_translation_the_hostname_stands_for_every_address() {
    let certificates = Arc::new(with_challenges("192.0.2.7").with_addresses(false));
    let expected = issued("192.0.2.7");
    let hostname = expected.key.cert[0].clone();
    certificates.install(certificates.hostname(), expected);
    let acceptor = Acceptor::new(Arc::clone(&certificates)).unwrap();
    let at = |local: &str| acceptor.config(|| Ok(local.parse().unwrap())).unwrap();
    for local in ["10.0.0.1", "192.0.2.7", "2001:db8::1"] {
        assert_eq!(leaf(&at(local), "192.0.2.7", &[]).as_ref(), Some(&hostname), "{local}");
    }
    assert_eq!(leaf(&at("10.0.0.1"), "other.example.com", &[]), None);
}

#[test]
fn a_manual_certificate_is_replaced_by_a_good_one_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    install(path, "derp.example.com");
    let meta = meta_certificate(&server_key(), now()).unwrap();
    let manual = ManualCertificate::load(path, "derp.example.com", meta, now()).unwrap();
    let served = || manual.certificates().chain(manual.certificates().hostname()).unwrap();
    let first = served();
    let fresh = manual.prepare().unwrap();
    assert_eq!(manual.apply(fresh), None, "it is the same");
    assert_eq!(manual.certificates().figures().updates, 0);

    install(path, "derp.example.com");
    let fresh = manual.prepare().unwrap();
    assert_eq!(served(), first, "reading changes nothing");
    assert!(manual.apply(fresh).unwrap().contains("derp.example.com.crt taken into use"));
    assert_ne!(served(), first);
    assert_eq!(manual.certificates().figures().updates, 1);

    let second = served();
    fs::write(path.join("derp.example.com.key"), dns_pair("derp.example.com").1).unwrap();
    assert!(matches!(manual.prepare(), Err(TlsError::Mismatch { .. })));
    fs::remove_file(path.join("derp.example.com.key")).unwrap();
    assert!(matches!(manual.prepare(), Err(TlsError::HalfPair { .. })));
    assert_eq!(served(), second);
}

proptest! {
    #[test]
    fn damaged_files_are_errors_and_never_panic(
        in_key: bool,
        position: prop::sample::Index,
        replacement in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        static PAIR: std::sync::LazyLock<(String, String)> =
            std::sync::LazyLock::new(|| dns_pair("derp.example.com"));
        let (chain, key) = &*PAIR;
        let (mut chain, mut key) = (chain.clone().into_bytes(), key.clone().into_bytes());
        let damaged = if in_key { &mut key } else { &mut chain };
        let at = position.index(damaged.len());
        let end = (at + replacement.len()).min(damaged.len());
        let changed = damaged[at..end] != replacement[..end - at];
        damaged.splice(at..end, replacement);
        let files = FilePair::new(Path::new("/"), "derp.example.com");
        let result = ServerCertificate::from_pem("derp.example.com", &files, &chain, &key);
        if let Err(error) = result {
            prop_assert!(changed || !error.to_string().is_empty());
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn random_files_are_errors_and_never_panic(
        chain in prop::collection::vec(any::<u8>(), 0..512),
        key in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let files = FilePair::new(Path::new("/"), "derp.example.com");
        let wrapped = pem::encode(&pem::Pem::new("CERTIFICATE", chain.as_slice()));
        for chain in [chain.as_slice(), wrapped.as_bytes()] {
            let result = ServerCertificate::from_pem("derp.example.com", &files, chain, &key);
            prop_assert!(result.is_err());
        }
    }
}
