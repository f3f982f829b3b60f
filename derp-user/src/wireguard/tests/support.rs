//! A relay with its flow table and the tables that the forwarder reads, and peers that make messages.

use std::net::SocketAddr;

use blake2::{
    Blake2sMac,
    digest::{KeyInit, Mac as _, consts::U16},
};
use derp_common::{
    Port, Reason, Services, Settings,
    flow::{
        Datagram, LegStatistics, Side,
        table::{slot_and_side, statistics_index},
    },
};

use crate::{
    flow::{FlowTable, Mirror, Plane, SharedMirror, Sink as _, TableSettings},
    forward::{Action, Delivery, decide},
    wireguard::{
        Arrival, Directory, Event, Index, Limits, Network, Pairs, PeerSettings, PublicKey, Refusal,
        Relayed, WireGuardRelay, WireGuardView,
    },
};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const PORT: u16 = 51_820;
/// The addresses of the relay's host.
pub(super) const RELAY: &str = "203.0.113.1:51820";
pub(super) const RELAY_6: &str = "[2001:db8::1]:51820";
/// The time at first, in seconds since 1970.
pub(super) const UNIX: u64 = 1_700_000_000;

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The public key of a peer of the tests.
pub(super) fn key(peer: u8) -> PublicKey {
    PublicKey::from_bytes([peer; 32])
}

/// Peers 1 to `count` in one network.
pub(super) fn network(count: u8, pairs: Pairs) -> Network {
    let peer = |number: u8| PeerSettings {
        label: format!("peer {number}"),
        key: key(number),
        address: None,
    };
    Network { name: "test".to_owned(), peers: (1..=count).map(peer).collect(), pairs }
}

fn with_mac1(mut message: Vec<u8>, recipient: &PublicKey, length: usize) -> Vec<u8> {
    use blake2::{Blake2s256, Digest as _};
    let key = Blake2s256::new().chain_update(b"mac1----").chain_update(recipient.as_bytes());
    let mac = <Blake2sMac<U16> as KeyInit>::new(&key.finalize());
    let mac = mac.chain_update(&message).finalize();
    message.extend_from_slice(&mac.into_bytes());
    message.resize(length, 0);
    message
}

/// An initiation for this peer: what is sealed in it differs by `salt`.
pub(super) fn initiation(to: &PublicKey, index: u32, salt: u64) -> Vec<u8> {
    let mut message = [&[1, 0, 0, 0][..], &index.to_le_bytes(), &salt.to_le_bytes()].concat();
    message.resize(116, 0x11);
    with_mac1(message, to, 148)
}

/// A response to the initiation of this peer.
pub(super) fn response(to: &PublicKey, index: u32, receiver: u32) -> Vec<u8> {
    let mut message = [&[2, 0, 0, 0][..], &index.to_le_bytes(), &receiver.to_le_bytes()].concat();
    message.resize(60, 0x22);
    with_mac1(message, to, 92)
}

pub(super) fn cookie_reply(receiver: u32) -> Vec<u8> {
    let mut message = [&[3, 0, 0, 0][..], &receiver.to_le_bytes()].concat();
    message.resize(64, 0x33);
    message
}

pub(super) fn data(receiver: u32) -> Vec<u8> {
    let mut message = [&[4, 0, 0, 0][..], &receiver.to_le_bytes()].concat();
    message.resize(60, 0x44);
    message
}

/// What became of a message.
#[derive(Debug)]
pub(super) enum Outcome {
    Handshake(Result<Relayed, Refusal>),
    Data(Result<SocketAddr, Reason>),
}

pub(super) struct World {
    pub(super) relay: WireGuardRelay,
    pub(super) table: FlowTable,
    pub(super) mirror: SharedMirror,
    pub(super) now: u64,
    salt: u64,
}

impl World {
    pub(super) fn new(networks: &[Network]) -> Self {
        Self::with(networks, Limits::default(), 256)
    }

    pub(super) fn with(networks: &[Network], limits: Limits, slots: u32) -> Self {
        let relay = WireGuardRelay::new(Directory::new(networks), PORT, limits);
        Self {
            relay,
            table: table(slots),
            mirror: SharedMirror::new(Mirror::new(slots)),
            now: 1_000 * SECOND,
            salt: 0,
        }
    }

    /// Has the tables follow, and time pass until they are what they should be.
    pub(super) fn settle(&mut self) {
        while let Some(deadline) = self.table.next_deadline() {
            self.now = self.now.max(deadline);
            let changes = self.table.poll(self.now);
            let Ok(()) = self.mirror.apply(&changes);
            self.table.applied(self.now);
        }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += seconds * SECOND;
    }

    /// Lets time pass, with a review as often as the daemon has one.
    pub(super) fn live(&mut self, seconds: u64) -> Vec<Event> {
        let mut events = Vec::new();
        for _ in 0..seconds / 5 {
            self.pass(5);
            events.extend(self.review());
        }
        events
    }

    pub(super) fn review(&mut self) -> Vec<Event> {
        self.observe();
        let events = self.relay.review(&mut self.table, self.now);
        self.settle();
        events
    }

