//! Random histories of the relay against a model that forgets nothing and looks everything up by going through
//! it all.

use std::net::SocketAddr;

use arbitrary::Arbitrary;
use derp_common::Rate;
#[cfg(test)]
use proptest::prelude::*;

use super::support::*;
use crate::{
    flow::Plane,
    fuzzing::{below, one_of},
    peer_relay::{
        BIND_LIFETIME, Limits, ROTATION, Reaction, Refusal, STEADY_STATE_LIFETIME,
        disco::EndpointRecord,
    },
};

const CLIENTS: usize = 4;
const PLACES: [(&str, &str); 5] =
    [(A, RELAY), (A_MOVED, RELAY), (B, RELAY), (B, RELAY_2), (B_6, RELAY_6)];
/// How much time may pass at once, in seconds.
const PAUSES: [u64; 8] = [1, 5, 29, 31, 100, 120, 240, 301];
const MOST: usize = 4;
const MOST_PER_NODE: usize = 2;

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    Ask {
        #[arbitrary(with = below(CLIENTS))]
        by: usize,
        #[arbitrary(with = below(CLIENTS))]
        other: usize,
    },
    Bind {
        #[arbitrary(with = below(8))]
        endpoint: usize,
        #[arbitrary(with = below(CLIENTS))]
        by: usize,
        #[arbitrary(with = below(6))]
        generation: u32,
        #[arbitrary(with = below(PLACES.len()))]
        place: usize,
    },
    Answer {
        #[arbitrary(with = below(8))]
        challenge: usize,
        #[arbitrary(with = below(2 * PLACES.len()))]
        place: usize,
    },
    Heard {
        #[arbitrary(with = below(8))]
        endpoint: usize,
        plane: bool,
        sides: [bool; 2],
    },
    Pass {
        #[arbitrary(with = one_of(&PAUSES))]
        seconds: u64,
    },
    Review,
}

#[cfg(test)]
fn step() -> impl Strategy<Value = Step> {
    let index = || 0..8usize;
    prop_oneof![
        2 => (0..CLIENTS, 0..CLIENTS).prop_map(|(by, other)| Step::Ask { by, other }),
        4 => (index(), 0..CLIENTS, 0..6u32, 0..PLACES.len()).prop_map(
            |(endpoint, by, generation, place)| Step::Bind { endpoint, by, generation, place }
        ),
        6 => (index(), 0..PLACES.len() * 2).prop_map(|(challenge, place)| Step::Answer { challenge, place }),
        2 => (index(), any::<bool>(), any::<[bool; 2]>())
            .prop_map(|(endpoint, plane, sides)| Step::Heard { endpoint, plane, sides }),
        2 => prop::sample::select(&PAUSES)
            .prop_map(|seconds| Step::Pass { seconds }),
        2 => Just(Step::Review),
    ]
}

/// One endpoint there was.
struct Had {
    record: EndpointRecord,
    owner: usize,
    asked: u64,
    ended: bool,
    ends: [HadEnd; 2],
}

#[derive(Default)]
struct HadEnd {
    client: usize,
    begun: u32,
    completed: u32,
    at: Option<usize>,
    heard: u64,
}

/// One challenge there was.
struct Challenged {
    endpoint: usize,
    side: usize,
    generation: u32,
    place: usize,
    /// When its secret was made.
    secret: u64,
    packet: Vec<u8>,
}

struct Model {
    world: World,
    clients: Vec<Client>,
    had: Vec<Had>,
    challenges: Vec<Challenged>,
}

fn source(place: usize) -> SocketAddr {
    address(PLACES[place].0)
}

impl Model {
    fn new() -> Self {
        let limits = Limits {
            endpoints: MOST,
            endpoints_per_node: MOST_PER_NODE,
            requests_per_node: Rate::UNLIMITED,
            requests: Rate::UNLIMITED,
            handshakes_per_source: Rate::UNLIMITED,
            handshakes_per_client: Rate::UNLIMITED,
        };
        let clients = (1..=CLIENTS as u8).map(Client::new).collect();
        Self { world: World::with(limits, 8), clients, had: Vec::new(), challenges: Vec::new() }
    }

