//! What keeps a source of admission from being used, in one sentence each.

use std::{io, path::PathBuf};

use crate::proto::keys::KeyError;

/// A file or setting that a source of admission needs and that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// A file or directory cannot be read.
    #[error("{flag}: cannot read {}: {source}", path.display())]
    Read {
        /// The flag that names it.
        flag: &'static str,
        /// What cannot be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of an allow list is no key.
    #[error("-allow-keys: {}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: KeyError,
    },
    /// The file of the API token holds none.
    #[error("-api-token-file: {}: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// No HTTPS server can be trusted.
    #[error("{flag}: no root certificates on this system: {reason}")]
    NoRoots {
        /// The flag that names an HTTPS address.
        flag: &'static str,
        /// Why.
        reason: String,
    },
}
