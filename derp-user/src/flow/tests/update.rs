//! When changes are made.

use derp_common::flow::{Class, Leg, Side, Tables, table::GRACE};

use super::support::*;
use crate::flow::{Change, Kind, Mirror, SharedMirror, Sink};

fn move_a(rig: &mut Rig, id: crate::flow::FlowId, port: u16) {
    let remote = format!("198.51.100.10:{port}").parse().unwrap();
    rig.table.rebind(id, Side::A, remote, rig.now).unwrap();
}

#[test]
fn a_second_move_waits_for_the_readers_of_the_first() {
    let mut rig = Rig::new(16);
    let id = rig.add(flow(vni(1), fixed(A), fixed(B))).unwrap();
    assert_eq!(rig.poll().len(), 6);
    rig.table.applied(rig.now);
    move_a(&mut rig, id, 1);
    assert_eq!(rig.poll(), [], "the copy may be read still");
    assert_eq!(rig.table.next_deadline(), Some(rig.now + GRACE));
    rig.pass(GRACE - 1);
    assert_eq!(rig.poll(), []);
    move_a(&mut rig, id, 2);
    rig.pass(1);
    let changes = rig.poll();
    assert!(matches!(
        changes[..],
        [Change::Leg { .. }, Change::Leg { .. }, Change::Control { .. }]
    ));
    assert_eq!(rig.table.next_deadline(), None, "two moves became one");
}

#[test]
fn the_grace_begins_when_changes_have_been_applied() {
    let mut rig = Rig::new(16);
    let id = rig.add(flow(vni(1), fixed(A), fixed(B))).unwrap();
    rig.poll();
    // Applying took until now, and nobody said so.
    rig.pass(GRACE);
    move_a(&mut rig, id, 1);
    assert_eq!(rig.poll(), []);
    rig.pass(GRACE);
    assert_eq!(rig.poll().len(), 3);
}

#[test]
fn regression_a_flow_that_is_held_stops_at_once_even_right_after_a_change() {
    let mut rig = Rig::new(16);
    let id = rig.add(flow(vni(1), fixed(A), fixed(B))).unwrap();
    rig.poll();
    rig.table.applied(rig.now);
    move_a(&mut rig, id, 1);
    rig.table.hold(id, true);
    let changes = rig.poll();
    assert!(matches!(changes[..], [Change::Control { control, .. }] if !control.forwards()));
    rig.settle();
    rig.table.hold(id, false);
    rig.settle();
    assert!(rig.tables.control(1).forwards());
}

#[test]
fn removal_waits_for_nobody() {
    let mut rig = Rig::new(16);
    let id = rig.add(flow(vni(1), fixed(A), fixed(B))).unwrap();
    rig.poll();
    move_a(&mut rig, id, 1);
    assert_eq!(rig.poll(), []);
    rig.remove(id);
    assert_eq!(rig.poll().len(), 1);
    assert_eq!(rig.table.next_deadline(), None);
}

#[test]
fn a_source_that_changes_hands_is_not_removed_by_its_old_owner() {
    let mut rig = Rig::new(16);
    let old = rig.add(flow(Kind::Any, at("203.0.113.1", fixed(A)), fixed(B))).unwrap();
    rig.poll();
    move_a(&mut rig, old, 1);
    assert_eq!(rig.poll(), [], "the old owner has to wait");
    let new = at("203.0.113.1", fixed(A));
    rig.add(flow(Kind::Any, new, fixed("192.0.2.21:1"))).unwrap();
    rig.poll();
    let route = |rig: &Rig| rig.route(Class::Any, A, US).unwrap().0;
    assert_eq!(route(&rig), "192.0.2.21:1");
    rig.settle();
    assert_eq!(route(&rig), "192.0.2.21:1");
    assert_eq!(rig.tables.found().sources.len(), 4);
}

#[test]
fn the_ends_of_a_flow_can_change_places() {
    let mut rig = Rig::new(16);
    let id = rig.added(flow(Kind::Any, at("203.0.113.1", fixed(A)), at("203.0.113.1", fixed(B))));
    for (side, remote) in [(Side::A, "192.0.2.1:1"), (Side::B, A), (Side::A, B)] {
        rig.table.rebind(id, side, remote.parse().unwrap(), rig.now).unwrap();
    }
    rig.settle();
    assert_eq!(rig.route(Class::Any, A, US).unwrap().0, B);
    assert_eq!(rig.route(Class::Any, B, US).unwrap().0, A);
    assert_eq!(rig.tables.found().sources.len(), 2);
}

#[test]
fn large_changes_come_in_batches() {
    let mut rig = Rig::new(16_384);
    for number in 0..2000 {
        let from = format!("10.0.{}.{}:1", number / 250, 1 + number % 250);
        rig.add(flow(ALLOCATE, fixed(&from), fixed(B))).unwrap();
    }
    let batches: Vec<_> =
        std::iter::from_fn(|| rig.table.next_deadline().map(|_| rig.poll().len())).collect();
    assert_eq!(batches.iter().sum::<usize>(), 12_000);
    assert!(batches.iter().all(|batch| *batch < 2100), "{batches:?}");
}

#[test]
fn a_snapshot_makes_an_equal_copy() {
    let mut rig = Rig::new(16);
    let gone = rig.added(flow(vni(1), fixed(A), fixed(B)));
    rig.added(flow(vni(2), fixed(A), learn(&["10.0.0.0/8"])));
    rig.added(flow(Kind::Any, at("203.0.113.1", fixed(A)), fixed(B)));
    rig.remove(gone);
    rig.settle();
    rig.resolve();
    rig.settle();
    let mut copied = Checked::new(16);
    for change in rig.table.snapshot() {
        copied.change(&change, rig.now);
    }
    let copied_tables = copied;
    let (original, copied) = (rig.tables.found(), copied_tables.found());
    assert_eq!(original.controls, copied.controls);
    assert_eq!(original.senders, copied.senders);
    assert_eq!(original.sources.len(), copied.sources.len());
    let mut copy = SharedMirror::new(Mirror::new(16));
    copy.apply(&rig.table.snapshot()).unwrap();
    for slot in 0..16 {
        assert_eq!(copy.read().control(slot).unwrap_or_default(), rig.tables.control(slot));
    }
    rig.tables = copied_tables;
    assert!(rig.route(Class::Any, A, US).is_ok());
    assert_eq!(
        rig.route(Class::Geneve { vni: 2 }, A, US),
        Err(derp_common::reason::Reason::Learning)
    );
}

#[test]
fn changes_outside_the_tables_are_ignored() {
    let mut mirror = Mirror::new(2);
    let leg = Leg::UNBOUND;
    let control = derp_common::flow::Control::forward(1, 0);
    for number in [8, u32::MAX] {
        mirror.change(&Change::Leg { index: number, leg });
        mirror.change(&Change::Control { slot: number, control });
        mirror.change(&Change::Senders { slot: number, senders: [1, 1] });
        mirror.change(&Change::ResetStatistics { index: number });
    }
    assert!(mirror.control(0).is_none_or(|control| !control.forwards()));
    assert_eq!(mirror.control(u32::MAX), None);
}
