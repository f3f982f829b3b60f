//! Random lives of a tailscaled: whatever happens when, the kernel forwards only what tailscaled would.

use std::{collections::BTreeMap, net::SocketAddr};

use arbitrary::Arbitrary;
#[cfg(test)]
use proptest::prelude::*;

use super::support::*;
use crate::{
    companion::{Endpoint, Session},
    fuzzing::{below, few, one_of},
};

/// Where clients may be: few places, so that they are often the same.
const PLACES: [&str; 5] = [A, B, "198.51.100.10:1", "192.0.2.20:2", "203.0.113.77:9"];
/// Keys of pairs of clients.
const PAIRS: [[u64; 2]; 3] = [[1, 2], [1, 3], [2, 3]];
/// Where the relay may listen.
const PORTS: [Option<u16>; 5] = [None, Some(0), Some(3478), Some(PORT), Some(PORT)];

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Event {
    /// A pair of clients gets an endpoint, if it has none.
    Allocate {
        #[arbitrary(with = below(PAIRS.len()))]
        pair: usize,
    },
    /// A client binds; the kernel sees the handshake, or, if it should ever look otherwise, does not.
    Bind {
        #[arbitrary(with = below(3))]
        which: usize,
        #[arbitrary(with = below(2))]
        side: usize,
        #[arbitrary(with = below(PLACES.len()))]
        place: usize,
        is_seen: bool,
    },
    /// Somebody begins a handshake that comes to nothing.
    Knock {
        #[arbitrary(with = below(3))]
        which: usize,
        #[arbitrary(with = below(2))]
        side: usize,
    },
    /// An endpoint expires.
    Expire {
        #[arbitrary(with = below(3))]
        which: usize,
    },
    /// All sessions are gone, and VNIs start again at 1.
    Restart,
    /// The relay is switched off, or on again, at this port.
    Port {
        #[arbitrary(with = one_of(&PORTS))]
        port: Option<u16>,
    },
}

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Step {
    Event(Event),
    /// tailscaled is asked; things happen before its answer is looked at, and before it is acted upon.
    Poll {
        #[arbitrary(with = few)]
        before: Vec<Event>,
        #[arbitrary(with = few)]
        between: Vec<Event>,
    },
    /// tailscaled cannot be asked.
    Fail,
    Pass {
        #[arbitrary(with = below(2001))]
        milliseconds: u64,
    },
    /// Undisturbed time.
    Quiet,
}

#[cfg(test)]
fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..PAIRS.len()).prop_map(|pair| Event::Allocate { pair }),
        6 => (0usize..3, 0usize..2, 0..PLACES.len(), prop::bool::weighted(0.8)).prop_map(
            |(which, side, place, is_seen)| Event::Bind { which, side, place, is_seen }
        ),
        2 => (0usize..3, 0usize..2).prop_map(|(which, side)| Event::Knock { which, side }),
        1 => (0usize..3).prop_map(|which| Event::Expire { which }),
        1 => Just(Event::Restart),
        1 => prop::sample::select(&PORTS)
            .prop_map(|port| Event::Port { port }),
    ]
}

#[cfg(test)]
fn step() -> impl Strategy<Value = Step> {
    let some = || prop::collection::vec(event(), 0..2);
    prop_oneof![
        4 => event().prop_map(Step::Event),
        6 => (some(), some()).prop_map(|(before, between)| Step::Poll { before, between }),
        1 => Just(Step::Fail),
        4 => (1u64..700).prop_map(|milliseconds| Step::Pass { milliseconds }),
        1 => Just(Step::Pass { milliseconds: 2000 }),
        3 => Just(Step::Quiet),
    ]
}

struct Model {
    world: World,
    next_vni: u32,
    /// What the last answer said, for VNIs about which something has changed since that the kernel could not see.
    unseen: BTreeMap<u32, Option<Session>>,
    /// What the next answer to be acted upon says.
    asked_at: u64,
}

impl Model {
    fn session(&self, which: usize) -> Option<Session> {
        self.world.sessions.values().nth(which).copied()
    }

    /// Notes that the kernel cannot know of a change.
    fn changes_unseen(&mut self, vni: u32) {
        let before = self.world.sessions.get(&vni).copied();
        self.unseen.entry(vni).or_insert(before);
    }

