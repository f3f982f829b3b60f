//! A scripted DERP peer, written from the protocol reference alone: it shares no code with the
//! relay, so that it is an independent witness.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, aead::Aead};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::server::{PATIENCE, Server};

pub(crate) const SERVER_KEY: u8 = 0x01;
pub(crate) const CLIENT_INFO: u8 = 0x02;
pub(crate) const SERVER_INFO: u8 = 0x03;
pub(crate) const SEND_PACKET: u8 = 0x04;
pub(crate) const RECV_PACKET: u8 = 0x05;
pub(crate) const KEEP_ALIVE: u8 = 0x06;
pub(crate) const NOTE_PREFERRED: u8 = 0x07;
pub(crate) const PEER_GONE: u8 = 0x08;
pub(crate) const PEER_PRESENT: u8 = 0x09;
pub(crate) const FORWARD_PACKET: u8 = 0x0a;
pub(crate) const WATCH_CONNS: u8 = 0x10;
pub(crate) const CLOSE_PEER: u8 = 0x11;
pub(crate) const PING: u8 = 0x12;
pub(crate) const PONG: u8 = 0x13;

/// "DERP" and the key emoji: what every ServerKey frame starts with.
pub(crate) const MAGIC: &[u8] = "DERP🔑".as_bytes();
/// What a packet has to start with, and to be 62 bytes long, to look like a disco message.
pub(crate) const DISCO_MAGIC: &[u8] = "TS💬".as_bytes();
/// The largest packet a relay takes.
pub(crate) const MAX_PACKET: usize = 65536;

/// The request Tailscale's client sends, without fast start.
pub(crate) const UPGRADE: &str =
    "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: DERP\r\n\r\n";
/// The same, asking for no HTTP answer.
pub(crate) const FAST_START: &str = "GET /derp HTTP/1.1\r\nHost: relay\r\n\
     Connection: Upgrade\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n";

/// One frame as received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) payload: Vec<u8>,
}

/// What waiting for a frame came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Event {
    Frame(Frame),
    Closed,
    Silence,
}

/// Encodes a frame.
pub(crate) fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = header(kind, payload.len());
    bytes.extend_from_slice(payload);
    bytes
}

/// Encodes the header of a frame that may never be sent in full.
pub(crate) fn header(kind: u8, length: usize) -> Vec<u8> {
    let length = u32::try_from(length).expect("frame lengths are 32 bits");
    [&[kind][..], &length.to_be_bytes()].concat()
}

/// Encodes a SendPacket frame.
pub(crate) fn send_packet(destination: &PublicKey, packet: &[u8]) -> Vec<u8> {
    frame(SEND_PACKET, &[destination.as_bytes(), packet].concat())
}

/// Encodes a ClientInfo frame: the JSON text sealed from `secret` to the relay.
pub(crate) fn client_info(secret: &SecretKey, server: &PublicKey, json: &str) -> Vec<u8> {
    let nonce = random_bytes::<24>();
    let sealed = SalsaBox::new(server, secret)
        .encrypt(Nonce::from_slice(&nonce), json.as_bytes())
        .expect("sealing cannot fail");
    frame(CLIENT_INFO, &[secret.public_key().as_bytes(), &nonce[..], &sealed].concat())
}

pub(crate) fn random_secret() -> SecretKey {
    SecretKey::from(random_bytes::<32>())
}

pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// A TLS connection to a relay and what has been received on it but not yet taken.
pub(crate) struct Wire {
    stream: StreamOwned<ClientConnection, TcpStream>,
    pub(crate) received: Vec<u8>,
}

impl Wire {
    /// Connects with TLS 1.3 and no server name, as clients do for an IP address.
    pub(crate) fn connect(server: &Server) -> Self {
        Self::connect_to(server.tls_address(), ServerName::IpAddress(server.ip().into()), None)
            .expect("the TLS handshake succeeds")
    }

    /// Connects with a chosen server name and, if given, only the one TLS version.
    pub(crate) fn connect_to(
        address: SocketAddr,
        name: ServerName<'static>,
        version: Option<&'static SupportedProtocolVersion>,
    ) -> Result<Self, std::io::Error> {
        Self::over(TcpStream::connect(address)?, name, version)
    }

