//! Restarts.

use std::collections::BTreeSet;

use derp_common::{
    flow::{Class, Side, Source, Tables, table::leg_index},
    reason::Reason,
};

use super::support::*;
use crate::flow::{Change, FlowId, FlowSpec, FlowTable, Kind, Mirror, Sink};

/// Ends this rig's daemon and starts one with these flows on the same tables.
fn restart(rig: Rig, specs: &[FlowSpec]) -> (Rig, Vec<FlowId>) {
    let found = rig.tables.found();
    let mut table =
        FlowTable::new(crate::flow::TableSettings { seed: 99, ..settings(rig.table.slots()) });
    table.set_local_addresses(OURS.map(|ip| ip.parse().unwrap()));
    let mut rig = Rig { table, ..rig };
    rig.now += 1;
    let ids = rig.table.adopt(specs, &found, rig.now);
    (rig, ids.into_iter().map(Result::unwrap).collect())
}

fn named(name: &str, spec: FlowSpec) -> FlowSpec {
    FlowSpec { name: name.to_owned(), ..spec }
}

#[test]
fn flows_of_the_configuration_go_on_untouched() {
    let specs = [
        named("allocated", flow(ALLOCATE, at("203.0.113.1", fixed(A)), fixed(B))),
        named("any", flow(Kind::Any, at("203.0.113.1", fixed(A)), learn(&["10.0.0.0/8"]))),
        named("fixed", flow(vni(5), at("203.0.113.1", fixed(A)), learn(&["10.0.0.0/8"]))),
        named("waiting", flow(vni(6), fixed(A), learn(&["10.0.0.0/8"]))),
    ];
    let mut rig = Rig::new(16);
    let before: Vec<_> = specs.iter().map(|spec| rig.added(spec.clone())).collect();
    let vnis: Vec<_> = before.iter().map(|id| rig.vni(*id)).collect();
    for class in [Class::Any, Class::Geneve { vni: 5 }] {
        rig.table.unknown(&datagram("10.0.0.7:7", "203.0.113.2:40000"), class, rig.now);
    }
    rig.resolve();
    rig.settle();

    let (mut rig, after) = restart(rig, &specs);
    assert_eq!(rig.settle(), [], "nothing is written");
    let slots = |ids: &[FlowId]| ids.iter().map(|id| id.slot()).collect::<Vec<_>>();
    assert_eq!(slots(&after), slots(&before));
    assert_eq!(after.iter().map(|id| rig.vni(*id)).collect::<Vec<_>>(), vnis);
    let to = ("10.0.0.7:7".to_owned(), "203.0.113.2:40000".to_owned());
    assert_eq!(rig.route(Class::Any, A, US), Ok(to.clone()));
    assert_eq!(rig.route(Class::Geneve { vni: 5 }, A, US), Ok(to));
    assert_eq!(rig.table.way_requests().len(), 7, "ways are looked after from now on");

    let mut mirror = Mirror::new(16);
    mirror.apply(&rig.table.snapshot()).unwrap();
    rig.tables.mirror = mirror;
    assert!(rig.route(Class::Geneve { vni: vnis[0] }, A, US).is_ok(), "userspace has it, too");
    assert_eq!(rig.route(Class::Geneve { vni: 6 }, A, US), Err(Reason::Learning));

    rig.pass(TIMEOUT + 1);
    assert_eq!(rig.table.expire(rig.now).len(), 2, "what was learnt still expires");
}

#[test]
fn an_end_that_is_known_while_the_other_is_not_stays_known() {
    let both = || learn(&["10.0.0.0/8"]);
    let specs = [flow(vni(1), both(), both())];
    let mut rig = Rig::new(16);
    rig.added(specs[0].clone());
    rig.table.unknown(&datagram("10.0.0.7:7", US), Class::Geneve { vni: 1 }, rig.now);
    rig.settle();
    let (mut rig, ids) = restart(rig, &specs);
    assert_eq!(rig.settle(), []);
    let remote = rig.table.flow(ids[0]).unwrap().end(Side::A).remote.unwrap();
    assert_eq!(remote.to_string(), "10.0.0.7:7");
}

#[test]
fn everything_else_is_removed() {
    let mut rig = Rig::new(16);
    let kept = flow(Kind::Any, at("203.0.113.1", fixed(A)), fixed(B));
    rig.added(kept.clone());
    rig.added(flow(vni(9), fixed(A), fixed(B)));
    rig.added(flow(Kind::Any, fixed("192.0.2.1:1"), fixed("192.0.2.2:2")));
    let stray = Source { port: 1, local_port: 2, index: 3, address: rig_address("192.0.2.3") };
    for value in [1000, 0] {
        let source = Source { index: value, ..stray };
        rig.tables.change(&Change::InsertSource { source, value }, rig.now);
    }
    let (mut rig, ids) = restart(rig, &[kept]);
    rig.settle();
    let found = rig.tables.found();
    let in_use: Vec<_> = (0..16).filter(|slot| found.controls[*slot as usize].0 != 0).collect();
    assert_eq!(in_use, [ids[0].slot()]);
    assert!(rig.route(Class::Any, A, US).is_ok());
    let sources: BTreeSet<_> =
        found.sources.iter().map(|(source, _)| source.port.to_be()).collect();
    assert_eq!(sources, [41641, 51820].into(), "no source is left over");
}

