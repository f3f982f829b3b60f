//! Clients of `derp_user::client`, each on the server that it is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use derp_user::{
    client::{ClientError, Connector, Trust, new_key},
    proto::{
        client::read::Message,
        keys::{NodePrivate, NodePublic},
        login::ClientInfo,
        message::GoneReason,
    },
};
use tokio::time::{sleep, timeout};

use crate::{
    CLIENTS, Crowd, NODES, SETTLES_WITHIN,
    region::{Authority, MESH_KEY, Site},
};

/// The clients, and the thread that runs them.
pub(crate) struct Own {
    region: Arc<Region>,
    clients: thread::JoinHandle<()>,
}

impl Own {
    pub(crate) fn start(authority: &Authority, sites: &[Site]) -> Self {
        let region = Arc::new(prepare(authority, sites));
        let clients = thread::spawn({
            let region = Arc::clone(&region);
            move || run_clients(&region)
        });
        Self { region, clients }
    }
}

impl Crowd for Own {
    const FAILS_OVER: bool = false;

    fn place(&mut self, client: usize, node: usize) {
        self.region.state().clients[client].wanted = Some(node);
    }

    fn leave(&mut self, client: usize) -> usize {
        leave(&self.region, client)
    }

    fn settle(&mut self, what: &str, _up: &[usize]) -> Duration {
        wait_until_settled(&self.region, &self.clients, what)
    }

    fn packets(&mut self) -> u64 {
        self.region.state().packets
    }
}

/// What a client is to do, and what it has seen.
#[derive(Default)]
struct Client {
    /// The node it is to be connected to.
    wanted: Option<usize>,
    connected: Option<usize>,
    /// Counts its connections.
    connection: u32,
    /// Whose packets came by this connection.
    received_from: BTreeSet<usize>,
    /// Who left, as this connection was told after packets had come from them.
    told: BTreeSet<usize>,
}

#[derive(Default)]
struct State {
    clients: Vec<Client>,
    /// Who is where, as a watcher of each node was told; `None` while it is not connected.
    watched: [Option<BTreeSet<NodePublic>>; NODES],
    /// Number that senders put into their packets.
    round: u32,
    /// Last round that came from the first client to the second.
    heard: BTreeMap<(usize, usize), u32>,
    /// Frames that should not have come.
    faults: Vec<String>,
    packets: u64,
}

struct Region {
    state: Mutex<State>,
    keys: Vec<NodePrivate>,
    numbers: BTreeMap<NodePublic, usize>,
    connectors: Vec<Connector>,
}

impl Region {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn number(&self, key: &NodePublic) -> Option<usize> {
        self.numbers.get(key).copied()
    }
}

fn prepare(authority: &Authority, sites: &[Site]) -> Region {
    let file = authority.write(&sites[0].directory);
    let keys: Vec<_> = (0..CLIENTS).map(|_| new_key().expect("a key")).collect();
    let connector = |site: &Site| {
        let target = format!("https://{}", site.name()).parse().expect("an address");
        Connector::new(target, &Trust::Roots(file.clone())).expect("an authority")
    };
    Region {
        state: Mutex::new(State {
            clients: (0..CLIENTS).map(|_| Client::default()).collect(),
            ..State::default()
        }),
        numbers: keys.iter().enumerate().map(|(number, key)| (key.public(), number)).collect(),
        keys,
        connectors: sites.iter().map(connector).collect(),
    }
}

