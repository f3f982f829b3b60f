//! UDP through the relay, from one client's namespace to the other's: flows whose ends are known, flows that are learnt anew,
//! endpoints of the peer relay that are bound anew, WireGuard peers that move, and strangers.

use std::{
    fmt::Write as _,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crypto_box::PublicKey;
use derp_user::peer_relay::disco::EndpointRecord;

use crate::{
    lab::{End, Lab, acquaint, geneve, plain},
    netns::spawn_in,
    party::{Got, Host, Keys, ip_packet, shake_hands},
    peer::{Event, Peer, RECV_PACKET},
    probe::log_in,
    relay_client::{RelayClient, RelayNode},
};

const PORT: u16 = 40_000;
/// The port of flows without a VNI.
const ANY_PORT: u16 = 40_001;
pub(crate) const WIREGUARD_PORT: u16 = 51_820;
/// How many there are of each kind.
const FIXED: u16 = 8;
const ANY: u16 = 2;
const LEARNT: u16 = 4;
const ENDPOINTS: usize = 2;
pub(crate) const SPOKES: usize = 2;
const FIRST_FIXED: u16 = 100;
const FIRST_LEARNT: u16 = 200;

/// Packets that each end sends at once, and how often.
const BURST: u64 = 2;
const TICK: Duration = Duration::from_millis(20);
/// How long two ends talk before one or both move.
const TALK: Duration = Duration::from_secs(6);
/// Longer than learnt ends may be silent before they are learnt anew, which is looked at once a second.
const SILENCE: Duration = Duration::from_secs(13);
/// What is on its way arrives within this time, or never.
const SETTLES: Duration = Duration::from_millis(300);

/// The configuration of all flows, and of the port of the peer relay.
pub(crate) fn configuration() -> String {
    let mut text = format!("[relay]\nport = {PORT}\nidle_timeout = \"10s\"\n");
    let mut flow = |name: &str, lines: &str| {
        writeln!(text, "[[flow]]\nname = \"{name}\"\n{lines}").expect("a string takes everything");
    };
    for fixed in (0..FIXED).map(Fixed) {
        let [a, b] = fixed.clients();
        flow(
            &format!("fixed {}", fixed.0),
            &format!("vni = {}\na = \"{a}\"\nb = \"{b}\"", fixed.vni()),
        );
    }
    for number in 0..ANY {
        let [a, b] = any_clients(number);
        flow(&format!("any {number}"), &format!("port = {ANY_PORT}\na = \"{a}\"\nb = \"{b}\""));
    }
    for number in 0..LEARNT {
        let learn = "learn_a = [\"10.78.1.0/24\"]\nlearn_b = [\"10.78.2.0/24\"]";
        flow(&format!("learnt {number}"), &format!("vni = {}\n{learn}", FIRST_LEARNT + number));
    }
    text
}

/// A flow with a VNI between two known addresses; every other one by IPv6.
struct Fixed(u16);

impl Fixed {
    fn vni(&self) -> u16 {
        FIRST_FIXED + self.0
    }

    fn clients(&self) -> [String; 2] {
        let (a, b) = (41_000 + self.0, 51_000 + self.0);
        if self.0.is_multiple_of(2) {
            [format!("10.78.1.2:{a}"), format!("10.78.2.2:{b}")]
        } else {
            [format!("[fd78:1::2]:{a}"), format!("[fd78:2::2]:{b}")]
        }
    }

    fn relays(&self) -> [SocketAddr; 2] {
        let hosts = if self.0.is_multiple_of(2) { RELAYS4 } else { RELAYS6 };
        relays(hosts, PORT)
    }
}

fn any_clients(number: u16) -> [String; 2] {
    [format!("10.78.1.3:{}", 42_000 + number), format!("10.78.2.3:{}", 52_000 + number)]
}

const RELAYS4: [&str; 2] = ["10.78.1.1", "10.78.2.1"];
const RELAYS6: [&str; 2] = ["fd78:1::1", "fd78:2::1"];

fn relays(hosts: [&str; 2], port: u16) -> [SocketAddr; 2] {
    hosts.map(|host| SocketAddr::new(host.parse().expect("an address"), port))
}

/// What all threads see and count.
#[derive(Default)]
pub(crate) struct Shared {
    rests: AtomicBool,
    ends: AtomicBool,
    /// How many threads rest.
    resting: AtomicUsize,
    /// Numbered packets.
    pub(crate) sent: AtomicU64,
    pub(crate) received: AtomicU64,
    /// Times that an end has moved.
    pub(crate) moves: AtomicU64,
    /// Of the DERP clients that ask for endpoints.
    pub(crate) asked: AtomicU64,
    pub(crate) answered: AtomicU64,
}

impl Shared {
    fn ends(&self) -> bool {
        self.ends.load(Relaxed)
    }

    /// Whether those who talk are to go on.
    fn goes_on(&self) -> bool {
        !self.ends() && !self.rests.load(Relaxed)
    }

    /// Holds still while all are to rest. What is on its way must have been read.
    fn rest(&self) {
        if !self.rests.load(Relaxed) {
            return;
        }
        self.resting.fetch_add(1, Relaxed);
        while self.rests.load(Relaxed) && !self.ends() {
            thread::sleep(TICK);
        }
        self.resting.fetch_sub(1, Relaxed);
    }
}

/// All of it, at work until dropped.
pub(crate) struct Flows {
    pub(crate) shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Flows {
    /// Starts everything.
    pub(crate) fn start(
        lab: &Lab,
        crowd: &str,
        node: RelayNode,
        hub: &Keys,
        spokes: &[Keys],
    ) -> Self {
        let shared = Arc::<Shared>::default();
        let mut this = Self { shared, threads: Vec::new() };
        let place = Place { a: lab.a.clone(), b: lab.b.clone() };
        for fixed in (0..FIXED).map(Fixed) {
            let [a, b] = fixed.clients();
            let talk = Talk::new(place.sockets(&a, &b), fixed.relays(), Some(fixed.vni().into()));
            this.spawn(move |shared| talk_on(shared, talk));
        }
        for number in 0..ANY {
            let [a, b] = any_clients(number);
            let talk = Talk::new(place.sockets(&a, &b), relays(RELAYS4, ANY_PORT), None);
            this.spawn(move |shared| talk_on(shared, talk));
        }
        for number in 0..LEARNT {
            let place = place.clone();
            this.spawn(move |shared| learn_anew(shared, &place, FIRST_LEARNT + number));
        }
        for _ in 0..ENDPOINTS {
            let place = place.clone();
            let peer = spawn_in(crowd, log_in).join().expect("logged in");
            this.spawn(move |shared| bind_anew(shared, &place, node, peer));
        }
        {
            let place = place.clone();
            let (hub, spokes) = (hub.clone(), spokes.to_vec());
            this.spawn(move |shared| move_about(shared, &place, &hub, &spokes));
        }
        this.spawn(move |shared| be_strange(shared, &place));
        this
    }

    fn spawn(&mut self, work: impl FnOnce(&Shared) + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(thread::spawn(move || work(&shared)));
    }

    /// Has all rest, or go on.
    pub(crate) fn rest(&self, rests: bool) {
        self.shared.rests.store(rests, Relaxed);
    }

    /// Whether all do rest; a thread that has panicked never does.
    pub(crate) fn all_rest(&self) -> bool {
        self.shared.resting.load(Relaxed) == self.threads.len()
    }

    /// Whether a thread has come to an untimely end, which its panic explains.
    pub(crate) fn have_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// How many DERP connections they have.
    pub(crate) const CONNECTIONS: usize = ENDPOINTS;
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "a thread with flows has panicked");
        }
    }
}

