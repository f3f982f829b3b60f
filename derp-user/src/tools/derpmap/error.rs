//! Why there is no DERP map.

use std::path::PathBuf;

use crate::{
    config::{ConfigError, UsageError},
    tls::TlsError,
};

/// Faults of the command line, of the relay's configuration and of its certificate.
#[derive(Debug, thiserror::Error)]
pub enum DerpmapError {
    /// What this tool's own flags say is wrong.
    #[error("{0}")]
    Usage(String),
    /// What the relay's flags say is wrong.
    #[error(transparent)]
    Flags(#[from] UsageError),
    /// The relay could not run with them.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// Clients could not find the relay.
    #[error("clients need a name: give -hostname, as the relay has it")]
    NoHostname,
    /// Clients could not know the certificate.
    #[error(
        "{} is not there: start derpd once, which makes a certificate for {hostname}, and ask again",
        path.display()
    )]
    NoCertificate {
        /// The file.
        path: PathBuf,
        /// The IP address that it is for.
        hostname: String,
    },
}

impl DerpmapError {
    /// Exit status of the program: 2 for the command line, 1 for everything else.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::NoHostname => 2,
            Self::Flags(error) => error.exit_status(),
            Self::Config(error) => error.exit_status(),
            Self::Certificate(_) | Self::NoCertificate { .. } => 1,
        }
    }
}