    fn happen(&mut self, event: &Event) {
        match *event {
            Event::Allocate { pair } => {
                let keys = PAIRS[pair];
                let mut sessions = self.world.sessions.values();
                let has = |it: &Session| it.clients.map(|client| client.sender) == keys;
                if !sessions.any(has) && self.next_vni < 3 * SLOTS {
                    self.changes_unseen(self.next_vni);
                    self.world.set(session(self.next_vni, keys, ["", ""]));
                    self.next_vni += 1;
                }
            }
            Event::Bind { which, side, place, is_seen } => {
                let Some(mut session) = self.session(which) else { return };
                if is_seen {
                    self.world.control(session.vni, session.clients[side].sender);
                } else {
                    self.changes_unseen(session.vni);
                }
                session.clients[side].endpoint = Endpoint::At(address(PLACES[place]));
                self.world.set(session);
            }
            Event::Knock { which, side } => {
                let Some(session) = self.session(which) else { return };
                self.world.control(session.vni, session.clients[side].sender);
            }
            Event::Expire { which } => {
                let Some(session) = self.session(which) else { return };
                self.changes_unseen(session.vni);
                self.world.sessions.remove(&session.vni);
            }
            Event::Restart => {
                self.forget_all();
                self.next_vni = 1;
            }
            Event::Port { port } => {
                if port != self.world.port {
                    self.forget_all();
                    self.world.port = port;
                }
            }
        }
    }

    fn forget_all(&mut self) {
        let vnis: Vec<_> = self.world.sessions.keys().copied().collect();
        vnis.into_iter().for_each(|vni| self.changes_unseen(vni));
        self.world.sessions.clear();
    }

    fn poll(&mut self, before: &[Event], between: &[Event]) {
        let (asked, report) = (self.world.now, self.world.report());
        self.unseen.clear();
        self.asked_at = asked;
        self.world.now += MILLISECOND;
        before.iter().for_each(|event| self.happen(event));
        let suspects = self.world.suspects();
        between.iter().for_each(|event| self.happen(event));
        self.world.answer(asked, &report, &suspects);
    }

    /// Sends packets from everywhere under every VNI, and checks where the kernel sends them.
    fn check(&self) {
        for vni in 0..=3 * SLOTS {
            for from in PLACES {
                let Some(to) = self.world.data(vni, from) else { continue };
                let sessions =
                    [self.world.sessions.get(&vni), self.unseen.get(&vni).and_then(Option::as_ref)];
                let goes = |session: &&Session| leads(session, address(from), to);
                assert!(
                    sessions.into_iter().flatten().any(|it| goes(&it)),
                    "{vni}: {from} to {to}"
                );
                assert!(self.world.now < self.asked_at + LEASE);
            }
        }
    }
}

/// Tells whether tailscaled would send a packet of this session from here to there.
fn leads(session: &Session, from: SocketAddr, to: SocketAddr) -> bool {
    let [one, other] = session.clients.map(|client| client.endpoint);
    let [from, to] = [from, to].map(Endpoint::At);
    (one, other) == (from, to) || (other, one) == (from, to)
}

/// The kernel forwards only what tailscaled would, and in the end all of it.
pub(crate) fn run(steps: &[Step]) {
    let mut model =
        Model { world: World::new(), next_vni: 1, unseen: BTreeMap::new(), asked_at: 0 };
    for step in steps {
        match step {
            Step::Event(event) => model.happen(event),
            Step::Poll { before, between } => model.poll(before, between),
            Step::Fail => model.world.fail(),
            Step::Pass { milliseconds } => model.world.now += milliseconds * MILLISECOND,
            Step::Quiet => {
                for _ in 0..4 {
                    model.poll(&[], &[]);
                    model.world.now += POLL;
                    model.world.settle();
                    model.check();
                }
            }
        }
        model.world.settle();
        model.check();
    }
    // In the end, whoever can be forwarded is, and the tables hold nothing else.
    model.world.port = Some(PORT);
    for _ in 0..8 {
        model.poll(&[], &[]);
        model.world.now += POLL;
        model.world.settle();
    }
    let mut forwarded = 0;
    let mut slots = std::collections::BTreeSet::new();
    for session in model.world.sessions.values() {
        let [Endpoint::At(one), Endpoint::At(other)] = session.clients.map(|it| it.endpoint) else {
            continue;
        };
        if one != other && slots.insert(session.vni % SLOTS) {
            let to = model.world.data(session.vni, &one.to_string());
            // Of sessions with one place, which of them has it depends on who came first.
            let has_rival = model
                .world
                .sessions
                .keys()
                .any(|vni| *vni != session.vni && vni % SLOTS == session.vni % SLOTS);
            assert!(to == Some(other) || has_rival, "{session:?}");
            forwarded += 1;
        }
    }
    assert_eq!(model.world.table.len(), forwarded);
}

#[cfg(test)]
proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn the_kernel_forwards_only_what_tailscaled_would(steps in prop::collection::vec(step(), 1..60)) {
        run(&steps);
    }
}
