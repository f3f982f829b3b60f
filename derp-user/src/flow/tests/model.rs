//! Random inputs against a naive model, with a reader that looks after every single change.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Arbitrary;
use derp_common::flow::{Class, Side};
#[cfg(test)]
use proptest::prelude::*;

use super::support::*;
use crate::{
    flow::{FlowId, FlowSpec, Kind, Outcome, Resolved},
    fuzzing::below,
};

const SLOTS: u32 = 4;
/// Where the ends may be: few places, so that they are often the same.
const PLACES: [&str; 6] =
    ["10.0.0.1:1", "10.0.0.1:2", "10.1.0.1:1", "198.51.100.1:9", "198.51.100.2:9", "203.0.113.2:9"];
const NETWORKS: [&str; 3] = ["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0"];
const ENDS: usize = PLACES.len() + NETWORKS.len();

/// A flow that somebody wants.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Wish {
    #[arbitrary(with = below(7))]
    kind: u32,
    #[arbitrary(with = below(ENDS))]
    a: usize,
    #[arbitrary(with = below(ENDS))]
    b: usize,
}

#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Input {
    Add(Wish),
    Remove {
        #[arbitrary(with = below(8))]
        which: usize,
    },
    Rebind {
        #[arbitrary(with = below(8))]
        which: usize,
        side: bool,
        #[arbitrary(with = below(PLACES.len()))]
        place: usize,
    },
    Packet {
        #[arbitrary(with = below(8))]
        which: usize,
        #[arbitrary(with = below(PLACES.len()))]
        place: usize,
    },
    Ways {
        #[arbitrary(with = below(3))]
        interface: u32,
    },
    Pass {
        #[arbitrary(with = below(12))]
        milliseconds: u64,
    },
    Expire,
    Poll,
    Settle,
    /// Another configuration: without some of the flows, and with one more.
    Revise {
        #[arbitrary(with = below(16))]
        without: u32,
        wish: Wish,
    },
}

#[cfg(test)]
fn inputs() -> impl Strategy<Value = Vec<Input>> {
    let place = 0..PLACES.len();
    let wish = (0u32..7, 0..ENDS, 0..ENDS).prop_map(|(kind, a, b)| Wish { kind, a, b });
    let input = prop_oneof![
        4 => wish.clone().prop_map(Input::Add),
        2 => (0u32..16, wish).prop_map(|(without, wish)| Input::Revise { without, wish }),
        2 => (0usize..8).prop_map(|which| Input::Remove { which }),
        4 => (0usize..8, any::<bool>(), place.clone())
            .prop_map(|(which, side, place)| Input::Rebind { which, side, place }),
        4 => (0usize..8, place).prop_map(|(which, place)| Input::Packet { which, place }),
        2 => (0u32..3).prop_map(|interface| Input::Ways { interface }),
        3 => (0u64..12).prop_map(|milliseconds| Input::Pass { milliseconds }),
        1 => Just(Input::Expire),
        6 => Just(Input::Poll),
        1 => Just(Input::Settle),
    ];
    prop::collection::vec(input, 1..60)
}

/// A flow as the model sees it.
#[derive(Clone, Debug)]
struct Simple {
    id: FlowId,
    spec: FlowSpec,
    /// 0 for a flow of anything.
    vni: u32,
    places: [Option<&'static str>; 2],
}

/// A packet's VNI, where it comes from and where it may go.
type Way = (u32, &'static str, &'static str);

struct Model {
    rig: Rig,
    flows: Vec<Simple>,
    /// Every way that was right since the tables last came to rest.
    allowed: BTreeSet<Way>,
    /// VNIs that were ever used.
    vnis: BTreeSet<u32>,
}

impl Wish {
    fn spec(self) -> FlowSpec {
        let (a, b) = (end(self.a), end(self.b));
        match self.kind {
            0 | 1 => flow(Kind::Any, a, b),
            2 | 3 => flow(ALLOCATE, a, b),
            number => flow(vni(number * 3), a, b),
        }
    }

    /// The addresses of its ends, where they are not to be learnt.
    fn places(self) -> [Option<&'static str>; 2] {
        [self.a, self.b].map(|number| PLACES.get(number).copied())
    }
}

fn end(number: usize) -> crate::flow::EndSpec {
    let end = match number.checked_sub(PLACES.len()) {
        None => fixed(PLACES[number]),
        Some(network) => learn(&[NETWORKS[network]]),
    };
    at("203.0.113.1", end)
}

impl Model {
    fn new() -> Self {
        Self { rig: Rig::new(SLOTS), flows: Vec::new(), allowed: BTreeSet::new(), vnis: [0].into() }
    }

