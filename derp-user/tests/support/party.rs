//! WireGuard hosts whose datagrams a test carries by hand: boringtun's protocol on an ordinary UDP socket, so that
//! every datagram that reaches a host is seen, and any can be kept, sent again or forged.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use boringtun::noise::{Tunn, TunnResult, rate_limiter::RateLimiter};
use x25519_dalek::{PublicKey, StaticSecret};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any datagram here.
const BUFFER: usize = 2048;
/// Handshakes per second beyond which a host asks for cookies.
const NO_LIMIT: u64 = 1_000_000;

/// Lengths of WireGuard's messages.
pub(crate) const INITIATION: usize = 148;
pub(crate) const RESPONSE: usize = 92;
pub(crate) const COOKIE_REPLY: usize = 64;

/// Key pair of X25519.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) private: StaticSecret,
    pub(crate) public: PublicKey,
}

impl Keys {
    /// Draws a pair.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("random numbers");
        let private = StaticSecret::from(bytes);
        Self { public: PublicKey::from(&private), private }
    }
}

/// What a host has got.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Got {
    /// A handshake message or an empty packet, taken and answered if need be.
    Message,
    /// A packet from the peer with this number.
    Packet(usize, Vec<u8>),
    /// Something that no peer can have meant for it.
    Refused,
}

/// A host: one socket, and a tunnel for each of its peers.
pub(crate) struct Host {
    pub(crate) socket: UdpSocket,
    pub(crate) relay: SocketAddr,
    tunnels: Vec<Tunn>,
}

impl Host {
    /// A host on a socket, which reaches everybody at `relay`. Its peer number `n` has the key `peers[n]`; the indices it
    /// gives its sessions begin at `(index + n) << 8`.
    pub(crate) fn new(
        socket: UdpSocket,
        relay: SocketAddr,
        keys: &Keys,
        peers: &[PublicKey],
        index: u32,
    ) -> Self {
        Self::with_limit(socket, relay, keys, peers, index, NO_LIMIT)
    }

    /// Like [`Self::new`], of a host that answers with cookies from the first handshake on that exceeds `limit` per
    /// second.
    pub(crate) fn with_limit(
        socket: UdpSocket,
        relay: SocketAddr,
        keys: &Keys,
        peers: &[PublicKey],
        index: u32,
        limit: u64,
    ) -> Self {
        let limiter = Arc::new(RateLimiter::new(&keys.public, limit));
        let tunnel = |(number, peer): (u32, &PublicKey)| {
            let limiter = Some(Arc::clone(&limiter));
            Tunn::new(keys.private.clone(), *peer, None, None, index + number, limiter)
        };
        let tunnels = (0..).zip(peers).map(tunnel).collect();
        socket.set_nonblocking(true).expect("nonblocking");
        Self { socket, relay, tunnels }
    }

    /// A handshake initiation for a peer, not sent.
    pub(crate) fn initiation(&mut self, peer: usize) -> Vec<u8> {
        let mut buffer = [0; BUFFER];
        let result = self.tunnels[peer].format_handshake_initiation(&mut buffer, true);
        let TunnResult::WriteToNetwork(message) = result else {
            panic!("no initiation: {result:?}")
        };
        message.to_vec()
    }

    /// A packet for a peer, encrypted, not sent. There must be a session.
    pub(crate) fn sealed(&mut self, peer: usize, packet: &[u8]) -> Vec<u8> {
        let mut buffer = [0; BUFFER];
        let result = self.tunnels[peer].encapsulate(packet, &mut buffer);
        let TunnResult::WriteToNetwork(message) = result else { panic!("not sealed: {result:?}") };
        assert_eq!(message[0], 4, "there is no session");
        message.to_vec()
    }

