//! `-certmode manual`: certificate and key from two files named after the host name.

use std::{
    fmt,
    fs::DirBuilder,
    io,
    net::IpAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    client::verify_server_name,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use super::{TlsError, self_signed::self_signed};
use crate::{files, proto::keys::encode_hex};

/// The certificate chain and key that the TLS listener serves.
#[derive(Debug)]
pub struct ServerCertificate {
    /// The name it is served for, as given by `-hostname`.
    pub hostname: String,
    /// Chain (leaf first) and private key.
    pub key: CertifiedKey,
    /// When it is valid.
    pub lifetime: Lifetime,
}

/// From when to when a certificate is valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Lifetime {
    /// The beginning.
    pub not_before: SystemTime,
    /// The end.
    pub not_after: SystemTime,
}

impl Lifetime {
    /// How long that is.
    pub fn length(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
        let time = |seconds: i64| match u64::try_from(seconds) {
            Ok(seconds) => SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)),
            Err(_) => Some(SystemTime::UNIX_EPOCH),
        };
        let validity = parsed.validity();
        let times = (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()));
        let (Some(not_before), Some(not_after)) = times else {
            return Err("its dates are out of range".to_owned());
        };
        Ok(Self { not_before, not_after })
    }
}

impl ServerCertificate {
    /// Parses a PEM chain and a PEM key and checks that they belong together and are valid for `hostname`.
    /// Expiry is not checked: clients do that, and a relay with a stale certificate still serves pinned ones.
    pub fn from_pem(
        hostname: &str,
        files: &FilePair,
        chain_pem: &[u8],
        key_pem: &[u8],
    ) -> Result<Self, TlsError> {
        let certificate_format = |error: &dyn fmt::Display| TlsError::CertificateFormat {
            path: files.certificate.clone(),
            reason: error.to_string(),
        };
        let key_format = |error: &dyn fmt::Display| TlsError::KeyFormat {
            path: files.key.clone(),
            reason: error.to_string(),
        };
        let chain = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| certificate_format(&error))?;
        let leaf = chain.first().ok_or_else(|| certificate_format(&"it holds no certificate"))?;
        let wrong_name = || TlsError::WrongName {
            path: files.certificate.clone(),
            hostname: hostname.to_owned(),
        };
        let parsed =
            ParsedCertificate::try_from(leaf).map_err(|error| certificate_format(&error))?;
        let name = ServerName::try_from(hostname).map_err(|_| wrong_name())?;
        verify_server_name(&parsed, &name).map_err(|_| wrong_name())?;
        let lifetime = Lifetime::of(leaf).map_err(|error| certificate_format(&error))?;

        let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| key_format(&error))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = CertifiedKey::from_der(chain, key, &provider).map_err(|error| {
            if matches!(error, rustls::Error::InconsistentKeys(_)) {
                TlsError::Mismatch {
                    certificate: files.certificate.clone(),
                    key: files.key.clone(),
                }
            } else {
                key_format(&error)
            }
        })?;
        Ok(Self { hostname: hostname.to_owned(), key, lifetime })
    }

    /// For an IP host name, the two lines that tell the operator how to pin this certificate in a DERP map.
    /// Scripts search for them, so the wording is derper's.
    pub fn pinning_hint(&self) -> Option<String> {
        let address = self.hostname.parse::<IpAddr>().ok()?;
        let fingerprint = digest(&SHA256, self.key.cert.first()?);
        let fingerprint = encode_hex(fingerprint.as_ref());
        Some(format!(
            "Using self-signed certificate for IP address \"{address}\". Configure it in DERPMap using: \
             (https://tailscale.com/s/custom-derp)\n  \
             {{\"Name\":\"custom\",\"RegionID\":900,\"HostName\":\"{address}\",\"CertName\":\"sha256-raw:{fingerprint}\"}}"
        ))
    }
}

/// Where certificate and key of one host name are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FilePair {
    /// `<base>.crt`, a PEM chain.
    pub certificate: PathBuf,
    /// `<base>.key`, a PEM private key.
    pub key: PathBuf,
}