    fn live(&self) -> impl Iterator<Item = usize> {
        (0..self.had.len()).filter(|index| !self.had[*index].ended)
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask { by, other } => self.ask(by, other),
            Step::Bind { endpoint, by, generation, place } => {
                if !self.had.is_empty() {
                    self.bind(endpoint % self.had.len(), by, generation, place);
                }
            }
            Step::Answer { challenge, place } => {
                if !self.challenges.is_empty() {
                    // The latest ones, mostly where they were sent to.
                    let from_the_end = challenge % self.challenges.len();
                    let challenge = self.challenges.len() - 1 - from_the_end;
                    let sent_to = self.challenges[challenge].place;
                    self.answer(challenge, if place < PLACES.len() { place } else { sent_to });
                }
            }
            Step::Heard { endpoint, plane, sides } => {
                if !self.had.is_empty() {
                    self.heard(endpoint % self.had.len(), plane, sides);
                }
            }
            Step::Pass { seconds } => self.world.pass(seconds * SECOND),
            Step::Review => self.review(),
        }
    }

    fn ask(&mut self, by: usize, other: usize) {
        let now = self.world.now;
        let asker = self.clients[by].clone();
        let result = self.world.ask(&asker, [asker.key(), self.clients[other].key()]);
        let is_of = |had: &Had| {
            let clients = had.ends.each_ref().map(|end| end.client);
            clients == [by, other] || clients == [other, by]
        };
        if by == other {
            return assert_eq!(result, Err(Refusal::UnusableClients));
        }
        let known = self.live().find(|index| is_of(&self.had[*index]));
        if let Some(index) = known {
            self.had[index].asked = now;
            return assert_eq!(result.as_ref(), Ok(&self.had[index].record));
        }
        if self.live().count() == MOST {
            return assert_eq!(result, Err(Refusal::Full));
        }
        if self.live().filter(|index| self.had[*index].owner == by).count() == MOST_PER_NODE {
            return assert_eq!(result, Err(Refusal::NodeFull));
        }
        let record = result.expect("an endpoint");
        assert_eq!(record.lamport_id, self.had.len() as u64 + 1);
        let is_other = |index: usize| self.had[index].record.vni != record.vni;
        assert!(self.live().all(is_other), "every endpoint has its own VNI");
        if let Some(last) = self.had.last() {
            assert_ne!(last.record.vni, record.vni, "nor is a VNI given again at once");
        }
        let number = |key| self.clients.iter().position(|client| client.key() == key).unwrap();
        let end = |key| HadEnd { client: number(key), ..HadEnd::default() };
        let ends = record.clients.map(end);
        self.had.push(Had { record, owner: by, asked: now, ended: false, ends });
    }

    fn bind(&mut self, index: usize, by: usize, generation: u32, place: usize) {
        let had = &mut self.had[index];
        let bind = self.clients[by].bind(&had.record, generation);
        let (from, local) = PLACES[place];
        let result = self.world.control_at(from, local, &bind);
        if had.ended {
            return assert_eq!(result, Err(Refusal::UnknownVni));
        }
        let Some(side) = had.ends.iter().position(|end| end.client == by) else {
            return assert_eq!(result, Err(Refusal::UnknownSender));
        };
        let end = &mut had.ends[side];
        if generation == 0 || generation == end.completed {
            return assert_eq!(result, Err(Refusal::Generation));
        }
        end.begun = generation;
        let Ok(Reaction::Challenge(datagram)) = result else { panic!("{result:?}") };
        let now = self.world.now;
        let last = self.challenges.last().map(|challenge| challenge.secret);
        let secret = last.filter(|made| now - made < ROTATION).unwrap_or(now);
        let packet = self.clients[by].answer(&had.record, &datagram.payload);
        let endpoint = index;
        self.challenges.push(Challenged { endpoint, side, generation, place, secret, packet });
    }

    fn answer(&mut self, index: usize, place: usize) {
        let challenge = &self.challenges[index];
        let (from, local) = PLACES[place];
        let result = self.world.control_at(from, local, &challenge.packet);
        let now = self.world.now;
        let had = &mut self.had[challenge.endpoint];
        if had.ended {
            return assert_eq!(result, Err(Refusal::UnknownVni));
        }
        let elsewhere = had.ends[1 - challenge.side].at;
        let end = &mut had.ends[challenge.side];
        if end.begun != challenge.generation {
            return assert_eq!(result, Err(Refusal::Generation));
        }
        let is_in_time = now - challenge.secret < 2 * ROTATION;
        if source(place) != source(challenge.place) || !is_in_time {
            return assert_eq!(result, Err(Refusal::Challenge));
        }
        if elsewhere.is_some_and(|other| source(other) == source(place)) {
            return assert_eq!(result, Err(Refusal::Address));
        }
        let Ok(Reaction::Bound(bound)) = result else { panic!("{result:?}") };
        assert_eq!((bound.remote, bound.before), (source(place), end.at.map(source)));
        end.at = Some(place);
        end.heard = now;
        end.completed = std::mem::take(&mut end.begun);
    }

    fn heard(&mut self, index: usize, kernel: bool, sides: [bool; 2]) {
        let now = self.world.now;
        let had = &mut self.had[index];
        if had.ended || had.ends.iter().any(|end| end.at.is_none()) {
            return;
        }
        let plane = if kernel { Plane::Kernel } else { Plane::Userspace };
        self.world.observe(plane, &had.record, sides.map(|it| if it { now } else { 0 }));
        for (end, _) in had.ends.iter_mut().zip(sides).filter(|(_, heard)| *heard) {
            end.heard = now;
        }
    }

    fn review(&mut self) {
        let now = self.world.now;
        let mut ended = Vec::new();
        for had in self.had.iter_mut().filter(|had| !had.ended) {
            let is_open = had.ends.iter().all(|end| end.at.is_some());
            had.ended = if is_open {
                had.ends.iter().any(|end| now - end.heard > STEADY_STATE_LIFETIME)
            } else {
                now - had.asked > BIND_LIFETIME
            };
            if had.ended {
                ended.push(had.record.vni);
            }
        }
        ended.sort_unstable();
        let reviewed = self.world.relay.review(&mut self.world.table, now);
        assert_eq!(reviewed.iter().map(|it| it.vni).collect::<Vec<_>>(), ended);
    }

    /// Compares what is there, and where packets go.
    fn check(&mut self) {
        self.world.settle();
        let mut live: Vec<_> = self.live().map(|index| self.had[index].record.vni).collect();
        live.sort_unstable();
        assert_eq!(self.world.live(), live);
        assert_eq!(self.world.table.len(), live.len());
        for had in &self.had {
            let [a, b] = &had.ends;
            for (place, (from, local)) in PLACES.into_iter().enumerate() {
                let is_at = |end: &HadEnd| end.at.is_some_and(|at| source(at) == source(place));
                let to = match (a.at, b.at) {
                    (Some(_), Some(b)) if is_at(a) && !had.ended => Some(b),
                    (Some(a), Some(_)) if is_at(b) && !had.ended => Some(a),
                    _ => None,
                };
                let expected = to.map(|to| (source(to), address(PLACES[to].1)));
                let routed = self.world.route(had.record.vni, from, local).ok();
                assert_eq!(routed, expected, "from {from}");
            }
        }
    }
}

/// Any history ends as the model says.
pub(crate) fn run(steps: &[Step]) {
    let mut model = Model::new();
    for step in steps {
        model.step(step);
        model.check();
    }
}

#[cfg(test)]
proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_the_model_says(steps in prop::collection::vec(step(), 1..80)) {
        run(&steps);
    }
}
