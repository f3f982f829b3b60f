//! A server of several workers, seen by real clients in this process.

use std::net::{SocketAddr, TcpStream};

use hyper::http::{HeaderValue, header};
use tokio::time::timeout;
use tungstenite::{WebSocket, client::IntoClientRequest as _};

use super::*;
use crate::{
    client::{Connector, Receiver, Trust, new_key},
    http,
    proto::{
        client::{
            login::{self, LoginRequest},
            read::Message,
            write,
        },
        frame::HEADER_LENGTH,
        keys::MeshKey,
        login::{ClientInfo, NONCE_LENGTH},
    },
    tls::{self, ACME_TLS_PROTOCOL, AcceptAny, Certificates, tests::Validator},
};

const WORKERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A server without TLS all of whose workers are in use, until a test says otherwise.
pub(super) fn start() -> (Server, Statistics, SocketAddr) {
    start_at("127.0.0.1:0", NodePrivate::from_random([5; 32]), None)
}

/// The same, as a server of a mesh.
pub(super) fn start_at(
    address: &str,
    private_key: NodePrivate,
    mesh_key: Option<MeshKey>,
) -> (Server, Statistics, SocketAddr) {
    start_with(address, settings(private_key, mesh_key))
}

fn start_with(address: &str, settings: Settings) -> (Server, Statistics, SocketAddr) {
    let statistics = Statistics::new(settings.private_key.public(), WORKERS);
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::start(listener, settings, &statistics).unwrap();
    (server, statistics, address)
}

fn settings(private_key: NodePrivate, mesh_key: Option<MeshKey>) -> Settings {
    Settings {
        private_key,
        mesh_secret: Arc::new(MeshSecret::new(mesh_key)),
        tls: None,
        min_workers: WORKERS,
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
        rates: None,
        site: Arc::new(Site::new(http::fuzz::settings())),
    }
}

pub(super) fn connector(address: SocketAddr) -> Connector {
    Connector::new(format!("http://{address}").parse().unwrap(), &Trust::Anything).unwrap()
}

pub(super) async fn packet(receiver: &mut Receiver) -> Vec<u8> {
    loop {
        let message = timeout(PATIENCE, receiver.recv()).await.expect("in time").unwrap();
        if let Message::Packet { packet, .. } = message {
            return packet.to_vec();
        }
    }
}

/// Sessions follow the number of workers in use from one worker to another; nothing gets lost on
/// the way, whether a frame is complete or not.
#[tokio::test]
async fn sessions_move_between_workers_with_everything_they_have() {
    let (server, statistics, address) = start();
    let connector = connector(address);
    let mut senders = Vec::new();
    let mut receivers = Vec::new();
    let mut keys = Vec::new();
    for _ in 0..8 {
        let key = new_key().unwrap();
        let (sender, receiver) = connector.connect(&key).await.unwrap().split();
        keys.push(key.public());
        senders.push(sender);
        receivers.push(receiver);
    }
    // More than one quantum, so that a session moves in the middle of a frame.
    let large = vec![7; 60_000];
    for (round, active) in [3, 1, 2, 3, 2, 1, 3].into_iter().enumerate() {
        statistics.active_workers.store(active, Ordering::Relaxed);
        for (index, sender) in senders.iter_mut().enumerate() {
            let to = &keys[(index + round + 1) % keys.len()];
            sender.send(to, &[round as u8, index as u8]).await.unwrap();
            sender.send(to, &large).await.unwrap();
        }
        for (index, receiver) in receivers.iter_mut().enumerate() {
            let from = (index + 2 * keys.len() - round - 1) % keys.len();
            assert_eq!(packet(receiver).await, [round as u8, from as u8]);
            assert_eq!(packet(receiver).await, large);
        }
    }
    let totals = statistics.totals();
    assert_eq!(totals.accepts, 8);
    assert_eq!(statistics.gauges().current_connections, 8, "nobody left and came back");
    let working =
        statistics.counters.iter().filter(|worker| Totals::sum([*worker]).packets_sent > 0);
    assert_eq!(working.count(), WORKERS.get(), "every worker has sent something");
    assert_eq!(statistics.check(), Ok(()));

    drop((senders, receivers));
    let deadline = Instant::now() + PATIENCE;
    while statistics.gauges().current_connections > 0 {
        assert!(Instant::now() < deadline, "moved sessions end like others");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().unwrap();
}

/// Whoever is on the way between two workers when the server stops is not forgotten.
#[tokio::test]
async fn a_server_that_stops_has_no_connections_left() {
    let (server, statistics, address) = start();
    let connector = connector(address);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(connector.connect(&new_key().unwrap()).await.unwrap().split());
    }
    statistics.active_workers.store(1, Ordering::Relaxed);
    for (sender, _) in &mut clients {
        sender.note_preferred(true).await.unwrap();
    }
    tokio::task::spawn_blocking(|| server.stop()).await.unwrap().unwrap();
    assert_eq!(statistics.gauges().current_connections, 0);
    assert_eq!(statistics.check(), Ok(()));
}

