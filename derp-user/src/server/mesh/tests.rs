//! Whole servers in this process, meshed without TLS, seen by real clients.

use std::{net::IpAddr, sync::Mutex};

use tokio::time::timeout;

use super::*;
use crate::{
    client::{Receiver, Sender, Target, new_key},
    metrics::AddressView,
    proto::{client::read::Message, message::GoneReason},
    server::{
        LocalClient, Server,
        tests::{PATIENCE, connector, packet, start_at},
    },
};

/// What a name stands for; tests change it as they go.
type Names = Arc<Mutex<Vec<SocketAddr>>>;

fn mesh_key() -> MeshKey {
    "ab".repeat(32).parse().unwrap()
}

/// One server of a region.
struct Node {
    private_key: NodePrivate,
    server: Server,
    statistics: Statistics,
    address: SocketAddr,
    mesh: Option<Mesh>,
}

impl Node {
    fn start(number: u8) -> Self {
        Self::start_at("127.0.0.1:0", number)
    }

    fn start_at(address: &str, number: u8) -> Self {
        let private_key = NodePrivate::from_random([number; 32]);
        let (server, statistics, address) =
            start_at(address, private_key.clone(), Some(mesh_key()));
        Self { private_key, server, statistics, address, mesh: None }
    }

    /// Meshes with everything that `names` stands for, now and later.
    fn follow(&mut self, names: &Names) {
        self.follow_with(names, mesh_key());
    }

    fn follow_with(&mut self, names: &Names, mesh_key: MeshKey) {
        let names = Arc::clone(names);
        self.follow_by(mesh_key, move || names.lock().unwrap().clone());
    }

    /// Meshes with whatever `found` returns at each lookup.
    fn follow_by(
        &mut self,
        mesh_key: MeshKey,
        found: impl Fn() -> Vec<SocketAddr> + Send + 'static,
    ) {
        let settings = MeshSettings {
            private_key: self.private_key.clone(),
            mesh_key,
            peers: vec![MeshPeer {
                name: "region".to_owned(),
                target: Target { tls: false, host: "region".to_owned(), port: 80 },
                dial_host: "region".to_owned(),
                dial_port: 80,
            }],
            trust: Trust::Anything,
            tcp_user_timeout: None,
            look_up_period: Duration::from_millis(10),
            look_up: Box::new(move |host, _| {
                assert_eq!(host, "region");
                let found = found();
                Box::pin(async move { Ok(found) })
            }),
        };
        self.mesh = Some(Mesh::start(settings, &self.statistics).unwrap());
    }

    async fn client(&self) -> (NodePublic, Sender, Receiver) {
        let key = new_key().unwrap();
        let (sender, receiver) = connector(self.address).connect(&key).await.unwrap().split();
        (key.public(), sender, receiver)
    }

    async fn wait_for_links(&self, count: u64) {
        self.wait(|gauges| gauges.mesh_links == count, "links").await;
    }

    /// Waits for so many keys at other servers.
    async fn wait_for_remote(&self, count: u64) {
        self.wait(|gauges| gauges.clients_remote == count, "remote keys").await;
    }

    async fn wait(&self, condition: impl Fn(crate::metrics::Gauges) -> bool, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self.statistics.gauges()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.statistics.gauges());
            sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(self.statistics.check(), Ok(()));
    }

    fn stop(self) {
        if let Some(mesh) = self.mesh {
            mesh.stop();
        }
        self.server.stop().unwrap();
    }
}

/// A region whose servers all dial one name.
fn region(count: u8) -> (Vec<Node>, Names) {
    let mut nodes: Vec<_> = (1..=count).map(Node::start).collect();
    let names = Arc::new(Mutex::new(nodes.iter().map(|node| node.address).collect()));
    for node in &mut nodes {
        node.follow(&names);
    }
    (nodes, names)
}

async fn gone(receiver: &mut Receiver) -> (NodePublic, Option<GoneReason>) {
    loop {
        let message = timeout(PATIENCE, receiver.recv()).await.expect("in time").unwrap();
        if let Message::PeerGone { key, reason } = message {
            return (key, reason);
        }
    }
}

