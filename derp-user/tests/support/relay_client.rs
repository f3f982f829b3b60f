//! A client of a peer relay: asks by DERP, binds and sends by UDP.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use derp_user::{
    client::{Connector, Trust, new_key},
    peer_relay::disco::{
        AllocateRequest, DiscoPrivate, DiscoPublic, EndpointRecord, Envelope, Handshake, Message,
        seal,
    },
    proto::{
        client::read::Message as DerpMessage,
        keys::{NodePrivate, NodePublic},
    },
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::netns::spawn_in;

/// How long a test waits for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits for what is sent again if it gets lost.
const RETRY: Duration = Duration::from_secs(1);

/// What clients know of the relay's node.
#[derive(Clone, Copy)]
pub(crate) struct RelayNode {
    pub(crate) node: NodePublic,
    pub(crate) disco: DiscoPublic,
}

impl RelayNode {
    /// Reads the keys from the relay's key file, once the relay has made it: it listens before.
    pub(crate) fn of_file(path: &std::path::Path) -> Self {
        let deadline = Instant::now() + PATIENCE;
        while !path.exists() {
            assert!(Instant::now() < deadline, "{} is not made", path.display());
            thread::sleep(Duration::from_millis(5));
        }
        let keys = derp_user::config::load_relay_keys(path, false).expect("the relay's keys");
        Self { node: keys.node.public(), disco: keys.disco.public() }
    }
}

/// A node with its keys.
pub(crate) struct RelayClient {
    pub(crate) node: NodePrivate,
    pub(crate) disco: DiscoPrivate,
}

impl RelayClient {
    /// A new one with random keys.
    pub(crate) fn new() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("random numbers");
        Self { node: new_key().expect("random numbers"), disco: DiscoPrivate::from_random(bytes) }
    }

    pub(crate) fn key(&self) -> DiscoPublic {
        self.disco.public()
    }

    fn packet(&self, to: &DiscoPublic, message: &Message) -> Vec<u8> {
        let mut packet = Vec::new();
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce).expect("random numbers");
        seal(&mut packet, &self.key(), &self.disco.shared(to), &nonce, message);
        packet
    }

    /// A request for the endpoint of two clients.
    pub(crate) fn request(&self, relay: &RelayNode, clients: [DiscoPublic; 2]) -> Vec<u8> {
        let request = AllocateRequest { clients, generation: 1 };
        self.packet(&relay.disco, &Message::AllocateRequest(request))
    }

    /// Whether a packet of the relay's node is for this client.
    pub(crate) fn understands(&self, relay: &RelayNode, packet: &[u8]) -> bool {
        let envelope = Envelope::parse(packet).expect("a disco packet");
        envelope.open(&self.disco.shared(&relay.disco)).is_some()
    }

    /// Reads the response to a request.
    pub(crate) fn response(&self, relay: &RelayNode, packet: &[u8]) -> EndpointRecord {
        let message = self.open(&relay.disco, packet);
        let Message::AllocateResponse(response) = message else { panic!("{message:?}") };
        response.endpoint
    }

    fn open(&self, from: &DiscoPublic, packet: &[u8]) -> Message {
        let envelope = Envelope::parse(packet).expect("a disco packet");
        assert_eq!(envelope.sender, *from);
        let text = envelope.open(&self.disco.shared(from)).expect("for this client");
        Message::decode(&text).expect("a message of a relay")
    }

    /// A bind message.
    pub(crate) fn bind(&self, endpoint: &EndpointRecord, generation: u32) -> Vec<u8> {
        let [a, b] = endpoint.clients;
        let remote = if a == self.key() { b } else { a };
        let says = Handshake { vni: endpoint.vni, generation, remote, challenge: [0; 32] };
        self.control(endpoint, &Message::Bind(says))
    }

    /// The answer to a challenge.
    pub(crate) fn answer(&self, endpoint: &EndpointRecord, challenge: &[u8]) -> Vec<u8> {
        let message = self.open(&endpoint.server, &challenge[8..]);
        let Message::Challenge(says) = message else { panic!("{message:?}") };
        self.control(endpoint, &Message::Answer(says))
    }

    fn control(&self, endpoint: &EndpointRecord, message: &Message) -> Vec<u8> {
        let mut payload = vec![0, 0x80, 0x7a, 0x11];
        payload.extend((endpoint.vni << 8).to_be_bytes());
        payload.extend(self.packet(&endpoint.server, message));
        payload
    }

    /// Asks for the endpoint that this client and `other` have, until it is given.
    pub(crate) fn ask(&self, derp: &Derp, relay: &RelayNode, other: &Self) -> EndpointRecord {
        let request = self.request(relay, [self.key(), other.key()]);
        let response = derp.ask(relay.node, &request, PATIENCE).expect("an endpoint");
        self.response(relay, &response)
    }

    /// Binds this client's end from a socket at an address of the relay, from where the challenge must come.
    pub(crate) fn bind_end(
        &self,
        socket: &UdpSocket,
        relay: SocketAddr,
        endpoint: &EndpointRecord,
        generation: u32,
    ) {
        let deadline = Instant::now() + PATIENCE;
        socket.set_read_timeout(Some(RETRY)).expect("timeout");
        let mut buffer = [0; 2048];
        loop {
            assert!(Instant::now() < deadline, "no challenge");
            socket.send_to(&self.bind(endpoint, generation), relay).expect("send");
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
            if buffer[1] == 0x80 {
                assert_eq!(from, relay, "the challenge comes from where the bind message went");
                let answer = self.answer(endpoint, &buffer[..length]);
                socket.send_to(&answer, relay).expect("send");
                return;
            }
        }
    }
}

