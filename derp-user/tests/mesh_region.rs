//! A region of two derpds and two of Tailscale's derpers, meshed in every direction, with clients on each
//! and watchers that check what they are told, while servers are killed and clients move.
//!
//! Runs for 40 s, or for `DERPD_REGION_SECONDS`. `DERPD_TEST_SEED` repeats a run's choices.
//! Without Go 1.26 or the modules it is skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
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

#[path = "support/go.rs"]
mod go;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use region::{Authority, MESH_KEY, Site};
use server::{Server, binary, skip};

const NODES: usize = 4;
const CLIENTS: usize = 12;
/// Everything must be in order again so long after a change.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

static DERPER: go::Built = OnceLock::new();

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

#[test]
fn a_mixed_region_heals_after_every_change() {
    let derper = match go::go_binary(&DERPER, "derper", &["build"], "tailscale.com/cmd/derper") {
        Ok(derper) => derper,
        Err(reason) => return skip("mixed region", &reason),
    };
    let seconds = std::env::var("DERPD_REGION_SECONDS").ok();
    let seconds = seconds.map_or(40, |text| text.parse().expect("a number of seconds"));
    let seed = std::env::var("DERPD_TEST_SEED").ok();
    let seed = seed.map_or_else(
        || u64::from_ne_bytes(peer::random_bytes::<8>()),
        |text| text.parse().expect("a number"),
    );
    println!("DERPD_TEST_SEED={seed}");
    let mut random = Random(seed | 1);

    let authority = Authority::new();
    let sites: Vec<_> = (0..NODES).map(|_| Site::prepare(&authority)).collect();
    let names: Vec<_> = sites.iter().map(Site::name).collect();
    let start = |node: usize| -> Server {
        let binary: PathBuf = if node < NODES / 2 { binary() } else { derper.clone() };
        sites[node].start_binary(binary, &names)
    };
    let mut servers: Vec<_> = (0..NODES).map(|node| Some(start(node))).collect();
    let region = Arc::new(prepare(&authority, &sites));
    let clients = thread::spawn({
        let region = Arc::clone(&region);
        move || run_clients(&region)
    });

    for client in 0..CLIENTS {
        region.state().clients[client].wanted = Some(client % NODES);
    }
    let (begun, mut changes, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut settle = |what: &str| {
        let took = wait_until_settled(&region, &clients, what);
        println!("{:6.1?} {what}: settled after {took:.1?}", begun.elapsed());
        slowest = slowest.max(took);
    };
    settle("start");
    while begun.elapsed() < Duration::from_secs(seconds) {
        changes += 1;
        let node = random.below(NODES);
        match random.below(4) {
            0 => {
                servers[node] = None;
                thread::sleep(Duration::from_millis(random.below(2000) as u64));
                servers[node] = Some(start(node));
                settle(&format!("node {node} killed and restarted"));
            }
            1 => {
                if let Some(server) = servers[node].take() {
                    server.terminate();
                }
                servers[node] = Some(start(node));
                settle(&format!("node {node} restarted"));
            }
            2 => {
                for client in &mut region.state().clients {
                    if random.below(3) == 0 {
                        client.wanted = Some(random.below(NODES));
                    }
                }
                settle("clients moved");
            }
            _ => {
                let client = random.below(CLIENTS);
                leave(&region, client);
                region.state().clients[client].wanted = Some(node);
                settle(&format!("client {client} left and came to node {node}"));
            }
        }
    }
    let state = region.state();
    println!("{changes} changes, {} packets, settled within {slowest:.1?}", state.packets);
    assert!(changes > 0, "nothing was changed");
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

/// Has a client leave the region: everybody who had packets from it must be told.
fn leave(region: &Region, leaving: usize) {
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
            println!("{} clients were told that {leaving} left", waiting.len());
            return;
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

/// Choices that can be repeated (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}
