//! The public client against a real server in this process.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use derp_user::{
    admit::Admission,
    client::{
        Client, ClientError, Connector, Event, Proxies, Receiver, RegionConnector, Target, Trust,
        map::{Node, Region},
        new_key, standing,
    },
    flow::FlowsView,
    http::{DebugAccess, Home, Settings as SiteSettings, Site, TlsRequests},
    metrics::MeshView,
    proto::{
        client::read::Message,
        keys::{NodePrivate, NodePublic},
        message::GoneReason,
    },
    relay::limit::{LEAST_BURST, RateLimit},
    server::{
        ConnectionLimits, DEFAULT_QUEUE_DEPTH, Rates, Server, Settings, Statistics, VerboseClients,
    },
    tls,
};
use tempfile::TempDir;
use tokio::time::timeout;

/// How long something may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a port that the system chose, with or without TLS.
struct Relay {
    server: Option<Server>,
    address: SocketAddr,
    key: NodePublic,
    pin: String,
    directory: TempDir,
}

impl Relay {
    fn start(with_tls: bool, derp_enabled: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        Self::start_on(listener, with_tls, derp_enabled, None)
    }

    /// The same on this socket; clients are asked to keep to `limit`.
    fn start_on(
        listener: TcpListener,
        with_tls: bool,
        derp_enabled: bool,
        limit: Option<RateLimit>,
    ) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let private_key = NodePrivate::from_random([3; 32]);
        let key = private_key.public();
        let now = SystemTime::now();
        let mut pin = String::new();
        let tls = with_tls.then(|| {
            let certificate =
                tls::load_or_create(directory.path(), "127.0.0.1", now).expect("a certificate");
            let hint = certificate.pinning_hint().expect("a hint for an IP address");
            let start = hint.find("sha256-raw:").expect("a pin");
            pin = hint[start..].split('"').next().unwrap_or_default().to_owned();
            let meta = tls::meta_certificate(&key, now).expect("a meta certificate");
            let manual = tls::ManualCertificate::load(directory.path(), "127.0.0.1", meta, now)
                .expect("the certificate");
            tls::Acceptor::new(Arc::clone(manual.certificates())).expect("a TLS configuration")
        });
        let site = Site::new(SiteSettings {
            home: Home::default(),
            derp_enabled,
            hostname: "127.0.0.1".to_owned(),
            machine: String::new(),
            version: "test",
            has_mesh_key: Box::new(|| false),
            mesh: Box::new(MeshView::default),
            status: Box::new(|_| derp_user::status::Status::default()),
            admission: Box::new(String::new),
            access: DebugAccess::new(None, None, None, false).expect("nothing to refuse"),
            acme_challenge: None,
            started: Instant::now(),
            varz: Box::new(String::new),
            vars: Box::new(String::new),
            tls_requests: TlsRequests::default(),
            traffic: Box::new(|| None),
            bootstrap: Arc::default(),
            flows: Box::new(FlowsView::default),
            peer_relay: Box::new(|| None),
            wireguard: Box::new(|| None),
            check: Box::new(|| Ok(())),
        });
        let workers = NonZeroUsize::new(2).expect("not zero");
        let settings = Settings {
            private_key,
            mesh_secret: Arc::default(),
            tls,
            min_workers: workers,
            queue_depth: DEFAULT_QUEUE_DEPTH,
            write_timeout: Some(Duration::from_secs(2)),
            tcp_user_timeout: None,
            tcp_keepalive_idle: None,
            accept_limit: None,
            connection_limits: ConnectionLimits::default(),
            proxies: Arc::default(),
            admission: Arc::new(Admission::open()),
            verbose_clients: VerboseClients::None,
            verbose_drops: None,
            rates: limit.map(|limit| Arc::new(Rates::new(Some(limit)))),
            site: Arc::new(site),
        };
        let address = listener.local_addr().expect("bound");
        let statistics = Statistics::new(key, workers);
        let server = Server::start(listener, settings, &statistics).expect("the server starts");
        Self { server: Some(server), address, key, pin, directory }
    }

    fn target(&self) -> Target {
        let scheme = if self.pin.is_empty() { "http" } else { "https" };
        format!("{scheme}://{}", self.address).parse().expect("a target")
    }

    fn connector(&self, trust: &Trust) -> Connector {
        Connector::new(self.target(), trust).expect("a connector")
    }

    fn certificate(&self) -> PathBuf {
        self.directory.path().join("127.0.0.1.crt")
    }

    fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().expect("the workers end");
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn connect(connector: &Connector) -> (NodePrivate, Client) {
    let key = new_key().expect("a key");
    let client = connector.connect(&key).await.expect("connected");
    (key, client)
}

