//! Why a client cannot connect, or why its connection ended.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use crate::proto::client::{login::LoginError, read::FrameTooLong, write::PacketTooLong};

/// Faults of a client's settings, of the network and of the relay.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The text does not name a relay.
    #[error("{text:?} is no relay: {reason}")]
    Target {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text is no certificate pin.
    #[error("{0:?} is no certificate pin: write sha256-raw: and 64 hexadecimal digits")]
    Pin(String),
    /// The name cannot stand in a certificate.
    #[error("{0:?} is no server name: it must be a DNS name or an IP address")]
    ServerName(String),
    /// A file with certificates of authorities cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    RootsRead {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold certificates of authorities.
    #[error("cannot read {}: {reason}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system has no certificates of authorities.
    #[error("this system has no usable root certificates: {0}")]
    NoSystemRoots(String),
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// The host's addresses cannot be found out.
    #[error("cannot look up {host}: {source}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address of the host takes TCP connections. The error is that of the last one tried.
    #[error("cannot connect to {host} ({address}): {source}")]
    Connect {
        /// The host.
        host: String,
        /// The address tried last.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Connecting, from the name to the login, took too long.
    #[error("{host} did not let us in within {limit:?}")]
    ConnectTimeout {
        /// The host.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// The TLS handshake failed, the certificate was refused, or a record is broken.
    #[error("TLS with {host}: {source}")]
    Tls {
        /// The host.
        host: String,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// The proxy cannot be used: it speaks another protocol than plain HTTP.
    #[error("{0} is no proxy that can be used: write http://host:port")]
    ProxyScheme(String),
    /// The proxy does not connect us.
    #[error("the proxy {proxy} does not connect us to {target}: HTTP status {status}")]
    ProxyRefused {
        /// The proxy.
        proxy: String,
        /// The relay.
        target: String,
        /// Status of its answer.
        status: u16,
    },
    /// The region has no relay that could be dialled.
    #[error("region {0} has no relay: all of its nodes only answer STUN, or there are none")]
    NoRelay(String),
    /// No relay of the region could be logged in to.
    #[error("no relay of region {region} lets us in: {}", reasons.join("; "))]
    Region {
        /// The region's code.
        region: String,
        /// What each of them did, in the order they were tried.
        reasons: Vec<String>,
    },
    /// The answer to the upgrade is not HTTP.
    #[error("{host} does not answer in HTTP: {reason}")]
    NotHttp {
        /// The host.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The server is no relay, or does not want to be one.
    #[error("{host} refuses DERP on /derp: HTTP status {status}{}", quoted(.body))]
    Refused {
        /// The host.
        host: String,
        /// Status of the HTTP answer.
        status: u16,
        /// The beginning of its body.
        body: String,
    },
    /// The login went wrong.
    #[error("logging in to {host}: {source}")]
    Login {
        /// The host.
        host: String,
        /// What is wrong.
        source: LoginError,
    },
    /// The relay closed the connection.
    #[error("{host} closed the connection {during}")]
    Closed {
        /// The host.
        host: String,
        /// What was going on.
        during: &'static str,
    },
    /// The socket failed.
    #[error("the connection to {host} broke: {source}")]
    Io {
        /// The host.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing came, or nothing was taken, for too long: the relay or the network is gone.
    #[error("{host} has been silent for {limit:?}")]
    Silent {
        /// The host.
        host: String,
        /// The limit.
        limit: Duration,
    },
    /// The relay sends a frame that is too long.
    #[error("{host} sends {source}")]
    Frame {
        /// The host.
        host: String,
        /// Which one.
        source: FrameTooLong,
    },
    /// The packet cannot be sent. The connection goes on.
    #[error(transparent)]
    Packet(#[from] PacketTooLong),
}

impl ClientError {
    /// Tells whether a file with certificates of authorities is to blame.
    #[must_use]
    pub const fn is_about_authorities(&self) -> bool {
        matches!(self, Self::RootsRead { .. } | Self::Roots { .. })
    }
}

fn quoted(body: &str) -> String {
    if body.is_empty() { String::new() } else { format!(", {body:?}") }
}
