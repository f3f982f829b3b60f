//! Counters and the idle timeout.

use derp_common::flow::{Class, LegStatistics, Side, table::statistics_index};

use super::support::*;
use crate::flow::{
    Expired, FlowId, FlowSpec, Forwarder, Kind, Lifetime, Outcome, Plane, StateView,
};

impl Rig {
    /// A data plane says that it saw this end now.
    fn heard(&mut self, plane: Plane, id: FlowId, side: Side) {
        let statistics =
            LegStatistics { last_seen: self.now, packets: 1, ..LegStatistics::default() };
        self.table.observe(plane, statistics_index(id.slot(), side), &statistics, self.now);
    }

    fn expired(&mut self) -> Vec<(FlowId, Option<Side>)> {
        let expired = self.table.expire(self.now);
        self.settle();
        expired.into_iter().map(|Expired { flow, end, .. }| (flow, end)).collect()
    }
}

fn session(kind: Kind) -> FlowSpec {
    FlowSpec { lifetime: Lifetime::Session, ..flow(kind, fixed(A), fixed(B)) }
}

#[test]
fn case_37_a_session_lives_while_both_ends_are_heard_of() {
    let mut rig = Rig::new(16);
    let [busy, half, silent] = [10, 11, 12].map(|number| rig.added(session(vni(number))));
    let configured = rig.added(flow(vni(13), fixed(A), fixed(B)));
    for _ in 0..12 {
        rig.pass(TIMEOUT / 10);
        for side in Side::ALL {
            rig.heard(Plane::Kernel, busy, side);
        }
        rig.heard(Plane::Kernel, half, Side::A);
        let expired = rig.expired();
        assert!(expired.iter().all(|(flow, end)| [half, silent].contains(flow) && end.is_none()));
    }
    assert_eq!(rig.table.len(), 2);
    assert!(rig.table.flow(busy).is_some() && rig.table.flow(configured).is_some());
    rig.pass(TIMEOUT);
    assert_eq!(rig.expired(), [], "not before the timeout is over");
    rig.pass(1);
    assert_eq!(rig.expired(), [(busy, None)]);
}

#[test]
fn a_learnt_end_is_forgotten_and_learnt_anew() {
    for (kind, class) in [(vni(1), Class::Geneve { vni: 1 }), (Kind::Any, Class::Any)] {
        let mut rig = Rig::new(16);
        let id = rig.added(flow(kind, fixed(A), learn(&["10.0.0.0/8"])));
        let packet =
            |rig: &mut Rig, from: &str| rig.table.unknown(&datagram(from, US), class, rig.now);
        assert!(matches!(packet(&mut rig, "10.0.0.1:1"), Outcome::Learnt { .. }));
        rig.settle();
        for plane in [Plane::Kernel, Plane::Userspace, Plane::Kernel] {
            rig.pass(TIMEOUT);
            rig.heard(plane, id, Side::B);
            assert_eq!(rig.expired(), [], "{plane:?} hears it");
        }
        rig.heard(Plane::Kernel, id, Side::A);
        rig.pass(TIMEOUT + 1);
        assert_eq!(rig.expired(), [(id, Some(Side::B))], "the fixed end stays");
        assert!(rig.route(class, "10.0.0.1:1", US).is_err());
        assert_eq!(rig.expired(), []);
        assert!(matches!(packet(&mut rig, "10.0.0.2:2"), Outcome::Learnt { .. }));
        rig.settle();
        assert_eq!(rig.views(false)[0].state, StateView::Forwarding);
    }
}

#[test]
fn an_end_that_waits_for_the_other_stays_while_it_sends() {
    let mut rig = Rig::new(16);
    let both = || learn(&["10.0.0.0/8"]);
    rig.added(flow(vni(1), both(), both()));
    for _ in 0..5 {
        let class = Class::Geneve { vni: 1 };
        rig.table.unknown(&datagram("10.0.0.1:1", US), class, rig.now);
        rig.pass(TIMEOUT);
        assert_eq!(rig.expired(), []);
    }
    rig.pass(1);
    assert_eq!(rig.expired().len(), 1);
}

#[test]
fn what_the_last_flow_left_behind_is_not_believed() {
    let mut rig = Rig::new(1);
    let first = rig.added(session(ALLOCATE));
    rig.remove(first);
    let second = rig.add(session(ALLOCATE)).unwrap();
    assert_eq!(rig.table.statistics_indexes().count(), 0);
    rig.pass(1);
    rig.heard(Plane::Kernel, second, Side::A);
    assert_eq!(rig.views(true)[0].ends[0].kernel.packets, 0);
    rig.settle();
    assert_eq!(rig.table.statistics_indexes().collect::<Vec<_>>(), [0, 1]);
    rig.heard(Plane::Kernel, second, Side::A);
    assert_eq!(rig.views(true)[0].ends[0].kernel.packets, 1);
}

#[test]
fn a_time_that_has_not_come_keeps_nothing_alive_for_ever() {
    let mut rig = Rig::new(16);
    let id = rig.added(session(vni(1)));
    let future = LegStatistics { last_seen: u64::MAX, ..LegStatistics::default() };
    for side in Side::ALL {
        rig.table.observe(Plane::Kernel, statistics_index(id.slot(), side), &future, rig.now);
    }
    rig.table.observe(Plane::Kernel, u32::MAX, &future, rig.now);
    rig.pass(TIMEOUT + 1);
    assert_eq!(rig.expired(), [(id, None)]);
}

#[test]
fn views_tell_who_forwards() {
    let mut rig = Rig::new(16);
    rig.added(flow(vni(1), fixed(A), fixed(B)));
    rig.added(flow(vni(2), fixed(A), fixed("[2001:db8:9::1]:1")));
    rig.added(flow(vni(3), fixed(A), learn(&["10.0.0.0/8"])));
    let forwarders = |rig: &Rig, has_kernel| {
        let views = rig.views(has_kernel);
        views.iter().map(|view| view.ends[1].forwarder).collect::<Vec<_>>()
    };
    use Forwarder::{CrossFamily, Kernel, NoXdp, Nobody, Unresolved};
    assert_eq!(forwarders(&rig, true), [Unresolved, CrossFamily, Nobody]);
    rig.resolve();
    rig.settle();
    assert_eq!(forwarders(&rig, true), [Kernel, CrossFamily, Nobody]);
    assert_eq!(rig.views(true)[0].ends[1].interface.as_deref(), Some("eth7"));
    assert_eq!(forwarders(&rig, false), [NoXdp, NoXdp, Nobody]);

    let view = &rig.views(true)[2];
    let json = serde_json::to_value(view).unwrap();
    assert_eq!(json["kind"], "geneve");
    assert_eq!(json["state"], "learning");
    assert_eq!(json["ends"][0]["remote"], A);
    assert_eq!(json["ends"][1]["learn"][0], "10.0.0.0/8");
    assert_eq!(json["ends"][1]["remote"], serde_json::Value::Null);
    assert_eq!(json["ends"][1]["forwarder"], "nobody");
    assert_eq!(json["ends"][1]["last_seen_seconds"], serde_json::Value::Null);
}