/// The namespaces of both clients.
#[derive(Clone)]
struct Place {
    a: String,
    b: String,
}

impl Place {
    fn socket(namespace: &str, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().expect("an address");
        spawn_in(namespace, move || UdpSocket::bind(address).expect("a socket"))
            .join()
            .expect("bound")
    }

    fn sockets(&self, a: &str, b: &str) -> [UdpSocket; 2] {
        [Self::socket(&self.a, a), Self::socket(&self.b, b)]
    }

    /// On ports by chance.
    fn new_sockets(&self) -> [UdpSocket; 2] {
        self.sockets("10.78.1.2:0", "10.78.2.2:0")
    }
}

/// A conversation of two ends.
struct Talk {
    ends: [UdpSocket; 2],
    relays: [SocketAddr; 2],
    vni: Option<u32>,
    next: u64,
    /// Which have come to each end.
    seen: [Seen; 2],
}

/// Which of the numbers from 0 have come.
#[derive(Default)]
struct Seen {
    /// All below it have, but for the missing ones.
    next: u64,
    missing: std::collections::BTreeSet<u64>,
}

impl Seen {
    /// Whether it comes for the first time.
    fn take(&mut self, number: u64) -> bool {
        if number < self.next {
            return self.missing.remove(&number);
        }
        self.missing.extend(self.next..number);
        self.next = number + 1;
        true
    }
}

/// Greetings by which two ends get acquainted are not counted.
const GREETING: u64 = u64::MAX;

