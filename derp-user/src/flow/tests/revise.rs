//! Another list of flows in the configuration, while everything runs.

use super::support::{ALLOCATE, Rig, fixed, flow, learn, vni};
use crate::flow::{
    AdmitError, Change, FlowRate, FlowSource, FlowSpec, Kind, ReviseError, Revision,
    revise::{Difference, difference},
};

fn named(name: &str, spec: FlowSpec) -> FlowSpec {
    FlowSpec { name: name.to_owned(), ..spec }
}

fn pair(kind: Kind, a: &str, b: &str) -> FlowSpec {
    flow(kind, fixed(a), fixed(b))
}

fn compare(old: &[FlowSpec], new: &[FlowSpec]) -> Difference<usize> {
    let old: Vec<_> = old.iter().enumerate().collect();
    difference(&old, new)
}

#[test]
fn flows_that_forward_the_same_are_kept_whatever_their_name_place_and_rate() {
    let one = named("one", pair(vni(7), "192.0.2.1:1", "192.0.2.2:2"));
    let two = named("two", pair(Kind::Any, "192.0.2.3:1", "192.0.2.4:2"));
    let rate = FlowRate::bits_per_second(1_000_000).ok();
    let new = [FlowSpec { rate, ..two.clone() }, named("uno", one.clone())];
    let expected = Difference { kept: vec![(1, 0), (0, 1)], removed: vec![], added: vec![] };
    assert_eq!(compare(&[one, two], &new), expected);
}

#[test]
fn what_else_is_different_makes_another_flow() {
    let one = pair(vni(7), "192.0.2.1:1", "192.0.2.2:2");
    for other in [
        pair(vni(8), "192.0.2.1:1", "192.0.2.2:2"),
        pair(Kind::Any, "192.0.2.1:1", "192.0.2.2:2"),
        pair(vni(7), "192.0.2.1:1", "192.0.2.2:3"),
        pair(vni(7), "192.0.2.2:2", "192.0.2.1:1"),
        flow(vni(7), fixed("192.0.2.1:1"), learn(&["192.0.2.0/24"])),
    ] {
        let expected = Difference { kept: vec![], removed: vec![0], added: vec![0] };
        assert_eq!(compare(std::slice::from_ref(&one), &[other]), expected);
    }
}

#[test]
fn of_equal_flows_those_of_one_name_are_one() {
    let equal = flow(Kind::Any, learn(&["192.0.2.0/24"]), learn(&["192.0.2.0/24"]));
    let [a, b, c] = ["a", "b", "c"].map(|name| named(name, equal.clone()));
    let old = [a.clone(), b.clone(), c.clone()];
    // The one that is left over gets the new name.
    let new = [c, named("d", equal.clone()), a];
    let expected =
        Difference { kept: vec![(2, 0), (1, 1), (0, 2)], removed: vec![], added: vec![] };
    assert_eq!(compare(&old, &new), expected);
    let expected = Difference { kept: vec![(1, 0)], removed: vec![0, 2], added: vec![] };
    assert_eq!(compare(&old, &[b]), expected);
}

/// What [`FlowTable::revise`](crate::flow::FlowTable::revise) does as the daemon calls it.
fn revise(rig: &mut Rig, flows: &[FlowSpec]) -> Result<Revision, ReviseError> {
    let mut table = rig.table.clone();
    let revision = table.revise(flows, rig.now)?;
    rig.table = table;
    Ok(revision)
}