impl FilePair {
    /// The pair for `hostname` in `directory`. Characters that are not letters, digits, `.` or `-` are left out
    /// of the file names, so `2001:db8::1` becomes `2001db81`.
    pub fn new(directory: &Path, hostname: &str) -> Self {
        let base: String = hostname
            .chars()
            .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-'))
            .collect();
        Self {
            certificate: directory.join(format!("{base}.crt")),
            key: directory.join(format!("{base}.key")),
        }
    }
}

/// Loads the certificate of `hostname` from `directory`. If `hostname` is an IP address and neither file
/// exists, makes a self-signed pair and saves it.
///
/// Files that exist are never replaced, not even when one of the two is missing.
pub fn load_or_create(
    directory: &Path,
    hostname: &str,
    now: SystemTime,
) -> Result<ServerCertificate, TlsError> {
    let files = FilePair::new(directory, hostname);
    match (load(&files, hostname), hostname.parse::<IpAddr>()) {
        (Err(TlsError::Missing { .. }), Ok(address)) => {
            let pair = self_signed(address, now)?;
            let (chain_pem, key_pem) = (pair.certificate_pem.as_bytes(), pair.key_pem.as_bytes());
            save(directory, &files, chain_pem, key_pem)?;
            ServerCertificate::from_pem(hostname, &files, chain_pem, key_pem)
        }
        (loaded, _) => loaded,
    }
}

/// Loads the certificate of `hostname` from `files`.
pub(super) fn load(files: &FilePair, hostname: &str) -> Result<ServerCertificate, TlsError> {
    let FilePair { certificate, key } = files.clone();
    let (chain_pem, key_pem) = match (read(&certificate)?, read(&key)?) {
        (Some(chain_pem), Some(key_pem)) => (chain_pem, key_pem),
        (Some(_), None) => return Err(TlsError::HalfPair { present: certificate, missing: key }),
        (None, Some(_)) => return Err(TlsError::HalfPair { present: key, missing: certificate }),
        (None, None) => {
            return Err(TlsError::Missing { hostname: hostname.to_owned(), certificate, key });
        }
    };
    ServerCertificate::from_pem(hostname, files, &chain_pem, &key_pem)
}

/// Loads the certificate of `hostname` from `directory`, and makes none.
///
/// # Errors
///
/// If there is none that can be used.
pub fn load_certificate(directory: &Path, hostname: &str) -> Result<ServerCertificate, TlsError> {
    load(&FilePair::new(directory, hostname), hostname)
}

/// The certificate that is served for `hostname`, if its file in `directory` exists. Its key is not looked at.
///
/// # Errors
///
/// If the file cannot be read, or holds no certificate.
pub fn shown_certificate(
    directory: &Path,
    hostname: &str,
) -> Result<Option<CertificateDer<'static>>, TlsError> {
    let path = FilePair::new(directory, hostname).certificate;
    let Some(text) = read(&path)? else { return Ok(None) };
    let certificate = CertificateDer::from_pem_slice(&text)
        .map_err(|error| TlsError::CertificateFormat { path, reason: error.to_string() })?;
    Ok(Some(certificate))
}

/// The contents of `path`, or `None` if it does not exist.
fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, TlsError> {
    match files::read_bounded(path) {
        Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::Read { path: path.to_owned(), source }),
    }
}

fn save(
    directory: &Path,
    files: &FilePair,
    certificate_pem: &[u8],
    key_pem: &[u8],
) -> Result<(), TlsError> {
    let create = |path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Create { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(create(directory))?;
    files::create_new(&files.key, key_pem, 0o600).map_err(create(&files.key))?;
    files::create_new(&files.certificate, certificate_pem, 0o644).map_err(|error| {
        // A key without its certificate would block the next start, and nobody has seen this one.
        let _ = std::fs::remove_file(&files.key);
        create(&files.certificate)(error)
    })
}
