//! Admission, removal, moving ends, ways.

use std::collections::BTreeSet;

use derp_common::{
    flow::{Class, Side, Tables, table::leg_index},
    reason::Reason,
};

use super::support::*;
use crate::flow::{AdmitError, Change, EndSpec, FlowRate, FlowSpec, Kind, Local, Resolved};

fn geneve(vni: u32) -> Class {
    Class::Geneve { vni }
}

#[test]
fn a_flow_between_two_addresses_forwards_both_ways() {
    for kind in [vni(7), Kind::Any] {
        let mut rig = Rig::new(16);
        rig.added(flow(kind, at("203.0.113.1", fixed(A)), at("203.0.113.2", fixed(B))));
        let class = if kind == Kind::Any { Class::Any } else { geneve(7) };
        let to_b = (B.to_owned(), "203.0.113.2:40000".to_owned());
        assert_eq!(rig.route(class, A, US), Ok(to_b));
        let to_a = (A.to_owned(), US.to_owned());
        assert_eq!(rig.route(class, B, "203.0.113.2:40000"), Ok(to_a));
        assert_eq!(rig.route(class, A, "203.0.113.2:40000"), Err(Reason::OtherLocal));
        let stranger = rig.route(class, "198.51.100.10:41642", US);
        let unknown = if kind == Kind::Any { Reason::UnknownSource } else { Reason::UnknownLeg };
        assert_eq!(stranger, Err(unknown));
    }
}

#[test]
fn changes_come_in_the_order_of_the_update_protocol() {
    let mut rig = Rig::new(16);
    rig.add(FlowSpec {
        ends: [EndSpec { sender: 5, ..fixed(A) }, fixed(B)],
        ..flow(Kind::Any, fixed(A), fixed(B))
    })
    .unwrap();
    let changes = rig.poll();
    assert!(
        matches!(
            changes[..],
            [
                Change::ResetStatistics { index: 0 },
                Change::ResetStatistics { index: 1 },
                Change::Senders { slot: 0, senders: [5, 0] },
                Change::Leg { .. },
                Change::Leg { .. },
                Change::Control { slot: 0, .. },
                Change::InsertSource { value: 0, .. },
                Change::InsertSource { value: 1, .. },
            ]
        ),
        "{changes:#?}"
    );
    assert_eq!(rig.poll(), []);
    assert_eq!(rig.table.next_deadline(), None);
}

#[test]
fn a_removed_flow_forwards_nothing_from_the_next_change_on() {
    for kind in [vni(7), Kind::Any] {
        let mut rig = Rig::new(16);
        let id = rig.added(flow(kind, at("203.0.113.1", fixed(A)), fixed(B)));
        rig.remove(id);
        assert!(!rig.table.remove(id), "only once");
        let changes = rig.poll();
        assert!(matches!(changes[0], Change::Control { slot, .. } if slot == id.slot()));
        assert!(rig.route(geneve(7), A, US).is_err() && rig.route(Class::Any, A, US).is_err());
        assert_eq!((rig.table.len(), rig.tables.found().sources.len()), (0, 0));
        assert_eq!(rig.table.next_deadline(), None);
    }
}

#[test]
fn a_slot_is_used_again_after_the_grace_and_under_another_vni() {
    let mut rig = Rig::new(1);
    let mut vnis = BTreeSet::new();
    for _ in 0..100 {
        let id = rig.added(flow(ALLOCATE, at("203.0.113.1", fixed(A)), fixed(B)));
        let vni = rig.vni(id);
        assert!(rig.route(geneve(vni), A, US).is_ok());
        for old in &vnis {
            assert_eq!(rig.route(geneve(*old), A, US), Err(Reason::UnknownVni), "{old}");
        }
        assert!(vnis.insert(vni), "{vni} came back");
        rig.remove(id);
    }
}

#[test]
fn regression_a_slot_given_away_before_its_removal_was_written() {
    let mut rig = Rig::new(1);
    let first = rig.added(flow(vni(3), at("203.0.113.1", fixed(A)), fixed(B)));
    rig.remove(first);
    rig.added(flow(Kind::Any, at("203.0.113.1", fixed(A)), fixed(B)));
    assert_eq!(rig.route(geneve(3), A, US), Err(Reason::UnknownVni));
    assert!(rig.route(Class::Any, A, US).is_ok());
}

