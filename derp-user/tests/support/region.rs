//! Relays of one region: a common mesh key, certificates of one authority, addresses that are known
//! before they start. And a mesh peer that does what a test wants.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crypto_box::{Nonce, PublicKey, SalsaBox, SecretKey, aead::Aead};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tempfile::TempDir;

use crate::{
    peer::{
        CLIENT_INFO, FORWARD_PACKET, Frame, MAGIC, PEER_GONE, PEER_PRESENT, Peer, SERVER_INFO,
        SERVER_KEY, WATCH_CONNS, frame, random_bytes, random_secret,
    },
    server::{AUTHORITY_FILE, PATIENCE, Place, Server, binary, write_file},
};

/// The key of every region.
pub(crate) const MESH_KEY: &str =
    "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";
/// What a client with the mesh key says of itself.
pub(crate) const MESH_INFO: &str =
    r#"{"version":2,"meshKey":"1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100"}"#;

/// Signs the certificates of a region.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("no names");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = parameters.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(parameters, key), certificate }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new([name.to_owned()]).expect("a name");
        (parameters.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    /// The authority's certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.certificate
    }

    /// The authority's certificate in a file.
    pub(crate) fn write(&self, directory: &TempDir) -> PathBuf {
        write_file(directory.path(), AUTHORITY_FILE, &self.certificate).into()
    }
}

/// Where a relay of a region will be, and its files.
pub(crate) struct Site {
    pub(crate) place: Place,
    pub(crate) directory: Arc<TempDir>,
}

impl Site {
    /// A place of its own, with the mesh key and a certificate for its address.
    pub(crate) fn prepare(authority: &Authority) -> Self {
        let place = Place::own_address();
        Self::prepare_at(authority, place, &place.address().to_string())
    }

    /// At this place, with the mesh key and a certificate for this name.
    pub(crate) fn prepare_at(authority: &Authority, place: Place, name: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let (certificate, key) = authority.sign(name);
        let certificates = directory.path().join("certs");
        fs::create_dir(&certificates).expect("an empty directory");
        write_file(&certificates, &format!("{name}.crt"), &certificate.pem());
        write_file(&certificates, &format!("{name}.key"), &key.serialize_pem());
        write_file(directory.path(), "mesh.key", MESH_KEY);
        authority.write(&directory);
        Self { place, directory: Arc::new(directory) }
    }

    /// As the value of `-mesh-with` has it.
    pub(crate) fn name(&self) -> String {
        self.place.tls_address().to_string()
    }

    /// Starts the relay, meshed with these.
    pub(crate) fn start(&self, mesh_with: &[String]) -> Server {
        self.start_binary(binary(), mesh_with)
    }

    pub(crate) fn start_binary(&self, binary: PathBuf, mesh_with: &[String]) -> Server {
        self.start_with(binary, mesh_with, &[])
    }

    /// The same, with further flags.
    pub(crate) fn start_with(
        &self,
        binary: PathBuf,
        mesh_with: &[String],
        more: &[String],
    ) -> Server {
        let key = self.directory.path().join("mesh.key");
        let own = [
            format!("-mesh-psk-file={}", key.display()),
            format!("-mesh-with={}", mesh_with.join(",")),
        ];
        let flags: Vec<&str> = own.iter().chain(more).map(String::as_str).collect();
        Server::start_binary(&binary, || self.place, Arc::clone(&self.directory), &flags)
    }
}

/// A relay, and peers that do what the test wants, with which it is meshed.
pub(crate) fn start_with_peers<const COUNT: usize>() -> (Server, [FakePeer; COUNT]) {
    start_with_peers_and(&[])
}

/// The same, with further flags.
pub(crate) fn start_with_peers_and<const COUNT: usize>(
    flags: &[&str],
) -> (Server, [FakePeer; COUNT]) {
    let authority = Authority::new();
    let peers = [(); COUNT].map(|()| FakePeer::new(&authority, None));
    let site = Site::prepare(&authority);
    let names: Vec<_> = peers.iter().map(FakePeer::name).collect();
    let flags: Vec<_> = flags.iter().map(|&flag| flag.to_owned()).collect();
    (site.start_with(binary(), &names, &flags), peers)
}

/// Connects with the mesh key.
pub(crate) fn mesh_client(server: &Server) -> Peer {
    Peer::connect_as(server, random_secret(), MESH_INFO)
}

/// A server that a relay takes for a mesh peer.
pub(crate) struct FakePeer {
    listener: TcpListener,
    config: Arc<ServerConfig>,
    secret: SecretKey,
}

impl FakePeer {
    /// Listens on an address of its own, with a certificate for `name` or for that address.
    pub(crate) fn new(authority: &Authority, name: Option<&str>) -> Self {
        let address = Place::own_address().address();
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let (certificate, key) = authority.sign(name.unwrap_or(&address.to_string()));
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("they fit");
        Self { listener, config: Arc::new(config), secret: random_secret() }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().expect("bound")
    }

