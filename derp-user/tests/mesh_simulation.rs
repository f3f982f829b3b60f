//! A whole region in one thread: the relay's rules of many servers, on a virtual clock, joined by links that
//! delay, break and lose what is on its way, with servers that crash and clients that come, move and leave.
//!
//! Every run follows from its seed. `DERPD_SIMULATION_SEEDS` says how many are tried, 60 unless set;
//! `DERPD_TEST_SEED` repeats one.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use derp_user::{
    proto::{
        keys::NodePublic,
        message::{ClientTraits, GoneReason},
    },
    relay::{ConnectionId, Effect, Heard, Presence, Relay},
};

/// Packets that wait for a link; more push out the oldest.
const LINK_QUEUE: usize = 8;
/// Keys forgotten at once when a link ends.
const FORGET_AT_ONCE: usize = 3;
/// A lost link is dialled again after this long.
const REDIAL: u64 = 500;
/// Longest delay of a frame, in milliseconds like every time here.
const LONGEST_DELAY: u64 = 80;
/// After so long without changes everything must have settled.
const QUIET: u64 = 2_000 + REDIAL + 20 * LONGEST_DELAY;

/// Choices that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// One end of a connection at a server; also how the relay's effects name it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// A client is there.
    Client(usize),
    /// The link of another server, which watches.
    Watcher(u64),
    /// Our link to another server.
    Link(u64),
}

type Handle = (ConnectionId, End);

struct Server {
    relay: Relay<Handle>,
    up: bool,
    routes: BTreeMap<NodePublic, Handle>,
    ends: BTreeMap<ConnectionId, End>,
}

/// What is on its way from one end of a link to the other.
#[derive(Clone, Debug)]
enum Frame {
    Heard(Heard),
    Forward { source: NodePublic, destination: NodePublic },
}

/// A link from the server that dialled to the one that accepted.
struct Link {
    dialler: usize,
    acceptor: usize,
    /// Its names at both ends.
    names: [ConnectionId; 2],
    open: bool,
    /// When the last frame in each direction arrives: nothing overtakes.
    arrival: [u64; 2],
    /// Packets that wait, because the link takes one per so many milliseconds.
    waiting: VecDeque<Frame>,
    busy_until: u64,
    pace: u64,
}

struct Client {
    key: NodePublic,
    /// Server and name there.
    at: Option<(usize, ConnectionId)>,
    /// Whose packets came by this connection.
    received_from: BTreeSet<NodePublic>,
}

#[derive(Debug)]
enum Event {
    Dial {
        dialler: usize,
        acceptor: usize,
    },
    /// A frame arrives, at the dialler or the acceptor.
    Arrive {
        link: u64,
        at_dialler: bool,
        frame: Frame,
    },
    /// One end notices that the link is lost.
    Lost {
        link: u64,
        at_dialler: bool,
    },
    TellMore {
        server: usize,
        watcher: ConnectionId,
    },
    LinkFree {
        link: u64,
    },
}

struct World {
    random: Random,
    now: u64,
    start: Instant,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    last_id: ConnectionId,
    last_link: u64,
    servers: Vec<Server>,
    links: BTreeMap<u64, Link>,
    clients: Vec<Client>,
    delivered: u64,
    pushed_out: u64,
}