    /// Sends a datagram to the relay.
    pub(crate) fn send(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.relay).expect("send");
    }

    /// The next datagram, which the host does not look at, if there is one within `patience`.
    pub(crate) fn datagram(&self, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let mut buffer = [0; BUFFER];
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    assert_eq!(from, self.relay, "it comes from where its receiver sends to");
                    return Some(buffer[..length].to_vec());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                // What the kernel has heard of an earlier datagram, such as a closed port.
                Err(_) => {}
            }
        }
    }

    /// Takes a datagram, and sends the answer if there is one.
    pub(crate) fn take(&mut self, datagram: &[u8]) -> Got {
        let mut buffer = [0; BUFFER];
        for number in 0..self.tunnels.len() {
            let address = Some(self.relay.ip());
            match self.tunnels[number].decapsulate(address, datagram, &mut buffer) {
                TunnResult::WriteToNetwork(answer) => {
                    self.socket.send_to(answer, self.relay).expect("send");
                    return Got::Message;
                }
                TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                    return Got::Packet(number, packet.to_vec());
                }
                TunnResult::Done => return Got::Message,
                // It may be another peer's.
                TunnResult::Err(_) => {}
            }
        }
        Got::Refused
    }

    /// Takes everything that is there or comes within `patience`, and returns it.
    pub(crate) fn take_all(&mut self, patience: Duration) -> Vec<Got> {
        let mut all = Vec::new();
        while let Some(datagram) = self.datagram(patience) {
            all.push(self.take(&datagram));
        }
        all
    }
}

/// A host and the number of a peer of it.
pub(crate) type At<'a> = (&'a mut Host, usize);

/// Does a handshake by way of the relay, begun by the first. If its initiation gets nowhere, the other one begins,
/// and so on, as hosts do that want to reach each other.
pub(crate) fn shake_hands(from: At<'_>, to: At<'_>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "no handshake");
        if attempt((&mut *from.0, from.1), (&mut *to.0, to.1)) {
            return confirm(from, to);
        }
        if attempt((&mut *to.0, to.1), (&mut *from.0, from.1)) {
            return confirm(to, from);
        }
    }
}

/// Sends an initiation, and tells whether there was a response soon.
fn attempt(from: At<'_>, to: At<'_>) -> bool {
    let initiation = from.0.initiation(from.1);
    from.0.send(&initiation);
    let deadline = Instant::now() + Duration::from_millis(500);
    while Instant::now() < deadline {
        to.0.take_all(Duration::from_millis(2));
        while let Some(datagram) = from.0.datagram(Duration::from_millis(2)) {
            if from.0.take(&datagram) == Got::Message && datagram.len() == RESPONSE {
                return true;
            }
        }
    }
    false
}

/// The responder may not send before it has had a packet of the new session.
fn confirm(from: At<'_>, to: At<'_>) {
    let packet = ip_packet(b"first");
    let sealed = from.0.sealed(from.1, &packet);
    from.0.send(&sealed);
    let deadline = Instant::now() + PATIENCE;
    while !to.0.take_all(Duration::from_millis(5)).contains(&Got::Packet(to.1, packet.clone())) {
        assert!(Instant::now() < deadline, "no packet after the handshake");
    }
}

/// Sends a packet each way and checks that each arrives, and nothing else.
pub(crate) fn converse(a: At<'_>, b: At<'_>, text: &[u8]) {
    carry((&mut *a.0, a.1), (&mut *b.0, b.1), text);
    carry(b, a, text);
}

/// Sends a packet, which must be the next that arrives, but for initiations: while the relay has heard little of a peer it
/// also sends those to others who may be that peer.
fn carry(from: At<'_>, to: At<'_>, text: &[u8]) {
    let packet = ip_packet(text);
    let sealed = from.0.sealed(from.1, &packet);
    from.0.send(&sealed);
    loop {
        let datagram = to.0.datagram(PATIENCE).expect("it arrives");
        let got = to.0.take(&datagram);
        if got != Got::Refused || datagram.len() != INITIATION {
            return assert_eq!(got, Got::Packet(to.1, packet));
        }
    }
}

/// An IPv4 packet with this payload, as far as WireGuard looks at it.
pub(crate) fn ip_packet(payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x45;
    let length = u16::try_from(20 + payload.len()).expect("a short packet");
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
    packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
    packet.extend_from_slice(payload);
    packet
}