    /// As the value of `-mesh-with` has it.
    pub(crate) fn name(&self) -> String {
        self.address().to_string()
    }

    /// Waits for the relay to connect, to log in with the mesh key, and to ask who is here.
    pub(crate) fn accept(&self) -> FakeLink {
        self.listener.set_nonblocking(true).expect("a listener");
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(Instant::now() < deadline, "the relay does not connect");
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => panic!("accept: {error}"),
            }
        };
        stream.set_nonblocking(false).expect("a socket");
        stream.set_nodelay(true).expect("a socket");
        stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
        let connection = ServerConnection::new(Arc::clone(&self.config)).expect("a configuration");
        let mut link = FakeLink {
            stream: StreamOwned::new(connection, stream),
            received: Vec::new(),
            client: self.secret.public_key(),
        };
        link.log_in(&self.secret);
        link
    }
}

/// What a relay that takes us for a mesh peer is connected by.
pub(crate) struct FakeLink {
    stream: StreamOwned<ServerConnection, TcpStream>,
    received: Vec<u8>,
    /// The relay's key.
    pub(crate) client: PublicKey,
}

impl FakeLink {
    fn log_in(&mut self, secret: &SecretKey) {
        while !self.received.ends_with(b"\r\n\r\n") {
            self.fill();
        }
        let head = String::from_utf8(std::mem::take(&mut self.received)).expect("HTTP");
        assert!(head.starts_with("GET /derp HTTP/1.1\r\n"), "{head}");
        let own = secret.public_key();
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n";
        self.write(&[answer, &*frame(SERVER_KEY, &[MAGIC, own.as_bytes()].concat())].concat());
        let info = self.expect(CLIENT_INFO);
        let (key, rest) = info.split_first_chunk::<32>().expect("a key");
        let (nonce, sealed) = rest.split_first_chunk::<24>().expect("a nonce");
        self.client = PublicKey::from(*key);
        let sealing = SalsaBox::new(&self.client, secret);
        let json = sealing.decrypt(Nonce::from_slice(nonce), sealed).expect("sealed for this peer");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(json["meshKey"], MESH_KEY);
        let nonce = random_bytes::<24>();
        let sealed =
            sealing.encrypt(Nonce::from_slice(&nonce), &b"{\"version\":2}"[..]).expect("sealed");
        self.write(&frame(SERVER_INFO, &[&nonce[..], &sealed].concat()));
        assert_eq!(self.expect(WATCH_CONNS), b"");
    }

    /// The server name that the relay asked for.
    pub(crate) fn server_name(&self) -> Option<&str> {
        self.stream.conn.server_name()
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the relay takes what is sent");
        self.stream.flush().expect("the relay takes what is sent");
    }

    fn fill(&mut self) -> usize {
        let mut chunk = [0; 16 * 1024];
        let count = self.stream.read(&mut chunk).expect("the relay sends something");
        self.received.extend_from_slice(&chunk[..count]);
        count
    }

    /// Waits for the next frame, which must be of this kind.
    pub(crate) fn expect(&mut self, kind: u8) -> Vec<u8> {
        loop {
            if let Some(next) = self.take_frame() {
                assert_eq!(next.kind, kind, "{next:?}");
                return next.payload;
            }
            assert!(self.fill() > 0, "the relay closed the link");
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

    /// Waits for a forwarded packet: source, destination, contents.
    pub(crate) fn forwarded(&mut self) -> (PublicKey, PublicKey, Vec<u8>) {
        let payload = self.expect(FORWARD_PACKET);
        let (source, rest) = payload.split_first_chunk::<32>().expect("a source");
        let (destination, packet) = rest.split_first_chunk::<32>().expect("a destination");
        (PublicKey::from(*source), PublicKey::from(*destination), packet.to_vec())
    }

    /// Says that a client is here.
    pub(crate) fn present(&mut self, key: &PublicKey) {
        let address = [&Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets()[..], &[4, 0, 1]].concat();
        self.write(&frame(PEER_PRESENT, &[key.as_bytes(), &address[..]].concat()));
    }

    /// Says that a client is not here.
    pub(crate) fn gone(&mut self, key: &PublicKey, reason: u8) {
        self.write(&frame(PEER_GONE, &[key.as_bytes(), &[reason][..]].concat()));
    }
}

/// The ForwardPacket frame that a mesh peer sends to a relay.
pub(crate) fn forward_packet(
    source: &PublicKey,
    destination: &PublicKey,
    packet: &[u8],
) -> Vec<u8> {
    frame(FORWARD_PACKET, &[source.as_bytes(), destination.as_bytes(), packet].concat())
}