/// What connecting fails with, in words.
async fn refusal(connector: &Connector) -> (ClientError, String) {
    let key = new_key().expect("a key");
    let error = connector.connect(&key).await.err().expect("refused");
    let text = error.to_string();
    (error, text)
}

/// Waits for the next message that is no KeepAlive.
async fn next(receiver: &mut Receiver) -> Result<Owned, ClientError> {
    loop {
        let message = timeout(PATIENCE, receiver.recv()).await.expect("something comes")?;
        match message {
            Message::KeepAlive => {}
            Message::Packet { source, packet } => {
                return Ok(Owned::Packet(source, packet.to_vec()));
            }
            Message::PeerGone { key, reason } => return Ok(Owned::Gone(key, reason)),
            Message::Pong(data) => return Ok(Owned::Pong(data)),
            Message::PeerPresent { .. }
            | Message::Ping(_)
            | Message::Health(_)
            | Message::Restarting { .. } => panic!("{message:?}"),
        }
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Owned {
    Packet(NodePublic, Vec<u8>),
    Gone(NodePublic, Option<GoneReason>),
    Pong([u8; 8]),
}

async fn exchange(relay: &Relay, connector: &Connector) {
    let (alice, to_alice) = connect(connector).await;
    let (bob, to_bob) = connect(connector).await;
    assert_eq!(to_alice.server_key(), relay.key);
    assert_eq!(to_alice.server_info().version, 2);
    let (mut alice_sends, mut alice_receives) = to_alice.split();
    let (mut bob_sends, mut bob_receives) = to_bob.split();

    alice_sends.note_preferred(true).await.expect("sent");
    alice_sends.ping(*b"12345678").await.expect("sent");
    assert_eq!(next(&mut alice_receives).await.expect("a Pong"), Owned::Pong(*b"12345678"));

    // From nothing to the longest, which takes several TLS records and many reads.
    let lengths = [0, 1, 1400, 16_384, 65_536];
    for length in lengths {
        let packet = vec![length as u8; length];
        alice_sends.send(&bob.public(), &packet).await.expect("sent");
        let expected = Owned::Packet(alice.public(), packet.clone());
        assert_eq!(next(&mut bob_receives).await.expect("a packet"), expected);
        bob_sends.send(&alice.public(), &packet).await.expect("sent");
        let expected = Owned::Packet(bob.public(), packet);
        assert_eq!(next(&mut alice_receives).await.expect("a packet"), expected);
    }
    let error = alice_sends.send(&bob.public(), &vec![0; 65_537]).await.expect_err("too long");
    assert!(matches!(error, ClientError::Packet(_)), "{error}");

    // Dropped while it waits, a receiver loses nothing.
    for _ in 0..3 {
        let waiting = timeout(Duration::from_millis(5), bob_receives.recv()).await;
        assert!(waiting.is_err());
    }
    alice_sends.send(&bob.public(), b"after").await.expect("sent");
    let expected = Owned::Packet(alice.public(), b"after".to_vec());
    assert_eq!(next(&mut bob_receives).await.expect("a packet"), expected);

    bob_sends.close().await.expect("said farewell");
    drop(bob_receives);
    let gone = Owned::Gone(bob.public(), Some(GoneReason::Disconnected));
    assert_eq!(next(&mut alice_receives).await.expect("a notice"), gone);
}

#[tokio::test]
async fn packets_over_a_pinned_certificate() {
    let relay = Relay::start(true, true);
    let pin = relay.pin.parse().expect("a pin");
    exchange(&relay, &relay.connector(&Trust::Pinned(pin))).await;
}

#[tokio::test]
async fn packets_over_any_certificate_and_resolved_once() {
    let relay = Relay::start(true, true);
    let connector = relay.connector(&Trust::Anything).resolved().await.expect("an address");
    exchange(&relay, &connector).await;
}

#[tokio::test]
async fn packets_over_plain_http() {
    let relay = Relay::start(false, true);
    exchange(&relay, &relay.connector(&Trust::System)).await;
}

#[tokio::test]
async fn packets_over_a_root_of_ones_own() {
    let relay = Relay::start(true, true);
    exchange(&relay, &relay.connector(&Trust::Roots(relay.certificate()))).await;
}

/// Both halves at work at once, with more data than any buffer holds.
#[tokio::test]
async fn both_directions_at_once_lose_no_byte() {
    const PACKETS: usize = 300;
    let relay = Relay::start(true, true);
    let connector = relay.connector(&Trust::Anything);
    let (key, client) = connect(&connector).await;
    let (mut sender, mut receiver) = client.split();
    let sending = async {
        for number in 0..PACKETS {
            let packet = vec![number as u8; 32 << 10];
            sender.send(&key.public(), &packet).await.expect("sent");
        }
        sender.ping(*b"the end!").await.expect("sent");
    };
    // A relay drops what a slow receiver leaves; whatever comes must be whole and in order.
    let receiving = async {
        let mut last = None;
        loop {
            match next(&mut receiver).await.expect("connected") {
                Owned::Packet(source, packet) => {
                    assert_eq!((source, packet.len()), (key.public(), 32 << 10));
                    assert!(packet.iter().all(|byte| *byte == packet[0]));
                    last = Some(packet[0]);
                }
                Owned::Pong(data) => {
                    assert_eq!(data, *b"the end!");
                    return last;
                }
                Owned::Gone(..) => panic!("nobody left"),
            }
        }
    };
    let ((), last) = tokio::join!(sending, receiving);
    assert!(last.is_some());
}

#[tokio::test]
async fn the_end_of_the_relay_is_an_error() {
    let mut relay = Relay::start(true, true);
    let (_, client) = connect(&relay.connector(&Trust::Anything)).await;
    let (_sender, mut receiver) = client.split();
    relay.stop();
    let error = next(&mut receiver).await.expect_err("the relay is gone");
    assert!(matches!(error, ClientError::Closed { .. } | ClientError::Io { .. }), "{error}");
}

#[tokio::test]
async fn certificates_that_are_not_trusted_are_refused() {
    let relay = Relay::start(true, true);
    let (error, text) = refusal(&relay.connector(&Trust::Pinned(
        format!("sha256-raw:{}", "0".repeat(64)).parse().expect("a pin"),
    )))
    .await;
    assert!(matches!(error, ClientError::Tls { .. }), "{text}");
    assert!(text.contains(&relay.address.to_string()), "{text}");

    let other = Relay::start(true, true);
    let (error, text) = refusal(&relay.connector(&Trust::Roots(other.certificate()))).await;
    assert!(matches!(error, ClientError::Tls { .. }), "{text}");
    let roots = Trust::Roots(relay.certificate());
    let named = relay.connector(&roots).with_server_name("relay.test").expect("a name");
    let (error, text) = refusal(&named).await;
    assert!(matches!(error, ClientError::Tls { .. }), "{text}");
    drop(fs::remove_file(relay.certificate()));
}

#[tokio::test]
async fn a_server_that_does_not_relay_says_so() {
    let relay = Relay::start(true, false);
    let (error, text) = refusal(&relay.connector(&Trust::Anything)).await;
    assert!(matches!(error, ClientError::Refused { status: 404, .. }), "{text}");
    assert!(text.contains("derp server disabled"), "{text}");
}

#[tokio::test]
async fn nobody_there_is_an_error_that_names_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let target: Target = format!("http://{free}").parse().expect("a target");
    let (error, text) = refusal(&Connector::new(target, &Trust::System).expect("plain")).await;
    assert!(matches!(error, ClientError::Connect { .. }), "{text}");
    assert!(text.contains(&free.to_string()), "{text}");
}

/// Serves one connection with fixed bytes, whatever is asked, and returns where.
fn impostor(answer: &'static [u8]) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let _ = socket.read(&mut request);
        let _ = socket.write_all(answer);
        // Whatever the client says to that.
        let _ = socket.set_read_timeout(Some(Duration::from_millis(200)));
        while matches!(socket.read(&mut request), Ok(1..)) {}
    });
    format!("http://{address}").parse().expect("a target")
}

