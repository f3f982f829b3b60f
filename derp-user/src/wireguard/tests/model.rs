//! Random lives of a network, against a model that knows where everybody really is.
//!
//! The model is naive: it remembers every message and every session for ever, and looks things up by searching. What is
//! relayed must follow from what it remembers; and whatever happened, peers that go on trying as WireGuard does are
//! connected in the end.

use std::{collections::BTreeSet, net::SocketAddr};

use arbitrary::{Arbitrary, Unstructured};
#[cfg(test)]
use proptest::prelude::*;

use super::support::*;
use crate::{
    fuzzing::below,
    wireguard::{Directory, Limits, MOST_PLACES, Pairs, Relayed, Stored, WireGuardRelay},
};

const PEERS: u8 = 4;
/// Fewer than indexes that are drawn, so that some are equal.
const INDEXES: u32 = 6;
const PENDING: u64 = 10 * SECOND;

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    /// A peer begins a handshake, which goes as far as it gets. Cut short, nobody answers.
    Handshake {
        #[arbitrary(with = peer(PEERS))]
        from: u8,
        #[arbitrary(with = peer(PEERS))]
        to: u8,
        #[arbitrary(with = below(INDEXES))]
        index: u32,
        #[arbitrary(with = below(INDEXES))]
        other: u32,
        is_cut: bool,
    },
    /// Data of a session, from one of its ends as it was.
    Data {
        #[arbitrary(with = below(64))]
        session: usize,
        is_back: bool,
    },
    /// A peer is somewhere else from now on.
    Move {
        #[arbitrary(with = peer(PEERS))]
        peer: u8,
        #[arbitrary(with = below(8))]
        to: u8,
    },
    /// Time passes, with reviews.
    Pass {
        #[arbitrary(with = below(300))]
        seconds: u64,
    },
    /// Somebody sends an initiation that a peer has sent before.
    Replay {
        #[arbitrary(with = below(64))]
        initiation: usize,
        #[arbitrary(with = below(8))]
        at: u8,
    },
    /// Somebody forges an initiation, from anywhere.
    Forge {
        #[arbitrary(with = below(8))]
        at: u8,
        #[arbitrary(with = peer(PEERS + 1))]
        to: u8,
        #[arbitrary(with = below(INDEXES))]
        index: u32,
    },
    /// Somebody forges a response, from anywhere.
    Respond {
        #[arbitrary(with = below(8))]
        at: u8,
        #[arbitrary(with = peer(PEERS))]
        to: u8,
        #[arbitrary(with = below(INDEXES))]
        index: u32,
        #[arbitrary(with = below(INDEXES))]
        receiver: u32,
    },
    /// Somebody sends data from anywhere.
    Inject {
        #[arbitrary(with = below(8))]
        at: u8,
        #[arbitrary(with = below(INDEXES))]
        index: u32,
    },
    /// The process ends and another one begins.
    Restart {
        #[arbitrary(with = below(300))]
        seconds: u64,
    },
    /// The pairs change.
    Reload {
        #[arbitrary(with = below(3))]
        graph: usize,
    },
}

/// One of the peers up to `last`.
fn peer(last: u8) -> impl FnMut(&mut Unstructured<'_>) -> arbitrary::Result<u8> {
    move |input| input.int_in_range(1..=last)
}

#[cfg(test)]
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let peer = || 1..=PEERS;
    let index = || 0..INDEXES;
    let step = prop_oneof![
        8 => (peer(), peer(), index(), index(), prop::bool::weighted(0.2)).prop_map(
            |(from, to, index, other, is_cut)| Step::Handshake { from, to, index, other, is_cut }
        ),
        6 => (any::<usize>(), any::<bool>())
            .prop_map(|(session, is_back)| Step::Data { session, is_back }),
        2 => (peer(), 0..8_u8).prop_map(|(peer, to)| Step::Move { peer, to }),
        3 => prop_oneof![0..3_u64, 5..40_u64, 200..300_u64]
            .prop_map(|seconds| Step::Pass { seconds }),
        2 => (any::<usize>(), 0..8_u8)
            .prop_map(|(initiation, at)| Step::Replay { initiation, at }),
        2 => (0..8_u8, 1..=PEERS + 1, index())
            .prop_map(|(at, to, index)| Step::Forge { at, to, index }),
        2 => (0..8_u8, peer(), index(), index())
            .prop_map(|(at, to, index, receiver)| Step::Respond { at, to, index, receiver }),
        2 => (0..8_u8, index()).prop_map(|(at, index)| Step::Inject { at, index }),
        1 => (0..300_u64).prop_map(|seconds| Step::Restart { seconds }),
        1 => (0..3_usize).prop_map(|graph| Step::Reload { graph }),
    ];
    prop::collection::vec(step, 1..60)
}

fn graph(number: usize) -> Pairs {
    match number {
        0 => Pairs::All,
        1 => Pairs::Star(0),
        _ => Pairs::List(vec![[0, 1], [1, 2], [2, 3]]),
    }
}

