//! The userspace STUN server over real sockets.

#[path = "support/packets.rs"]
mod packets;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use derp_user::stun::{StunError, StunServer};
use tokio::{net::UdpSocket, time::timeout};

use crate::packets::{
    TRANSACTION, attribute, message, success, tailscale_request, with_fingerprint,
};

const LOCALHOST4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// Long enough for any answer; a test that expects one does not wait for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server on any port, and its counters.
struct Running {
    port: u16,
    counters: std::sync::Arc<derp_user::stun::StunCounters>,
}

impl Running {
    fn start() -> Self {
        let server = StunServer::bind(None, 0).expect("bind");
        let port = server.local_addresses()[0].port();
        let counters = server.counters();
        tokio::spawn(server.run());
        Self { port, counters }
    }

    fn at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port)
    }

    fn requests(&self, disposition: &str) -> u64 {
        let found = self.counters.requests().into_iter().find(|(name, _)| *name == disposition);
        found.expect("a disposition").1
    }
}

async fn client(ip: IpAddr) -> UdpSocket {
    UdpSocket::bind((ip, 0)).await.expect("client socket")
}

async fn ask(client: &UdpSocket, server: SocketAddr, request: &[u8]) -> (Vec<u8>, SocketAddr) {
    client.send_to(request, server).await.expect("send");
    let mut buffer = [0; 200];
    let received = timeout(PATIENCE, client.recv_from(&mut buffer)).await;
    let (length, from) = received.expect("an answer in time").expect("receive");
    (buffer[..length].to_vec(), from)
}

#[tokio::test]
async fn case_69_the_standard_request_is_answered_with_32_or_44_bytes() {
    let running = Running::start();
    for (ip, length) in [(LOCALHOST4, 32), (LOCALHOST6, 44)] {
        let client = client(ip).await;
        let request = tailscale_request();
        assert_eq!(request.len(), 40);
        let (answer, from) = ask(&client, running.at(ip), &request).await;
        let port = client.local_addr().expect("local").port();
        assert_eq!(answer, success(&TRANSACTION, ip, port));
        assert_eq!((answer.len(), from), (length, running.at(ip)));
    }
    assert_eq!(running.requests("success"), 2);
    assert_eq!(running.counters.families(), [("ipv4", 1), ("ipv6", 1)]);
}

/// Adapted: derper is silent without SOFTWARE "tailnode" or FINGERPRINT; any RFC 8489 client is served
/// here. What is damaged is met with silence by both.
#[tokio::test]
async fn case_70_a_damaged_fingerprint_is_met_with_silence_and_other_clients_are_served() {
    let running = Running::start();
    let client = client(LOCALHOST4).await;
    let server = running.at(LOCALHOST4);

    let mut damaged = tailscale_request();
    damaged[39] ^= 1;
    let mut not_last = with_fingerprint(message(1, &[]));
    not_last.extend(attribute(0x8022, b"tailnode"));
    not_last[3] = 20;
    let refused = [damaged, not_last, message(0x0101, &[]), b"hello".to_vec(), Vec::new()];
    for datagram in &refused {
        client.send_to(datagram, server).await.expect("send");
    }
    // Datagrams of one socket stay in order over loopback: the first answer is to the last request.
    let mut served = message(1, &[attribute(0x8022, b"another client")]);
    served[8..20].copy_from_slice(b"not silenced");
    let (answer, _) = ask(&client, server, &served).await;
    assert_eq!(answer[8..20], *b"not silenced");
    assert_eq!(running.requests("not_stun"), refused.len() as u64);

    let bare = message(1, &[]);
    let (answer, _) = ask(&client, server, &bare).await;
    let port = client.local_addr().expect("local").port();
    assert_eq!(answer, success(&TRANSACTION, LOCALHOST4, port));
    assert_eq!(running.requests("success"), 2);
}

#[tokio::test]
async fn an_unknown_required_attribute_is_refused_with_420() {
    let running = Running::start();
    for ip in [LOCALHOST4, LOCALHOST6] {
        let client = client(ip).await;
        let request = with_fingerprint(message(1, &[attribute(0x0003, &[0, 0, 0, 6])]));
        let (answer, _) = ask(&client, running.at(ip), &request).await;
        let expected =
            message(0x0111, &[attribute(0x0009, &[0, 0, 4, 20]), attribute(0x000a, &[0x00, 0x03])]);
        assert_eq!(answer, expected);
    }
}

#[tokio::test]
async fn the_answer_comes_from_the_address_that_was_asked() {
    let running = Running::start();
    let client = client(Ipv4Addr::UNSPECIFIED.into()).await;
    for last in [1, 2, 77] {
        let server = running.at(Ipv4Addr::new(127, 0, 0, last).into());
        let (_, from) = ask(&client, server, &tailscale_request()).await;
        assert_eq!(from, server);
    }
}

#[tokio::test]
async fn a_burst_of_more_than_one_batch_is_answered_whole() {
    let running = Running::start();
    let client = client(LOCALHOST4).await;
    let total: u32 = 100;
    for number in 0..total {
        let mut request = message(1, &[]);
        request[8..12].copy_from_slice(&number.to_be_bytes());
        client.send_to(&request, running.at(LOCALHOST4)).await.expect("send");
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut buffer = [0; 200];
    while seen.len() < total as usize {
        let received = timeout(PATIENCE, client.recv(&mut buffer)).await;
        received.expect("an answer in time").expect("receive");
        seen.insert(buffer[8..12].to_vec());
    }
}

#[tokio::test]
async fn a_port_in_use_is_an_error_that_names_it() {
    let running = Running::start();
    let error = StunServer::bind(None, running.port).err().expect("an error");
    assert!(matches!(error, StunError::InUse { .. }));
    let text = error.to_string();
    assert!(text.contains(&format!("0.0.0.0:{}", running.port)), "{text}");
}

#[tokio::test]
async fn a_host_limits_the_server_to_it() {
    let server = StunServer::bind(Some(LOCALHOST6), 0).expect("bind");
    let addresses = server.local_addresses();
    assert_eq!(addresses.iter().map(SocketAddr::ip).collect::<Vec<_>>(), [LOCALHOST6]);
}
