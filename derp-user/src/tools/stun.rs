//! Asks STUN servers which address they see this machine with.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use crate::stun::client::{answer, random_transaction, request};

/// Longest answer that is looked at.
const MAX_ANSWER: usize = 1500;
/// How long the first, second and third request may take.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_millis(1500)];

/// What a server has answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// The address that it saw.
    pub(super) address: SocketAddr,
    /// Time between request and answer.
    pub(super) latency: Duration,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// Nothing came, however often it was asked.
    Nothing,
    /// The host says that nobody listens.
    Closed,
    /// This machine cannot reach the address's family.
    NoRoute,
    /// This machine's socket failed.
    Io(io::Error),
}

impl fmt::Display for Silence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => {
                let total = PATIENCE.iter().sum::<Duration>();
                write!(formatter, "no answer to {} requests within {total:?}", PATIENCE.len())
            }
            Self::Closed => formatter.write_str("nobody listens there (port unreachable)"),
            Self::NoRoute => formatter.write_str("this machine has no route there"),
            Self::Io(error) => error.fmt(formatter),
        }
    }
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        const NO_ROUTE: [io::ErrorKind; 3] = [
            io::ErrorKind::NetworkUnreachable,
            io::ErrorKind::HostUnreachable,
            io::ErrorKind::AddrNotAvailable,
        ];
        let kind = error.kind();
        if kind == io::ErrorKind::ConnectionRefused {
            Self::Closed
        } else if NO_ROUTE.contains(&kind) {
            Self::NoRoute
        } else {
            Self::Io(error)
        }
    }
}

/// Asks one server, three times at most.
pub(super) async fn ask(server: SocketAddr) -> Result<Seen, Silence> {
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, 0)).await?;
    // Only a connected socket is told that nobody listens.
    socket.connect(server).await?;
    let mut sent = Vec::new();
    for patience in PATIENCE {
        let transaction = random_transaction()?;
        socket.send(&request(&transaction)).await?;
        sent.push((transaction, Instant::now()));
        let deadline = Instant::now() + patience;
        let mut buffer = [0; MAX_ANSWER];
        while let Ok(received) = timeout_at(deadline, socket.recv(&mut buffer)).await {
            let now = Instant::now();
            let Some((transaction, address)) = buffer.get(..received?).and_then(answer) else {
                continue;
            };
            if let Some((_, at)) = sent.iter().find(|(known, _)| *known == transaction) {
                return Ok(Seen { address, latency: now - *at });
            }
        }
    }
    Err(Silence::Nothing)
}

/// Asks many servers over one socket, so that what they see can be compared; `None` for those that do not
/// answer, to three requests each.
pub(super) async fn survey(
    socket: &UdpSocket,
    servers: &[SocketAddr],
) -> io::Result<Vec<Option<Seen>>> {
    let mut found = vec![None; servers.len()];
    let mut sent = std::collections::HashMap::new();
    for patience in PATIENCE {
        for (at, server) in servers.iter().enumerate().filter(|(at, _)| found[*at].is_none()) {
            let transaction = random_transaction()?;
            // One that cannot be reached must not keep the others from being asked.
            if socket.send_to(&request(&transaction), server).await.is_ok() {
                sent.insert(transaction, (at, Instant::now()));
            }
        }
        let deadline = Instant::now() + patience;
        let mut buffer = [0; MAX_ANSWER];
        while found.contains(&None) {
            let Ok(received) = timeout_at(deadline, socket.recv_from(&mut buffer)).await else {
                break;
            };
            let now = Instant::now();
            // What another server's host says of its port is no fault of this socket.
            let Ok((length, _)) = received else { continue };
            let Some((transaction, address)) = buffer.get(..length).and_then(answer) else {
                continue;
            };
            if let Some((at, sent_at)) = sent.remove(&transaction)
                && found[at].is_none()
            {
                found[at] = Some(Seen { address, latency: now - sent_at });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stun::StunServer;

    #[tokio::test]
    async fn a_server_is_asked_over_both_families() {
        let server = StunServer::bind(None, 0).unwrap();
        let port = server.local_addresses()[0].port();
        tokio::spawn(server.run());
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let address = SocketAddr::new(ip, port);
            let seen = ask(address).await.unwrap();
            assert_eq!(seen.address.ip(), ip);
            assert!(seen.latency < PATIENCE[0]);

            let socket = UdpSocket::bind((ip, 0)).await.unwrap();
            let found = survey(&socket, &[address, address]).await.unwrap();
            let own = socket.local_addr().unwrap();
            let addresses: Vec<_> = found.iter().map(|seen| seen.unwrap().address).collect();
            assert_eq!(addresses, [own, own], "whatever its answers are to");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_told_from_silence() {
        let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
        let silence = ask(closed).await.unwrap_err();
        assert!(matches!(silence, Silence::Closed), "{silence}");
    }
}
