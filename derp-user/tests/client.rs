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
    client::{Client, ClientError, Connector, Receiver, Target, Trust, new_key},
    flow::FlowsView,
    http::{DebugAccess, Home, Settings as SiteSettings, Site, TlsRequests},
    proto::{
        client::read::Message,
        keys::{NodePrivate, NodePublic},
        message::GoneReason,
    },
    server::{DEFAULT_QUEUE_DEPTH, Server, Settings, Statistics, VerboseClients},
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
            Arc::new(tls::server_config(certificate, meta).expect("a TLS configuration"))
        });
        let site = Site::new(SiteSettings {
            home: Home::default(),
            derp_enabled,
            hostname: "127.0.0.1".to_owned(),
            machine: String::new(),
            version: "test",
            has_mesh_key: false,
            admission: Box::new(String::new),
            access: DebugAccess::new(None, None, None, false).expect("nothing to refuse"),
            started: Instant::now(),
            varz: Box::new(String::new),
            vars: Box::new(String::new),
            tls_requests: TlsRequests::default(),
            traffic: Box::new(|| None),
            bootstrap: Arc::default(),
            flows: Box::new(FlowsView::default),
            check: Box::new(|| Ok(())),
        });
        let workers = NonZeroUsize::new(2).expect("not zero");
        let settings = Settings {
            private_key,
            mesh_key: None,
            tls,
            min_workers: workers,
            queue_depth: DEFAULT_QUEUE_DEPTH,
            write_timeout: Some(Duration::from_secs(2)),
            tcp_user_timeout: None,
            tcp_keepalive_idle: None,
            accept_limit: None,
            proxies: Arc::default(),
            admission: Arc::new(Admission::open()),
            verbose_clients: VerboseClients::None,
            verbose_drops: None,
            rates: None,
            site: Arc::new(site),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
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
