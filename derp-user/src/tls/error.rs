//! Why the TLS listener cannot be set up.

use std::{io, path::PathBuf};

/// Faults in certificate files, each naming the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file exists but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Neither file exists, and the host name is no IP address for which they could be made.
    #[error(
        "-hostname {hostname} needs {} and {}, and neither exists",
        certificate.display(),
        key.display()
    )]
    Missing {
        /// Value of `-hostname`.
        hostname: String,
        /// Where the certificate is expected.
        certificate: PathBuf,
        /// Where the private key is expected.
        key: PathBuf,
    },
    /// One file of a pair exists without the other; making a new pair would destroy what is there.
    #[error(
        "{} exists but {} does not: put the missing file back, or remove the other one",
        present.display(),
        missing.display()
    )]
    HalfPair {
        /// The file that exists.
        present: PathBuf,
        /// The file that does not.
        missing: PathBuf,
    },
    /// The certificate file does not hold PEM certificates.
    #[error("{}: not a PEM certificate chain: {reason}", path.display())]
    CertificateFormat {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The key file does not hold a PEM private key (PKCS#1, PKCS#8 or SEC1).
    #[error("{}: not a PEM private key: {reason}", path.display())]
    KeyFormat {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// Certificate and private key do not belong together.
    #[error("{} is not the private key of {}", key.display(), certificate.display())]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The certificate was issued for other names.
    #[error("{}: the certificate is not valid for -hostname {hostname}", path.display())]
    WrongName {
        /// The certificate file.
        path: PathBuf,
        /// Value of `-hostname`.
        hostname: String,
    },
    /// A new certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Generate(String),
    /// A new certificate could not be saved.
    #[error("cannot create {}: {source}", path.display())]
    Create {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The TLS library refused the settings.
    #[error("TLS configuration: {0}")]
    Configuration(#[source] rustls::Error),
}
