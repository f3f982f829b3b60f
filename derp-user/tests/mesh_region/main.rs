//! A region of two derpds and two of Tailscale's derpers, meshed in every direction, with clients on each
//! and watchers that check what they are told, while servers are killed and clients move. Once with clients
//! of this project, once with clients of the reference library.
//!
//! Runs for 40 s, or for `DERPD_REGION_SECONDS`. `DERPD_TEST_SEED` repeats a run's choices.
//! Without Go 1.26 or the modules it is skipped.

use std::{
    path::PathBuf,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

#[path = "../support/go.rs"]
mod go;
mod own;
#[path = "../support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
mod reference;
#[path = "../support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use own::Own;
use reference::Reference;
use region::{Authority, Site};
use server::{Server, binary, skip};

const NODES: usize = 4;
const CLIENTS: usize = 12;
/// Everything must be in order again so long after a change.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

static DERPER: go::Built = OnceLock::new();
static REFERENCE: go::Built = OnceLock::new();

/// Clients of the region, and the model that they are held against. What is not in order panics.
trait Crowd {
    /// Whether clients whose server is down go to another one.
    const FAILS_OVER: bool;

    /// Has a client leave the server that it is on, and prefer this one.
    fn place(&mut self, client: usize, node: usize);

    /// Has a client leave the region, and waits until those are told who had packets from it; how many.
    fn leave(&mut self, client: usize) -> usize;

    /// Waits until every pair has heard of each other since now, and watchers of the servers that are up
    /// know who is where; how long that took.
    fn settle(&mut self, what: &str, up: &[usize]) -> Duration;

    /// How many packets have arrived.
    fn packets(&mut self) -> u64;
}

/// Where the servers are, and which of them run.
struct Servers {
    sites: Vec<Site>,
    names: Vec<String>,
    derper: PathBuf,
    running: Vec<Option<Server>>,
}

impl Servers {
    fn start_all(authority: &Authority, derper: PathBuf) -> Self {
        let sites: Vec<_> = (0..NODES).map(|_| Site::prepare(authority)).collect();
        let names = sites.iter().map(Site::name).collect();
        let mut servers =
            Self { sites, names, derper, running: (0..NODES).map(|_| None).collect() };
        (0..NODES).for_each(|node| servers.start(node));
        servers
    }

    fn start(&mut self, node: usize) {
        let binary = if node < NODES / 2 { binary() } else { self.derper.clone() };
        self.running[node] = Some(self.sites[node].start_binary(binary, &self.names));
    }

    fn kill(&mut self, node: usize) {
        self.running[node] = None;
    }

    fn terminate(&mut self, node: usize) {
        if let Some(server) = self.running[node].take() {
            server.terminate();
        }
    }

    fn up(&self) -> Vec<usize> {
        (0..NODES).filter(|node| self.running[*node].is_some()).collect()
    }
}

#[test]
fn a_mixed_region_heals_after_every_change() {
    let Some(derper) = build("mixed region", &DERPER, "derper", "tailscale.com/cmd/derper") else {
        return;
    };
    let authority = Authority::new();
    let servers = Servers::start_all(&authority, derper);
    let crowd = Own::start(&authority, &servers.sites);
    change_at_random(servers, crowd, 0);
}

#[test]
fn a_mixed_region_heals_for_reference_clients() {
    let what = "mixed region with reference clients";
    let Some(derper) = build(what, &DERPER, "derper", "tailscale.com/cmd/derper") else { return };
    let Some(clients) = build(what, &REFERENCE, "region", "./region") else { return };
    let authority = Authority::new();
    let servers = Servers::start_all(&authority, derper);
    let crowd = Reference::start(&clients, &servers.sites, &servers.running);
    change_at_random(servers, crowd, 1);
}

fn build(what: &str, built: &go::Built, name: &str, package: &str) -> Option<PathBuf> {
    match go::go_binary(built, name, &["build"], package) {
        Ok(path) => Some(path),
        Err(reason) => {
            skip(what, &reason);
            None
        }
    }
}

/// Kills, restarts and moves until the time is over, and has everything checked after each change.
fn change_at_random<C: Crowd>(mut servers: Servers, mut crowd: C, variation: u64) {
    let seconds = std::env::var("DERPD_REGION_SECONDS").ok();
    let seconds = seconds.map_or(40, |text| text.parse().expect("a number of seconds"));
    let seed = std::env::var("DERPD_TEST_SEED").ok();
    let seed = seed.map_or_else(
        || u64::from_ne_bytes(peer::random_bytes::<8>()),
        |text| text.parse().expect("a number"),
    );
    println!("DERPD_TEST_SEED={seed}");
    let mut random = Random((seed ^ variation) | 1);

    for client in 0..CLIENTS {
        crowd.place(client, client % NODES);
    }
    let (begun, mut changes, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    let mut settle = |crowd: &mut C, servers: &Servers, what: &str| {
        let took = crowd.settle(what, &servers.up());
        println!("{:6.1?} {what}: settled after {took:.1?}", begun.elapsed());
        slowest = slowest.max(took);
    };
    settle(&mut crowd, &servers, "start");
    while begun.elapsed() < Duration::from_secs(seconds) {
        changes += 1;
        let node = random.below(NODES);
        match random.below(if C::FAILS_OVER { 5 } else { 4 }) {
            0 => {
                servers.kill(node);
                thread::sleep(Duration::from_millis(random.below(2000) as u64));
                servers.start(node);
                settle(&mut crowd, &servers, &format!("node {node} killed and restarted"));
            }
            1 => {
                servers.terminate(node);
                servers.start(node);
                settle(&mut crowd, &servers, &format!("node {node} restarted"));
            }
            2 => {
                for client in 0..CLIENTS {
                    if random.below(3) == 0 {
                        crowd.place(client, random.below(NODES));
                    }
                }
                settle(&mut crowd, &servers, "clients moved");
            }
            3 => {
                let client = random.below(CLIENTS);
                let told = crowd.leave(client);
                crowd.place(client, node);
                let what =
                    format!("client {client} left, {told} were told, it came to node {node}");
                settle(&mut crowd, &servers, &what);
            }
            _ => {
                servers.kill(node);
                settle(&mut crowd, &servers, &format!("node {node} killed"));
                servers.start(node);
                settle(&mut crowd, &servers, &format!("node {node} back"));
            }
        }
    }
    println!("{changes} changes, {} packets, settled within {slowest:.1?}", crowd.packets());
    assert!(changes > 0, "nothing was changed");
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
