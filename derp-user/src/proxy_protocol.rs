//! PROXY protocol, versions 1 and 2: a proxy that passes TCP connections on tells where they come from
//! (the specification is part of HAProxy's documentation, `proxy-protocol.txt`).
//!
//! A header is required from the proxies that the operator names and is no part of the protocol for
//! anybody else: what looks like one is then a broken TLS or HTTP request, and refused as such.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use parking_lot::RwLock;
use proxy_header::{ParseConfig, ProxyHeader};
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::quiet::Quiet;

/// Time for the whole header. Proxies send it at once.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Length of the shortest header, `PROXY UNKNOWN\r\n`.
const SHORTEST: usize = 15;
/// Length of the longest header of version 1, line end included.
const LONGEST_TEXT: usize = 107;
/// First bytes of a header of version 2.
const BINARY_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Length of the fixed part of a header of version 2.
const BINARY_FIXED: usize = 16;
/// Longest header of version 2 that is taken, with everything that proxies add to the addresses.
const LONGEST_BINARY: usize = 4 << 10;

/// Why a connection from a trusted proxy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// The proxy closed the connection before it sent anything, as health checks do.
    #[error("closed before the PROXY header")]
    Nothing,
    /// The connection broke.
    #[error("in the PROXY header: {0}")]
    Io(#[from] io::Error),
    /// The header took too long.
    #[error("no PROXY header within {} s", HEADER_TIMEOUT.as_secs())]
    TimedOut,
    /// The connection begins with something else.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// The header is longer than any that is needed.
    #[error("a PROXY header of more than {LONGEST_BINARY} bytes")]
    TooLong,
    /// The header cannot be understood.
    #[error("a malformed PROXY header")]
    Malformed,
}

/// An entry of a list of networks that is none.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is neither an IP address nor a network like 10.0.0.0/8")]
pub struct NetworkError(String);

/// The proxies that are believed.
#[derive(Debug, Default)]
pub struct TrustedProxies {
    networks: RwLock<Vec<IpNet>>,
    faults: AtomicU64,
    quiet: Quiet,
}

impl TrustedProxies {
    /// Trusts these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self { networks: RwLock::new(networks), ..Self::default() }
    }

    /// Whether any proxy is trusted.
    pub fn exist(&self) -> bool {
        !self.networks.read().is_empty()
    }

    /// Trusts these networks from now on, and tells whether they are others than before.
    pub fn replace(&self, networks: Vec<IpNet>) -> bool {
        let mut current = self.networks.write();
        let is_other = *current != networks;
        *current = networks;
        is_other
    }

    /// Connections of trusted proxies that were closed for want of a good header.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Where a connection from `peer` really comes from: from there, unless that is a trusted proxy,
    /// whose header is then taken off the stream. `None` if there is no good one; that is logged.
    pub async fn origin(&self, stream: &mut TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        if !self.trust(peer.ip()) {
            return Some(peer);
        }
        let header = timeout(HEADER_TIMEOUT, read(stream)).await;
        match header.unwrap_or(Err(HeaderError::TimedOut)) {
            // Without an address the proxy speaks for itself.
            Ok(origin) => Some(origin.unwrap_or(peer)),
            Err(error @ HeaderError::Nothing) => {
                tracing::debug!("{peer}: {error}");
                None
            }
            Err(error) => {
                self.faults.fetch_add(1, Ordering::Relaxed);
                if let Some(suffix) = self.quiet.suffix(Instant::now()) {
                    tracing::warn!(
                        "{peer}, a trusted proxy (-proxy-protocol-from): {error}{suffix}"
                    );
                }
                None
            }
        }
    }

    fn trust(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.read().iter().any(|network| network.contains(&address))
    }
}