impl Talk {
    fn new(ends: [UdpSocket; 2], relays: [SocketAddr; 2], vni: Option<u32>) -> Self {
        Self { ends, relays, vni, next: 0, seen: Default::default() }
    }

    fn packet(&self, number: u64) -> Vec<u8> {
        let length = 100 + (number % 1200) as usize;
        match self.vni {
            Some(vni) => geneve(vni, number, length),
            None => plain(number, length),
        }
    }

    /// Sends until both hear each other.
    fn acquaint(&self) {
        let end = |it: usize| End { socket: &self.ends[it], relay: self.relays[it] };
        acquaint(&[end(0), end(1)], &self.packet(GREETING));
    }

    /// Sends a few packets each way, and reads what is there.
    fn tick(&mut self, shared: &Shared) {
        for _ in 0..BURST {
            let packet = self.packet(self.next);
            for (end, relay) in self.ends.iter().zip(self.relays) {
                send(end, &packet, relay);
            }
            shared.sent.fetch_add(2, Relaxed);
            self.next += 1;
        }
        self.read(shared, Duration::from_millis(1));
    }

    fn read(&mut self, shared: &Shared, patience: Duration) {
        let mut buffer = [0; 2048];
        for side in 0..2 {
            self.ends[side].set_read_timeout(Some(patience)).expect("a timeout");
            while let Some((length, from)) = receive(&self.ends[side], &mut buffer) {
                assert_eq!(from, self.relays[side], "it comes from where its receiver sends to");
                let at = if self.vni.is_some() { 8 } else { 0 };
                let number = buffer[at..].first_chunk().map_or(0, |it| u64::from_be_bytes(*it));
                // Of the relay's handshake.
                if self.vni.is_some() && buffer[1] & 0x80 != 0 || number == GREETING {
                    continue;
                }
                assert!(buffer[..length] == self.packet(number), "packet {number} has changed");
                assert!(self.seen[side].take(number), "packet {number} has come twice");
                shared.received.fetch_add(1, Relaxed);
            }
        }
    }

    /// Talks for a while, and reads what is on its way then.
    fn go_on(&mut self, shared: &Shared, until: Instant) {
        while Instant::now() < until && shared.goes_on() {
            self.tick(shared);
            thread::sleep(TICK);
        }
        self.read(shared, SETTLES);
    }
}

/// Sends a datagram. What an earlier one met is told to the next, which is not sent then.
fn send(socket: &UdpSocket, packet: &[u8], to: SocketAddr) {
    while let Err(error) = socket.send_to(packet, to) {
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(buffer) {
            Ok(received) => return Some(received),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                return None;
            }
        }
    }
}

/// Two ends that stay where they are.
fn talk_on(shared: &Shared, mut talk: Talk) {
    talk.acquaint();
    while !shared.ends() {
        talk.go_on(shared, Instant::now() + TALK);
        shared.rest();
    }
}

/// Both ends of a learnt flow move: they are silent for long enough, and go on from other ports.
fn learn_anew(shared: &Shared, place: &Place, vni: u16) {
    while !shared.ends() {
        let mut talk = Talk::new(place.new_sockets(), relays(RELAYS4, PORT), Some(vni.into()));
        talk.acquaint();
        talk.go_on(shared, Instant::now() + TALK);
        let silent = Instant::now();
        while silent.elapsed() < SILENCE && !shared.ends() {
            thread::sleep(TICK);
            // Rests while others do, however long that is.
            shared.rest();
        }
        shared.moves.fetch_add(2, Relaxed);
    }
}

/// Two clients that are given an endpoint, bind it, bind one end anew from another port, and leave it.
fn bind_anew(shared: &Shared, place: &Place, node: RelayNode, mut peer: Peer) {
    let relays = relays(RELAYS4, PORT);
    while !shared.ends() {
        let (a, b) = (RelayClient::new(), RelayClient::new());
        let request = a.request(&node, [a.key(), b.key()]);
        let endpoint = ask(shared, &mut peer, &node, &a, &request);
        let ends = place.new_sockets();
        a.bind_end(&ends[0], relays[0], &endpoint, 1);
        b.bind_end(&ends[1], relays[1], &endpoint, 1);
        let mut talk = Talk::new(ends, relays, Some(endpoint.vni));
        talk.acquaint();
        talk.go_on(shared, Instant::now() + TALK);
        // An answer may have come after it was given up.
        while answer(shared, &mut peer, SETTLES).is_some() {}
        shared.rest();
        let [end, _] = place.new_sockets();
        a.bind_end(&end, relays[0], &endpoint, 2);
        shared.moves.fetch_add(1, Relaxed);
        talk.ends[0] = end;
        talk.acquaint();
        talk.go_on(shared, Instant::now() + TALK);
        shared.rest();
    }
}

