//! A relay with its flow table and the tables that a forwarder reads, and clients.

use std::net::SocketAddr;

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
    peer_relay::{
        Arrival, Limits, PeerRelay, PeerRelayOptions, Permission, Reaction, Refusal,
        disco::{
            AllocateRequest, AllocateResponse, DiscoPrivate, DiscoPublic, EndpointRecord, Envelope,
            Handshake, Message, seal,
        },
    },
    proto::keys::NodePublic,
};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const PORT: u16 = 40_000;
/// The addresses of the relay's host.
pub(super) const RELAY: &str = "203.0.113.1:40000";
pub(super) const RELAY_2: &str = "203.0.113.2:40000";
pub(super) const RELAY_6: &str = "[2001:db8::1]:40000";
/// Where clients are.
pub(super) const A: &str = "198.51.100.10:41641";
pub(super) const A_MOVED: &str = "198.51.100.10:50000";
pub(super) const B: &str = "192.0.2.20:51820";
pub(super) const B_6: &str = "[2001:db8:b::20]:51820";

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A node with its keys.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) node: NodePublic,
    pub(super) disco: DiscoPrivate,
}

impl Client {
    pub(super) fn new(number: u8) -> Self {
        let disco = DiscoPrivate::from_random([number; 32]);
        Self { node: NodePublic::from_bytes([number; 32]), disco }
    }

    pub(super) fn key(&self) -> DiscoPublic {
        self.disco.public()
    }

    /// Returns a packet of this client to the owner of `to`.
    pub(super) fn packet(&self, to: &DiscoPublic, message: &Message) -> Vec<u8> {
        let mut packet = Vec::new();
        seal(&mut packet, &self.key(), &self.disco.shared(to), &[7; 24], message);
        packet
    }

    /// Returns a control packet of this client about an endpoint.
    pub(super) fn control(&self, endpoint: &EndpointRecord, message: &Message) -> Vec<u8> {
        let mut payload = vec![0, 0x80, 0x7a, 0x11];
        payload.extend((endpoint.vni << 8).to_be_bytes());
        payload.extend(self.packet(&endpoint.server, message));
        payload
    }

    /// Returns what this client would say in a handshake.
    pub(super) fn says(&self, endpoint: &EndpointRecord, generation: u32) -> Handshake {
        let [a, b] = endpoint.clients;
        let remote = if a == self.key() { b } else { a };
        Handshake { vni: endpoint.vni, generation, remote, challenge: [0; 32] }
    }

    pub(super) fn bind(&self, endpoint: &EndpointRecord, generation: u32) -> Vec<u8> {
        self.control(endpoint, &Message::Bind(self.says(endpoint, generation)))
    }

    /// Reads a challenge and returns the answer to it.
    pub(super) fn answer(&self, endpoint: &EndpointRecord, challenge: &[u8]) -> Vec<u8> {
        self.control(endpoint, &Message::Answer(self.read_challenge(endpoint, challenge)))
    }

    pub(super) fn read_challenge(&self, endpoint: &EndpointRecord, packet: &[u8]) -> Handshake {
        assert_eq!(packet.len(), 160);
        assert_eq!(packet[..4], [0, 0x80, 0x7a, 0x11]);
        assert_eq!(packet[4..8], (endpoint.vni << 8).to_be_bytes());
        let envelope = Envelope::parse(&packet[8..]).expect("a disco packet");
        assert_eq!(envelope.sender, endpoint.server);
        let message = envelope.open(&self.disco.shared(&endpoint.server)).expect("for us");
        match Message::decode(&message) {
            Ok(Message::Challenge(challenge)) => challenge,
            other => panic!("{other:?}"),
        }
    }
}