#[tokio::test]
async fn clients_of_every_server_of_a_name_reach_each_other() {
    let (nodes, _) = region(3);
    for node in &nodes {
        node.wait_for_links(2).await;
    }
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(node.client().await);
    }
    for node in &nodes {
        // Each other server is also a client of each other server.
        node.wait_for_remote(2).await;
    }
    for from in 0..3 {
        for to in 0..3 {
            let text = [from as u8, to as u8];
            let key = clients[to].0;
            clients[from].1.send(&key, &text).await.unwrap();
            assert_eq!(packet(&mut clients[to].2).await, text);
        }
    }
    let totals = nodes[0].statistics.totals();
    assert_eq!((totals.packets_forwarded_out, totals.packets_forwarded_in), (2, 2));
    assert_eq!((totals.packets_received, totals.packets_sent), (3, 3));

    // The one that leaves is missed by those whom it had sent something, wherever they are.
    let (left, sender, receiver) = clients.remove(0);
    drop((sender, receiver));
    for (_, _, receiver) in &mut clients {
        assert_eq!(gone(receiver).await, (left, Some(GoneReason::Disconnected)));
    }
    nodes[1].wait_for_remote(1).await;
    let (unknown, mut sender, mut receiver) = clients.remove(0);
    let disco = [&b"TS\xf0\x9f\x92\xac"[..], &[0; 60]].concat();
    sender.send(&left, &disco).await.unwrap();
    assert_eq!(gone(&mut receiver).await, (left, Some(GoneReason::NotHere)));
    drop((unknown, sender, receiver));
    nodes.into_iter().for_each(Node::stop);
}

#[tokio::test]
async fn a_region_grows_and_shrinks_with_its_name() {
    let (mut nodes, names) = region(2);
    nodes[0].wait_for_links(1).await;
    let mut third = Node::start(3);
    third.follow(&names);
    let (key, _sender, mut receiver) = third.client().await;
    names.lock().unwrap().push(third.address);
    for node in &nodes {
        node.wait_for_links(2).await;
    }
    let (_, mut sender, _other) = nodes[0].client().await;
    nodes[0].wait_for_remote(1).await;
    sender.send(&key, b"hello").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"hello");

    // It takes its clients along.
    nodes[1].wait_for_remote(2).await;
    names.lock().unwrap().pop();
    sleep(LOOK_UP_REST + Duration::from_millis(300)).await;
    assert_eq!(nodes[0].statistics.gauges().mesh_links, 2, "a link that stands is left alone");
    third.stop();
    nodes[0].wait_for_links(1).await;
    nodes[0].wait_for_remote(0).await;
    assert_eq!(nodes[0].statistics.totals().mesh_failures, 1);
    sleep(Duration::from_millis(700)).await;
    assert_eq!(nodes[0].statistics.totals().mesh_failures, 1, "nobody dials it any more");
    nodes.drain(..).for_each(Node::stop);
}

#[tokio::test]
async fn case_49_a_link_that_breaks_takes_its_clients_along_and_comes_again() {
    let (mut nodes, names) = region(2);
    let second = nodes.pop().unwrap();
    let (here, _sender, mut receiver) = nodes[0].client().await;
    let (there, mut sender, _receiver) = second.client().await;
    second.wait_for_remote(1).await;
    nodes[0].wait_for_remote(1).await;
    sender.send(&here, b"hello").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"hello");
    let address = second.address;
    second.stop();
    assert_eq!(gone(&mut receiver).await, (there, Some(GoneReason::Disconnected)));
    nodes[0].wait_for_remote(0).await;
    let mut second = Node::start_at(&address.to_string(), 2);
    second.follow(&names);
    let (_there, mut sender, _receiver) = second.client().await;
    nodes[0].wait_for_remote(1).await;
    second.wait_for_remote(1).await;
    sender.send(&here, b"again").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"again");
    second.stop();
    nodes.drain(..).for_each(Node::stop);
}

