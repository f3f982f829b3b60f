//! Why this node is not, or no longer, in its tailnet.

use std::{path::PathBuf, time::Duration};

use super::{frames::TooLong, netmap::TooMany};
use crate::client::ClientError;

/// Faults of the settings, of the network, and of the control server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TailnetError {
    /// The control server cannot be reached, or its certificate is not good.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something took too long.
    #[error("{what} took longer than {limit:?}")]
    Late {
        /// What.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// A request or its answer got lost, or is not HTTP.
    #[error("{request}: {reason}")]
    Http {
        /// The request.
        request: &'static str,
        /// What the HTTP library said.
        reason: String,
    },
    /// The server does not do what it was asked to.
    #[error("{request}: HTTP status {status}{}", quoted(.body))]
    Status {
        /// The request.
        request: &'static str,
        /// Status of the answer.
        status: u16,
        /// The beginning of its body.
        body: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The answer is not what it should be.
    #[error("{request}: {reason}")]
    Answer {
        /// The request.
        request: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is no secure connection to the server.
    #[error("/ts2021: {0}")]
    Noise(String),
    /// The auth key cannot be read.
    #[error("[peer_relay] auth_key_file: {}: {reason}", path.display())]
    AuthKey {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The server does not take this node, and says why.
    #[error("the control server refuses this node: {0:?}; is the auth key good?")]
    Refused(String),
    /// Somebody would have to log in. That is not possible here.
    #[error(
        "the control server wants somebody to log in at {0:?}: the auth key is used up, expired or not one of its own"
    )]
    Login(String),
    /// A new node key is called expired, too.
    #[error("the control server calls the node's new key expired, too")]
    StillExpired,
    /// The node key has expired, and another one must be registered.
    #[error("the node's key has expired")]
    KeyExpired,
    /// The server closed the stream of changes.
    #[error("the control server closed the stream of changes")]
    Ended,
    /// Nothing came for too long.
    #[error("the control server has been silent for {0:?}")]
    Silent(Duration),
    /// The server says more than is read or remembered.
    #[error("{0}")]
    TooMuch(String),
    /// The keys cannot be saved.
    #[error("cannot save the node's keys: {0}")]
    Save(String),
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// No thread could be started.
    #[error("cannot start the thread of the control connection: {0}")]
    Thread(std::io::Error),
}

impl TailnetError {
    /// Whether the server has decided against this node, so that asking again soon is of no use.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_) | Self::Login(_) | Self::StillExpired | Self::AuthKey { .. }
        )
    }

    /// Whether the server does not know the node, or not any more.
    pub(super) const fn is_unknown_node(&self) -> bool {
        matches!(self, Self::Status { status: 400..=499, retry_after: None, .. })
    }
}

impl From<TooLong> for TailnetError {
    fn from(error: TooLong) -> Self {
        Self::TooMuch(error.to_string())
    }
}

impl From<TooMany> for TailnetError {
    fn from(error: TooMany) -> Self {
        Self::TooMuch(error.to_string())
    }
}

/// Most characters of a server's words that are shown.
const SHOWN: usize = 200;

/// Returns the beginning of what a server says.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

fn quoted(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!(", {body:?}") }
}