/// Reads networks or addresses separated by commas.
///
/// # Errors
///
/// The first entry that is neither.
pub fn parse_networks(list: &str) -> Result<Vec<IpNet>, NetworkError> {
    let parse = |text: &str| {
        let text = text.trim();
        let network = text.parse::<IpNet>().ok().map(|network| network.trunc());
        network
            .or_else(|| text.parse::<IpAddr>().ok().map(|address| address.to_canonical().into()))
            .ok_or_else(|| NetworkError(text.to_owned()))
    };
    if list.trim().is_empty() { Ok(Vec::new()) } else { list.split(',').map(parse).collect() }
}

/// Takes a header off the stream, and not a byte more.
async fn read(stream: &mut TcpStream) -> Result<Option<SocketAddr>, HeaderError> {
    let mut header = vec![0; SHORTEST];
    let first = stream.read(&mut header).await?;
    if first == 0 {
        return Err(HeaderError::Nothing);
    }
    if !may_begin(&header[..first]) {
        return Err(HeaderError::Missing);
    }
    stream.read_exact(&mut header[first..]).await?;
    if !may_begin(&header) {
        return Err(HeaderError::Missing);
    }
    if header.starts_with(BINARY_SIGNATURE) {
        read_binary(stream, &mut header).await?;
    } else {
        read_text(stream, &mut header).await?;
    }
    parse(&header)
}

/// Whether these bytes can be the first ones of a header.
fn may_begin(bytes: &[u8]) -> bool {
    [&BINARY_SIGNATURE[..], b"PROXY "].iter().any(|start| {
        let common = start.len().min(bytes.len());
        bytes[..common] == start[..common]
    })
}

async fn read_binary(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), HeaderError> {
    header.push(stream.read_u8().await?);
    let length = match header.last_chunk() {
        Some(&length) => BINARY_FIXED + usize::from(u16::from_be_bytes(length)),
        None => return Err(HeaderError::Malformed),
    };
    if length > LONGEST_BINARY {
        return Err(HeaderError::TooLong);
    }
    header.resize(length, 0);
    stream.read_exact(&mut header[BINARY_FIXED..]).await?;
    Ok(())
}

/// Reads up to the end of the line. What stands before a line feed is all header, what follows it is
/// not, so the bytes are looked at before they are taken.
async fn read_text(stream: &mut TcpStream, header: &mut Vec<u8>) -> Result<(), HeaderError> {
    let mut ahead = [0; LONGEST_TEXT];
    while header.last() != Some(&b'\n') {
        let room = LONGEST_TEXT - header.len();
        if room == 0 {
            return Err(HeaderError::Malformed);
        }
        let seen = stream.peek(&mut ahead[..room]).await?;
        let count = match ahead[..seen].iter().position(|&byte| byte == b'\n') {
            Some(end) => end + 1,
            None => seen,
        };
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let start = header.len();
        header.resize(start + count, 0);
        stream.read_exact(&mut header[start..]).await?;
    }
    Ok(())
}