/// Mesh peers alone are told: some clients end a connection on frames that they do not know.
#[tokio::test]
async fn a_server_that_says_that_it_restarts_is_dialled_at_short_intervals_until_it_is_there() {
    let (mut nodes, names) = region(2);
    let second = nodes.pop().unwrap();
    let (here, mut sender, mut receiver) = second.client().await;
    nodes[0].wait_for_remote(1).await;
    nodes[0].wait_for_links(1).await;
    second.statistics.announce_restart();
    sender.send(&here, b"still here").await.unwrap();
    let next = timeout(PATIENCE, receiver.recv()).await.expect("in time").unwrap();
    assert!(matches!(next, Message::Packet { packet: b"still here", .. }), "{next:?}");
    nodes[0].wait_for_links(1).await;

    let address = second.address;
    let failures = || nodes[0].statistics.totals().mesh_failures;
    let before = failures();
    second.stop();
    let deadline = Instant::now() + PATIENCE;
    // Otherwise the twelfth comes after 40 s.
    while failures() < before + 12 {
        assert!(Instant::now() < deadline, "{}", failures() - before);
        sleep(Duration::from_millis(20)).await;
    }
    let mut second = Node::start_at(&address.to_string(), 2);
    second.follow(&names);
    nodes[0].wait_for_links(1).await;
    second.stop();
    nodes.drain(..).for_each(Node::stop);
}

/// The same server under several addresses, and this server itself, cost no second link.
#[tokio::test]
async fn addresses_of_one_server_make_one_link() {
    let mut first = Node::start(1);
    let second = Node::start_at("0.0.0.0:0", 2);
    let port = second.address.port();
    let of_second = |last: u8| SocketAddr::new(IpAddr::from([127, 0, 0, last]), port);
    let own = first.address;
    let names: Names = Arc::new(Mutex::new(vec![own, of_second(1), of_second(2), of_second(3)]));
    first.follow(&names);
    first.wait_for_links(1).await;
    sleep(Duration::from_millis(300)).await;
    assert_eq!(first.statistics.gauges().mesh_links, 1);
    assert_eq!(first.statistics.totals().mesh_connects, 1, "nobody logged in twice");
    assert_eq!(second.statistics.gauges().current_connections, 1);
    assert_eq!(first.statistics.gauges().current_connections, 0, "nor here");
    first.stop();
    second.stop();
}

#[tokio::test]
async fn case_46_a_packet_makes_one_hop_only() {
    let mut nodes: Vec<_> = (1..=3).map(Node::start).collect();
    let next: Vec<Names> =
        nodes.iter().skip(1).map(|node| Arc::new(Mutex::new(vec![node.address]))).collect();
    for (node, next) in nodes.iter_mut().zip(&next) {
        node.follow(next);
    }
    nodes[0].wait_for_links(1).await;
    nodes[1].wait_for_links(1).await;
    let (far, _sender, mut receiver) = nodes[2].client().await;
    nodes[1].wait_for_remote(1).await;
    // As if the first server took the second for the one that has the client.
    let mesh_client = connector(nodes[1].address)
        .with_info(ClientInfo { mesh_key: Some(mesh_key()), ..ClientInfo::default() });
    let (mut link, mut link_receiver) =
        mesh_client.connect(&new_key().unwrap()).await.unwrap().split();
    let source = new_key().unwrap().public();
    link.forward(&source, &far, b"one hop too many").await.unwrap();
    let disco = [&b"TS\xf0\x9f\x92\xac"[..], &[0; 60]].concat();
    link.forward(&source, &far, &disco).await.unwrap();
    assert_eq!(gone(&mut link_receiver).await, (far, Some(GoneReason::NotHere)), "case 47");
    // A packet of its own goes on.
    link.send(&far, b"first hop").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"first hop");
    // Also where the last route is remembered.
    link.forward(&source, &far, b"still one too many").await.unwrap();
    link.send(&far, b"done").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"done");
    use crate::metrics::{DropReason, PacketKind};
    let totals = nodes[1].statistics.totals();
    let reason = DropReason::UnknownDestinationOnForward;
    assert_eq!(totals.packets_dropped(reason, PacketKind::Other), 2);
    assert_eq!(totals.packets_dropped(reason, PacketKind::Disco), 1);
    nodes.into_iter().for_each(Node::stop);
}