    /// Begins TLS on a connection, on which something may have been sent already.
    pub(crate) fn over(
        socket: TcpStream,
        name: ServerName<'static>,
        version: Option<&'static SupportedProtocolVersion>,
    ) -> Result<Self, std::io::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let versions = version.map_or(vec![&rustls::version::TLS13], |version| vec![version]);
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .expect("the provider knows this version")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let connection =
            ClientConnection::new(Arc::new(config), name).expect("the configuration is complete");
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream, received: Vec::new() })
    }

    /// The certificates the relay presented, the meta certificate included.
    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.stream.conn.peer_certificates().unwrap_or_default()
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream.sock
    }

    /// The TLS session and its socket, for a test that misuses them.
    pub(crate) fn stream(&mut self) -> &mut StreamOwned<ClientConnection, TcpStream> {
        &mut self.stream
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).expect("the relay takes what is sent");
    }

    /// Writes to a relay that may have closed the connection already.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Writes each piece in a TLS record of its own, and all of them at once.
    pub(crate) fn write_records(&mut self, pieces: &[Vec<u8>]) {
        for piece in pieces {
            self.stream.conn.writer().write_all(piece).expect("few enough bytes to be kept");
        }
        self.stream.flush().expect("the relay takes what is sent");
    }

    /// Waits for more bytes: `None` at the deadline, `Some(0)` once the relay has closed.
    pub(crate) fn fill(&mut self, deadline: Instant) -> Option<usize> {
        let mut chunk = [0; 32 * 1024];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.sock.set_read_timeout(Some(left)).expect("a non-zero timeout");
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.received.extend_from_slice(&chunk[..count]);
                    return Some(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(0),
            }
        }
    }

    /// Takes the head of an HTTP answer, up to and including the blank line.
    pub(crate) fn response_head(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let end = self.received.windows(4).position(|window| window == b"\r\n\r\n");
            if let Some(end) = end {
                let head = self.received.drain(..end + 4).collect();
                return String::from_utf8(head).expect("HTTP heads are ASCII");
            }
            let more = self.fill(deadline);
            assert!(matches!(more, Some(1..)), "no HTTP answer, got {:?}", self.received);
        }
    }

    /// Sends a whole HTTP request and reads until the relay closes.
    pub(crate) fn http(&mut self, request: &str) -> crate::server::Response {
        self.write(request.as_bytes());
        let deadline = Instant::now() + PATIENCE;
        while matches!(self.fill(deadline), Some(1..)) {}
        crate::server::Response::parse(&self.received)
    }

    /// Waits for the next frame.
    pub(crate) fn event(&mut self, patience: Duration) -> Event {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(frame) = self.take_frame() {
                return Event::Frame(frame);
            }
            match self.fill(deadline) {
                None => return Event::Silence,
                Some(0) => return Event::Closed,
                Some(_) => {}
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let (header, rest) = self.received.split_first_chunk::<5>()?;
        let [kind, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).expect("usize has 32 bits");
        let payload = rest.get(..length)?.to_vec();
        self.received.drain(..header.len() + length);
        Some(Frame { kind, payload })
    }

    /// Waits for a frame that has to come and be of this kind; keepalives may come before it.
    pub(crate) fn expect(&mut self, kind: u8) -> Vec<u8> {
        loop {
            match self.event(PATIENCE) {
                Event::Frame(frame) if frame.kind == kind => return frame.payload,
                Event::Frame(frame) if frame.kind == KEEP_ALIVE => {}
                event @ (Event::Frame(_) | Event::Closed | Event::Silence) => {
                    panic!("expected a frame of type {kind:#04x}, got {event:?}")
                }
            }
        }
    }

    /// Checks that nothing arrives for a while and the connection stays open.
    pub(crate) fn expect_silence(&mut self, duration: Duration) {
        assert_eq!(self.event(duration), Event::Silence);
    }

    /// Checks that the relay closes the connection and sends nothing before that.
    pub(crate) fn expect_closed(&mut self) {
        assert_eq!(self.event(PATIENCE), Event::Closed);
    }

    /// Takes the ServerKey frame that every connection starts with.
    pub(crate) fn expect_server_key(&mut self) -> PublicKey {
        let payload = self.expect(SERVER_KEY);
        let key = payload.strip_prefix(MAGIC).expect("the frame starts with the magic");
        PublicKey::from_slice(key).expect("the rest of the frame is a key")
    }

    /// Upgrades without fast start, up to and including the ServerKey frame.
    pub(crate) fn upgrade(&mut self) -> PublicKey {
        self.upgrade_with("Connection: Upgrade\r\nUpgrade: DERP")
    }

    fn upgrade_with(&mut self, headers: &str) -> PublicKey {
        let request = format!("GET /derp HTTP/1.1\r\nHost: relay\r\n{headers}\r\n\r\n");
        self.write(request.as_bytes());
        let head = self.response_head();
        assert!(head.starts_with("HTTP/1.1 101 "), "refused: {head}");
        self.expect_server_key()
    }

    /// The relay's key as its meta certificate announces it.
    pub(crate) fn announced_key(&self) -> PublicKey {
        let last = self.certificates().last().expect("a relay presents certificates");
        let (_, certificate) = x509_parser::parse_x509_certificate(last).expect("valid DER");
        let name = certificate.subject().iter_common_name().next().expect("a common name");
        let digits = name.as_str().expect("text").strip_prefix("derpkey").expect("a meta name");
        PublicKey::from_slice(&parse_hex(digits)).expect("32 bytes")
    }
}