/// Eight places, some of which share a NAT.
fn place(number: u8) -> SocketAddr {
    match number {
        0..3 => address(&format!("198.51.100.1:{}", 1000 + u16::from(number))),
        3..6 => address(&format!("192.0.2.{number}:51820")),
        _ => address(&format!("[2001:db8:{number}::1]:4000")),
    }
}

/// An initiation that the relay has sent on, or would have.
#[derive(Clone, Debug)]
struct Asked {
    target: u8,
    index: u32,
    from: SocketAddr,
    sent_to: Vec<SocketAddr>,
    at: u64,
    answered_from: Vec<SocketAddr>,
}

/// Where data goes: of this source with this index, to there.
#[derive(Clone, Copy, Debug)]
struct Session {
    ends: [(SocketAddr, u32); 2],
}

struct Model {
    world: World,
    graph: usize,
    /// Where peers really are.
    places: [u8; PEERS as usize],
    asked: Vec<Asked>,
    /// Initiations of honest peers, with their targets and indexes.
    sent: Vec<(Vec<u8>, u8, u32)>,
    sessions: Vec<Session>,
    salt: u64,
}

impl Model {
    fn new() -> Self {
        let world = World::new(&[network(PEERS, graph(0))]);
        Self {
            world,
            graph: 0,
            places: [0, 3, 4, 6],
            asked: Vec::new(),
            sent: Vec::new(),
            sessions: Vec::new(),
            salt: 0,
        }
    }

    fn are_partners(&self, a: u8, b: u8) -> bool {
        let partners = network(PEERS, graph(self.graph)).partners(usize::from(a) - 1);
        partners.contains(&(usize::from(b) - 1))
    }

    fn place_of(&self, peer: u8) -> SocketAddr {
        place(self.places[usize::from(peer) - 1])
    }

    fn peer_at(&self, at: SocketAddr) -> Option<u8> {
        (1..=PEERS).find(|peer| self.place_of(*peer) == at)
    }

    /// Sends an initiation. Returns where the relay sends it.
    fn initiate(
        &mut self,
        from: SocketAddr,
        target: u8,
        message: &[u8],
        index: u32,
    ) -> Vec<SocketAddr> {
        let Outcome::Handshake(result) = self.world.arrives(from, message) else {
            panic!("no handshake");
        };
        let Ok(relayed) = result else { return Vec::new() };
        assert!(target <= PEERS, "an initiation for nobody was sent on");
        let sent_to: Vec<_> = relayed.destinations().iter().map(|it| it.to).collect();
        assert!(sent_to.len() <= MOST_PLACES && !sent_to.contains(&from), "{sent_to:?}");
        let distinct: BTreeSet<_> = sent_to.iter().collect();
        assert_eq!(distinct.len(), sent_to.len());
        for other in self.asked.iter().filter(|it| self.is_waiting(it)) {
            assert!(
                (other.target, other.index) != (target, index),
                "two that cannot be told apart"
            );
        }
        let at = self.world.now;
        let answered_from = Vec::new();
        self.asked.push(Asked { target, index, from, sent_to: sent_to.clone(), at, answered_from });
        sent_to
    }

    fn is_waiting(&self, asked: &Asked) -> bool {
        self.world.now - asked.at <= PENDING
    }

    /// Sends a response, made for peer `to`. Returns where the relay sends it.
    fn respond(
        &mut self,
        from: SocketAddr,
        to: u8,
        index: u32,
        receiver: u32,
    ) -> Option<SocketAddr> {
        let now = self.world.now;
        let Outcome::Handshake(result) =
            self.world.arrives(from, &response(&key(to), index, receiver))
        else {
            panic!("no handshake");
        };
        let Ok(Relayed::Response { to: destination, .. }) = result else {
            assert!(result.is_err(), "{result:?}");
            return None;
        };
        let waiting = |it: &Asked| {
            now - it.at <= PENDING
                && it.index == receiver
                && it.from == destination.to
                && it.sent_to.contains(&from)
                && !it.answered_from.contains(&from)
                && self.are_partners(it.target, to)
        };
        let number = self.asked.iter().position(waiting);
        let number = number.expect("a response goes only to a partner who has asked there");
        self.asked[number].answered_from.push(from);
        let ends = [(destination.to, index), (from, receiver)];
        // The same source and index may have been another session's, which is over.
        self.sessions.retain(|it| it.ends.iter().all(|end| !ends.contains(end)));
        self.sessions.push(Session { ends });
        Some(destination.to)
    }

    /// Sends data, and checks that it goes where that session's other end is, if anywhere.
    fn data(&mut self, from: SocketAddr, index: u32) -> Option<SocketAddr> {
        let Outcome::Data(result) = self.world.arrives(from, &data(index)) else {
            panic!("no data");
        };
        let to = result.ok()?;
        let side = self.sessions.iter().find_map(|it| match it.ends {
            [a, b] if a == (from, index) => Some(b.0),
            [a, b] if b == (from, index) => Some(a.0),
            _ => None,
        });
        assert_eq!(Some(to), side, "data of {from} for {index}");
        Some(to)
    }