pub(super) struct World {
    pub(super) relay: PeerRelay,
    pub(super) table: FlowTable,
    pub(super) mirror: SharedMirror,
    pub(super) now: u64,
    /// The key that the relay's node is known by.
    pub(super) identity: DiscoPublic,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Limits::default(), 64)
    }

    pub(super) fn with(limits: Limits, slots: u32) -> Self {
        let identity = DiscoPrivate::from_random([99; 32]);
        let settings = TableSettings { slots, idle_timeout: 120 * SECOND, seed: 5 };
        let mut table = FlowTable::new(settings);
        table.set_local_addresses([RELAY, RELAY_2, RELAY_6].map(|it| address(it).ip()));
        let public = identity.public();
        let mut relay =
            PeerRelay::new(PeerRelayOptions { identity, seed: [3; 32], port: PORT, limits });
        relay.set_addresses([RELAY, RELAY_6].map(address));
        let mirror = SharedMirror::new(Mirror::new(slots));
        Self { relay, table, mirror, now: 1_000 * SECOND, identity: public }
    }

    /// Has the tables follow, and time pass until they are what they should be.
    pub(super) fn settle(&mut self) {
        loop {
            let changes = self.table.poll(self.now);
            self.mirror.apply(&changes).unwrap();
            self.table.applied(self.now);
            match self.table.next_deadline() {
                Some(deadline) => self.now = self.now.max(deadline),
                None if changes.is_empty() => return,
                None => {}
            }
        }
    }

    pub(super) fn pass(&mut self, time: u64) {
        self.now += time;
    }

    /// Sends a packet by DERP as `by` and returns the response to its request.
    pub(super) fn request(
        &mut self,
        by: &Client,
        permission: Permission,
        packet: &[u8],
    ) -> Result<AllocateResponse, Refusal> {
        let message = self.message(by, permission, packet)?;
        let Message::AllocateResponse(response) = message else { panic!("{message:?}") };
        Ok(response)
    }

    /// Sends a packet by DERP as `by` and returns what comes back.
    pub(super) fn message(
        &mut self,
        by: &Client,
        permission: Permission,
        packet: &[u8],
    ) -> Result<Message, Refusal> {
        let response =
            self.relay.request(&mut self.table, by.node, permission, packet, self.now)?;
        assert_eq!(response.to, by.node);
        let envelope = Envelope::parse(&response.packet).expect("a disco packet");
        assert_eq!(envelope.sender, self.identity);
        let message = envelope.open(&by.disco.shared(&self.identity)).expect("for us");
        Ok(Message::decode(&message).expect("a message"))
    }

    pub(super) fn ask(
        &mut self,
        by: &Client,
        clients: [DiscoPublic; 2],
    ) -> Result<EndpointRecord, Refusal> {
        let request = Message::AllocateRequest(AllocateRequest { clients, generation: 77 });
        let packet = by.packet(&self.identity, &request);
        let response = self.request(by, Permission::AnyKey, &packet)?;
        assert_eq!(response.generation, 77);
        Ok(response.endpoint)
    }

    pub(super) fn endpoint(&mut self, a: &Client, b: &Client) -> EndpointRecord {
        self.ask(a, [a.key(), b.key()]).expect("an endpoint")
    }

    pub(super) fn control(&mut self, from: &str, payload: &[u8]) -> Result<Reaction, Refusal> {
        self.control_at(from, RELAY, payload)
    }

    pub(super) fn control_at(
        &mut self,
        from: &str,
        local: &str,
        payload: &[u8],
    ) -> Result<Reaction, Refusal> {
        let arrival = Arrival { from: address(from), local: address(local), payload };
        let reaction = self.relay.handshake(&mut self.table, &arrival, self.now);
        if let Ok(Reaction::Challenge(datagram)) = &reaction {
            assert_eq!((datagram.to, datagram.from), (address(from), address(local)));
        }
        reaction
    }

    /// Sends a bind message and returns the challenge.
    pub(super) fn challenge(&mut self, from: &str, bind: &[u8]) -> Vec<u8> {
        match self.control(from, bind) {
            Ok(Reaction::Challenge(datagram)) => datagram.payload,
            other => panic!("{other:?}"),
        }
    }

    /// Binds a client's end.
    pub(super) fn bound(
        &mut self,
        client: &Client,
        endpoint: &EndpointRecord,
        generation: u32,
        from: &str,
    ) {
        self.bound_at(client, endpoint, generation, from, RELAY);
    }

    pub(super) fn bound_at(
        &mut self,
        client: &Client,
        endpoint: &EndpointRecord,
        generation: u32,
        from: &str,
        local: &str,
    ) {
        let bind = client.bind(endpoint, generation);
        let Ok(Reaction::Challenge(challenge)) = self.control_at(from, local, &bind) else {
            panic!("no challenge");
        };
        let answer = client.answer(endpoint, &challenge.payload);
        match self.control_at(from, local, &answer) {
            Ok(Reaction::Bound(bound)) => {
                assert_eq!((bound.vni, bound.remote), (endpoint.vni, address(from)));
            }
            other => panic!("{other:?}"),
        }
        self.settle();
    }

    /// An endpoint both of whose ends are bound.
    pub(super) fn open(&mut self, a: &Client, b: &Client) -> EndpointRecord {
        let endpoint = self.endpoint(a, b);
        self.bound(a, &endpoint, 1, A);
        self.bound(b, &endpoint, 1, B);
        endpoint
    }

    /// Where a data packet from `from` to the relay's address `to` goes, and from where.
    pub(super) fn route(
        &self,
        vni: u32,
        from: &str,
        to: &str,
    ) -> Result<(SocketAddr, SocketAddr), Reason> {
        let mut settings = Settings::new(0);
        settings.ports[0] = Port { number: PORT.to_be(), services: Services::GENEVE };
        settings.slot_mask = self.table.slots() - 1;
        let (from, to) = (address(from), address(to));
        let datagram = Datagram {
            source: from.ip().into(),
            destination: to.ip().into(),
            source_port: from.port().to_be(),
            destination_port: to.port().to_be(),
        };
        let mut payload = vec![0, 0, 0x7a, 0x12];
        payload.extend((vni << 8).to_be_bytes());
        payload.extend([4, 0, 0, 0, 1, 2]);
        let delivery = Delivery { datagram, hop_limit: None };
        match decide(&mut payload, &delivery, &*self.mirror.read(), &settings, self.now) {
            Ok(Action::Forward(forward)) => Ok((forward.destination, forward.source)),
            Ok(Action::Stun | Action::StunAnswer) => panic!("STUN"),
            Err(refusal) => Err(refusal.reason),
        }
    }

    /// Tells the flow table what this data plane has seen last of each end of an endpoint; 0 for nothing.
    pub(super) fn observe(&mut self, plane: Plane, endpoint: &EndpointRecord, last_seen: [u64; 2]) {
        let slot = endpoint.vni & (self.table.slots() - 1);
        for (side, last_seen) in Side::ALL.into_iter().zip(last_seen) {
            let index = statistics_index(slot, side);
            assert_eq!(slot_and_side(index), (slot, side));
            let statistics = LegStatistics { last_seen, ..LegStatistics::default() };
            self.table.observe(plane, index, &statistics, self.now);
        }
    }

    pub(super) fn live(&self) -> Vec<u32> {
        self.relay.views().map(|view| view.vni).collect()
    }
}
