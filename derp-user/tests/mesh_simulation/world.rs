//! The region: servers, links and clients, and what happens between them.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use derp_user::{
    proto::message::{ClientTraits, GoneReason},
    relay::{Effect, Presence},
};

use crate::{
    clients::{Client, Session},
    keys::{KeyNumber, News, key, number},
    links::{LINK_QUEUE, Link, LinkNumber, MOST_NEWS, SOCKET, Side},
    random::Random,
    schedule::{Event, Freight, MILLISECOND, SECOND, Schedule},
    servers::{End, Server},
};

/// A lost link is dialled again after this long.
pub(crate) const REDIAL: u64 = 500 * MILLISECOND;
/// Longest time until an end of a link notices that it is lost.
pub(crate) const NOTICE: u64 = 2 * SECOND;
/// Bytes of a forwarded packet.
const PACKET: u32 = 5 + 64 + 1200;

/// What a region is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    /// Bytes per second that each server's network interface takes in each direction; endless if 0.
    pub(crate) rate: u64,
    /// Delay of every link, and the most that is added by chance.
    pub(crate) delay: u64,
    pub(crate) jitter: u64,
    /// What the mesh thread takes for one frame that it hears.
    pub(crate) work: u64,
    /// Most time that links take for a packet.
    pub(crate) slowest_pace: u64,
    /// Keys forgotten at once when a link ends.
    pub(crate) forget_at_once: usize,
    /// Whether tables are looked through now and then, at a cost of the number of keys.
    pub(crate) checks: bool,
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// PeerPresent and PeerGone frames to other servers, and their bytes.
    pub(crate) news: u64,
    pub(crate) news_bytes: u64,
    /// When the last of them was handled.
    pub(crate) last_news: u64,
    pub(crate) delivered: u64,
    /// Packets that came to a connection whose client is no longer there.
    pub(crate) to_the_dead: u64,
    pub(crate) pushed_out: u64,
    /// Packets that would have needed a second hop.
    pub(crate) second_hops: u64,
    /// Watchers closed because they left too much unread.
    pub(crate) overwhelmed: u64,
}

pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) random: Random,
    pub(crate) schedule: Schedule,
    /// True time of the beginning.
    start: Instant,
    pub(crate) servers: Vec<Server>,
    pub(crate) links: Vec<Link>,
    pub(crate) clients: Vec<Client>,
    last_key: KeyNumber,
    pub(crate) tally: Tally,
}

fn presence(number: KeyNumber, traits: ClientTraits) -> Presence {
    Presence { key: key(number), address: SocketAddr::from(([192, 0, 2, 1], 1)), traits }
}