/// Waits until every pair has heard of each other since now, and watchers know who is where.
fn wait_until_settled(region: &Region, clients: &thread::JoinHandle<()>, what: &str) -> Duration {
    region.state().round += 1;
    let begun = Instant::now();
    loop {
        let disorder = disorder(region, &region.state());
        let Some(disorder) = disorder else { return begun.elapsed() };
        assert!(!clients.is_finished(), "a client panicked");
        assert!(begun.elapsed() < SETTLES_WITHIN, "{what}: after {SETTLES_WITHIN:?} {disorder}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What is not in order yet.
fn disorder(region: &Region, state: &State) -> Option<String> {
    assert_eq!(state.faults, Vec::<String>::new());
    let astray = state.clients.iter().position(|client| client.wanted != client.connected);
    if let Some(client) = astray {
        return Some(format!("client {client} is not connected where it should"));
    }
    for from in 0..CLIENTS {
        for to in (0..CLIENTS).filter(|to| *to != from) {
            if state.heard.get(&(from, to)) != Some(&state.round) {
                let node = |client: usize| state.clients[client].connected;
                let (here, there) = (node(from), node(to));
                return Some(format!("{from} on {here:?} does not reach {to} on {there:?}"));
            }
        }
    }
    for (node, watched) in state.watched.iter().enumerate() {
        let Some(watched) = watched else { return Some(format!("node {node} is not watched")) };
        let told: BTreeSet<_> = watched.iter().filter_map(|key| region.number(key)).collect();
        let model: BTreeSet<_> =
            (0..CLIENTS).filter(|client| state.clients[*client].connected == Some(node)).collect();
        if told != model {
            return Some(format!("the watcher of node {node} knows {told:?}, not {model:?}"));
        }
    }
    None
}

/// Has a client leave the region: everybody who had packets from it must be told; how many these are.
fn leave(region: &Region, leaving: usize) -> usize {
    let waiting: Vec<_> = {
        let mut state = region.state();
        state.clients[leaving].wanted = None;
        let clients = state.clients.iter().enumerate();
        clients
            .filter(|(number, client)| {
                *number != leaving
                    && client.received_from.contains(&leaving)
                    && !client.told.contains(&leaving)
            })
            .map(|(number, client)| (number, client.connection))
            .collect()
    };
    let begun = Instant::now();
    loop {
        let untold: Vec<_> = {
            let state = region.state();
            let is_untold = |(number, connection): &&(usize, u32)| {
                let client = &state.clients[*number];
                client.connection == *connection && !client.told.contains(&leaving)
            };
            waiting.iter().filter(is_untold).copied().collect()
        };
        if untold.is_empty() {
            return waiting.len();
        }
        assert!(begun.elapsed() < SETTLES_WITHIN, "{untold:?} were not told that {leaving} left");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs all clients and watchers until the test ends.
fn run_clients(region: &Arc<Region>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            tasks.spawn(run_client(Arc::clone(region), client));
        }
        for node in 0..NODES {
            tasks.spawn(run_watcher(Arc::clone(region), node));
        }
        // None of them ends but by a panic.
        tasks.join_next().await.expect("tasks").expect("no panic");
    });
}

async fn run_client(region: Arc<Region>, client: usize) {
    loop {
        let wanted = region.state().clients[client].wanted;
        if let Some(node) = wanted {
            // Whatever ends it, it is tried again.
            let _ = stay_connected(&region, client, node).await;
            region.state().clients[client].connected = None;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn stay_connected(region: &Region, client: usize, node: usize) -> Result<(), ClientError> {
    let own = region.keys[client].public();
    let connection = region.connectors[node].connect(&region.keys[client]).await?;
    let (mut sender, mut receiver) = connection.split();
    {
        let this = &mut region.state().clients[client];
        this.connected = Some(node);
        this.connection += 1;
        this.received_from.clear();
        this.told.clear();
    }
    let receive = async {
        loop {
            match receiver.recv().await? {
                Message::Packet { source, packet } => take(region, client, &source, packet),
                Message::PeerGone { key, reason: Some(GoneReason::Disconnected) } => {
                    let Some(number) = region.number(&key) else { continue };
                    let state = &mut *region.state();
                    let this = &mut state.clients[client];
                    if !this.received_from.contains(&number) {
                        state.faults.push(format!("{client} never had a packet from {number}"));
                    }
                    this.told.insert(number);
                }
                Message::PeerPresent { .. } => {
                    region.state().faults.push(format!("{client} did not ask to watch"));
                }
                Message::PeerGone { .. }
                | Message::KeepAlive
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Health(_)
                | Message::Restarting { .. } => {}
            }
        }
    };
    let send = async {
        let mut length = client;
        while region.state().clients[client].wanted == Some(node) {
            let round = region.state().round;
            for to in (0..CLIENTS).filter(|to| *to != client) {
                length = (length * 31 + 7) % 1400;
                let mut packet = round.to_be_bytes().to_vec();
                packet.extend([client as u8, to as u8]);
                packet.extend(own.as_bytes());
                packet.extend(std::iter::repeat_n(to as u8, length));
                sender.send(&region.keys[to].public(), &packet).await?;
            }
            sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    };
    tokio::select! {
        result = receive => result,
        result = send => result,
    }
}

/// Checks that a packet is for this client, whole, and from whom it says.
fn take(region: &Region, client: usize, source: &NodePublic, packet: &[u8]) {
    let state = &mut *region.state();
    let parsed = packet.split_first_chunk::<4>().and_then(|(round, rest)| match rest {
        [from, to, rest @ ..] => Some((u32::from_be_bytes(*round), *from, *to, rest)),
        _ => None,
    });
    let sound = parsed.filter(|(_, from, to, rest)| {
        let from = usize::from(*from);
        usize::from(*to) == client
            && region.number(source) == Some(from)
            && rest
                .strip_prefix(source.as_bytes())
                .is_some_and(|filling| filling.iter().all(|byte| usize::from(*byte) == client))
    });
    let Some((round, from, ..)) = sound else {
        return state.faults.push(format!("{client} got {packet:?} from {source}"));
    };
    let from = usize::from(from);
    state.packets += 1;
    state.clients[client].received_from.insert(from);
    let heard = state.heard.entry((from, client)).or_default();
    *heard = round.max(*heard);
}

async fn run_watcher(region: Arc<Region>, node: usize) {
    let key = new_key().expect("a key");
    let mesh_key = MESH_KEY.parse().ok();
    let connector =
        region.connectors[node].clone().with_info(ClientInfo { mesh_key, ..ClientInfo::default() });
    loop {
        // Whatever ends it, it is tried again.
        let _ = watch(&region, node, &connector, &key).await;
        region.state().watched[node] = None;
        sleep(Duration::from_millis(50)).await;
    }
}

async fn watch(
    region: &Region,
    node: usize,
    connector: &Connector,
    key: &NodePrivate,
) -> Result<(), ClientError> {
    let (mut sender, mut receiver) = connector.connect(key).await?.split();
    sender.watch().await?;
    let mut present = BTreeSet::new();
    loop {
        // The list is whole when nothing has come for a while.
        match timeout(Duration::from_millis(100), receiver.recv()).await {
            Err(_) => region.state().watched[node] = Some(present.clone()),
            Ok(message) => match message? {
                Message::PeerPresent { key, .. } => {
                    present.insert(key);
                }
                Message::PeerGone { key, .. } => {
                    if !present.remove(&key) {
                        let fault = format!("node {node}: {key} left without having come");
                        region.state().faults.push(fault);
                    }
                }
                Message::Packet { .. }
                | Message::KeepAlive
                | Message::Ping(_)
                | Message::Pong(_)
                | Message::Health(_)
                | Message::Restarting { .. } => {}
            },
        }
    }
}