    /// A handshake between honest peers. Returns whether data went both ways after it.
    fn handshake(&mut self, from: u8, to: u8, [index, other]: [u32; 2], is_cut: bool) -> bool {
        self.salt += 1;
        let message = initiation(&key(to), index, self.salt);
        self.sent.push((message.clone(), to, index));
        let at = self.place_of(from);
        let sent_to = self.initiate(at, to, &message, index);
        let target_at = self.place_of(to);
        // Only the right one can read it, and answers only whom it has configured.
        if is_cut || !sent_to.contains(&target_at) || !self.are_partners(from, to) {
            return false;
        }
        if self.respond(target_at, from, other, index) != Some(at) {
            return false;
        }
        self.data(at, other) == Some(target_at) && self.data(target_at, index) == Some(at)
    }

    fn restart(&mut self, seconds: u64) {
        let json = self.world.relay.store(UNIX, self.world.now).to_json();
        let stored = Stored::from_json(json.as_bytes()).expect("what was stored");
        let network = network(PEERS, graph(self.graph));
        let directory = Directory::new(std::slice::from_ref(&network));
        let sessions = stored.sessions(&directory, PORT, UNIX + seconds);
        let specs: Vec<_> = sessions.iter().map(|it| it.spec.clone()).collect();
        let mut next = World::new(&[network]);
        next.now = self.world.now + seconds * SECOND;
        let flows = next.table.adopt(&specs, &crate::flow::Found::default(), next.now);
        next.relay = WireGuardRelay::new(directory, PORT, Limits::default());
        let sessions = sessions.into_iter().zip(flows.into_iter().map(Result::unwrap));
        next.relay.resume(&mut next.table, &stored, sessions, UNIX + seconds, next.now);
        next.settle();
        self.world = next;
        // Nobody waits for an answer any more.
        self.asked.clear();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Handshake { from, to, .. } if from == to => {}
            Step::Handshake { from, to, index, other, is_cut } => {
                self.handshake(from, to, [index, other], is_cut);
            }
            Step::Data { session, is_back } => {
                if let Some(session) = pick(&self.sessions, session) {
                    let [a, b] = session.ends;
                    let (from, index) = if is_back { b } else { a };
                    self.data(from, index);
                }
            }
            Step::Move { peer, to } => {
                if self.peer_at(place(to)).is_none() {
                    self.places[usize::from(peer) - 1] = to;
                }
            }
            Step::Pass { seconds: 0..5 } => self.world.pass(1),
            Step::Pass { seconds } => {
                self.world.live(seconds);
            }
            Step::Replay { initiation, at } => {
                // Its target has seen it, and does not answer.
                if let Some((message, target, index)) = pick(&self.sent, initiation) {
                    self.initiate(place(at), target, &message, index);
                }
            }
            Step::Forge { at, to, index } => {
                self.salt += 1;
                let message = initiation(&key(to), index, self.salt);
                self.initiate(place(at), to, &message, index);
            }
            Step::Respond { at, to, index, receiver } => {
                self.respond(place(at), to, index, receiver);
            }
            Step::Inject { at, index } => {
                self.data(place(at), index);
            }
            Step::Restart { seconds } => self.restart(seconds),
            Step::Reload { graph: number } => {
                self.graph = number;
                let directory = Directory::new(&[network(PEERS, graph(number))]);
                self.world.relay.reload(&mut self.world.table, directory);
                self.world.settle();
            }
        }
    }

    /// Has every pair try again until it is connected.
    fn settle_down(&mut self) {
        let mut index = 1000;
        let mut left: BTreeSet<(u8, u8)> = (1..=PEERS)
            .flat_map(|a| (1..=PEERS).map(move |b| (a, b)))
            .filter(|(a, b)| self.are_partners(*a, *b))
            .collect();
        for _ in 0..30 {
            for (from, to) in left.clone() {
                index += 2;
                if self.handshake(from, to, [index, index + 1], false) {
                    left.remove(&(from, to));
                    left.remove(&(to, from));
                }
            }
            if left.is_empty() {
                return;
            }
            self.world.live(5);
        }
        panic!("never connected: {left:?}, peers at {:?}\n{:#?}", self.places, self.world.view());
    }
}

fn pick<T: Clone>(list: &[T], number: usize) -> Option<T> {
    list.get(number.checked_rem(list.len())?).cloned()
}

/// What is relayed follows from what was said, and honest peers get through in the end.
pub(crate) fn run(steps: &[Step]) {
    let mut model = Model::new();
    for step in steps {
        model.step(step.clone());
    }
    model.settle_down();
}

#[cfg(test)]
proptest! {
    #[test]
    fn what_is_relayed_follows_from_what_was_said_and_honest_peers_get_through(steps in steps()) {
        run(&steps);
    }
}
