//! Our peer relay beside Tailscale's own (`net/udprelay`): the same packets to both, the same to be seen of both.
//!
//! What differs on purpose is left out: a bind message of a handshake that is over, both clients at one address.
//! Without Go 1.26 or the modules the test is skipped.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, UdpSocket},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use derp_common::{Port, Services, Settings, flow::Datagram};
use derp_user::{
    flow::{FlowTable, Mirror, SharedMirror, Sink as _, TableSettings},
    forward::{Action, Delivery, decide},
    peer_relay::{
        Arrival, EndedBy, Limits, PeerRelay, PeerRelayOptions, Permission, Reaction,
        disco::{
            AllocateRequest, DiscoPrivate, DiscoPublic, EndpointRecord, Envelope, Handshake,
            Message, seal,
        },
    },
    proto::keys::NodePublic,
};

#[path = "support/go.rs"]
mod go;

use go::{Built, go_binary};

static ORACLE: Built = OnceLock::new();

/// How long an answer that is expected may take.
const SOON: Duration = Duration::from_secs(5);
const SECOND: u64 = 1_000_000_000;

/// The reference, in a process of its own.
struct Reference {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Reference {
    fn start() -> Result<Self, String> {
        let program = go_binary(&ORACLE, "relayoracle", &["build"], "./relayoracle")?;
        let free = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("its address");
        drop(free);
        let mut child = Command::new(program)
            .arg(address.port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program was just built");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, input, output, address })
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.input, "{question}").expect("the oracle listens");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the oracle answers");
        answer.trim().to_owned()
    }

