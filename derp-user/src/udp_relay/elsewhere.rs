//! The relay's node as a client of other DERP servers, so that nodes whose netmap says that it is at home there find it.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    client::{
        ClientError, Connector, Event, StandingReceiver, StandingSender, Target, Trust, standing,
    },
    forward::NOTICES,
    peer_relay::DerpView,
    proto::{
        client::read::Message,
        keys::{NodePrivate, NodePublic},
    },
    server::LocalPacket,
};

/// How long a response may take to be sent to a server that does not read.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Other DERP servers, and which certificates they must show.
#[derive(Clone, Default)]
pub struct DerpServers {
    targets: Vec<Target>,
    trust: Trust,
    connectors: Vec<Connector>,
}

impl PartialEq for DerpServers {
    fn eq(&self, other: &Self) -> bool {
        (&self.targets, &self.trust) == (&other.targets, &other.trust)
    }
}

impl DerpServers {
    /// Prepares connections to these servers.
    ///
    /// # Errors
    ///
    /// If root certificates cannot be had, or a host cannot be the name of a server.
    pub fn new(targets: Vec<Target>, trust: Trust) -> Result<Self, ClientError> {
        let connector = |target: &Target| Connector::new(target.clone(), &trust);
        let connectors = targets.iter().map(connector).collect::<Result<_, _>>()?;
        Ok(Self { targets, trust, connectors })
    }
}

/// A packet from another server's client.
pub(super) struct Arrived {
    pub(super) packet: LocalPacket,
    /// The server it came by, for the response.
    pub(super) server: usize,
}

/// Connections to other servers, for as long as this lives.
pub(super) struct Elsewhere {
    connections: Connections,
    /// Where responses to each server's clients go.
    responses: Vec<Sender<(NodePublic, Vec<u8>)>>,
    arrived: Receiver<Arrived>,
    /// What the tasks have, so that there is always a sender.
    arrivals: Sender<Arrived>,
    tasks: JoinSet<()>,
}

/// How the connections are doing, for whoever looks in.
#[derive(Clone, Default)]
pub(super) struct Connections(Arc<Mutex<Vec<State>>>);

/// How one connection is doing.
struct State {
    name: String,
    is_connected: bool,
    since: Instant,
    fault: Option<String>,
}

impl Connections {
    pub(super) fn views(&self) -> Vec<DerpView> {
        let view = |state: &State| DerpView {
            server: state.name.clone(),
            is_connected: state.is_connected,
            seconds: state.since.elapsed().as_secs(),
            fault: state.fault.clone(),
        };
        self.0.lock().iter().map(view).collect()
    }

    fn replace(&self, names: impl Iterator<Item = String>) {
        let since = Instant::now();
        let state = |name| State { name, is_connected: false, since, fault: None };
        *self.0.lock() = names.map(state).collect();
    }

    /// Notes that there is a connection, or why there is none. Returns whether that is news.
    fn note(&self, index: usize, fault: Option<String>) -> bool {
        let mut states = self.0.lock();
        let Some(state) = states.get_mut(index) else { return false };
        let is_connected = fault.is_none();
        let is_news = state.is_connected != is_connected || !is_connected && state.fault != fault;
        if state.is_connected != is_connected {
            (state.is_connected, state.since) = (is_connected, Instant::now());
        }
        if fault.is_some() {
            state.fault = fault;
        }
        is_news
    }
}

impl Elsewhere {
    /// Has no connection.
    pub(super) fn nowhere(connections: Connections) -> Self {
        let (arrivals, arrived) = channel(NOTICES);
        Self { connections, responses: Vec::new(), arrived, arrivals, tasks: JoinSet::new() }
    }

    /// Connects to these servers, and no others from now on, as the owner of `key`. `own` is the server in this
    /// process, which the relay's node is a client of already. To be called on a Tokio runtime with I/O and time.
    pub(super) fn connect(&mut self, servers: &DerpServers, key: &NodePrivate, own: NodePublic) {
        // The former tasks end with their set.
        self.tasks = JoinSet::new();
        self.responses.clear();
        self.connections.replace(servers.targets.iter().map(Target::to_string));
        for (index, connector) in servers.connectors.iter().enumerate() {
            let (responses, to_send) = channel(NOTICES);
            let (sender, receiver) = standing(connector.clone(), key.clone());
            let connection = Connection {
                name: servers.targets.get(index).map(Target::to_string).unwrap_or_default(),
                index,
                own,
                sender,
                receiver,
                arrivals: self.arrivals.clone(),
                to_send,
                connections: self.connections.clone(),
            };
            self.tasks.spawn(connection.run());
            self.responses.push(responses);
        }
    }

    /// Waits for the next packet. May be dropped while it waits.
    pub(super) async fn receive(&mut self) -> Arrived {
        match self.arrived.recv().await {
            Some(arrived) => arrived,
            // This has a sender itself.
            None => std::future::pending().await,
        }
    }

    /// Sends a response by the server that the request has come by. Returns whether it waits to be sent.
    pub(super) fn send(&self, server: usize, to: NodePublic, packet: Vec<u8>) -> bool {
        let responses = self.responses.get(server);
        responses.is_some_and(|responses| responses.try_send((to, packet)).is_ok())
    }
}

/// The task of one connection.
struct Connection {
    name: String,
    index: usize,
    own: NodePublic,
    sender: StandingSender,
    receiver: StandingReceiver,
    arrivals: Sender<Arrived>,
    to_send: Receiver<(NodePublic, Vec<u8>)>,
    connections: Connections,
}

impl Connection {
    async fn run(mut self) {
        // The netmap says that the relay's node is at home at this server.
        self.sender.note_preferred(true).await;
        let Self { name, connections, .. } = &self;
        let (name, connections) = (name.clone(), connections.clone());
        loop {
            tokio::select! {
                event = self.receiver.next() => match event {
                    Event::Connected { server_key, .. } if server_key == self.own => {
                        let fault = "it is this server itself, where the relay's node is already";
                        tracing::error!("peer relay: {name} (derp of [peer_relay]): {fault}");
                        connections.note(self.index, Some(fault.to_owned()));
                        return;
                    }
                    Event::Connected { .. } => {
                        tracing::info!("peer relay: also a client of {name}");
                        connections.note(self.index, None);
                    }
                    Event::Disconnected { error, .. } => {
                        let fault = error.to_string();
                        // Said once, not at each attempt.
                        if connections.note(self.index, Some(fault.clone())) {
                            tracing::warn!("peer relay: not a client of {name}: {fault}");
                        }
                    }
                    Event::Message(Message::Packet { source, packet }) => {
                        let packet = LocalPacket { from: source, packet: packet.into() };
                        // Nobody is waited for; who asks will ask again.
                        let _ = self.arrivals.try_send(Arrived { packet, server: self.index });
                    }
                    Event::Message(_) => {}
                },
                Some((to, packet)) = self.to_send.recv() => {
                    let sent = timeout(SEND_TIMEOUT, self.sender.send(&to, &packet)).await;
                    if !matches!(sent, Ok(Ok(true))) {
                        tracing::debug!(server = %name, "peer relay: a response is not sent");
                    }
                }
            }
        }
    }
}