/// Opens a WebSocket and logs in, one message for each frame.
fn log_in_by_websocket(address: SocketAddr, key: &NodePrivate) -> WebSocket<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("ws://{address}/derp").into_client_request().unwrap();
    let protocol = HeaderValue::from_static("derp");
    request.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    let (mut socket, _) = tungstenite::client(request, stream).unwrap();
    let greeting = socket.read().unwrap().into_data();
    let (server_key, _) = login::server_key(&greeting).unwrap().unwrap();
    let request =
        LoginRequest::new(key, &server_key, &ClientInfo::default(), [3; NONCE_LENGTH]).unwrap();
    socket.send(request.frame().to_vec().into()).unwrap();
    let answer = socket.read().unwrap().into_data();
    assert!(request.server_info(&answer).unwrap().is_some());
    socket
}

/// Without TLS; the sessions move between workers.
#[tokio::test]
async fn clients_by_websocket_exchange_packets_with_others() {
    let (server, statistics, address) = start();
    let (private, key) = (new_key().unwrap(), new_key().unwrap());
    let own = private.public();
    let (mut sender, mut receiver) = connector(address).connect(&private).await.unwrap().split();
    let mut browser = log_in_by_websocket(address, &key);
    let large = vec![7; 60_000];
    for active in [3, 1, 2, 3, 1] {
        statistics.active_workers.store(active, Ordering::Relaxed);
        let mut frames = Vec::new();
        write::send_packet(&mut frames, &own, &large).unwrap();
        browser.send(frames.into()).unwrap();
        assert_eq!(packet(&mut receiver).await, large);

        sender.send(&key.public(), &large).await.unwrap();
        let mut frame = Vec::new();
        while frame.len() < HEADER_LENGTH + 32 + large.len() {
            frame.extend(browser.read().unwrap().into_data());
        }
        let Some(Message::Packet { source, packet }) = Message::parse(&frame) else {
            panic!("no packet")
        };
        assert_eq!((source, packet), (own, &large[..]));
    }
    let totals = statistics.totals();
    assert_eq!((totals.accepts, totals.websocket_accepts), (2, 1));
    assert_eq!(statistics.gauges().current_connections, 2);
    browser.close(None).unwrap();
    assert!(matches!(browser.read(), Ok(tungstenite::Message::Close(None))));
    let deadline = Instant::now() + PATIENCE;
    while statistics.gauges().current_connections > 1 {
        assert!(Instant::now() < deadline, "it ends with its WebSocket");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().unwrap();
}

/// An authority that checks the name gets its proof, and nothing is ever served on that connection.
#[test]
fn a_validating_handshake_is_the_end_of_its_connection() {
    let key = NodePrivate::from_random([6; 32]);
    let meta = tls::meta_certificate(&key.public(), std::time::SystemTime::now()).unwrap();
    let certificates = Arc::new(Certificates::new("derp.example.com", meta).with_challenges());
    let challenges = certificates.challenges().unwrap();
    let _challenge = challenges.offer_tls(certificates.hostname(), &[7; 32]).unwrap();
    let acceptor = Acceptor::new(Arc::clone(&certificates)).unwrap();
    let settings = Settings { tls: Some(acceptor), ..settings(key, None) };
    let (server, statistics, address) = start_with("127.0.0.1:0", settings);

    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Validator(AcceptAny(provider))))
        .with_no_client_auth();
    config.alpn_protocols = vec![ACME_TLS_PROTOCOL.to_vec()];
    let name = "derp.example.com".try_into().unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap());
    stream.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    // Without an error, it has said that this is the end.
    io::Read::read_to_end(&mut stream, &mut answer).unwrap();
    assert!(answer.is_empty());
    assert_eq!(statistics.totals().tls_handshake_failures, 0);
    server.stop().unwrap();
}
