//! Learning from packets.

use derp_common::{
    flow::{Class, Side},
    reason::Reason,
};

use super::support::*;
use crate::flow::{EndSpec, FlowId, Kind, Learnt, Local, Outcome, Refusal};

const GENEVE: Class = Class::Geneve { vni: 1 };
const HOST: &str = "10.1.2.3:5000";

impl Rig {
    fn packet(&mut self, class: Class, from: &str, to: &str) -> Outcome {
        let outcome = self.table.unknown(&datagram(from, to), class, self.now);
        self.poll();
        outcome
    }
}

fn learnt(flow: FlowId, side: Side, remote: &str) -> Outcome {
    Outcome::Learnt { flow, side, what: Learnt::Remote(remote.parse().unwrap()) }
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

#[test]
fn the_first_packet_from_an_allowed_network_binds_the_end() {
    for (kind, class) in [(vni(1), GENEVE), (Kind::Any, Class::Any)] {
        let mut rig = Rig::new(16);
        let id = rig.added(flow(kind, at("203.0.113.1", fixed(A)), learn(&["10.0.0.0/8"])));
        let unbound = if kind == Kind::Any { Reason::UnknownSource } else { Reason::Learning };
        assert_eq!(rig.route(class, A, US), Err(unbound), "userspace must see it");
        assert_eq!(rig.packet(class, A, US), refused(Refusal::Unbound));
        for stranger in ["11.1.2.3:5000", "[2001:db8:9::1]:1"] {
            let to = if stranger.starts_with('[') { "[2001:db8::1]:40000" } else { US };
            assert_eq!(rig.packet(class, stranger, to), refused(Refusal::NotAllowed));
        }
        assert_eq!(rig.packet(class, HOST, "203.0.113.2:40000"), learnt(id, Side::B, HOST));
        rig.settle();
        assert_eq!(rig.route(class, HOST, "203.0.113.2:40000").unwrap().0, A);
        let to_host = (HOST.to_owned(), "203.0.113.2:40000".to_owned());
        assert_eq!(rig.route(class, A, US), Ok(to_host), "from the address it used");
        let late = rig.packet(class, HOST, "203.0.113.2:40000");
        assert_eq!(late, Outcome::Known { flow: id, side: Side::B });
        assert_eq!(rig.packet(class, "10.1.2.4:1", US), refused(Refusal::NotAllowed), "taken");
    }
}

#[test]
fn packets_that_cannot_teach_do_not() {
    let mut rig = Rig::new(16);
    rig.added(flow(vni(1), fixed(A), learn(&["0.0.0.0/0", "::/0"])));
    for source in ["10.0.0.1:0", "0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1"] {
        assert_eq!(rig.packet(GENEVE, source, US), refused(Refusal::UnusableSource), "{source}");
    }
    for to in ["192.0.2.200:40000", "[2001:db8::1]:40000"] {
        assert_eq!(rig.packet(GENEVE, HOST, to), refused(Refusal::NotLocal), "{to}");
    }
    let other_port = rig.packet(GENEVE, HOST, "203.0.113.1:40001");
    assert_eq!(other_port, refused(Refusal::NotAllowed));
    for vni in [0, 2, 17] {
        let class = Class::Geneve { vni };
        assert_eq!(rig.packet(class, HOST, US), refused(Refusal::UnknownVni), "{vni}");
    }
    for class in [Class::Stun, Class::Control { vni: 1, sender: 1 }] {
        assert_eq!(rig.packet(class, HOST, US), refused(Refusal::OtherKind));
    }
    assert_eq!(rig.packet(Class::Any, HOST, US), refused(Refusal::NotAllowed));
}

#[test]
fn two_equal_ends_are_bound_one_after_the_other() {
    for (kind, class) in [(vni(1), GENEVE), (Kind::Any, Class::Any)] {
        let mut rig = Rig::new(16);
        let any = || learn(&["10.0.0.0/8"]);
        let id = rig.added(flow(kind, any(), any()));
        assert_eq!(rig.packet(class, HOST, US), learnt(id, Side::A, HOST));
        assert_eq!(rig.packet(class, HOST, US), refused(Refusal::Unbound), "not both ends");
        assert_eq!(rig.packet(class, "10.9.9.9:1", US), learnt(id, Side::B, "10.9.9.9:1"));
        rig.settle();
        assert_eq!(rig.route(class, HOST, US).unwrap().0, "10.9.9.9:1");
    }
}

#[test]
fn the_longest_network_decides_and_ties_are_refused() {
    for (kind, class) in [(vni(1), GENEVE), (Kind::Any, Class::Any)] {
        let mut rig = Rig::new(16);
        let id =
            rig.added(flow(kind, learn(&["10.0.0.0/8"]), learn(&["10.1.0.0/16", "10.2.0.0/8"])));
        assert_eq!(rig.packet(class, "10.3.0.1:1", US), refused(Refusal::Ambiguous));
        assert_eq!(rig.packet(class, HOST, US), learnt(id, Side::B, HOST));
        assert_eq!(rig.packet(class, "10.3.0.1:1", US), learnt(id, Side::A, "10.3.0.1:1"));
    }
}

#[test]
fn a_source_that_two_flows_may_have_is_refused() {
    let mut rig = Rig::new(16);
    let first = rig.added(flow(Kind::Any, fixed(A), learn(&["10.0.0.0/8"])));
    let at_second = at("203.0.113.2", learn(&["10.0.0.0/8"]));
    let second = rig.added(flow(Kind::Any, fixed("192.0.2.9:9"), at_second));
    let third = EndSpec { local: Local { ip: None, port: PORT + 1 }, ..learn(&["10.0.0.0/8"]) };
    let third = rig.added(flow(Kind::Any, fixed("192.0.2.8:8"), third));
    assert_eq!(rig.packet(Class::Any, HOST, "203.0.113.2:40000"), refused(Refusal::Ambiguous));
    assert_eq!(rig.packet(Class::Any, HOST, "203.0.113.1:40001"), learnt(third, Side::B, HOST));
    assert_eq!(
        rig.packet(Class::Any, HOST, US),
        learnt(first, Side::B, HOST),
        "the address decides"
    );
    let next = "10.0.0.9:1";
    assert_eq!(rig.packet(Class::Any, next, "203.0.113.2:40000"), learnt(second, Side::B, next));
    assert_eq!(rig.packet(Class::Any, "10.0.0.10:1", US), refused(Refusal::NotAllowed));
    rig.remove(first);
    rig.remove(second);
    rig.remove(third);
    assert_eq!(rig.packet(Class::Any, HOST, US), refused(Refusal::NotAllowed));
}

#[test]
fn an_end_follows_to_the_local_address_it_uses() {
    for (kind, class) in [(vni(1), GENEVE), (Kind::Any, Class::Any)] {
        let mut rig = Rig::new(16);
        let id = rig.added(flow(kind, fixed(A), at("203.0.113.1", fixed(B))));
        rig.resolve();
        rig.settle();
        let other = "203.0.113.2:40000";
        assert_eq!(rig.route(class, A, other), Err(Reason::OtherLocal));
        let what = Learnt::Local("203.0.113.2".parse().unwrap());
        let moved = Outcome::Learnt { flow: id, side: Side::A, what };
        assert_eq!(rig.packet(class, A, other), moved);
        rig.settle();
        assert!(rig.route(class, A, other).is_ok());
        assert_eq!(rig.route(class, B, US).unwrap().1, other, "answers leave from there");
        let asked = rig.resolve();
        let expected = (Side::A, Some("203.0.113.2".to_owned()), Some(A.to_owned()));
        assert_eq!(asked, [expected], "the way may be another one");

        assert_eq!(rig.packet(class, A, US), refused(Refusal::TooSoon));
        rig.pass(SECOND);
        assert!(matches!(rig.packet(class, A, US), Outcome::Learnt { .. }));
        let configured = rig.packet(class, B, other);
        assert_eq!(configured, refused(Refusal::OtherLocal), "what is configured stays");
        let port = rig.packet(GENEVE, A, "203.0.113.1:40001");
        if kind != Kind::Any {
            assert_eq!(port, refused(Refusal::OtherLocal));
        }
    }
}

#[test]
fn an_end_that_nothing_may_teach_is_bound_by_name_only() {
    let mut rig = Rig::new(16);
    let id = rig.added(flow(vni(1), fixed(A), learn(&[])));
    assert_eq!(rig.route(GENEVE, A, US), Err(Reason::Unbound));
    assert_eq!(rig.packet(GENEVE, HOST, US), refused(Refusal::NotAllowed));
    rig.table.rebind(id, Side::B, HOST.parse().unwrap(), rig.now).unwrap();
    rig.resolve();
    rig.settle();
    assert_eq!(rig.route(GENEVE, A, US).unwrap().0, HOST);
}

#[test]
fn refusals_have_their_own_labels() {
    let labels: std::collections::BTreeSet<_> = Refusal::ALL.map(Refusal::label).into();
    assert_eq!(labels.len(), Refusal::ALL.len());
}