/// A peer that is logged in.
pub(crate) struct Peer {
    pub(crate) wire: Wire,
    pub(crate) secret: SecretKey,
}

impl Peer {
    /// Connects a new ordinary client.
    pub(crate) fn connect(server: &Server) -> Self {
        Self::connect_as(server, random_secret(), r#"{"version":2,"CanAckPings":true}"#)
    }

    /// Connects with a given key and ClientInfo, and checks ServerInfo.
    pub(crate) fn connect_as(server: &Server, secret: SecretKey, json: &str) -> Self {
        Self::log_in(Wire::connect(server), secret, json)
    }

    /// The same, with these HTTP headers.
    pub(crate) fn connect_with(
        server: &Server,
        headers: &str,
        secret: SecretKey,
        json: &str,
    ) -> Self {
        Self::log_in_with(Wire::connect(server), headers, secret, json)
    }

    /// Logs in on a connection, and checks ServerInfo.
    pub(crate) fn log_in(wire: Wire, secret: SecretKey, json: &str) -> Self {
        Self::log_in_with(wire, "Connection: Upgrade\r\nUpgrade: DERP", secret, json)
    }

    fn log_in_with(mut wire: Wire, headers: &str, secret: SecretKey, json: &str) -> Self {
        let server_key = wire.upgrade_with(headers);
        wire.write(&client_info(&secret, &server_key, json));
        let info = wire.expect(SERVER_INFO);
        assert_eq!(open_server_info(&secret, &server_key, &info), r#"{"version":2}"#);
        Self { wire, secret }
    }

    pub(crate) fn key(&self) -> PublicKey {
        self.secret.public_key()
    }

    pub(crate) fn send(&mut self, destination: &PublicKey, packet: &[u8]) {
        self.wire.write(&send_packet(destination, packet));
    }

    /// Waits for a packet and splits it into its source and its contents.
    pub(crate) fn receive(&mut self) -> (PublicKey, Vec<u8>) {
        let payload = self.wire.expect(RECV_PACKET);
        let (source, packet) = payload.split_at_checked(32).expect("RecvPacket starts with a key");
        (PublicKey::from_slice(source).expect("32 bytes"), packet.to_vec())
    }

    /// Waits until the relay has handled everything sent so far on this connection.
    pub(crate) fn round_trip(&mut self) {
        let token = random_bytes::<8>();
        self.wire.write(&frame(PING, &token));
        assert_eq!(self.wire.expect(PONG), token);
    }
}

/// Opens the sealed JSON of a ServerInfo frame.
pub(crate) fn open_server_info(secret: &SecretKey, server: &PublicKey, payload: &[u8]) -> String {
    let (nonce, sealed) = payload.split_at_checked(24).expect("ServerInfo starts with a nonce");
    let json = SalsaBox::new(server, secret)
        .decrypt(Nonce::from_slice(nonce), sealed)
        .expect("sealed by the relay's key for this client");
    String::from_utf8(json).expect("JSON is UTF-8")
}

pub(crate) fn parse_hex(digits: &str) -> Vec<u8> {
    assert!(digits.is_ascii() && digits.len().is_multiple_of(2), "{digits:?} is not hex");
    (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).expect("hex digits"))
        .collect()
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A disco-looking packet of the given length.
pub(crate) fn disco_packet(length: usize) -> Vec<u8> {
    let mut packet = DISCO_MAGIC.to_vec();
    packet.resize(length, 0);
    packet
}

/// Takes any certificate: what the relay presents is looked at by the tests themselves.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
