//! Why there is no new certificate.

use std::{io, path::PathBuf};

use crate::{client::ClientError, tls::TlsError};

/// Faults of ordering certificates and keeping them.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// The directory cannot hold certificates.
    #[error("-certdir {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file exists but cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The account's file holds something else. It is not overwritten.
    #[error("{}: not the key of an ACME account: {reason}", path.display())]
    AccountKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The authorities that the server's certificate is checked against cannot be had.
    #[error("-acme-ca-file: {0}")]
    Trust(#[from] ClientError),
    /// A certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// The server refused a request, or could not be reached.
    #[error("{step}: {reason}")]
    Server {
        /// What was asked of it.
        step: &'static str,
        /// In words.
        reason: String,
    },
    /// The server could not find out that the name leads here.
    #[error("the server could not check the name {0}")]
    Validation(String),
    /// Everything together took too long.
    #[error("not finished within {0} s")]
    TooLong(u64),
}