    fn ways(&self) -> BTreeSet<Way> {
        let both = |flow: &Simple| match flow.places {
            [Some(a), Some(b)] => vec![(flow.vni, a, b), (flow.vni, b, a)],
            _ => Vec::new(),
        };
        self.flows.iter().flat_map(both).collect()
    }

    fn route(&self, vni: u32, from: &str) -> Option<String> {
        let class = if vni == 0 { Class::Any } else { Class::Geneve { vni } };
        self.rig.route(class, from, US).ok().map(|(to, _)| to)
    }

    /// What every packet's way is now.
    fn seen(&self) -> BTreeSet<(u32, &'static str, String)> {
        let vnis = self.vnis.iter().copied();
        let all = vnis.flat_map(|vni| PLACES.map(|from| (vni, from)));
        all.filter_map(|(vni, from)| Some((vni, from, self.route(vni, from)?))).collect()
    }

    fn poll(&mut self) {
        let changes = self.rig.table.poll(self.rig.now);
        for change in changes {
            self.rig.tables.change(&change, self.rig.now);
            for (vni, from, to) in self.seen() {
                let is_allowed =
                    self.allowed.iter().any(|way| (way.0, way.1) == (vni, from) && way.2 == to);
                assert!(is_allowed, "VNI {vni}: {from} to {to} after {change:?}");
            }
        }
    }

    fn settle(&mut self) {
        while let Some(deadline) = self.rig.table.next_deadline() {
            self.rig.now = self.rig.now.max(deadline);
            self.poll();
        }
        self.allowed = self.ways();
        let expected: BTreeSet<_> =
            self.allowed.iter().map(|(vni, from, to)| (*vni, *from, (*to).to_owned())).collect();
        assert_eq!(self.seen(), expected);
    }

    /// Whether a flow without VNI already has this place.
    fn is_taken(&self, place: Option<&str>) -> bool {
        place.is_some()
            && self.flows.iter().any(|flow| flow.vni == 0 && flow.places.contains(&place))
    }

    fn add(&mut self, wish: Wish) {
        let (spec, places) = (wish.spec(), wish.places());
        let wanted = match spec.kind {
            Kind::Geneve { vni } => vni,
            Kind::Any | Kind::WireGuard { .. } => None,
        };
        let is_in_the_way = |flow: &Simple| match wanted {
            Some(vni) => flow.id.slot() == vni % SLOTS,
            None => false,
        };
        let is_refused = self.flows.len() == SLOTS as usize
            || (places[0].is_some() && places[0] == places[1])
            || (spec.kind == Kind::Any && places.iter().any(|place| self.is_taken(*place)))
            || self.flows.iter().any(is_in_the_way);
        let result = self.rig.add(spec.clone());
        assert_eq!(result.is_err(), is_refused, "{result:?}");
        if let Ok(id) = result {
            let vni = self.rig.vni(id);
            assert!(vni == 0 || self.flows.iter().all(|flow| flow.vni != vni));
            self.vnis.insert(vni);
            self.flows.push(Simple { id, spec, vni, places });
        }
    }

    /// Which of several equal flows stay is not foretold; that all of the list is there, and nothing else, is.
    fn revise(&mut self, without: u32, wish: Wish) {
        let stays = |(number, _): &(u32, &Simple)| without >> number & 1 == 0;
        let mut list: Vec<_> =
            (0..).zip(&self.flows).filter(stays).map(|(_, flow)| flow.spec.clone()).collect();
        list.push(wish.spec());
        let mut table = self.rig.table.clone();
        if table.revise(&list, self.rig.now).is_err() {
            return;
        }
        self.rig.table = table;
        self.flows.retain(|flow| self.rig.table.name(flow.id).is_some());
        let known: BTreeSet<_> = self.flows.iter().map(|flow| flow.id).collect();
        let new = self.rig.table.flows.values().filter(|flow| !known.contains(&flow.id));
        let new: Vec<_> = new.map(|flow| (flow.id, flow.spec.clone(), flow.vni)).collect();
        assert!(new.len() <= 1, "what is on both lists goes on");
        for (id, spec, vni) in new {
            self.vnis.insert(vni);
            self.flows.push(Simple { id, spec, vni, places: wish.places() });
        }
        let sorted = |specs: Vec<FlowSpec>| {
            let mut texts: Vec<_> = specs.iter().map(|spec| format!("{spec:?}")).collect();
            texts.sort_unstable();
            texts
        };
        let there = self.flows.iter().map(|flow| flow.spec.clone()).collect();
        assert_eq!(sorted(there), sorted(list));
        assert_eq!(self.rig.table.len(), self.flows.len());
    }