#[tokio::test]
async fn servers_of_other_protocols_are_told_apart() {
    const UPGRADED: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\n\r\n";
    type Expected = fn(&ClientError) -> bool;
    let answers: [(&'static [u8], Expected); 5] = [
        (b"SSH-2.0-OpenSSH\r\n", |error| matches!(error, ClientError::NotHttp { .. })),
        (
            b"HTTP/1.1 200 OK\r\n\r\nhello",
            |error| matches!(error, ClientError::Refused { status: 200, body, .. } if body == "hello"),
        ),
        (UPGRADED.as_bytes(), |error| matches!(error, ClientError::Closed { .. })),
        (
            b"HTTP/1.1 101 OK\r\n\r\n\x01\x00\x00\x00\x28not the magic of this protocol, at all...",
            |error| matches!(error, ClientError::Login { .. }),
        ),
        (b"", |error| matches!(error, ClientError::Closed { .. } | ClientError::Io { .. })),
    ];
    for (answer, expected) in answers {
        let connector = Connector::new(impostor(answer), &Trust::System).expect("plain");
        let (error, text) = refusal(&connector).await;
        assert!(expected(&error), "{:?}: {text}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn packets_without_fast_start() {
    let relay = Relay::start(true, true);
    exchange(&relay, &relay.connector(&Trust::Anything).without_fast_start()).await;
}

/// Where the certificates tell the relay's key, request and login are one write; and the key that comes
/// must be that one.
#[tokio::test]
async fn the_login_goes_out_with_the_request() {
    let announced = NodePrivate::from_random([5; 32]).public();
    let directory = TempDir::new().expect("a temporary directory");
    let now = SystemTime::now();
    let certificate = tls::load_or_create(directory.path(), "127.0.0.1", now).expect("made");
    let meta = tls::meta_certificate(&announced, now).expect("made");
    let config = Arc::new(tls::server_config(certificate, meta).expect("a configuration"));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let server = thread::spawn(move || {
        let (socket, _) = listener.accept().expect("a client");
        let connection = rustls::ServerConnection::new(config).expect("a configuration");
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let (mut received, mut chunk) = (Vec::new(), [0; 4096]);
        // Not a byte is sent before the login is here.
        let login = loop {
            let count = stream.read(&mut chunk).expect("the login comes by itself");
            assert!(count > 0, "the client waits for an answer");
            received.extend_from_slice(&chunk[..count]);
            let head = received.windows(4).position(|it| it == b"\r\n\r\n");
            if let Some(end) = head.filter(|end| received.len() > end + 4 + 5 + 56) {
                break received.split_off(end + 4);
            }
        };
        let head = String::from_utf8(received).expect("HTTP");
        assert!(head.starts_with("GET /derp HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("\r\nDerp-Fast-Start: 1\r\n"), "{head}");
        assert_eq!(login[0], 2, "ClientInfo");
        let other = NodePrivate::from_random([6; 32]).public();
        let frame = derp_user::proto::login::server_key(&other);
        stream.write_all(&frame).expect("taken");
        let _ = stream.read(&mut chunk);
    });
    let target: Target = format!("https://{address}").parse().expect("a target");
    let connector = Connector::new(target, &Trust::Anything).expect("a connector");
    let (error, text) = refusal(&connector).await;
    assert!(matches!(error, ClientError::Login { .. }), "{text}");
    assert!(text.contains("not the one in its certificates"), "{text}");
    server.join().expect("the server saw what it expected");
}

/// A relay in a map, by its pin.
fn node(name: &str, relay: &Relay) -> Node {
    Node {
        name: name.to_owned(),
        region_id: 900,
        host_name: "127.0.0.1".to_owned(),
        cert_name: relay.pin.clone(),
        derp_port: relay.address.port(),
        ..Node::default()
    }
}

/// A port where nobody listens.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port()
}

fn region(nodes: Vec<Node>) -> Region {
    Region { id: 900, code: "test".to_owned(), nodes, ..Region::default() }
}

#[tokio::test]
async fn a_region_is_whichever_of_its_relays_is_there() {
    let relay = Relay::start(true, true);
    let good = node("900c", &relay);
    let stun_only = Node { stun_only: true, name: "900a".to_owned(), ..good.clone() };
    let gone = Node { derp_port: closed_port(), name: "900b".to_owned(), ..good.clone() };
    let wrong = Node { cert_name: format!("sha256-raw:{}", "00".repeat(32)), ..good.clone() };
    let connector = |nodes| RegionConnector::new(&region(nodes), &Trust::System);
    let nodes = vec![stun_only.clone(), gone.clone(), wrong.clone(), good];
    let client = connector(nodes).expect("a connector").connect(&new_key().expect("a key")).await;
    let client = client.expect("the last one lets it in");
    assert_eq!((client.server_key(), client.host()), (relay.key, &*relay.address.to_string()));

    let dead = connector(vec![gone.clone(), wrong]).expect("a connector");
    let error = dead.connect(&new_key().expect("a key")).await.err().expect("nobody is there");
    let text = error.to_string();
    assert!(
        text.starts_with("no relay of region test lets us in: cannot connect to 127.0.0.1"),
        "{text}"
    );
    assert!(text.contains(&gone.derp_port.to_string()) && text.contains("; TLS with "), "{text}");

    let error = connector(vec![stun_only]).err().expect("nothing to dial");
    assert!(matches!(error, ClientError::NoRelay(_)), "{error}");
}

/// What a map says of a relay's addresses counts, not its name; and one family that is not there is no matter.
#[tokio::test]
async fn addresses_of_both_families_are_raced() {
    let relay = Relay::start(true, true);
    let name = "relay.invalid";
    let with = |ipv4: &str, ipv6: &str| {
        let (host_name, ipv4, ipv6) = (name.to_owned(), ipv4.to_owned(), ipv6.to_owned());
        Node { host_name, ipv4, ipv6, insecure_for_tests: true, ..node("900a", &relay) }
    };
    for node in [with("127.0.0.1", "::1"), with("127.0.0.1", "none"), with("127.0.0.1", "")] {
        let connector = Connector::to_node(&node, &Trust::System).expect("a connector");
        // The certificate is for the address, and so is the server: another name has none.
        let connector = connector.with_server_name("127.0.0.1").expect("a name");
        let (_, client) = connect(&connector).await;
        assert_eq!(client.server_key(), relay.key, "{node:?}");
    }
    let nowhere = Connector::to_node(&with("none", "none"), &Trust::System).expect("a connector");
    let (error, text) = refusal(&nowhere).await;
    assert!(matches!(error, ClientError::Resolve { .. }), "{text}");
    assert!(text.contains("relay.invalid") && text.contains("no address"), "{text}");
}

/// A certificate for another name than the relay's, as CertName says.
#[tokio::test]
async fn the_name_in_the_map_is_the_one_in_the_certificate() {
    let relay = Relay::start(true, true);
    let named = |cert_name: &str| {
        let node = Node { cert_name: cert_name.to_owned(), ..node("900a", &relay) };
        Connector::to_node(&node, &Trust::Roots(relay.certificate())).expect("a connector")
    };
    connect(&named("127.0.0.1")).await;
    let (error, text) = refusal(&named("other.test")).await;
    assert!(matches!(error, ClientError::Tls { .. }), "{text}");
    assert!(text.contains("other.test"), "{text}");
}

/// A proxy that lets Aladdin in, and leads everybody to `relay`; what it was asked.
fn proxy(relay: SocketAddr) -> (SocketAddr, thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let asked = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte).expect("a whole request");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("HTTP");
        if !head.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n") {
            let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
            return head;
        }
        let relay = std::net::TcpStream::connect(relay).expect("the relay is there");
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").expect("taken");
        let (mut from, mut to) =
            (client.try_clone().expect("a socket"), relay.try_clone().expect("a socket"));
        thread::spawn(move || std::io::copy(&mut from, &mut to));
        thread::spawn(move || std::io::copy(&mut &relay, &mut &client));
        head
    });
    (address, asked)
}