/// The address in a whole header: none if the proxy speaks for itself, or does not know. Without I/O.
fn parse(header: &[u8]) -> Result<Option<SocketAddr>, HeaderError> {
    let config = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(header, config) {
        Ok((parsed, length)) if length == header.len() => {
            Ok(parsed.proxied_address().map(|address| address.source))
        }
        Ok(_) | Err(_) => Err(HeaderError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&BINARY_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    const IPV4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0x12, 0x34, 0x01, 0xbb];

    /// What comes of `pieces`, sent one after the other, and what is left on the stream.
    async fn receive(pieces: &[&[u8]]) -> (Result<Option<SocketAddr>, HeaderError>, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.set_nodelay(true).unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let send = async {
            for piece in pieces {
                client.write_all(piece).await.unwrap();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            client.shutdown().await.unwrap();
        };
        let (result, ()) = tokio::join!(read(&mut stream), send);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        (result, rest)
    }

    #[tokio::test]
    async fn headers_are_taken_off_to_the_byte() {
        let text = b"PROXY TCP4 192.0.2.7 198.51.100.1 4660 443\r\n";
        let text6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 4660 443\r\n";
        let with_extras = [IPV4, &[0xe0, 0, 2, 1, 2]].concat();
        let ipv6: Vec<u8> = [
            &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7][..],
            &[0; 16],
            &[0x12, 0x34, 1, 0xbb],
        ]
        .concat();
        let four = Some("192.0.2.7:4660".parse().unwrap());
        let six = Some("[2001:db8::7]:4660".parse().unwrap());
        for (header, expected) in [
            (text.to_vec(), four),
            (text6.to_vec(), six),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n".to_vec(), None),
            (binary(0x21, 0x11, IPV4), four),
            (binary(0x21, 0x11, &with_extras), four),
            (binary(0x21, 0x21, &ipv6), six),
            (binary(0x20, 0x00, &[]), None),
            (binary(0x20, 0x11, IPV4), None),
            (binary(0x21, 0x00, &[1, 2, 3]), None),
            (binary(0x21, 0x31, &[b'x'; 216]), None),
        ] {
            let whole = [&header[..], b"\x16\x03\x01 TLS\nhello"].concat();
            let (origin, rest) = receive(&[&whole]).await;
            assert_eq!(origin.unwrap(), expected, "{header:?}");
            assert_eq!(rest, b"\x16\x03\x01 TLS\nhello");
            let bytes: Vec<&[u8]> = whole.chunks(7).collect();
            let (origin, rest) = receive(&bytes).await;
            assert_eq!(origin.unwrap(), expected, "{header:?} in pieces");
            assert_eq!(rest, b"\x16\x03\x01 TLS\nhello");
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let long_line = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200], b"\r\n".to_vec()].concat();
        for (bytes, expected) in [
            (&b""[..], "closed before"),
            (b"GET / HTTP/1.1\r\n\r\n", "does not begin"),
            (b"\x16\x03\x01\x02\x00\x01", "does not begin"),
            (b"PROXYTCP4 192.0.2.7", "does not begin"),
            (b"\r\n\r\n\0\r\nQUIT!abcdefgh", "does not begin"),
            (b"PROXY", "early eof"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2", "unexpected end"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n rest", "malformed"),
            (b"PROXY TCP4 192.0.2.300 198.51.100.1 1 2\r\n", "malformed"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 70000\r\n", "malformed"),
            (b"PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", "malformed"),
            (b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", "malformed"),
            (&long_line, "malformed"),
            (&binary(0x11, 0x11, IPV4), "malformed"),
            (&binary(0x22, 0x11, IPV4), "malformed"),
            (&binary(0x21, 0x41, IPV4), "malformed"),
            (&binary(0x21, 0x11, &IPV4[..11]), "malformed"),
            (&binary(0x21, 0x11, &[0; 5000]), "more than 4096"),
        ] {
            let (result, _) = receive(&[bytes]).await;
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{bytes:?}: {error}");
        }
    }

    #[test]
    fn networks_and_single_addresses() {
        let networks =
            parse_networks("10.1.2.3/8, 192.0.2.1,2001:db8::/32,::ffff:198.51.100.1").unwrap();
        let proxies = TrustedProxies::new(networks);
        for (address, trusted) in [
            ("10.255.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("198.51.100.1", true),
        ] {
            assert_eq!(proxies.trust(address.parse().unwrap()), trusted, "{address}");
        }
        assert_eq!(parse_networks(""), Ok(Vec::new()));
        for (list, bad) in [
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0.1,,", ""),
            ("10.0.0.1 proxy", "10.0.0.1 proxy"),
        ] {
            assert_eq!(parse_networks(list), Err(NetworkError(bad.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn any_header_is_judged(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0..3usize) {
            let start: &[u8] = [&b""[..], b"PROXY TCP4 ", BINARY_SIGNATURE][kind];
            let _ = parse(&[start, &bytes].concat());
        }
    }
}