fn key_of(kind: u8, number: usize) -> NodePublic {
    let mut bytes = [kind; 32];
    bytes[..8].copy_from_slice(&(number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..16].copy_from_slice(&(number as u64).to_be_bytes());
    NodePublic::from_bytes(bytes)
}

impl World {
    fn new(seed: u64, servers: usize, clients: usize) -> Self {
        let mut world = Self {
            random: Random(seed),
            now: 0,
            start: Instant::now(),
            events: BTreeMap::new(),
            scheduled: 0,
            last_id: 0,
            last_link: 0,
            servers: (0..servers).map(Self::new_server).collect(),
            links: BTreeMap::new(),
            clients: (0..clients)
                .map(|number| Client {
                    key: key_of(1, number),
                    at: None,
                    received_from: BTreeSet::new(),
                })
                .collect(),
            delivered: 0,
            pushed_out: 0,
        };
        for dialler in 0..servers {
            world.dial_everybody(dialler);
        }
        world
    }

    fn new_server(number: usize) -> Server {
        Server {
            relay: Relay::new(key_of(0xff, number)),
            up: true,
            routes: BTreeMap::new(),
            ends: BTreeMap::new(),
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((time, self.scheduled), event);
    }

    fn delay(&mut self) -> u64 {
        1 + self.random.next() % LONGEST_DELAY
    }

    fn next_id(&mut self) -> ConnectionId {
        self.last_id += 1;
        self.last_id
    }

    fn dial_everybody(&mut self, dialler: usize) {
        for acceptor in 0..self.servers.len() {
            if acceptor != dialler {
                let time = self.now + self.delay();
                self.at(time, Event::Dial { dialler, acceptor });
            }
        }
    }

    /// Runs until `time`.
    fn run(&mut self, time: u64) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > time {
                break;
            }
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.handle(event);
        }
        self.now = time;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Dial { dialler, acceptor } => self.dial(dialler, acceptor),
            Event::Arrive { link, at_dialler, frame } => self.arrive(link, at_dialler, frame),
            Event::Lost { link, at_dialler } => self.lost(link, at_dialler),
            Event::TellMore { server, watcher } => {
                let effects = self.servers[server].relay.watch_more(watcher);
                self.tell_more(server, watcher);
                self.apply(server, effects);
            }
            Event::LinkFree { link } => self.send_waiting(link),
        }
    }

    fn dial(&mut self, dialler: usize, acceptor: usize) {
        if !self.servers[dialler].up {
            return;
        }
        let stands = |link: &Link| {
            link.dialler == dialler && self.servers[dialler].ends.contains_key(&link.names[0])
        };
        if self.links.values().any(stands)
            && self.links.values().any(|link| stands(link) && link.acceptor == acceptor)
        {
            return;
        }
        if !self.servers[acceptor].up {
            let time = self.now + REDIAL;
            return self.at(time, Event::Dial { dialler, acceptor });
        }
        let names = [self.next_id(), self.next_id()];
        self.last_link += 1;
        let link = self.last_link;
        let pace = self.random.next() % 4;
        self.links.insert(
            link,
            Link {
                dialler,
                acceptor,
                names,
                open: true,
                arrival: [self.now; 2],
                waiting: VecDeque::new(),
                busy_until: 0,
                pace,
            },
        );
        let side = &mut self.servers[dialler];
        side.ends.insert(names[0], End::Link(link));
        side.relay.link_up(names[0], (names[0], End::Link(link)));
        let watcher = (names[1], End::Watcher(link));
        let traits = ClientTraits { mesh_peer: true, ..ClientTraits::default() };
        let presence = presence(key_of(0xff, dialler), traits);
        let now = self.start + Duration::from_millis(self.now);
        let side = &mut self.servers[acceptor];
        side.ends.insert(names[1], End::Watcher(link));
        let mut effects = side.relay.register(names[1], watcher, presence, now);
        effects.extend(side.relay.watch(names[1]));
        self.tell_more(acceptor, names[1]);
        self.apply(acceptor, effects);
    }

    fn tell_more(&mut self, server: usize, watcher: ConnectionId) {
        if self.servers[server].relay.tells_more(watcher) {
            let time = self.now + self.delay();
            self.at(time, Event::TellMore { server, watcher });
        }
    }

    /// Carries out what a server's relay wants.
    fn apply(&mut self, server: usize, effects: Vec<Effect<Handle>>) {
        for effect in effects {
            match effect {
                Effect::Route { key, to: Some(to) } => {
                    self.servers[server].routes.insert(key, to);
                }
                Effect::Route { key, to: None } => {
                    self.servers[server].routes.remove(&key);
                }
                Effect::Duplicate { .. } => {}
                Effect::PeerPresent { to: (_, End::Watcher(link)), presence } => {
                    self.send(link, true, Frame::Heard(Heard::Present(presence.key)));
                }
                Effect::PeerGone { to: (_, End::Watcher(link)), key, .. } => {
                    self.send(link, true, Frame::Heard(Heard::Gone(key)));
                }
                Effect::PeerGone { to: (_, End::Client(client)), key, reason } => {
                    let had = self.clients[client].received_from.contains(&key);
                    assert!(
                        had && reason == GoneReason::Disconnected,
                        "told of {key}, from whom nothing came"
                    );
                }
                effect @ (Effect::PeerPresent { .. }
                | Effect::PeerGone { .. }
                | Effect::Close(_)) => panic!("{effect:?}"),
            }
        }
        // Costs the square of the number of keys, so not every time.
        if self.random.below(64) == 0 {
            assert_eq!(self.servers[server].relay.check(), Ok(()));
        }
    }

    /// Puts a frame on its way; what is sent into a lost link is lost.
    fn send(&mut self, link: u64, to_dialler: bool, frame: Frame) {
        let delay = self.delay();
        let Some(state) = self.links.get_mut(&link).filter(|link| link.open) else { return };
        let arrival = &mut state.arrival[usize::from(to_dialler)];
        *arrival = (*arrival).max(self.now + delay);
        let time = *arrival;
        self.at(time, Event::Arrive { link, at_dialler: to_dialler, frame });
    }

    fn arrive(&mut self, link: u64, at_dialler: bool, frame: Frame) {
        let Some(state) = self.links.get(&link).filter(|link| link.open) else { return };
        let (server, name) = if at_dialler {
            (state.dialler, state.names[0])
        } else {
            (state.acceptor, state.names[1])
        };
        if !self.servers[server].ends.contains_key(&name) {
            return;
        }
        match frame {
            Frame::Heard(heard) => {
                let effects = self.servers[server].relay.link_heard(name, [heard]);
                self.apply(server, effects);
            }
            Frame::Forward { source, destination } => {
                match self.servers[server].routes.get(&destination) {
                    Some(&(id, End::Client(client))) => {
                        self.deliver(server, id, client, source, destination)
                    }
                    // One hop only; or the mesh peer was wrong.
                    Some((_, End::Watcher(_) | End::Link(_))) => {}
                    None => {
                        let heard = Heard::Gone(destination);
                        self.send(link, true, Frame::Heard(heard));
                    }
                }
            }
        }
    }

    fn deliver(
        &mut self,
        server: usize,
        id: ConnectionId,
        client: usize,
        source: NodePublic,
        destination: NodePublic,
    ) {
        let receiver = &mut self.clients[client];
        assert_eq!(receiver.key, destination, "a frame came to a wrong key");
        assert_eq!(receiver.at, Some((server, id)), "routed to a connection that has ended");
        receiver.received_from.insert(source);
        self.servers[server].relay.first_packet(source, id);
        self.delivered += 1;
    }

    fn send_packet(&mut self, client: usize, destination: NodePublic) {
        let Some((server, _)) = self.clients[client].at else { return };
        let source = self.clients[client].key;
        match self.servers[server].routes.get(&destination) {
            Some(&(id, End::Client(to))) => self.deliver(server, id, to, source, destination),
            Some(&(_, End::Link(link))) => {
                let state = self.links.get_mut(&link).expect("a link that was there once");
                state.waiting.push_back(Frame::Forward { source, destination });
                if state.waiting.len() > LINK_QUEUE {
                    state.waiting.pop_front();
                    self.pushed_out += 1;
                }
                self.send_waiting(link);
            }
            Some((_, End::Watcher(_))) | None => {}
        }
    }

    fn send_waiting(&mut self, link: u64) {
        let Some(state) = self.links.get_mut(&link) else { return };
        if !state.open {
            state.waiting.clear();
            return;
        }
        if state.waiting.is_empty() || state.busy_until > self.now {
            return;
        }
        let frame = state.waiting.pop_front().expect("not empty");
        state.busy_until = self.now + state.pace;
        let time = state.busy_until;
        self.send(link, false, frame);
        self.at(time, Event::LinkFree { link });
    }

    /// Breaks a link: its ends notice it at different times.
    fn cut(&mut self, link: u64) {
        let Some(state) = self.links.get_mut(&link).filter(|link| link.open) else { return };
        state.open = false;
        for at_dialler in [true, false] {
            let time = self.now + self.delay();
            self.at(time, Event::Lost { link, at_dialler });
        }
    }

    fn lost(&mut self, link: u64, at_dialler: bool) {
        let Link { dialler, acceptor, names, .. } = self.links[&link];
        let (server, name) = if at_dialler { (dialler, names[0]) } else { (acceptor, names[1]) };
        if self.servers[server].ends.remove(&name).is_none() {
            return;
        }
        if at_dialler {
            let mut more = true;
            while more {
                let effects;
                (effects, more) = self.servers[server].relay.link_down(name, FORGET_AT_ONCE);
                self.apply(server, effects);
            }
            let time = self.now + REDIAL;
            self.at(time, Event::Dial { dialler, acceptor });
        } else {
            let effects = self.servers[server].relay.unregister(name);
            self.apply(server, effects);
        }
    }

    fn connect(&mut self, client: usize, server: usize) {
        self.disconnect(client);
        if !self.servers[server].up {
            return;
        }
        let id = self.next_id();
        let handle = (id, End::Client(client));
        let now = self.start + Duration::from_millis(self.now);
        let this = &mut self.clients[client];
        this.at = Some((server, id));
        this.received_from.clear();
        let presence = presence(this.key, ClientTraits::default());
        self.servers[server].ends.insert(id, handle.1);
        let effects = self.servers[server].relay.register(id, handle, presence, now);
        self.apply(server, effects);
    }

    fn disconnect(&mut self, client: usize) {
        if let Some((server, id)) = self.clients[client].at.take() {
            self.servers[server].ends.remove(&id);
            let effects = self.servers[server].relay.unregister(id);
            self.apply(server, effects);
        }
    }

    /// Everything the server knew is gone; the others notice by and by.
    fn crash(&mut self, server: usize) {
        if !self.servers[server].up {
            return;
        }
        self.servers[server] = Server { up: false, ..Self::new_server(server) };
        for client in &mut self.clients {
            client.at = client.at.filter(|(at, _)| *at != server);
        }
        let its = |link: &&u64| {
            let link = &self.links[*link];
            link.dialler == server || link.acceptor == server
        };
        let links: Vec<u64> = self.links.keys().filter(its).copied().collect();
        links.into_iter().for_each(|link| self.cut(link));
    }

    fn restart(&mut self, server: usize) {
        if !self.servers[server].up {
            self.servers[server].up = true;
            self.dial_everybody(server);
        }
    }

    /// One thing that happens to the region.
    fn change(&mut self) {
        let server = self.random.below(self.servers.len());
        let client = self.random.below(self.clients.len());
        match self.random.below(40) {
            0 => self.crash(server),
            1 | 2 => self.restart(server),
            3 | 4 => {
                let links: Vec<u64> =
                    self.links.iter().filter(|(_, link)| link.open).map(|(id, _)| *id).collect();
                if !links.is_empty() {
                    let link = links[self.random.below(links.len())];
                    self.cut(link);
                }
            }
            5..=12 => self.connect(client, server),
            13..=15 => self.disconnect(client),
            _ => {
                for _ in 0..=self.random.below(20) {
                    let to = self.random.below(self.clients.len());
                    self.send_packet(client, self.clients[to].key);
                }
            }
        }
    }

    /// Lets everything settle and compares each server with where the clients really are.
    fn check_settled(&mut self) {
        for server in 0..self.servers.len() {
            self.restart(server);
        }
        self.run(self.now + QUIET);
        for (number, server) in self.servers.iter().enumerate() {
            assert_eq!(server.relay.check(), Ok(()));
            let census = server.relay.census();
            assert_eq!(census.links as usize, self.servers.len() - 1, "of server {number}");
            let mut remote = 0;
            for client in &self.clients {
                let route = server.routes.get(&client.key);
                match client.at {
                    None => assert_eq!(route, None, "server {number} knows one who left"),
                    Some((at, id)) if at == number => {
                        assert_eq!(route.map(|(id, _)| *id), Some(id), "at server {number}");
                    }
                    Some((at, _)) => {
                        remote += 1;
                        let Some((_, End::Link(link))) = route else {
                            panic!("server {number} has {route:?} for a client of {at}");
                        };
                        let link = &self.links[link];
                        assert!(link.open && (link.dialler, link.acceptor) == (number, at));
                    }
                }
            }
            let beside = census.remote_keys - remote;
            assert!(beside < self.servers.len() as u64, "{beside} more keys than clients");
        }
        // And what was found out serves: a packet for everybody arrives.
        for state in self.links.values_mut() {
            state.pace = 0;
        }
        let connected: Vec<usize> =
            (0..self.clients.len()).filter(|client| self.clients[*client].at.is_some()).collect();
        let Some(&sender) = connected.first() else { return };
        let before = self.delivered;
        for &to in connected.iter().take(500) {
            self.send_packet(sender, self.clients[to].key);
            self.run(self.now + 1);
        }
        self.run(self.now + QUIET);
        assert_eq!(self.delivered - before, connected.len().min(500) as u64);
    }
}