#[tokio::test]
async fn a_relay_behind_a_proxy() {
    let relay = Relay::start(true, true);
    let through = |url: String| {
        let target: Target = "relay.test:8443".parse().expect("a target");
        let connector = Connector::new(target, &Trust::Anything).expect("a connector");
        // The relay's certificate is for its address.
        let connector = connector.with_server_name("127.0.0.1").expect("a name");
        connector.with_proxies(&Proxies::always(&url).expect("a proxy")).expect("plain HTTP")
    };
    let (address, asked) = proxy(relay.address);
    let (_, client) = connect(&through(format!("http://Aladdin:open%20sesame@{address}"))).await;
    assert_eq!(client.server_key(), relay.key);
    let head = asked.join().expect("it was asked");
    assert!(
        head.starts_with("CONNECT relay.test:8443 HTTP/1.1\r\nHost: relay.test:8443\r\n"),
        "{head}"
    );

    let (address, _asked) = proxy(relay.address);
    let (error, text) = refusal(&through(format!("http://Ali:baba@{address}"))).await;
    assert!(matches!(error, ClientError::ProxyRefused { status: 407, .. }), "{text}");
    assert!(text.contains(&address.to_string()) && text.contains("relay.test:8443"), "{text}");
    assert!(!text.contains("baba"), "{text}");
    let (error, text) = refusal(&through(format!("http://127.0.0.1:{}", closed_port()))).await;
    assert!(matches!(error, ClientError::Connect { .. }), "{text}");
}