#[test]
fn a_fixed_vni_has_its_slot() {
    let mut rig = Rig::new(16);
    let id = rig.add(flow(vni(0x12_3456), fixed(A), fixed(B))).unwrap();
    assert_eq!((id.slot(), rig.table.vni(id)), (6, Some(0x12_3456)));
    assert_eq!(rig.table.name(id), Some("test"));
    let error = rig.add(flow(vni(0x16), fixed(A), fixed(B))).unwrap_err();
    assert_eq!(error, AdmitError::SlotTaken { vni: 0x16, slots: 16, by: "test".to_owned() });
    for _ in 0..15 {
        rig.add(flow(ALLOCATE, fixed(A), fixed(B))).unwrap();
    }
    assert_eq!(rig.add(flow(ALLOCATE, fixed(A), fixed(B))), Err(AdmitError::Full { slots: 16 }));
    assert_eq!(rig.table.len(), 16);
}

#[test]
fn what_no_packet_can_come_from_is_refused() {
    let mut rig = Rig::new(16);
    let remote = |address: &str| flow(vni(1), fixed(address), fixed(B));
    for address in
        ["0.0.0.0:1", "192.0.2.1:0", "[::]:1", "224.0.0.1:1", "255.255.255.255:1", "[fe80::1]:1"]
    {
        assert!(matches!(rig.add(remote(address)), Err(AdmitError::Remote { .. })), "{address}");
    }
    let local = |ip: &str, port| EndSpec {
        local: Local { ip: Some(ip.parse().unwrap()), port },
        ..fixed(A)
    };
    for end in [local("203.0.113.1", 0), local("0.0.0.0", 1), local("fe80::1", 1)] {
        let refused = rig.add(flow(vni(1), end.clone(), fixed(B)));
        assert!(matches!(refused, Err(AdmitError::Local { .. })), "{end:?}");
    }
    let refused = rig.add(flow(vni(1), at("2001:db8::1", fixed(A)), fixed(B)));
    assert!(matches!(refused, Err(AdmitError::Remote { .. })), "other family than its local");
    for wrong in [0, 1 << 24, u32::MAX] {
        assert_eq!(rig.add(flow(vni(wrong), fixed(A), fixed(B))), Err(AdmitError::Vni(wrong)));
    }
    let long = FlowSpec { name: "x".repeat(65), ..flow(vni(1), fixed(A), fixed(B)) };
    assert_eq!(rig.add(long), Err(AdmitError::Name));
    let many = learn(&["192.0.2.0/24"; 65]);
    assert_eq!(rig.add(flow(vni(1), many, fixed(B))), Err(AdmitError::Networks));
    assert!(rig.table.is_empty());
    assert_eq!(rig.poll(), []);
}

#[test]
fn ends_must_be_told_apart() {
    let mut rig = Rig::new(16);
    let same = AdmitError::SameEnds(A.parse().unwrap());
    assert_eq!(rig.add(flow(vni(1), fixed(A), fixed(A))), Err(same.clone()));
    let mapped = "[::ffff:198.51.100.10]:41641";
    assert_eq!(rig.add(flow(vni(1), fixed(A), fixed(mapped))), Err(same.clone()));
    assert_eq!(rig.add(flow(Kind::Any, fixed(A), fixed(A))), Err(same.clone()));
    let other_port = EndSpec { local: Local { ip: None, port: PORT + 1 }, ..fixed(A) };
    assert_eq!(rig.add(flow(vni(1), fixed(A), other_port.clone())), Err(same));
    let id = rig.added(flow(Kind::Any, fixed(A), other_port));
    assert!(rig.table.rebind(id, Side::B, B.parse().unwrap(), rig.now).is_ok());
}

