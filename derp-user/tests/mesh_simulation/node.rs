//! One server of a large region in full: the real relay and the map of routes that workers read, as
//! `server::hub` has it, with a link to every other server and every key of the region behind one of them.

use std::{
    hint::black_box,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use derp_user::{
    proto::keys::NodePublic,
    relay::{ConnectionId, Effect, Heard, Relay},
};

use crate::{keys::key, memory, random::Random};

/// Frames that a link hears at once: a read of 32 KiB.
const HEARD_AT_ONCE: usize = (32 << 10) / 56;
/// Keys forgotten at once when a link ends, as in `server::hub`.
const FORGET_AT_ONCE: usize = 1024;

/// Stands for the connection that a route leads to.
type Handle = Arc<ConnectionId>;

struct Node {
    relay: Relay<Handle>,
    routes: papaya::HashMap<NodePublic, Weak<ConnectionId>>,
}

impl Node {
    fn apply(&self, effects: Vec<Effect<Handle>>) {
        let routes = self.routes.pin();
        for effect in effects {
            match effect {
                Effect::Route { key, to: Some(to) } => {
                    routes.insert(key, Arc::downgrade(&to));
                }
                Effect::Route { key, to: None } => {
                    routes.remove(&key);
                }
                effect @ (Effect::Duplicate { .. }
                | Effect::PeerPresent { .. }
                | Effect::PeerGone { .. }
                | Effect::Close(_)) => panic!("{effect:?}"),
            }
        }
    }

    fn hear(&mut self, link: ConnectionId, heard: impl IntoIterator<Item = Heard>) {
        let effects = self.relay.link_heard(link, heard);
        self.apply(effects);
    }

    fn look_up(&self, key: &NodePublic) -> Option<Arc<ConnectionId>> {
        self.routes.pin().get(key)?.upgrade()
    }
}

/// What was measured of a server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) servers: usize,
    pub(crate) keys: usize,
    /// Memory for the keys, and for those of the relay alone.
    pub(crate) bytes_per_key: f64,
    pub(crate) bytes_per_key_of_relay: f64,
    /// Time for one frame while the region is announced, and the longest that the lock was held.
    pub(crate) frame: Duration,
    pub(crate) longest: Duration,
    /// Time for a frame that comes alone: a key goes, and comes again.
    pub(crate) change: Duration,
    /// Time for all keys of a link that ends.
    pub(crate) link_end: Duration,
    /// Time to find out where a packet goes.
    pub(crate) look_up: Duration,
}

pub(crate) fn measure(servers: usize, keys: usize) -> Figures {
    let links = servers - 1;
    // Each server announces its keys in their order.
    let mut behind: Vec<Vec<u32>> =
        (0..links).map(|link| (link as u32..keys as u32).step_by(links).collect()).collect();
    for numbers in &mut behind {
        numbers.sort_by_key(|&number| key(number));
    }
    let handles: Vec<Handle> = (1..=links as u64).map(Arc::new).collect();

    let without_routes = relay_alone(&behind);
    let before = memory::resident();
    let relay = Relay::new(key(u32::MAX >> 1));
    let mut node = Node { relay, routes: papaya::HashMap::new() };
    for (link, handle) in (1..).zip(&handles) {
        let server = key((u32::MAX >> 1) - link as u32);
        let effects = node.relay.link_up(link, Arc::clone(handle), server);
        node.apply(effects);
    }
    let begun = Instant::now();
    let mut longest = Duration::ZERO;
    in_turns(&behind, |link, numbers| {
        let begun = Instant::now();
        node.hear(link, numbers.iter().map(|&number| Heard::Present(key(number))));
        longest = longest.max(begun.elapsed());
    });
    let frame = begun.elapsed() / keys as u32;
    let grown = memory::resident().saturating_sub(before) as f64;

    let mut random = Random(3);
    let picked: Vec<u32> = (0..100_000).map(|_| random.below(keys) as u32).collect();
    let begun = Instant::now();
    for &number in &picked {
        let link = 1 + u64::from(number) % links as u64;
        node.hear(link, [Heard::Gone(key(number))]);
        node.hear(link, [Heard::Present(key(number))]);
    }
    let change = begun.elapsed() / (2 * picked.len() as u32);

    let picked: Vec<NodePublic> = picked.into_iter().map(key).collect();
    let begun = Instant::now();
    for key in &picked {
        black_box(node.look_up(key)).expect("announced");
    }
    let look_up = begun.elapsed() / picked.len() as u32;

    let begun = Instant::now();
    let mut more = true;
    while more {
        let effects;
        (effects, more) = node.relay.link_down(1, FORGET_AT_ONCE);
        node.apply(effects);
    }
    let link_end = begun.elapsed();
    Figures {
        servers,
        keys,
        bytes_per_key: grown / keys as f64,
        bytes_per_key_of_relay: without_routes / keys as f64,
        frame,
        longest,
        change,
        link_end,
        look_up,
    }
}

/// Memory of the relay without routes. It is not given back, so that it is not counted as free later.
fn relay_alone(behind: &[Vec<u32>]) -> f64 {
    let before = memory::resident();
    let mut relay = Relay::new(key(u32::MAX >> 1));
    for link in 1..=behind.len() as u64 {
        relay.link_up(link, link, key((u32::MAX >> 1) - link as u32));
    }
    in_turns(behind, |link, numbers| {
        black_box(relay.link_heard(link, numbers.iter().map(|&it| Heard::Present(key(it)))));
    });
    let grown = memory::resident().saturating_sub(before);
    std::mem::forget(relay);
    grown as f64
}

/// Calls `hear` with what the links say, one after the other, until all is said.
fn in_turns(behind: &[Vec<u32>], mut hear: impl FnMut(ConnectionId, &[u32])) {
    let mut pieces: Vec<_> = behind.iter().map(|numbers| numbers.chunks(HEARD_AT_ONCE)).collect();
    let mut any = true;
    while any {
        any = false;
        for (link, pieces) in (1..).zip(&mut pieces) {
            if let Some(piece) = pieces.next() {
                hear(link, piece);
                any = true;
            }
        }
    }
}