/// Asks the relay's node by DERP until it answers this request, and not an earlier one.
fn ask(
    shared: &Shared,
    peer: &mut Peer,
    node: &RelayNode,
    client: &RelayClient,
    request: &[u8],
) -> EndpointRecord {
    let key = PublicKey::from(*node.node.as_bytes());
    for _ in 0..30 {
        peer.send(&key, request);
        shared.asked.fetch_add(1, Relaxed);
        while let Some(packet) = answer(shared, peer, Duration::from_secs(1)) {
            if client.understands(node, &packet) {
                return client.response(node, &packet);
            }
        }
    }
    panic!("no endpoint is given");
}

/// The next packet from the relay's node, if one comes in time.
fn answer(shared: &Shared, peer: &mut Peer, patience: Duration) -> Option<Vec<u8>> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Event::Frame(frame) = peer.wire.event(left) else { return None };
        if frame.kind == RECV_PACKET {
            shared.answered.fetch_add(1, Relaxed);
            return Some(frame.payload[32..].to_vec());
        }
    }
}

/// A WireGuard hub and its spokes, which move to another port and begin a new session there.
fn move_about(shared: &Shared, place: &Place, hub: &Keys, spokes: &[Keys]) {
    let relays = relays(RELAYS4, WIREGUARD_PORT);
    let public: Vec<_> = spokes.iter().map(|keys| keys.public).collect();
    let socket = Place::socket(&place.b, "10.78.2.2:0");
    let mut center = Host::new(socket, relays[1], hub, &public, 100);
    let mut ends: Vec<Host> = (1..)
        .zip(spokes)
        .map(|(index, keys)| {
            let socket = Place::socket(&place.a, "10.78.1.2:0");
            Host::new(socket, relays[0], keys, &[hub.public], index)
        })
        .collect();
    while !shared.ends() {
        for (number, end) in ends.iter_mut().enumerate() {
            shake_hands((end, 0), (&mut center, number));
        }
        let until = Instant::now() + TALK;
        let mut number = 0_u64;
        while Instant::now() < until && shared.goes_on() {
            let packet = ip_packet(&plain(number, 200));
            for (peer, end) in ends.iter_mut().enumerate() {
                let sealed = end.sealed(0, &packet);
                send(&end.socket, &sealed, end.relay);
                let sealed = center.sealed(peer, &packet);
                send(&center.socket, &sealed, center.relay);
                shared.sent.fetch_add(2, Relaxed);
            }
            number += 1;
            count(shared, &mut center, Duration::ZERO);
            ends.iter_mut().for_each(|end| count(shared, end, Duration::ZERO));
            thread::sleep(TICK);
        }
        for host in ends.iter_mut().chain([&mut center]) {
            count(shared, host, SETTLES);
        }
        shared.rest();
        for end in &mut ends {
            end.socket = Place::socket(&place.a, "10.78.1.2:0");
            end.socket.set_nonblocking(true).expect("nonblocking");
            shared.moves.fetch_add(1, Relaxed);
        }
    }
}

/// Takes what has come to a host, and counts the packets of the conversation.
fn count(shared: &Shared, host: &mut Host, patience: Duration) {
    let packets = host.take_all(patience);
    let packets = packets.iter().filter(|got| matches!(got, Got::Packet(_, it) if it.len() == 220));
    shared.received.fetch_add(packets.count() as u64, Relaxed);
}

/// Somebody who has no business here: packets of other people's flows, of none, and of no shape.
fn be_strange(shared: &Shared, place: &Place) {
    let socket = Place::socket(&place.b, "10.78.2.3:0");
    let relay = relays(RELAYS4, PORT)[1];
    let wireguard = relays(RELAYS4, WIREGUARD_PORT)[1];
    let mut data = vec![4, 0, 0, 0];
    data.resize(64, 1);
    let control = [&[0, 0x80, 0x7a, 0x11, 0, 0, FIRST_FIXED as u8, 0][..], &[0; 152]].concat();
    while !shared.ends() {
        for (packet, to) in [
            (geneve(FIRST_FIXED.into(), 1, 100), relay),
            (geneve(0xff_fffe, 1, 100), relay),
            (vec![1], relay),
            (vec![9; 100], relay),
            (control.clone(), relay),
            (data.clone(), wireguard),
            (vec![1, 0, 0, 0, 7], wireguard),
            (vec![7; 50], SocketAddr::new(relay.ip(), 9)),
        ] {
            send(&socket, &packet, to);
        }
        thread::sleep(5 * TICK);
        shared.rest();
    }
}