#[test]
fn a_source_without_vni_belongs_to_one_flow() {
    let mut rig = Rig::new(16);
    let first = rig.added(flow(Kind::Any, fixed(A), fixed(B)));
    let refused = rig.add(flow(Kind::Any, fixed("192.0.2.1:1"), fixed(B)));
    let expected = AdmitError::SourceTaken {
        source_address: B.parse().unwrap(),
        port: PORT,
        by: "test".to_owned(),
    };
    assert_eq!(refused, Err(expected.clone()));
    let other = rig.added(flow(Kind::Any, fixed("192.0.2.1:1"), fixed("192.0.2.2:1")));
    let moved = rig.table.rebind(other, Side::A, B.parse().unwrap(), rig.now);
    assert_eq!(moved, Err(expected));
    rig.added(flow(vni(9), fixed(A), fixed(B)));
    rig.remove(first);
    assert_eq!(rig.table.rebind(other, Side::A, B.parse().unwrap(), rig.now), Ok(()));
    rig.settle();
    assert_eq!(rig.tables.found().sources.len(), 2);
    assert_eq!(
        rig.table.rebind(first, Side::A, A.parse().unwrap(), rig.now),
        Err(AdmitError::NoSuchFlow)
    );
}

#[test]
fn rates_are_in_the_legs() {
    let mut rig = Rig::new(16);
    let rate = FlowRate::bits_per_second(8_192_000).unwrap();
    rig.added(FlowSpec { rate: Some(rate), ..flow(vni(1), fixed(A), fixed(B)) });
    let control = rig.tables.control(1);
    for side in Side::ALL {
        let leg = *rig.tables.mirror.leg(leg_index(1, control.copy(), side)).unwrap();
        assert_eq!((leg.nanoseconds_per_kibibyte, leg.burst_microseconds), (1_000_000, 64_001));
    }
}

#[test]
fn ways_are_asked_for_and_written() {
    let mut rig = Rig::new(16);
    let id = rig.added(flow(vni(1), fixed(A), at("203.0.113.2", fixed(B))));
    let unresolved = *rig.tables.mirror.leg(leg_index(1, 1, Side::A)).unwrap();
    assert_eq!((unresolved.interface, unresolved.local.0[3]), (0, 0));
    let asked = rig.resolve();
    let expected = [
        (Side::A, None, Some(A.to_owned())),
        (Side::B, Some("203.0.113.2".to_owned()), Some(B.to_owned())),
    ];
    assert_eq!(asked, expected);
    assert_eq!(rig.resolve(), [], "asked once");
    rig.settle();
    let control = rig.tables.control(1);
    let leg = *rig.tables.mirror.leg(leg_index(1, control.copy(), Side::A)).unwrap();
    assert_eq!(leg.interface, 7);
    assert_eq!(leg.mtu, 1500);
    assert_eq!(leg.destination_mac[2].to_ne_bytes(), [0, 2]);
    let local = |to: &str| rig.route(geneve(1), to, "203.0.113.2:40000").map(|(_, local)| local);
    assert_eq!(local(B), Ok(US.to_owned()), "the address that routing prefers");
    rig.remove(id);
    assert_eq!(rig.resolve(), [(Side::A, None, None), (Side::B, None, None)], "no longer needed");
    assert_eq!(rig.resolve(), []);
}

#[test]
fn a_late_answer_about_an_end_that_has_moved_is_ignored() {
    let mut rig = Rig::new(16);
    let id = rig.added(flow(vni(1), fixed(A), fixed(B)));
    let requests = rig.table.way_requests();
    let to_a = requests.iter().find(|request| request.side == Side::A).unwrap();
    rig.table.rebind(id, Side::A, "192.0.2.99:1".parse().unwrap(), rig.now).unwrap();
    assert!(!rig.table.set_way(to_a, Some(way(7))));
    let again = rig.resolve();
    assert_eq!(again, [(Side::A, None, Some("192.0.2.99:1".to_owned()))]);
    let wrong_family = Resolved { local: "2001:db8::1".parse().unwrap(), ..way(7) };
    let to_b = requests.iter().find(|request| request.side == Side::B).unwrap();
    assert!(rig.table.set_way(to_b, Some(wrong_family)));
    rig.settle();
    let control = rig.tables.control(1);
    assert_eq!(rig.tables.mirror.leg(leg_index(1, control.copy(), Side::B)).unwrap().interface, 0);
    rig.remove(id);
    assert!(!rig.table.set_way(to_b, Some(way(7))));
}