    fn rebind(&mut self, which: usize, side: Side, place: &'static str) {
        let Some(flow) = self.flows.get(which).cloned() else { return };
        let (now, other) = (flow.places[side as usize], flow.places[side.other() as usize]);
        let remote = place.parse().unwrap();
        let place = Some(place);
        let is_refused =
            now != place && (other == place || (flow.vni == 0 && self.is_taken(place)));
        let result = self.rig.table.rebind(flow.id, side, remote, self.rig.now);
        assert_eq!(result.is_err(), is_refused, "{result:?}");
        if result.is_ok() {
            self.flows[which].places[side as usize] = place;
        }
    }

    /// What is learnt is not foretold; whether it may be is.
    fn packet(&mut self, which: usize, place: &'static str) {
        let vni = self.flows.get(which).map_or(0, |flow| flow.vni);
        let class = if vni == 0 { Class::Any } else { Class::Geneve { vni } };
        let outcome = self.rig.table.unknown(&datagram(place, US), class, self.rig.now);
        let Outcome::Learnt { flow, side, .. } = outcome else { return };
        let taken = vni == 0 && self.is_taken(Some(place));
        let flow = self.flows.iter_mut().find(|simple| simple.id == flow).unwrap();
        assert_eq!((flow.vni, flow.places[side as usize]), (vni, None));
        assert!(!taken && !flow.places.contains(&Some(place)));
        flow.places[side as usize] = Some(place);
    }

    fn expire(&mut self) {
        for expired in self.rig.table.expire(self.rig.now) {
            let flow = self.flows.iter_mut().find(|simple| simple.id == expired.flow).unwrap();
            flow.places[expired.end.unwrap() as usize] = None;
        }
    }

    fn input(&mut self, input: &Input) {
        match *input {
            Input::Add(wish) => self.add(wish),
            Input::Remove { which } if which < self.flows.len() => {
                let flow = self.flows.remove(which);
                self.rig.remove(flow.id);
            }
            Input::Remove { .. } => {}
            Input::Rebind { which, side, place } => {
                self.rebind(which, if side { Side::A } else { Side::B }, PLACES[place]);
            }
            Input::Packet { which, place } => self.packet(which, PLACES[place]),
            Input::Ways { interface } => {
                for request in self.rig.table.way_requests() {
                    let way = Resolved { interface, ..way(0) };
                    self.rig.table.set_way(&request, (interface != 0).then_some(way));
                }
            }
            Input::Pass { milliseconds } => self.rig.pass(milliseconds * 1_000_000),
            Input::Expire => {
                self.rig.pass(TIMEOUT / 2 + 1);
                self.expire();
            }
            Input::Poll => self.poll(),
            Input::Settle => self.settle(),
            Input::Revise { without, wish } => self.revise(without, wish),
        }
        self.allowed.extend(self.ways());
    }
}

/// No reader ever sees a wrong way, and a restart finds all of it again, or removes what it does not know.
pub(crate) fn run(inputs: &[Input]) {
    let mut model = Model::new();
    for input in inputs {
        model.input(input);
    }
    model.settle();
    let views: BTreeMap<_, _> =
        model.rig.views(true).into_iter().map(|view| (view.slot, view)).collect();
    assert_eq!(views.len(), model.flows.len());

    // A restart finds all of it again, or removes what it does not know.
    let found = model.rig.tables.found();
    let mut table = crate::flow::FlowTable::new(settings(SLOTS));
    table.set_local_addresses(OURS.map(|ip| ip.parse().unwrap()));
    assert!(table.adopt(&[], &found, model.rig.now).is_empty());
    model.rig.table = table;
    while let Some(deadline) = model.rig.table.next_deadline() {
        model.rig.now = model.rig.now.max(deadline);
        for change in model.rig.table.poll(model.rig.now) {
            model.rig.tables.change(&change, model.rig.now);
        }
    }
    assert!(model.seen().is_empty());
    assert!(model.rig.tables.found().sources.is_empty());
}

#[cfg(test)]
proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_reader_ever_sees_a_wrong_way(inputs in inputs()) {
        run(&inputs);
    }
}
