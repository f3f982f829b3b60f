//! The userspace STUN server, with the same decisions as the XDP program in front of it.
//!
//! It answers whatever the program passes up, or everything where there is none. Like derper it answers
//! Binding requests silently or not at all. Unlike derper it serves any RFC 8489 client (SOFTWARE and
//! FINGERPRINT may be absent), refuses what it does not understand with the RFC's error 420, reports a
//! port it cannot bind, and tells an IPv4 client an IPv4 address.

mod counters;
mod respond;
mod socket;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures_util::future::join_all;

pub use self::counters::StunCounters;
use self::socket::StunSocket;

/// Why the STUN server cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StunError {
    /// The port is taken.
    #[error(
        "cannot answer STUN on {address}: the UDP port is in use by another process \
         (`ss -ulpn` names it); choose another with -stun-port"
    )]
    InUse {
        /// What was to be bound.
        address: SocketAddr,
    },
    /// The socket could not be made or bound.
    #[error("cannot answer STUN on {address}: {source}")]
    Bind {
        /// What was to be bound.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl StunError {
    fn new(address: SocketAddr, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::AddrInUse {
            Self::InUse { address }
        } else {
            Self::Bind { address, source }
        }
    }
}

/// A bound STUN server.
pub struct StunServer {
    sockets: Vec<StunSocket>,
    counters: Arc<StunCounters>,
}

impl StunServer {
    /// Binds `port` on `host`, or on every address of both families.
    ///
    /// Each family has its own socket. Port 0 takes any port, the same for both. A machine without IPv6
    /// serves IPv4 only. Must be called on a Tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// When a socket cannot be bound.
    pub fn bind(host: Option<IpAddr>, port: u16) -> Result<Self, StunError> {
        let mut sockets = Vec::new();
        let mut port = port;
        let hosts = match host {
            Some(host) => vec![host],
            None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
        };
        for ip in hosts {
            let address = SocketAddr::new(ip, port);
            let bound = StunSocket::bind(address);
            match bound.and_then(|socket| Ok((socket.local_address()?, socket))) {
                Ok((local, socket)) => {
                    port = local.port();
                    sockets.push(socket);
                }
                Err(error) if host.is_none() && ip.is_ipv6() && is_no_ipv6(&error) => {
                    tracing::info!("this machine has no IPv6; STUN is answered over IPv4 only");
                }
                Err(error) => return Err(StunError::new(address, error)),
            }
        }
        Ok(Self { sockets, counters: Arc::default() })
    }

    /// Returns what the server is bound to.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|socket| socket.local_address().ok()).collect()
    }

    /// Returns the counters, which stay valid after the server is gone.
    #[must_use]
    pub fn counters(&self) -> Arc<StunCounters> {
        Arc::clone(&self.counters)
    }

    /// Answers requests until dropped. Any Tokio runtime with I/O and time does, current-thread included.
    pub async fn run(self) {
        join_all(self.sockets.iter().map(|socket| socket.serve(&self.counters))).await;
    }
}

fn is_no_ipv6(error: &io::Error) -> bool {
    let no_ipv6 = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| no_ipv6.contains(&code))
}