#[tokio::test]
async fn a_peer_with_another_mesh_key_closes_the_link_and_is_tried_again() {
    let mut first = Node::start(1);
    let second = Node::start(2);
    let names = Arc::new(Mutex::new(vec![second.address]));
    first.follow_with(&names, "cd".repeat(32).parse().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while first.statistics.totals().mesh_failures < 2 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    second.wait(|gauges| gauges.watchers == 0, "watchers").await;
    first.stop();
    second.stop();
}

/// More clients than one piece of the list holds.
#[tokio::test]
async fn a_new_link_learns_of_many_clients() {
    const CLIENTS: usize = 1500;
    let (mut first, second) = (Node::start(1), Node::start(2));
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(second.client().await);
    }
    first.follow(&Arc::new(Mutex::new(vec![second.address])));
    first.wait_for_remote(CLIENTS as u64).await;
    let (_, mut sender, _receiver) = first.client().await;
    for (number, (key, _, receiver)) in clients.iter_mut().enumerate().step_by(100) {
        sender.send(key, &number.to_be_bytes()).await.unwrap();
        assert_eq!(packet(receiver).await, number.to_be_bytes());
    }
    clients.truncate(CLIENTS / 2);
    first.wait_for_remote(CLIENTS as u64 / 2).await;
    first.stop();
    second.stop();
}

/// What is remembered of a route by way of a link does not outlive it.
#[tokio::test]
async fn a_client_that_moves_is_followed_at_once() {
    let (nodes, _) = region(3);
    for node in &nodes {
        node.wait_for_links(2).await;
    }
    let (_, mut sender, _receiver) = nodes[0].client().await;
    let moving = new_key().unwrap();
    for round in 0..12_u8 {
        let node = &nodes[usize::from(round) % 3];
        let (client_sender, mut receiver) =
            connector(node.address).connect(&moving).await.unwrap().split();
        let key = moving.public();
        let routed = || nodes[0].statistics.gauges();
        let deadline = Instant::now() + PATIENCE;
        let remote = u64::from(round % 3 != 0);
        while routed().clients_remote != remote || routed().clients_local != 3 + (1 - remote) {
            assert!(Instant::now() < deadline, "{:?}", routed());
            sleep(Duration::from_millis(2)).await;
        }
        sender.send(&key, &[round]).await.unwrap();
        assert_eq!(packet(&mut receiver).await, [round]);
        drop((client_sender, receiver));
        node.wait(|gauges| gauges.clients_local == if round % 3 == 0 { 3 } else { 2 }, "left")
            .await;
        nodes[0].wait_for_remote(0).await;
    }
    nodes.into_iter().for_each(Node::stop);
}

/// A name server that leaves an address out for once, while the link there is broken.
#[tokio::test]
async fn regression_an_address_that_comes_back_to_its_name_is_dialled_again() {
    let (mut first, second) = (Node::start(1), Node::start(2));
    let (address, left_out) = (second.address, Arc::new(Notify::new()));
    let lookups = std::sync::atomic::AtomicU32::new(0);
    let noticed = Arc::clone(&left_out);
    first.follow_by(mesh_key(), move || {
        if lookups.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 1 {
            noticed.notify_one();
            return Vec::new();
        }
        vec![address]
    });
    first.wait_for_links(1).await;
    left_out.notified().await;
    second.stop();
    first.wait_for_links(0).await;
    // Longer than the pause after a first failure, so that nobody keeps the address now.
    sleep(Duration::from_millis(600)).await;
    let second = Node::start_at(&address.to_string(), 2);
    first.wait_for_links(1).await;
    first.stop();
    second.stop();
}