#[test]
fn case_22_an_end_on_this_host_is_never_installed() {
    let mut rig = Rig::new(16);
    let interface = |rig: &mut Rig| {
        rig.resolve();
        rig.settle();
        let copy = rig.tables.control(1).copy();
        rig.tables.mirror.leg(leg_index(1, copy, Side::A)).unwrap().interface
    };
    let id = rig.added(flow(vni(1), fixed("203.0.113.2:9"), fixed(B)));
    assert_eq!(interface(&mut rig), 0);
    assert_eq!(rig.views(true)[0].ends[0].forwarder, crate::flow::Forwarder::ThisHost);
    let others = || OURS[..1].iter().map(|ip| ip.parse().unwrap());
    rig.table.set_local_addresses(others());
    assert_eq!(interface(&mut rig), 7, "it is somebody else's now");
    rig.table.set_local_addresses(OURS.map(|ip| ip.parse().unwrap()));
    assert_eq!(interface(&mut rig), 0, "and ours again");
    rig.table.rebind(id, Side::A, A.parse().unwrap(), rig.now).unwrap();
    assert_eq!(interface(&mut rig), 7);
    rig.table.rebind(id, Side::A, "127.0.0.1:1".parse().unwrap(), rig.now).unwrap();
    assert_eq!(interface(&mut rig), 0);
}

#[test]
fn a_local_address_that_goes_away_is_forgotten() {
    let mut rig = Rig::new(16);
    let id = rig.added(flow(vni(1), fixed(A), fixed(B)));
    assert!(rig.table.set_local(id, Side::A, "203.0.113.2".parse().unwrap()));
    assert!(!rig.table.set_local(id, Side::A, "203.0.113.2".parse().unwrap()), "no news");
    assert!(!rig.table.set_local(id, Side::A, "192.0.2.77".parse().unwrap()), "not ours");
    assert!(!rig.table.set_local(id, Side::A, "2001:db8::1".parse().unwrap()), "other family");
    rig.settle();
    assert!(rig.route(geneve(1), A, "203.0.113.2:40000").is_ok());
    rig.table.set_local_addresses(["203.0.113.1".parse().unwrap()]);
    rig.resolve();
    rig.settle();
    assert!(rig.route(geneve(1), A, US).is_ok());
}

#[test]
fn ten_thousand_flows_come_and_go() {
    let address =
        |number: u32| format!("10.{}.{}.1:{}", number >> 8, number & 255, 1 + number % 60000);
    for slots in [16_384, 64] {
        let mut rig = Rig::new(slots);
        let most = slots.min(10_000) as usize;
        let mut live = std::collections::VecDeque::new();
        for number in 0..10_000 {
            if live.len() == most {
                rig.remove(live.pop_front().unwrap());
            }
            let kind = if number % 2 == 0 { ALLOCATE } else { Kind::Any };
            let to = at("203.0.113.1", fixed(&address(number)));
            let from = at("203.0.113.1", fixed(&format!("192.0.2.9:{}", 1 + number)));
            live.push_back(rig.add(flow(kind, to, from)).unwrap());
            if number % 100 == 0 {
                rig.poll();
                rig.pass(SECOND / 100);
            }
        }
        rig.settle();
        for id in &live {
            let flow = rig.table.flow(*id).unwrap();
            let from = flow.ends[0].remote.unwrap().to_string();
            let class = if flow.vni == 0 { Class::Any } else { geneve(flow.vni) };
            let to = rig.route(class, &from, US).unwrap().0;
            assert_eq!(to, flow.ends[1].remote.unwrap().to_string());
        }
        for id in live {
            rig.remove(id);
        }
        rig.settle();
        assert!(rig.table.is_empty() && rig.tables.found().sources.is_empty());
        assert!((0..slots).all(|slot| rig.tables.control(slot) == derp_common::flow::Control::OFF));
        assert_eq!(rig.table.snapshot(), []);
    }
}