fn rig_address(ip: &str) -> derp_common::Address {
    ip.parse::<std::net::IpAddr>().unwrap().into()
}

#[test]
fn a_flow_whose_ends_were_configured_anew_moves_without_a_gap() {
    let mut rig = Rig::new(16);
    rig.added(flow(vni(9), at("203.0.113.1", fixed(A)), fixed(B)));
    let moved = flow(vni(9), at("203.0.113.1", fixed("198.51.100.99:9")), fixed(B));
    let (mut rig, _) = restart(rig, &[moved]);
    let changes = rig.settle();
    assert!(matches!(
        changes[..],
        [Change::Leg { .. }, Change::Leg { .. }, Change::Control { .. }]
    ));
    assert_eq!(rig.route(Class::Geneve { vni: 9 }, "198.51.100.99:9", US).unwrap().0, B);
}

#[test]
fn a_learnt_end_outside_its_networks_is_learnt_anew() {
    let mut rig = Rig::new(16);
    let with = |network: &str| flow(vni(9), at("203.0.113.1", fixed(A)), learn(&[network]));
    rig.added(with("10.0.0.0/8"));
    rig.table.unknown(&datagram("10.0.0.7:7", US), Class::Geneve { vni: 9 }, rig.now);
    rig.settle();
    let (mut rig, _) = restart(rig, &[with("172.16.0.0/12")]);
    rig.settle();
    assert_eq!(rig.route(Class::Geneve { vni: 9 }, A, US), Err(Reason::Learning));
}

#[test]
fn a_slot_of_a_flow_that_is_gone_can_be_used_at_once() {
    let mut rig = Rig::new(2);
    rig.added(flow(vni(8), fixed(A), fixed(B)));
    rig.added(flow(vni(9), fixed(A), fixed(B)));
    let (mut rig, _) = restart(rig, &[flow(vni(7), at("203.0.113.1", fixed(A)), fixed(B))]);
    rig.settle();
    assert!(rig.route(Class::Geneve { vni: 7 }, A, US).is_ok());
    assert_eq!(rig.route(Class::Geneve { vni: 9 }, A, US), Err(Reason::UnknownVni));
    assert!(!rig.tables.control(0).forwards());
}

#[test]
fn equal_flows_find_their_places_in_order_and_faults_are_told() {
    let equal = flow(ALLOCATE, learn(&["10.0.0.0/8"]), learn(&["10.0.0.0/8"]));
    let specs = [equal.clone(), equal, flow(vni(16), fixed(A), fixed(B))];
    let mut rig = Rig::new(16);
    for spec in &specs {
        // The one with a VNI has slot 0.
        if spec.kind != ALLOCATE {
            rig.added(spec.clone());
        }
    }
    let before = [rig.added(specs[0].clone()), rig.added(specs[1].clone())];
    let found = rig.tables.found();
    let mut table = FlowTable::new(settings(16));
    let wrong = flow(vni(0), fixed(A), fixed(B));
    let all = [&specs[..], &[wrong]].concat();
    let results = table.adopt(&all, &found, rig.now);
    assert_eq!(results[0].as_ref().unwrap().slot(), before[0].slot());
    assert_eq!(results[1].as_ref().unwrap().slot(), before[1].slot());
    assert_eq!(results[2].as_ref().unwrap().slot(), 0);
    assert!(results[3].is_err());
}

#[test]
fn whatever_the_tables_hold_is_taken() {
    let garbage = crate::flow::Found {
        controls: vec![derp_common::flow::Control(u64::MAX); 3],
        legs: Vec::new(),
        senders: vec![[1, 1]; 40],
        sources: vec![(
            Source { port: 0, local_port: 0, index: 0, address: rig_address("::") },
            u32::MAX,
        )],
    };
    let mut table = FlowTable::new(settings(16));
    assert!(table.adopt(&[flow(Kind::Any, fixed(A), fixed(B))], &garbage, 5)[0].is_ok());
    let mut mirror = Mirror::new(16);
    mirror.apply(&table.snapshot()).unwrap();
    let mut now = 5;
    while let Some(deadline) = table.next_deadline() {
        now = now.max(deadline);
        mirror.apply(&table.poll(now)).unwrap();
    }
    let forwarding =
        (0..16).filter(|slot| mirror.control(*slot).is_some_and(|control| control.forwards()));
    assert_eq!(forwarding.count(), 1);
    assert!(mirror.leg(leg_index(0, 0, Side::A)).is_some());
}