/// As Tailscale's client: what is beyond the rate is lost at once, not queued.
#[tokio::test]
async fn the_rate_that_a_relay_announces_is_kept() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let limit = RateLimit { bytes_per_second: 1000, burst: LEAST_BURST, announced: true };
    let relay = Relay::start_on(listener, true, true, Some(limit));
    let (key, client) = connect(&relay.connector(&Trust::Anything)).await;
    assert_eq!(client.server_info().bytes_per_second, 1000);
    assert_eq!(client.server_info().bytes_burst, LEAST_BURST);
    let (mut sender, mut receiver) = client.split();
    for number in 0..10 {
        sender.send(&key.public(), &[number; 20_000]).await.expect("sent, or held back");
    }
    assert_eq!(sender.held_back(), 7, "65,568 bytes are three packets of 20,037");
    for number in 0..3 {
        let received = next(&mut receiver).await.expect("a packet");
        assert!(received == Owned::Packet(key.public(), vec![number; 20_000]), "packet {number}");
    }
    sender.ping(*b"the end!").await.expect("sent");
    assert_eq!(next(&mut receiver).await.expect("a Pong"), Owned::Pong(*b"the end!"));
}

#[tokio::test]
async fn a_standing_client_comes_back() {
    let mut relay = Relay::start(true, true);
    let connector = relay.connector(&Trust::Anything);
    let key = new_key().expect("a key");
    let (sender, mut receiver) = standing(connector, key.clone());
    assert!(!sender.send(&key.public(), b"early").await.expect("short"), "nobody is connected yet");
    let within = async |receiver: &mut derp_user::client::StandingReceiver| {
        let event = timeout(PATIENCE, receiver.next()).await.expect("something happens");
        match event {
            Event::Connected { server_key, .. } => format!("connected to {server_key}"),
            Event::Disconnected { pause, .. } => {
                assert!(pause <= Duration::from_secs(5), "{pause:?}");
                "disconnected".to_owned()
            }
            Event::Message(Message::Packet { packet, .. }) => {
                String::from_utf8_lossy(packet).into_owned()
            }
            Event::Message(_) => "other".to_owned(),
        }
    };
    let connected = format!("connected to {}", relay.key);
    assert_eq!(within(&mut receiver).await, connected);
    assert!(sender.send(&key.public(), b"first").await.expect("short"));
    assert_eq!(within(&mut receiver).await, "first");
    let error = sender.send(&key.public(), &vec![0; 65_537]).await.expect_err("too long");
    assert!(matches!(error, ClientError::Packet(_)), "{error}");

    relay.stop();
    assert_eq!(within(&mut receiver).await, "disconnected");
    assert!(!sender.send(&key.public(), b"lost").await.expect("short"));
    assert_eq!(within(&mut receiver).await, "disconnected", "nobody is there yet");
    let listener = TcpListener::bind(relay.address).expect("its port is free again");
    let _relay = Relay::start_on(listener, true, true, None);
    while within(&mut receiver).await != connected {}
    assert!(sender.clone().send(&key.public(), b"again").await.expect("short"));
    assert_eq!(within(&mut receiver).await, "again");
}
