//! A STUN client: asks a server which address it is seen with (RFC 8489).

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use derp_common::stun::{
    ATTRIBUTE_HEADER, BINDING_REQUEST, BINDING_SUCCESS, Crc, FINGERPRINT, FINGERPRINT_XOR, HEADER,
    MAGIC_COOKIE, SOFTWARE, XOR_MAPPED_ADDRESS,
};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

/// Bytes of a transaction id.
pub(super) const TRANSACTION: usize = 12;
/// What derper wants to read in SOFTWARE; it answers nobody else.
const NAME: [u8; 8] = *b"tailnode";
/// Longest answer that is looked at.
const MAX_ANSWER: usize = 1500;
/// How long the first, second and third request may take.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_millis(1500)];

/// What names one request.
pub(super) type Transaction = [u8; TRANSACTION];

/// What a server has answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Seen {
    /// The address that it saw.
    pub(super) address: SocketAddr,
    /// Time between request and answer.
    pub(super) latency: Duration,
}

/// A Binding request as Tailscale's clients send it.
pub(super) fn request(transaction: &Transaction) -> Vec<u8> {
    let [kind, software, fingerprint] =
        [BINDING_REQUEST, SOFTWARE, FINGERPRINT].map(u16::to_be_bytes);
    let length = |length: usize| (length as u16).to_be_bytes();
    let attributes = 2 * ATTRIBUTE_HEADER + NAME.len() + 4;
    let mut message = [&kind, &length(attributes), &MAGIC_COOKIE[..], transaction].concat();
    message.extend([software, length(NAME.len())].concat());
    message.extend(NAME);
    let words = message.chunks_exact(4);
    let crc = words.fold(Crc::START, |crc, word| crc.word([word[0], word[1], word[2], word[3]]));
    message.extend([fingerprint, length(4)].concat());
    message.extend((crc.finish() ^ FINGERPRINT_XOR).to_be_bytes());
    message
}

/// What an answer says: which request it answers, and the address.
pub(super) fn answer(message: &[u8]) -> Option<(Transaction, SocketAddr)> {
    let (head, mut rest) = message.split_at_checked(HEADER)?;
    if head.get(..2)? != BINDING_SUCCESS.to_be_bytes() || head.get(4..8)? != MAGIC_COOKIE {
        return None;
    }
    let transaction: Transaction = head.get(8..)?.try_into().ok()?;
    loop {
        let (attribute, after) = rest.split_first_chunk::<ATTRIBUTE_HEADER>()?;
        let [kind_high, kind_low, high, low] = *attribute;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if u16::from_be_bytes([kind_high, kind_low]) == XOR_MAPPED_ADDRESS {
            return Some((transaction, unmasked(after.get(..length)?, &transaction)?));
        }
        rest = after.get(length.next_multiple_of(4)..)?;
    }
}

/// Takes the mask of cookie and transaction off an address (RFC 8489 section 14.2).
fn unmasked(value: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let ([_, family, port @ ..], masked) = value.split_first_chunk::<4>()?;
    let mask = MAGIC_COOKIE.iter().chain(transaction);
    let bytes: Vec<u8> = masked.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let port = u16::from_be_bytes([port[0] ^ MAGIC_COOKIE[0], port[1] ^ MAGIC_COOKIE[1]]);
    let ip: IpAddr = match family {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        2 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
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

fn random_transaction() -> io::Result<Transaction> {
    let mut transaction = [0; TRANSACTION];
    getrandom::fill(&mut transaction).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use derp_common::{Reason, SlicePacket, stun::request::check};
    use proptest::prelude::*;

    use super::*;
    use crate::stun::StunServer;

    #[test]
    fn requests_are_what_the_server_takes() {
        let mut message = request(&[7; TRANSACTION]);
        assert_eq!(message.len(), 40);
        let judged = |message: &mut [u8]| {
            let length = message.len();
            check::<128, 8, _>(&SlicePacket::new(message, length), 0, length, |_| Ok(())).map(drop)
        };
        assert_eq!(judged(&mut message), Ok(()));
        message[25] ^= 1;
        assert_eq!(judged(&mut message), Err(Reason::InvalidFingerprint));
    }

    /// RFC 5769 sections 2.2 and 2.3, without what stands before and behind the address.
    #[test]
    fn answers_are_read() {
        let transaction = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let head = [b"\x01\x01\x00\x14", &MAGIC_COOKIE[..], &transaction].concat();
        let software = b"\x80\x22\x00\x03abc\x00";
        let ipv4 = b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let message = [&head[..], software, ipv4].concat();
        let expected = (transaction, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(answer(&message), Some(expected));
        let ipv6 = b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
        let message = [&head[..], ipv6].concat();
        let expected = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        assert_eq!(answer(&message), Some((transaction, expected)));
        for end in 0..message.len() {
            assert_eq!(answer(&message[..end]), None, "{end}");
        }
    }

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

    proptest! {
        #[test]
        fn any_answer_is_judged(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = answer(&body);
            let _ = answer(&[&b"\x01\x01\x00\x00\x21\x12\xa4\x42"[..], &[0; 12], &body].concat());
        }
    }
}