#[tokio::test]
async fn what_links_do_can_be_seen() {
    let mut first = Node::start(1);
    let second = Node::start(2);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let (own, address) = (first.address, second.address);
    first.follow(&Arc::new(Mutex::new(vec![own, address, nobody])));
    first.wait_for_links(1).await;
    let (key, _sender, mut receiver) = second.client().await;
    first.wait_for_remote(1).await;
    let (_, mut sender, _receiver) = first.client().await;
    sender.send(&key, b"hello").await.unwrap();
    assert_eq!(packet(&mut receiver).await, b"hello");

    let view = |of: SocketAddr| {
        let mut mesh = first.statistics.mesh();
        assert_eq!(mesh.peers.len(), 1);
        assert_eq!((&*mesh.peers[0].name, &*mesh.peers[0].dials), ("region", "region:80"));
        mesh.peers[0].addresses.retain(|view| view.address == of);
        mesh.peers[0].addresses.pop().unwrap()
    };
    let deadline = Instant::now() + PATIENCE;
    while view(nobody).failures < 2 || view(own).state != LinkState::Own {
        assert!(Instant::now() < deadline, "{:?}", first.statistics.mesh());
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(view(nobody).state, LinkState::Down);
    assert!(view(nobody).last_failure.unwrap().contains("connect"));
    let link = view(address);
    assert_eq!((link.state, link.connects, link.failures), (LinkState::Up, 1, 0));
    // This server is a client of the other one, but not one that is reached there.
    assert_eq!(link.clients, 1);
    assert_eq!((link.forwarded_packets, link.forwarded_bytes, link.dropped_packets), (1, 5, 0));
    assert_eq!(link.server_key, Some(second.private_key.public().to_string()));
    second.stop();
    first.wait_for_links(0).await;
    // The gauge and the view of the link follow one after the other.
    while view(address).state != LinkState::Down {
        assert!(Instant::now() < deadline, "{:?}", first.statistics.mesh());
        sleep(Duration::from_millis(5)).await;
    }
    let link = view(address);
    assert_eq!((link.clients, link.forwarded_packets), (0, 1));
    first.stop();
}

/// Links that stand stay; links made later show the new key.
#[tokio::test]
async fn another_mesh_key_is_shown_by_links_that_are_made_from_now_on() {
    let mut first = Node::start(1);
    let second = Node::start(2);
    let names = Arc::new(Mutex::new(vec![second.address]));
    first.follow_with(&names, "cd".repeat(32).parse().unwrap());
    let reloader = first.mesh.as_ref().unwrap().reloader();
    let deadline = Instant::now() + PATIENCE;
    while first.statistics.totals().mesh_failures < 1 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(5)).await;
    }
    let (_, _sender, _receiver) = second.client().await;
    reloader.apply(reloader.prepare(&mesh_key()).unwrap());
    first.wait_for_remote(1).await;
    let failures = first.statistics.totals().mesh_failures;
    reloader.apply(reloader.prepare(&"cd".repeat(32).parse().unwrap()).unwrap());
    sleep(Duration::from_millis(300)).await;
    assert_eq!(first.statistics.totals().mesh_failures, failures, "the link that stands stays");
    first.stop();
    second.stop();
}

/// What leads to a mesh peer counts for its link, whoever sends it.
#[tokio::test]
async fn a_local_client_reaches_clients_of_other_servers() {
    let (nodes, _) = region(2);
    let (key, mut sender, mut receiver) = nodes[1].client().await;
    let local = NodePublic::from_bytes([9; 32]);
    let mut client = LocalClient::join(&nodes[0].statistics, local, nodes[0].address, 8, 32);
    for node in &nodes {
        node.wait_for_links(1).await;
        node.wait_for_remote(1).await;
    }
    sender.send(&local, b"question").await.unwrap();
    let question = timeout(PATIENCE, client.receive()).await.expect("in time");
    assert_eq!((question.from, &*question.packet), (key, &b"question"[..]));
    assert!(client.send(&key, b"answer"));
    assert_eq!(packet(&mut receiver).await, b"answer");

    assert_eq!(nodes[0].statistics.totals().packets_forwarded_out, 1);
    let view = nodes[0].statistics.mesh();
    let addresses = || view.peers.iter().flat_map(|peer| &peer.addresses);
    let sum = |count: fn(&AddressView) -> u64| addresses().map(count).sum::<u64>();
    let handed_over = (sum(|it| it.forwarded_packets), sum(|it| it.forwarded_bytes));
    assert_eq!(handed_over, (1, "answer".len() as u64));
    drop(client);
    nodes.into_iter().for_each(Node::stop);
}