/// Has ways found and everything written; returns the changes.
fn settle(rig: &mut Rig) -> Vec<Change> {
    rig.resolve();
    rig.settle()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

/// The slots that changes write to. Sources are told by their value.
fn slots(changes: &[Change]) -> std::collections::BTreeSet<u32> {
    let slot = |change: &Change| match *change {
        Change::Leg { index, .. } => Some(index >> 2),
        Change::Control { slot, .. } | Change::Senders { slot, .. } => Some(slot),
        Change::ResetStatistics { index } => Some(index >> 1),
        Change::InsertSource { value, .. } => Some(value >> 1),
        Change::RemoveSource { .. } => None,
    };
    changes.iter().filter_map(slot).collect()
}

#[test]
fn a_revision_writes_only_what_is_different_and_says_it() {
    let mut rig = Rig::new(16);
    let stays = named("stays", flow(vni(1), fixed("192.0.2.1:1"), learn(&["192.0.2.0/24"])));
    let moves = named("moves", pair(vni(2), "192.0.2.3:1", "192.0.2.4:1"));
    let goes = named("goes", pair(Kind::Any, "192.0.2.5:1", "192.0.2.6:1"));
    for spec in [&stays, &moves, &goes] {
        rig.added(spec.clone());
    }
    settle(&mut rig);
    let moved = named("moves", pair(vni(2), "192.0.2.3:1", "192.0.2.9:9"));
    let comes = named("comes", pair(Kind::Any, "192.0.2.5:1", "192.0.2.8:1"));
    let revision = revise(&mut rig, &[comes, stays.clone(), moved]).unwrap();
    let expected = Revision {
        added: names(&["comes"]),
        removed: names(&["goes"]),
        replaced: names(&["moves"]),
        adjusted: vec![],
        kept: 1,
    };
    assert_eq!(revision, expected);
    assert!(!slots(&settle(&mut rig)).contains(&1), "a flow that stays is not written");
    assert_eq!(rig.route(by_vni(2), "192.0.2.3:1", "203.0.113.1:40000").unwrap().0, "192.0.2.9:9");
    let any = derp_common::flow::Class::Any;
    assert_eq!(rig.route(any, "192.0.2.5:1", "203.0.113.1:40000").unwrap().0, "192.0.2.8:1");
    assert!(rig.route(any, "192.0.2.6:1", "203.0.113.1:40000").is_err());
    assert!(revise(&mut rig, &[stays]).unwrap().removed == ["comes", "moves"]);
}

const fn by_vni(vni: u32) -> derp_common::flow::Class {
    derp_common::flow::Class::Geneve { vni }
}

#[test]
fn another_name_or_rate_keeps_vni_and_learnt_ends() {
    let mut rig = Rig::new(16);
    let spec = named("old", flow(ALLOCATE, fixed("192.0.2.1:1"), learn(&["192.0.2.0/24"])));
    let id = rig.added(spec.clone());
    let vni = rig.vni(id);
    let b = "192.0.2.77:7".parse().unwrap();
    rig.table.rebind(id, derp_common::flow::Side::B, b, rig.now).unwrap();
    settle(&mut rig);
    let rate = FlowRate::bits_per_second(1_000_000).ok();
    let revision = revise(&mut rig, &[FlowSpec { rate, ..named("new", spec) }]).unwrap();
    assert_eq!(revision.adjusted, ["new"]);
    let changes = rig.settle();
    assert!(changes.iter().any(|change| matches!(change, Change::Leg { leg, .. }
        if leg.nanoseconds_per_kibibyte == rate.unwrap().nanoseconds_per_kibibyte())));
    assert_eq!((rig.table.name(id), rig.table.vni(id)), (Some("new"), Some(vni)));
    assert_eq!(
        rig.route(by_vni(vni), "192.0.2.1:1", "203.0.113.1:40000").unwrap().0,
        "192.0.2.77:7"
    );
}

#[test]
fn one_flow_that_cannot_be_admitted_leaves_everything_as_it_was() {
    let mut rig = Rig::new(16);
    let old = named("old", pair(vni(1), "192.0.2.1:1", "192.0.2.2:1"));
    rig.added(old.clone());
    // A session of the peer relay has the slot.
    let session = FlowSpec {
        source: FlowSource::PeerRelay,
        ..named("session", pair(vni(17 + 16), "192.0.2.1:1", "192.0.2.2:1"))
    };
    let taken = rig.added(FlowSpec { kind: vni(2), ..session });
    let new = [
        named("good", pair(vni(3), "192.0.2.1:1", "192.0.2.2:1")),
        named("bad", pair(vni(18), "192.0.2.1:1", "192.0.2.2:1")),
    ];
    let error = revise(&mut rig, &new).unwrap_err();
    let by = "session".to_owned();
    assert_eq!(error.source, AdmitError::SlotTaken { vni: 18, slots: 16, by });
    assert_eq!(error.name, "bad");
    assert!(rig.settle().is_empty());
    let views: Vec<_> = rig.views(false).into_iter().map(|view| view.name).collect();
    assert_eq!(views, ["old", "session"]);
    rig.remove(taken);
    assert_eq!(revise(&mut rig, &new).unwrap().added, ["good", "bad"]);
    rig.settle();
    let views: Vec<_> = rig.views(false).into_iter().map(|view| view.name).collect();
    assert_eq!(views, ["bad", "good"]);
}

#[test]
fn flows_may_exchange_what_they_have() {
    let mut rig = Rig::new(16);
    let [a, b] = [("192.0.2.1:1", "192.0.2.2:1"), ("192.0.2.3:1", "192.0.2.4:1")];
    let old = [named("a", pair(vni(1), a.0, a.1)), named("b", pair(vni(2), b.0, b.1))];
    assert_eq!(revise(&mut rig, &old).unwrap().added, ["a", "b"]);
    rig.settle();
    let new = [named("a", pair(vni(2), a.0, a.1)), named("b", pair(vni(1), b.0, b.1))];
    assert_eq!(revise(&mut rig, &new).unwrap().replaced, ["a", "b"]);
    settle(&mut rig);
    let to = "203.0.113.1:40000";
    assert_eq!(rig.route(by_vni(2), a.0, to).unwrap().0, a.1);
    assert_eq!(rig.route(by_vni(1), b.0, to).unwrap().0, b.1);
    assert!(rig.route(by_vni(1), a.0, to).is_err());
}

#[test]
fn a_list_that_is_full_makes_room_before_it_takes() {
    let mut rig = Rig::new(16);
    let list = |from: u32| -> Vec<_> {
        let spec =
            |it: u32| pair(Kind::Any, &format!("192.0.2.{it}:1"), &format!("198.51.100.{it}:1"));
        (from..from + 16).map(|it| named(&it.to_string(), spec(it))).collect()
    };
    revise(&mut rig, &list(1)).unwrap();
    rig.settle();
    let revision = revise(&mut rig, &list(9)).unwrap();
    assert_eq!((revision.kept, revision.added.len(), revision.removed.len()), (8, 8, 8));
    rig.settle();
    assert_eq!(rig.table.len(), 16);
}

proptest::proptest! {
    /// After any revisions the table has the last list, and a flow is written only if it is new or adjusted.
    #[test]
    fn any_lists_one_after_the_other(
        lists in proptest::collection::vec(
            proptest::collection::vec((1_u32..6, 0_u8..4, 0_u8..3), 0..6), 1..6),
    ) {
        let mut rig = Rig::new(16);
        for list in lists {
            let mut flows: Vec<FlowSpec> = Vec::new();
            for (number, end, rate) in list {
                let spec = pair(vni(number), "192.0.2.1:1", &format!("192.0.2.2:{}", end + 1));
                let rate = FlowRate::bits_per_second(u64::from(rate) * 1_000_000).ok();
                let spec = FlowSpec { rate, ..named(&format!("flow {end}"), spec) };
                let is_new = |it: &FlowSpec| it.kind != spec.kind && it.name != spec.name;
                if flows.iter().all(is_new) {
                    flows.push(spec);
                }
            }
            let before: std::collections::BTreeMap<_, _> =
                rig.table.flows.values().map(|it| (it.id, it.spec.clone())).collect();
            let revision = revise(&mut rig, &flows).unwrap();
            let written = slots(&settle(&mut rig));
            let mut kept = 0;
            for flow in rig.table.flows.values() {
                if before.get(&flow.id) == Some(&flow.spec) {
                    kept += 1;
                    assert!(!written.contains(&flow.id.slot()));
                }
            }
            assert_eq!(kept, revision.kept);
            let mut names: Vec<_> = rig.table.flows.values().map(|it| it.spec.clone()).collect();
            names.sort_by(|a, b| a.name.cmp(&b.name));
            flows.sort_by(|a, b| a.name.cmp(&b.name));
            assert_eq!(names, flows);
        }
    }
}