impl World {
    /// Servers that do not know of each other yet.
    pub(crate) fn new(seed: u64, settings: Settings) -> Self {
        let Settings { servers, clients, .. } = settings;
        let keys = servers + clients;
        Self {
            settings,
            random: Random(seed),
            schedule: Schedule::default(),
            // So that clocks can be set back.
            start: Instant::now() + Duration::from_secs(86_400),
            servers: (clients..keys)
                .map(|key| Server::new(key as KeyNumber, servers, keys))
                .collect(),
            links: Vec::new(),
            clients: (0..clients).map(|_| Client::default()).collect(),
            last_key: (keys - 1) as KeyNumber,
            tally: Tally::default(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.schedule.now()
    }

    fn new_key(&mut self) -> KeyNumber {
        self.last_key += 1;
        self.last_key
    }

    /// A chance of at most `most`.
    fn some(&mut self, most: u64) -> u64 {
        if most == 0 { 0 } else { self.random.next() % most }
    }

    /// Runs until `time`.
    pub(crate) fn run(&mut self, time: u64) {
        while let Some(event) = self.schedule.next(time) {
            self.handle(event);
        }
    }

    pub(crate) fn run_for(&mut self, duration: u64) {
        self.run(self.now() + duration);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Dial { dialler, acceptor } => self.dial(dialler, acceptor),
            Event::Arrive { link, to, bytes, freight } => self.arrive(link, to, bytes, freight),
            Event::Handle { link, to, bytes, freight } => self.take(link, to, bytes, freight),
            Event::Lost { link, side } => self.lost(link, side),
            Event::TellMore { link } => {
                let (server, name) = self.links[link as usize].end(Side::Acceptor);
                let effects = self.servers[server as usize].relay.watch_more(name.into());
                self.apply(server, effects);
                self.tell_more(link);
            }
            Event::Free { link } => self.send_waiting(link),
            Event::Expire { server, connection } => self.expire(server, connection),
        }
    }

    /// A server dials all others within `spread`.
    pub(crate) fn dial_everybody(&mut self, dialler: u32, spread: u64) {
        for acceptor in 0..self.servers.len() as u32 {
            if acceptor != dialler {
                let pause = self.pause_before_dialling(spread);
                self.schedule.after(pause, Event::Dial { dialler, acceptor });
            }
        }
    }

    /// All others dial a server within `spread`.
    pub(crate) fn everybody_dials(&mut self, acceptor: u32, spread: u64) {
        for dialler in 0..self.servers.len() as u32 {
            if acceptor != dialler {
                let pause = self.pause_before_dialling(spread);
                self.schedule.after(pause, Event::Dial { dialler, acceptor });
            }
        }
    }

    /// TCP, TLS and login take three round trips.
    fn pause_before_dialling(&mut self, spread: u64) -> u64 {
        6 * self.settings.delay + self.some(spread)
    }

    fn dial(&mut self, dialler: u32, acceptor: u32) {
        let [from, to] = [&self.servers[dialler as usize], &self.servers[acceptor as usize]];
        if !from.up || !to.listed || from.links_to[acceptor as usize].is_some() {
            return;
        }
        if !to.up {
            return self.schedule.after(REDIAL, Event::Dial { dialler, acceptor });
        }
        let (from_key, to_key) = (from.key, to.key);
        let link = self.links.len() as LinkNumber;
        let names = [
            self.servers[dialler as usize].open(End::Link(link)),
            self.servers[acceptor as usize].open(End::Watcher(link)),
        ];
        let pace = self.some(self.settings.slowest_pace);
        self.links.push(Link::new([dialler, acceptor], names, pace));
        let side = &mut self.servers[dialler as usize];
        side.links_to[acceptor as usize] = Some(link);
        let effects = side.relay.link_up(names[0].into(), names[0], key(to_key));
        self.apply(dialler, effects);

        let traits = ClientTraits { mesh_peer: true, ..ClientTraits::default() };
        let now = self.clock(acceptor);
        let relay = &mut self.servers[acceptor as usize].relay;
        let mut effects =
            relay.register(names[1].into(), names[1], presence(from_key, traits), now);
        effects.extend(relay.watch(names[1].into()));
        self.apply(acceptor, effects);
        self.tell_more(link);
    }

    /// Has a watcher told more when its socket has taken what it was told.
    fn tell_more(&mut self, link: LinkNumber) {
        let state = &mut self.links[link as usize];
        let (server, name) = state.end(Side::Acceptor);
        let server = &self.servers[server as usize];
        if server.relay.tells_more(name.into()) {
            if state.way(Side::Dialler).backlog < SOCKET {
                self.schedule.at(server.sends_until, Event::TellMore { link });
            } else {
                state.tells_more = true;
            }
        }
    }

    fn clock(&self, server: u32) -> Instant {
        self.servers[server as usize].clock(self.start, self.now())
    }

    /// Carries out what a server's relay wants.
    fn apply(&mut self, server: u32, effects: Vec<Effect<u32>>) {
        let mut news: Vec<News> = Vec::new();
        let mut watcher = None;
        for effect in effects {
            let side = &mut self.servers[server as usize];
            let (to, what) = match effect {
                Effect::Route { key, to } => {
                    side.set_route(number(&key), to);
                    continue;
                }
                Effect::Duplicate { connection, duplicate: true } => {
                    side.duplicates.insert(connection);
                    continue;
                }
                Effect::Duplicate { connection, duplicate: false } => {
                    side.duplicates.remove(&connection);
                    continue;
                }
                Effect::PeerPresent { to, presence } => (to, News::present(&presence.key)),
                Effect::PeerGone { to, key, reason } => match side.end(to) {
                    End::Client(client) => {
                        assert_eq!(reason, GoneReason::Disconnected);
                        self.told_gone(server, to, client, number(&key));
                        continue;
                    }
                    End::Gone | End::Watcher(_) | End::Link(_) => (to, News::gone(&key)),
                },
                Effect::Close(_) => panic!("nobody asked for {effect:?}"),
            };
            let End::Watcher(link) = side.end(to) else {
                panic!("server {server} tells {:?} who is here", side.end(to));
            };
            if let Some(before) = watcher.replace(link)
                && before != link
            {
                self.tell(before, &mut news);
            }
            news.push(what);
        }
        if let Some(link) = watcher {
            self.tell(link, &mut news);
        }
        // Costs the number of keys, so not every time.
        if self.settings.checks && self.random.once_in(64) {
            assert_eq!(self.servers[server as usize].relay.check(), Ok(()));
        }
    }

    fn told_gone(&mut self, server: u32, connection: u32, client: u32, sender: KeyNumber) {
        let session = self.clients[client as usize].session(server, connection);
        let session = session.expect("told a connection that has ended");
        assert!(session.received_from.contains(&sender), "told of {sender}, whom it never heard");
        assert!(session.told.insert(sender), "told of {sender} again");
    }

    fn tell(&mut self, link: LinkNumber, news: &mut Vec<News>) {
        self.tally.news += news.len() as u64;
        let freight = match news[..] {
            [only] => Freight::One(only),
            _ => Freight::Many(news.as_slice().into()),
        };
        news.clear();
        self.transmit(link, Side::Dialler, freight);
    }

    /// Puts freight on its way; what is sent into a lost link is lost.
    fn transmit(&mut self, link: LinkNumber, to: Side, freight: Freight) {
        let bytes = match &freight {
            Freight::Packet { .. } => PACKET,
            news @ (Freight::One(_) | Freight::Many(_)) => {
                news.news().iter().map(|news| news.length()).sum()
            }
        };
        let jitter = self.some(self.settings.jitter);
        let state = &mut self.links[link as usize];
        if !state.open {
            return;
        }
        let from = if to == Side::Dialler { Side::Acceptor } else { Side::Dialler };
        let sender = &mut self.servers[state.end(from).0 as usize];
        let now = self.schedule.now();
        sender.sends_until = sender.sends_until.max(now) + time_for(bytes, self.settings.rate);
        let across = sender.sends_until + self.settings.delay + jitter;
        let way = state.way(to);
        way.backlog += bytes;
        way.arrival = across.max(way.arrival).max(way.stalled_until);
        let (arrival, backlog) = (way.arrival, way.backlog);
        self.schedule.at(arrival, Event::Arrive { link, to, bytes, freight });
        if to == Side::Dialler {
            self.tally.news_bytes += u64::from(bytes);
            if backlog > SOCKET + MOST_NEWS {
                self.tally.overwhelmed += 1;
                self.cut(link);
            }
        }
    }

    /// The receiver's network interface and its mesh thread take one thing after the other.
    fn arrive(&mut self, link: LinkNumber, to: Side, bytes: u32, freight: Freight) {
        let state = &self.links[link as usize];
        if !state.open {
            return;
        }
        let receiver = &mut self.servers[state.end(to).0 as usize];
        let work = self.settings.work * freight.news().len() as u64;
        let now = self.schedule.now();
        let until = receiver.receives_until.max(now) + time_for(bytes, self.settings.rate) + work;
        receiver.receives_until = until;
        if until == now {
            self.take(link, to, bytes, freight);
        } else {
            self.schedule.at(until, Event::Handle { link, to, bytes, freight });
        }
    }

    fn take(&mut self, link: LinkNumber, to: Side, bytes: u32, freight: Freight) {
        let state = &mut self.links[link as usize];
        if !state.open {
            return;
        }
        let way = state.way(to);
        way.backlog -= bytes;
        let has_room = to == Side::Dialler && way.backlog < SOCKET;
        if has_room && std::mem::take(&mut state.tells_more) {
            self.schedule.after(0, Event::TellMore { link });
        }
        let (server, name) = state.end(to);
        let side = &mut self.servers[server as usize];
        if side.end(name) == End::Gone {
            return;
        }
        match freight {
            Freight::Packet { source, destination } => {
                self.forwarded(link, server, source, destination);
            }
            news @ (Freight::One(_) | Freight::Many(_)) => {
                let heard = news.news().iter().map(|news| news.heard());
                let effects = side.relay.link_heard(name.into(), heard);
                self.tally.last_news = self.schedule.now();
                self.apply(server, effects);
            }
        }
    }

    /// A packet has come by a link.
    fn forwarded(
        &mut self,
        link: LinkNumber,
        server: u32,
        source: KeyNumber,
        destination: KeyNumber,
    ) {
        let side = &self.servers[server as usize];
        match side.route(destination) {
            Some((id, End::Client(client))) => {
                self.deliver(server, id as u32, client, source, destination);
            }
            // One hop only; or the mesh peer was wrong.
            Some((_, End::Watcher(_) | End::Link(_))) => self.tally.second_hops += 1,
            Some((_, End::Gone)) => panic!("a route to a connection that has ended"),
            None if side.relay.is_here(&key(destination)) => {}
            None => {
                self.transmit(link, Side::Dialler, Freight::One(News::gone(&key(destination))));
            }
        }
    }

    fn deliver(
        &mut self,
        server: u32,
        connection: u32,
        client: u32,
        source: KeyNumber,
        destination: KeyNumber,
    ) {
        assert_eq!(client, destination, "a frame came to a wrong key");
        let side = &mut self.servers[server as usize];
        side.relay.first_packet(key(source), connection.into());
        let knows_sender = side.route(source).is_some();
        let session = self.clients[client as usize].session(server, connection);
        let session = session.expect("routed to a connection that has ended");
        session.received_from.insert(source);
        if knows_sender {
            session.expects.insert(source);
        }
        if session.dead {
            self.tally.to_the_dead += 1;
        } else {
            self.tally.delivered += 1;
        }
    }

    /// A client sends by one of its connections, the last one being 0.
    pub(crate) fn send_packet(&mut self, client: usize, session: usize, destination: KeyNumber) {
        let sessions = &self.clients[client].sessions;
        let Some(at) = sessions.len().checked_sub(1 + session) else { return };
        let Session { server, connection, dead, .. } = sessions[at];
        if dead {
            return;
        }
        let side = &mut self.servers[server as usize];
        if side.duplicates.contains(&connection) {
            let effects = side.relay.spoke(connection.into());
            let session = self.clients[client].sessions.remove(at);
            self.clients[client].sessions.push(session);
            self.apply(server, effects);
        }
        let source = client as KeyNumber;
        match self.servers[server as usize].route(destination) {
            Some((id, End::Client(to))) => {
                self.deliver(server, id as u32, to, source, destination);
            }
            Some((_, End::Link(link))) => {
                let state = &mut self.links[link as usize];
                state.waiting.push_back(Freight::Packet { source, destination });
                if state.waiting.len() > LINK_QUEUE {
                    state.waiting.pop_front();
                    self.tally.pushed_out += 1;
                }
                self.send_waiting(link);
            }
            Some((_, End::Gone)) => panic!("a route to a connection that has ended"),
            // The key of a server, or nobody.
            Some((_, End::Watcher(_))) | None => {}
        }
    }

    fn send_waiting(&mut self, link: LinkNumber) {
        let state = &mut self.links[link as usize];
        if !state.open {
            state.waiting.clear();
            return;
        }
        let now = self.schedule.now();
        if state.busy_until > now {
            return;
        }
        let Some(freight) = state.waiting.pop_front() else { return };
        state.busy_until = now + state.pace;
        self.schedule.at(state.busy_until, Event::Free { link });
        self.transmit(link, Side::Acceptor, freight);
    }

    /// Breaks a link: its ends notice it at different times, rarely late.
    pub(crate) fn cut(&mut self, link: LinkNumber) {
        let state = &mut self.links[link as usize];
        if !std::mem::take(&mut state.open) {
            return;
        }
        for side in [Side::Dialler, Side::Acceptor] {
            let longest = if self.random.once_in(8) { NOTICE } else { NOTICE / 20 };
            let pause = self.some(longest);
            self.schedule.after(pause, Event::Lost { link, side });
        }
    }

    fn lost(&mut self, link: LinkNumber, side: Side) {
        let [dialler, acceptor] = self.links[link as usize].servers;
        let (server, name) = self.links[link as usize].end(side);
        let at = &mut self.servers[server as usize];
        if at.close(name).is_none() {
            return;
        }
        match side {
            Side::Dialler => {
                at.links_to[acceptor as usize] = None;
                let mut more = true;
                while more {
                    let effects;
                    (effects, more) = self.servers[server as usize]
                        .relay
                        .link_down(name.into(), self.settings.forget_at_once);
                    self.apply(server, effects);
                }
                self.schedule.after(REDIAL, Event::Dial { dialler, acceptor });
            }
            Side::Acceptor => {
                let effects = at.relay.unregister(name.into());
                self.apply(server, effects);
            }
        }
    }

    /// A client connects to a server, beside the connections that it has.
    pub(crate) fn connect(&mut self, client: usize, server: usize) {
        if !self.servers[server].up {
            return;
        }
        let number = client as KeyNumber;
        let now = self.clock(server as u32);
        let side = &mut self.servers[server];
        let connection = side.open(End::Client(number));
        let presence = presence(number, ClientTraits::default());
        let effects = side.relay.register(connection.into(), connection, presence, now);
        self.clients[client].sessions.push(Session::new(server as u32, connection));
        self.apply(server as u32, effects);
    }

    /// A client closes all its connections.
    pub(crate) fn disconnect(&mut self, client: usize) {
        let alive = self.clients[client].sessions.iter().filter(|session| !session.dead);
        let alive: Vec<_> = alive.map(|session| (session.server, session.connection)).collect();
        for (server, connection) in alive {
            self.expire(server, connection);
        }
    }

    /// A client vanishes: its servers will notice within `longest`.
    pub(crate) fn vanish(&mut self, client: usize, longest: u64) {
        for at in 0..self.clients[client].sessions.len() {
            let pause = self.some(longest);
            let session = &mut self.clients[client].sessions[at];
            session.dead = true;
            let Session { server, connection, .. } = *session;
            self.schedule.after(pause, Event::Expire { server, connection });
        }
    }

    fn expire(&mut self, server: u32, connection: u32) {
        let side = &mut self.servers[server as usize];
        if let Some(End::Client(client)) = side.close(connection) {
            let effects = side.relay.unregister(connection.into());
            self.clients[client as usize].remove(server, connection);
            self.apply(server, effects);
        }
    }

    /// A client says whether a server is its home.
    pub(crate) fn note_preferred(&mut self, client: usize, home: bool) {
        let Some(&Session { server, connection, .. }) = self.clients[client].sessions.last() else {
            return;
        };
        let now = self.clock(server);
        let relay = &mut self.servers[server as usize].relay;
        relay.note_preferred(connection.into(), home, now);
    }

    /// Everything the server knew is gone; the others notice by and by. When it comes back, it may have
    /// another key.
    pub(crate) fn crash(&mut self, server: usize, keeps_key: bool) {
        if !self.servers[server].up {
            return;
        }
        let key = if keeps_key { self.servers[server].key } else { self.new_key() };
        self.servers[server].crash(key);
        for client in &mut self.clients {
            client.sessions.retain(|session| session.server != server as u32);
        }
        for link in 0..self.links.len() {
            if self.links[link].open && self.links[link].servers.contains(&(server as u32)) {
                self.cut(link as LinkNumber);
            }
        }
    }

    pub(crate) fn restart(&mut self, server: usize, spread: u64) {
        if !std::mem::replace(&mut self.servers[server].up, true) {
            self.dial_everybody(server as u32, spread);
        }
    }
}

/// Nanoseconds that bytes take at a rate.
fn time_for(bytes: u32, rate: u64) -> u64 {
    (u64::from(bytes) * SECOND).checked_div(rate).unwrap_or(0)
}