    /// Returns server key, VNI and lamport id of the endpoint of two clients.
    fn allocate(&mut self, a: DiscoPublic, b: DiscoPublic) -> Option<(DiscoPublic, u32, u64)> {
        let hex = |key: DiscoPublic| key.to_string().replace("discokey:", "");
        let answer = self.ask(&format!("allocate {} {}", hex(a), hex(b)));
        let mut words = answer.split(' ');
        let server = format!("discokey:{}", words.next()?).parse().ok()?;
        Some((server, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    }

    /// Returns the lifetimes of the endpoint of two clients, in nanoseconds.
    fn lifetimes(&mut self, a: DiscoPublic, b: DiscoPublic) -> [u64; 2] {
        let hex = |key: DiscoPublic| key.to_string().replace("discokey:", "");
        let answer = self.ask(&format!("allocate {} {}", hex(a), hex(b)));
        let numbers = answer.split(' ').skip(3).map(|word| word.parse().expect("a number"));
        numbers.collect::<Vec<_>>().try_into().expect("two lifetimes")
    }

    /// Tells whether the reference has the endpoint with this VNI.
    fn has(&mut self, vni: u32) -> bool {
        self.ask(&format!("bound {vni}")) != "unknown"
    }

    fn bound(&mut self, vni: u32) -> [Option<SocketAddr>; 2] {
        let answer = self.ask(&format!("bound {vni}"));
        let addresses: Vec<_> = answer.split(' ').map(|word| word.parse().ok()).collect();
        addresses.try_into().expect("two addresses")
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ours.
struct Ours {
    relay: PeerRelay,
    table: FlowTable,
    mirror: SharedMirror,
    identity: DiscoPublic,
    now: u64,
}

const OUR_ADDRESS: &str = "127.0.0.1:40000";

impl Ours {
    fn start() -> Self {
        let identity = DiscoPrivate::from_random([99; 32]);
        let public = identity.public();
        let options =
            PeerRelayOptions { identity, seed: [3; 32], port: 40000, limits: Limits::default() };
        let mut relay = PeerRelay::new(options);
        relay.set_addresses([OUR_ADDRESS.parse().expect("an address")]);
        let table =
            FlowTable::new(TableSettings { slots: 64, idle_timeout: 120 * SECOND, seed: 1 });
        let mirror = SharedMirror::new(Mirror::new(64));
        Self { relay, table, mirror, identity: public, now: 1000 * SECOND }
    }

    fn allocate(&mut self, by: &DiscoPrivate, clients: [DiscoPublic; 2]) -> Option<EndpointRecord> {
        let request = Message::AllocateRequest(AllocateRequest { clients, generation: 1 });
        let packet = packet(by, &self.identity, &request);
        let node = NodePublic::from_bytes(*by.public().as_bytes());
        let response = self
            .relay
            .request(&mut self.table, node, Permission::AnyKey, &packet, self.now)
            .ok()?;
        let envelope = Envelope::parse(&response.packet).expect("a disco packet");
        match Message::decode(&envelope.open(&by.shared(&self.identity)).expect("for us")) {
            Ok(Message::AllocateResponse(response)) => Some(response.endpoint),
            other => panic!("{other:?}"),
        }
    }

    /// What our relay sends to `from` because of a packet from there.
    fn control(&mut self, from: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
        // Rates, which the reference does not have, are not what this is about.
        self.now += SECOND;
        let local = OUR_ADDRESS.parse().expect("an address");
        let arrival = Arrival { from, local, payload };
        let reaction = self.relay.handshake(&mut self.table, &arrival, self.now);
        loop {
            let changes = self.table.poll(self.now);
            self.mirror.apply(&changes).expect("cannot fail");
            self.table.applied(self.now);
            match self.table.next_deadline() {
                Some(deadline) => self.now = self.now.max(deadline),
                None => break,
            }
        }
        match reaction {
            Ok(Reaction::Challenge(datagram)) => Some(datagram.payload),
            Ok(Reaction::Bound(_)) | Err(_) => None,
        }
    }

    fn bound(&self, vni: u32) -> [Option<SocketAddr>; 2] {
        self.relay.views().find(|view| view.vni == vni).map(|view| view.remotes).unwrap_or_default()
    }

    /// Where our relay would forward a packet from `from`.
    fn route(&self, from: SocketAddr, payload: &[u8]) -> Option<SocketAddr> {
        let mut settings = Settings::new(0);
        settings.ports[0] = Port { number: 40000_u16.to_be(), services: Services::GENEVE };
        settings.slot_mask = self.table.slots() - 1;
        let to: SocketAddr = OUR_ADDRESS.parse().expect("an address");
        let datagram = Datagram {
            source: from.ip().into(),
            destination: to.ip().into(),
            source_port: from.port().to_be(),
            destination_port: to.port().to_be(),
        };
        let delivery = Delivery { datagram, hop_limit: None };
        let mut payload = payload.to_vec();
        match decide(&mut payload, &delivery, &*self.mirror.read(), &settings, self.now) {
            Ok(Action::Forward(forward)) => Some(forward.destination),
            Ok(Action::Stun | Action::StunAnswer) | Err(_) => None,
        }
    }
}

fn packet(by: &DiscoPrivate, to: &DiscoPublic, message: &Message) -> Vec<u8> {
    let mut packet = Vec::new();
    seal(&mut packet, &by.public(), &by.shared(to), &[7; 24], message);
    packet
}

fn geneve(vni: u32, control: bool) -> Vec<u8> {
    let mut header = if control { vec![0, 0x80, 0x7a, 0x11] } else { vec![0, 0, 0x7a, 0x12] };
    header.extend((vni << 8).to_be_bytes());
    header
}

/// Both relays, with an endpoint for the same clients in each, and sockets of clients.
struct Both {
    reference: Reference,
    ours: Ours,
    /// The reference's endpoint, and ours.
    endpoints: [EndpointRecord; 2],
    /// The endpoint of two others in the reference, by which one sees that it has dealt with what came before.
    beacon: EndpointRecord,
    beacon_key: DiscoPrivate,
    sockets: Vec<UdpSocket>,
    generation: u32,
}

impl Both {
    fn address(&self, socket: usize) -> SocketAddr {
        self.sockets[socket].local_addr().expect("bound")
    }

    fn bind(by: &DiscoPrivate, endpoint: &EndpointRecord, generation: u32) -> Handshake {
        let [a, b] = endpoint.clients;
        let remote = if a == by.public() { b } else { a };
        Handshake { vni: endpoint.vni, generation, remote, challenge: [0; 32] }
    }

    /// Sends a packet to the reference and returns what comes back to this socket, having waited until the
    /// reference has dealt with it. What it sends because of packets that it has read together goes in any
    /// order, so the first beacon only shows that it has read the packet: the second one, that all has been sent.
    fn ask_reference(&mut self, socket: usize, payload: &[u8]) -> Option<Vec<u8>> {
        self.sockets[socket].send_to(payload, self.reference.address).expect("send");
        let first = self.until_beacon(socket);
        let second = self.until_beacon(socket);
        first.or(second)
    }

    /// Sends the beacon's bind message from a socket and returns what comes back there before its answer.
    fn until_beacon(&mut self, socket: usize) -> Option<Vec<u8>> {
        self.generation += 1;
        let beacon = Self::bind(&self.beacon_key, &self.beacon, self.generation);
        let sealed = packet(&self.beacon_key, &self.beacon.server, &Message::Bind(beacon));
        let beacon = [geneve(self.beacon.vni, true), sealed].concat();
        let socket = &self.sockets[socket];
        socket.send_to(&beacon, self.reference.address).expect("send");
        let mut answer = None;
        loop {
            let mut buffer = [0; 2048];
            let count = socket.recv(&mut buffer).expect("the reference answers the beacon");
            let received = &buffer[..count];
            if received.starts_with(&geneve(self.beacon.vni, true)) {
                return answer;
            }
            answer = Some(received.to_vec());
        }
    }

    /// Sends to both; returns the challenges that came back, the reference's and ours.
    fn control(&mut self, socket: usize, says: [Vec<u8>; 2]) -> [Option<Vec<u8>>; 2] {
        let [theirs, ours] = says;
        let from = self.address(socket);
        let answers = [self.ask_reference(socket, &theirs), self.ours.control(from, &ours)];
        let lengths = answers.each_ref().map(|answer| answer.as_ref().map(Vec::len));
        assert_eq!(lengths[0], lengths[1], "one answers, the other does not");
        let vnis = self.endpoints.each_ref().map(|endpoint| endpoint.vni);
        assert_eq!(self.reference.bound(vnis[0]), self.ours.bound(vnis[1]));
        answers
    }

    /// What one client sends about the endpoints: the relays differ in keys and VNIs.
    fn says(
        &self,
        by: &DiscoPrivate,
        message: impl Fn(&EndpointRecord) -> Message,
    ) -> [Vec<u8>; 2] {
        let [reference, ours] = &self.endpoints;
        [reference, ours].map(|endpoint| sealed(by, endpoint, &message(endpoint)))
    }

    /// Has a data packet sent from a socket and compares where it goes.
    fn data(&mut self, socket: usize) -> Option<SocketAddr> {
        let [reference, ours] = self.endpoints.each_ref().map(|endpoint| endpoint.vni);
        let payload = [geneve(reference, false), b"sealed".to_vec()].concat();
        assert_eq!(self.ask_reference(socket, &payload), None, "never back to its sender");
        let ours = [geneve(ours, false), b"sealed".to_vec()].concat();
        let destination = self.ours.route(self.address(socket), &ours);
        for receiver in 0..self.sockets.len() {
            let is_here = destination == Some(self.address(receiver));
            let receiver = &self.sockets[receiver];
            receiver.set_nonblocking(true).expect("non-blocking");
            let mut buffer = [0; 2048];
            let received = receiver.recv(&mut buffer).map(|count| buffer[..count].to_vec()).ok();
            receiver.set_nonblocking(false).expect("blocking");
            assert_eq!(received, is_here.then(|| payload.clone()));
        }
        destination
    }
}

fn both() -> Option<Both> {
    let mut reference = match Reference::start() {
        Ok(reference) => reference,
        Err(reason) => {
            println!("skipped: the peer relay beside the reference: {reason}");
            return None;
        }
    };
    let mut ours = Ours::start();
    let [a, b, c] = keys();
    let pair = [a.public(), b.public()];
    let our_endpoint = ours.allocate(&a, pair).expect("ours");
    let of_reference = |endpoint: (DiscoPublic, u32, u64), like: &EndpointRecord| EndpointRecord {
        server: endpoint.0,
        vni: endpoint.1,
        lamport_id: endpoint.2,
        ..like.clone()
    };
    let endpoint = reference.allocate(pair[0], pair[1]).expect("the reference's");
    let endpoint = of_reference(endpoint, &our_endpoint);
    let beacon = reference.allocate(c.public(), a.public()).expect("the reference's");
    let mut clients = [c.public(), a.public()];
    clients.sort();
    let beacon = EndpointRecord { clients, ..of_reference(beacon, &our_endpoint) };
    let socket = |_| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a timeout");
        socket
    };
    Some(Both {
        reference,
        ours,
        endpoints: [endpoint, our_endpoint],
        beacon,
        beacon_key: c,
        sockets: (0..4).map(socket).collect(),
        generation: 0,
    })
}

/// The keys of two clients and of somebody else.
fn keys() -> [DiscoPrivate; 3] {
    [1, 2, 3].map(|fill| DiscoPrivate::from_random([fill; 32]))
}

fn sealed(by: &DiscoPrivate, endpoint: &EndpointRecord, message: &Message) -> Vec<u8> {
    [geneve(endpoint.vni, true), packet(by, &endpoint.server, message)].concat()
}

#[test]
fn cases_31_and_32_endpoints_are_given_as_the_reference_gives_them() {
    let Some(mut both) = both() else { return };
    let [a, b, c] = keys();
    let mut lamports = Vec::new();
    for (by, clients) in [
        (&a, [&a, &b]),
        (&b, [&b, &a]),
        (&a, [&a, &c]),
        (&b, [&b, &c]),
        (&c, [&c, &a]),
        (&a, [&a, &b]),
    ] {
        let clients = clients.map(DiscoPrivate::public);
        let theirs = both.reference.allocate(clients[0], clients[1]).expect("the reference's");
        let ours = both.ours.allocate(by, clients).expect("ours");
        lamports.push((theirs.2, ours.lamport_id));
    }
    // The beacon's endpoint, of A and C, was the reference's second one already.
    let (theirs, ours): (Vec<_>, Vec<_>) = lamports.into_iter().unzip();
    assert_eq!(theirs, ours);
    assert_eq!(theirs, [1, 1, 2, 3, 2, 1]);
    let servers = [both.endpoints[0].server, both.ours.relay.public_key()];
    assert_eq!(both.reference.allocate(a.public(), servers[0]), None);
    assert_eq!(both.ours.allocate(&a, [a.public(), servers[1]]), None);
    assert_eq!(both.reference.ask("forget"), "ok");
    both.ours.relay.set_addresses([]);
    assert_eq!(both.reference.allocate(a.public(), b.public()), None);
    assert_eq!(both.ours.allocate(&a, [a.public(), b.public()]), None);
}

/// Packets of A that come to nothing, also when everything else fits.
fn wrong(both: &Both, generation: u32) -> Vec<[Vec<u8>; 2]> {
    let [a, _, c] = keys();
    let bind = |it: &EndpointRecord| Both::bind(&a, it, generation);
    let good = both.says(&a, |it| Message::Bind(bind(it)));
    let changed = |at: usize| {
        good.clone().map(|mut packet: Vec<u8>| {
            packet[at] ^= 1;
            packet
        })
    };
    vec![
        both.says(&a, |it| Message::Bind(Handshake { generation: 0, ..bind(it) })),
        both.says(&a, |it| Message::Bind(Handshake { vni: it.vni ^ 1, ..bind(it) })),
        both.says(&a, |it| Message::Bind(Handshake { remote: a.public(), ..bind(it) })),
        both.says(&a, |it| Message::Bind(Handshake { remote: c.public(), ..bind(it) })),
        both.says(&c, |it| Message::Bind(bind(it))),
        both.says(&a, |it| Message::Challenge(bind(it))),
        both.says(&a, |it| Message::Answer(bind(it))),
        both.says(&a, |it| Message::Answer(Handshake { generation: 0, ..bind(it) })),
        changed(8),
        changed(20),
        changed(100),
    ]
}

/// The answers of a client to the challenges of both.
fn answers(both: &Both, by: &DiscoPrivate, challenges: [Option<Vec<u8>>; 2]) -> [Vec<u8>; 2] {
    let [reference, ours] = &both.endpoints;
    let [theirs, our_own] = challenges;
    [(reference, theirs), (ours, our_own)].map(|(endpoint, challenge)| {
        let challenge = challenge.expect("a challenge");
        let envelope = Envelope::parse(&challenge[8..]).expect("a disco packet");
        let text = envelope.open(&by.shared(&endpoint.server)).expect("for us");
        let Ok(Message::Challenge(challenge)) = Message::decode(&text) else {
            panic!("no challenge");
        };
        assert_eq!(challenge.remote, Both::bind(by, endpoint, 1).remote);
        sealed(by, endpoint, &Message::Answer(challenge))
    })
}

#[test]
fn cases_33_to_35_and_38_handshakes_and_data_go_as_with_the_reference() {
    let Some(mut both) = both() else { return };
    let [a, b, _] = keys();
    // Sockets 0 and 1 are A's, 2 and 3 are B's: each moves in the second round.
    for round in 0..2 {
        let generation = 10 * round as u32 + 1;
        for (number, packets) in wrong(&both, generation).into_iter().enumerate() {
            assert_eq!(both.control(0, packets), [None, None], "{number} in round {round}");
        }
        for (client, first) in [(&a, 0), (&b, 2)] {
            let (at, elsewhere) = (first + round, first + 1 - round);
            let bind = |generation| {
                move |it: &EndpointRecord| Message::Bind(Both::bind(client, it, generation))
            };
            let older = both.says(client, bind(generation));
            let older = both.control(at, older);
            let newer = both.says(client, bind(generation + 1));
            let newer = both.control(at, newer);
            let before = both.ours.bound(both.endpoints[1].vni);

            let stale = answers(&both, client, older);
            assert_eq!(both.control(at, stale), [None, None]);
            let fresh = answers(&both, client, newer);
            assert_eq!(both.control(elsewhere, fresh.clone()), [None, None]);
            assert_eq!(both.ours.bound(both.endpoints[1].vni), before, "not yet, nor from there");
            assert_eq!(both.control(at, fresh.clone()), [None, None]);
            assert_ne!(both.ours.bound(both.endpoints[1].vni), before);
            assert_eq!(both.control(at, fresh), [None, None], "again");
            (0..4).for_each(|socket| {
                both.data(socket);
            });
        }
        let (of_a, of_b) = (both.address(round), both.address(2 + round));
        assert_eq!(both.data(round), Some(of_b));
        assert_eq!(both.data(2 + round), Some(of_a));
        assert_eq!(both.data(1 - round), None, "nobody is there any more");
    }
}

/// What clients are told is the same, and so is when an endpoint ends that is not bound, but for the reference's tick of
/// 30 s. The reference's clock cannot be set, so this takes up to a minute; ours is told the time.
#[test]
fn case_37_lifetimes_are_the_references_and_both_end_what_is_not_bound() {
    let Some(mut both) = both() else { return };
    let [a, b, _] = keys();
    let [_, ours] = both.endpoints.clone();
    let lifetimes = both.reference.lifetimes(a.public(), b.public());
    assert_eq!(lifetimes, [ours.bind_lifetime, ours.steady_state_lifetime]);

    let vni = both.reference.allocate(a.public(), b.public()).expect("an endpoint").1;
    let begun = Instant::now();
    let bind_lifetime = Duration::from_nanos(lifetimes[0]);
    let mut lived = Duration::ZERO;
    while both.reference.has(vni) {
        lived = begun.elapsed();
        assert!(lived < 4 * bind_lifetime, "the reference keeps it");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("the reference has ended it after {:.1} s", lived.as_secs_f64());
    // It was given some time before it was asked for again here; being asked again changes nothing there.
    assert!(lived + SOON > bind_lifetime, "{lived:?}");

    let Ours { relay, table, now, .. } = &mut both.ours;
    let given = *now;
    assert_eq!(relay.review(table, given + lifetimes[0]), []);
    let ended = relay.review(table, given + lifetimes[0] + SECOND);
    assert_eq!(
        ended.iter().map(|it| (it.vni, it.by)).collect::<Vec<_>>(),
        [(ours.vni, EndedBy::NotBound)]
    );
}
