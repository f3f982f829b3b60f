//! The STUN server outside the kernel, over a real socket (cases 69 and 70).

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    differences::kind,
    peer::random_bytes,
    server::{Kind, PATIENCE, Server},
};

const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;

/// A Binding request whose attributes are given as they go on the wire.
struct Request {
    transaction: [u8; 12],
    attributes: Vec<u8>,
}

impl Request {
    fn new() -> Self {
        Self { transaction: random_bytes(), attributes: Vec::new() }
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len()).expect("short values");
        self.attributes.extend_from_slice(&kind.to_be_bytes());
        self.attributes.extend_from_slice(&length.to_be_bytes());
        self.attributes.extend_from_slice(value);
        self.attributes.resize(self.attributes.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a right FINGERPRINT, or a wrong one by `damage` (RFC 8489 section 14.7).
    fn fingerprint(self, damage: u32) -> Self {
        let covered = self.bytes_with_length(self.attributes.len() + 8);
        let value = crc32(&covered) ^ 0x5354_554e ^ damage;
        self.attribute(FINGERPRINT, &value.to_be_bytes())
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes_with_length(self.attributes.len())
    }

    fn bytes_with_length(&self, length: usize) -> Vec<u8> {
        let length = u16::try_from(length).expect("short requests").to_be_bytes();
        [&[0, 1], &length[..], &MAGIC_COOKIE, &self.transaction, &self.attributes].concat()
    }
}

/// CRC-32 as in ISO/IEC/IEEE 8802-3.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

fn socket() -> UdpSocket {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port")
}

/// Asks until there is an answer: the socket may open a moment after the listeners.
fn ask(server: &Server, socket: &UdpSocket, request: &Request) -> Vec<u8> {
    let mut answer = [0; 1500];
    for _ in 0..PATIENCE.as_secs() * 2 {
        if let Some(length) = ask_once(server, socket, &request.bytes(), &mut answer) {
            return answer[..length].to_vec();
        }
    }
    panic!("no answer to {:02x?}", request.bytes());
}

fn ask_once(
    server: &Server,
    socket: &UdpSocket,
    request: &[u8],
    answer: &mut [u8],
) -> Option<usize> {
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a non-zero timeout");
    socket.send_to(request, server.stun_address()).expect("loopback takes it");
    let (length, from) = socket.recv_from(answer).ok()?;
    assert_eq!(from, server.stun_address());
    Some(length)
}

fn expected_answer(request: &Request, mapped: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(mapped) = mapped else { panic!("the tests use IPv4") };
    let mut answer = [&[1, 1, 0, 12], &MAGIC_COOKIE[..], &request.transaction].concat();
    answer.extend_from_slice(&XOR_MAPPED_ADDRESS.to_be_bytes());
    answer.extend_from_slice(&[0, 8, 0, 1]);
    answer.extend_from_slice(&(mapped.port() ^ 0x2112).to_be_bytes());
    answer.extend(mapped.ip().octets().iter().zip(MAGIC_COOKIE).map(|(byte, mask)| byte ^ mask));
    answer
}

fn standard_request() -> Request {
    Request::new().attribute(SOFTWARE, b"tailnode").fingerprint(0)
}

/// derpd answers an IPv4 client with its IPv4 address however its socket is bound; derper does so
/// too on a socket bound to an IPv4 address, as here.
#[test]
fn case_69_a_client_learns_its_address() {
    let server = Server::start();
    let socket = socket();
    let request = standard_request();
    assert_eq!(request.bytes().len(), 40);
    let mapped = socket.local_addr().expect("bound");
    assert_eq!(ask(&server, &socket, &request), expected_answer(&request, mapped));
    assert!(server.metric(r#"stun_requests{disposition="success"}"#) >= 1.0);
    assert!(server.metric(r#"stun_addrfamily{family="ipv4"}"#) >= 1.0);
}

/// derper answers Tailscale's own request only; derpd answers any Binding request of RFC 8489.
#[test]
fn case_70_doubtful_requests_meet_silence() {
    let server = Server::start();
    let socket = socket();
    ask(&server, &socket, &standard_request());
    let foreign = [
        Request::new(),
        Request::new().fingerprint(0),
        Request::new().attribute(SOFTWARE, b"somebody").fingerprint(0),
        Request::new().attribute(SOFTWARE, b"tailnode"),
    ];
    let mut silent = vec![
        Request::new().attribute(SOFTWARE, b"tailnode").fingerprint(1),
        Request::new().fingerprint(0).attribute(SOFTWARE, b"tailnode"),
    ];
    match kind() {
        Kind::Derper => silent.extend(foreign),
        Kind::Derpd => {
            for request in foreign {
                let mapped = socket.local_addr().expect("bound");
                assert_eq!(ask(&server, &socket, &request), expected_answer(&request, mapped));
            }
        }
    }
    let not_stun = r#"stun_requests{disposition="not_stun"}"#;
    let before = server.metric(not_stun);
    for request in &silent {
        let mut answer = [0; 1500];
        let bytes = request.bytes();
        assert_eq!(ask_once(&server, &socket, &bytes, &mut answer), None, "to {bytes:02x?}");
    }
    server.wait_for_metric(not_stun, before + silent.len() as f64);
    ask(&server, &socket, &standard_request());
}