/// A connection to a DERP server, for as long as this lives.
pub(crate) struct Derp {
    to_send: UnboundedSender<(NodePublic, Vec<u8>)>,
    received: Receiver<(NodePublic, Vec<u8>)>,
}

impl Derp {
    /// Connects, in a namespace if one is named, as the owner of `key`, and waits until the server has let it in.
    pub(crate) fn connect(
        namespace: Option<&str>,
        url: &str,
        key: &NodePrivate,
        trust: Trust,
    ) -> Self {
        let (to_send, mut outgoing) = unbounded_channel::<(NodePublic, Vec<u8>)>();
        let (incoming, received) = channel();
        let (ready, is_ready) = channel();
        let (url, key) = (url.to_owned(), key.clone());
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let target = url.parse().expect("a DERP server");
                let connector = Connector::new(target, &trust).expect("a connector");
                let client = connector.connect(&key).await.expect("connected");
                let (mut sender, mut receiver) = client.split();
                ready.send(()).expect("waited for");
                let receive = async {
                    while let Ok(message) = receiver.recv().await {
                        if let DerpMessage::Packet { source, packet } = message
                            && incoming.send((source, packet.to_vec())).is_err()
                        {
                            return;
                        }
                    }
                };
                let send = async {
                    while let Some((to, packet)) = outgoing.recv().await {
                        if sender.send(&to, &packet).await.is_err() {
                            return;
                        }
                    }
                };
                tokio::select! {
                    () = receive => {}
                    () = send => {}
                }
            });
        };
        match namespace {
            Some(namespace) => drop(spawn_in(namespace, work)),
            None => drop(thread::spawn(work)),
        }
        is_ready.recv_timeout(PATIENCE).expect("the server lets the client in");
        Self { to_send, received }
    }

    /// Sends a packet.
    pub(crate) fn send(&self, to: NodePublic, packet: &[u8]) {
        self.to_send.send((to, packet.to_vec())).expect("the connection stands");
    }

    /// Waits for a packet of a node.
    pub(crate) fn receive(&self, from: NodePublic, patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.received.recv_timeout(left) {
                Ok((source, packet)) if source == from => return Some(packet),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    /// Sends a packet, again if need be, and returns what comes back.
    pub(crate) fn ask(&self, to: NodePublic, packet: &[u8], patience: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            self.send(to, packet);
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(answer) = self.receive(to, left.min(RETRY)) {
                return Some(answer);
            }
        }
        None
    }
}