fn presence(key: NodePublic, traits: ClientTraits) -> Presence {
    Presence { key, address: SocketAddr::from(([192, 0, 2, 1], 1)), traits }
}

fn simulate(seed: u64) {
    let mut random = Random(seed ^ 0x5eed);
    let (servers, clients) = (3 + random.below(6), 5 + random.below(40));
    let mut world = World::new(seed, servers, clients);
    for _ in 0..6 {
        for _ in 0..150 {
            world.change();
            let pause = world.random.next() % 30;
            world.run(world.now + pause);
        }
        world.check_settled();
    }
    assert!(world.delivered > 0);
}

#[test]
fn a_region_settles_after_whatever_happens() {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    if let Some(seed) = number("DERPD_TEST_SEED") {
        return simulate(seed);
    }
    for seed in 0..number("DERPD_SIMULATION_SEEDS").unwrap_or(60) {
        // Printed only if this fails.
        println!("DERPD_TEST_SEED={seed}");
        simulate(seed);
    }
}

/// More clients than a watcher is told of at once, coming and going while it is told.
#[test]
fn servers_with_many_clients_settle() {
    let mut world = World::new(7, 3, 6000);
    for client in 0..6000 {
        world.connect(client, client % 3);
    }
    for _ in 0..3 {
        // While the links come again and everything is told anew, clients do not stand still.
        let links: Vec<u64> = world.links.keys().copied().collect();
        links.into_iter().for_each(|link| world.cut(link));
        for _ in 0..2000 {
            let (client, server) = (world.random.below(6000), world.random.below(3));
            if world.random.below(2) == 0 {
                world.disconnect(client);
            } else {
                world.connect(client, server);
            }
            if world.random.below(2) == 0 {
                world.run(world.now + 1);
            }
        }
        world.check_settled();
    }
}
