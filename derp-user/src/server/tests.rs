//! A server of several workers, seen by real clients in this process.

use std::net::SocketAddr;

use tokio::time::timeout;

use super::*;
use crate::{
    client::{Connector, Receiver, Trust, new_key},
    flow::FlowsView,
    http::{DebugAccess, Home, Settings as SiteSettings, TlsRequests},
    proto::client::read::Message,
};

const WORKERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A server without TLS all of whose workers are in use, until a test says otherwise.
fn start() -> (Server, Statistics, SocketAddr) {
    start_at("127.0.0.1:0", NodePrivate::from_random([5; 32]), None)
}

/// The same, as a server of a mesh.
pub(super) fn start_at(
    address: &str,
    private_key: NodePrivate,
    mesh_key: Option<MeshKey>,
) -> (Server, Statistics, SocketAddr) {
    let statistics = Statistics::new(private_key.public(), WORKERS);
    let site = Site::new(SiteSettings {
        home: Home::BuiltIn,
        derp_enabled: true,
        hostname: String::new(),
        machine: String::new(),
        version: "test",
        has_mesh_key: false,
        admission: Box::new(String::new),
        bootstrap: Arc::default(),
        access: DebugAccess::default(),
        started: Instant::now(),
        varz: Box::new(String::new),
        vars: Box::new(String::new),
        tls_requests: TlsRequests::default(),
        traffic: Box::new(|| None),
        flows: Box::new(FlowsView::default),
        check: Box::new(|| Ok(())),
    });
    let settings = Settings {
        private_key,
        mesh_key,
        tls: None,
        min_workers: WORKERS,
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
    let listener = TcpListener::bind(address).unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::start(listener, settings, &statistics).unwrap();
    (server, statistics, address)
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