    fn observe(&mut self) {
        use derp_common::flow::Tables as _;
        let indexes: Vec<_> = self.table.statistics_indexes().collect();
        let mirror = self.mirror.read();
        for index in indexes {
            if let Some(cells) = mirror.statistics(index) {
                self.table.observe(Plane::Userspace, index, &cells.read(), self.now);
            }
        }
    }

    /// Says what the kernel has counted of a leg.
    pub(super) fn kernel_saw(&mut self, slot: u32, side: Side, packets: u64) {
        let index = statistics_index(slot, side);
        assert_eq!(slot_and_side(index), (slot, side));
        let statistics = LegStatistics { packets, last_seen: self.now, ..LegStatistics::default() };
        self.table.observe(Plane::Kernel, index, &statistics, self.now);
    }

    /// Has a message arrive at the relay's port, as the forwarder would see it.
    pub(super) fn arrives(&mut self, from: SocketAddr, payload: &[u8]) -> Outcome {
        let local = address(if from.is_ipv4() { RELAY } else { RELAY_6 });
        let datagram = Datagram {
            source: from.ip().into(),
            destination: local.ip().into(),
            source_port: from.port().to_be(),
            destination_port: local.port().to_be(),
        };
        let delivery = Delivery { datagram, hop_limit: Some(64) };
        let decided = decide(
            &mut payload.to_vec(),
            &delivery,
            &*self.mirror.read(),
            &settings(self.table.slots()),
            self.now,
        );
        match decided {
            Ok(Action::Forward(forward)) => Outcome::Data(Ok(forward.destination)),
            Ok(Action::Stun | Action::StunAnswer) => panic!("no STUN"),
            Err(refusal) if refusal.reason == Reason::WireGuardHandshake => {
                let arrival = Arrival { from, local, payload };
                let result = self.relay.receive(&mut self.table, &arrival, self.now);
                self.settle();
                Outcome::Handshake(result)
            }
            Err(refusal) => Outcome::Data(Err(refusal.reason)),
        }
    }

    /// The same with a message of a handshake: where it goes.
    pub(super) fn handshake(&mut self, from: &str, payload: &[u8]) -> Result<Vec<String>, Refusal> {
        match self.arrives(address(from), payload) {
            Outcome::Handshake(result) => {
                result.map(|it| it.destinations().iter().map(|to| to.to.to_string()).collect())
            }
            Outcome::Data(result) => panic!("no handshake: {result:?}"),
        }
    }

    pub(super) fn initiate(
        &mut self,
        from: &str,
        to: u8,
        index: u32,
    ) -> Result<Vec<String>, Refusal> {
        self.salt += 1;
        self.handshake(from, &initiation(&key(to), index, self.salt))
    }

    pub(super) fn respond(
        &mut self,
        from: &str,
        to: u8,
        index: u32,
        receiver: u32,
    ) -> Result<Vec<String>, Refusal> {
        self.handshake(from, &response(&key(to), index, receiver))
    }

    /// The same with data.
    pub(super) fn data(&mut self, from: &str, receiver: u32) -> Result<String, Reason> {
        match self.arrives(address(from), &data(receiver)) {
            Outcome::Data(result) => result.map(|to| to.to_string()),
            Outcome::Handshake(result) => panic!("a handshake: {result:?}"),
        }
    }

    /// Has a peer, who is number `peer`, at `from` begin a session with another one, and data go both ways.
    pub(super) fn session(
        &mut self,
        (peer, from, index): (u8, &str, u32),
        (other, at, other_index): (u8, &str, u32),
    ) {
        let to = self.initiate(from, other, index).unwrap();
        assert!(to.contains(&at.to_owned()), "{to:?}");
        assert_eq!(self.respond(at, peer, other_index, index).unwrap(), [from]);
        self.exchange((from, index), (at, other_index));
    }

    /// Has data go both ways through a session.
    pub(super) fn exchange(&mut self, (a, index_a): (&str, u32), (b, index_b): (&str, u32)) {
        assert_eq!(self.data(a, index_b), Ok(b.to_owned()));
        assert_eq!(self.data(b, index_a), Ok(a.to_owned()));
    }

    pub(super) fn view(&self) -> WireGuardView {
        self.relay.view(self.now)
    }

    /// Returns where a peer is, if that is known.
    pub(super) fn whereabouts(&self, peer: u8) -> Option<String> {
        let text = key(peer).to_string();
        let view = self.view();
        let peer = view.peers.iter().find(|it| it.public_key == text).unwrap();
        peer.address.map(|at| at.to_string())
    }

    pub(super) fn refused(&self, refusal: Refusal) -> u64 {
        self.relay.counts().refused(refusal)
    }
}

pub(super) fn table(slots: u32) -> FlowTable {
    let settings = TableSettings { slots, idle_timeout: 300 * SECOND, seed: 5 };
    let mut table = FlowTable::new(settings);
    table.set_local_addresses([RELAY, RELAY_6].map(|it| address(it).ip()));
    table
}

fn settings(slots: u32) -> Settings {
    let mut settings = Settings::new(0);
    settings.ports[0] = Port { number: PORT.to_be(), services: Services::WIREGUARD };
    settings.slot_mask = slots - 1;
    settings
}

/// An index as the tables have it.
pub(super) fn raw(index: u32) -> Index {
    Index::from_ne_bytes(index.to_le_bytes())
}
