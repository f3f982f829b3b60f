//! Flows of WireGuard, of which one source may have many.

use derp_common::{flow::Class, reason::Reason};

use super::support::*;
use crate::flow::{AdmitError, FlowSpec, FlowTable, Kind, Learnt, Outcome, Refusal};

fn session(indexes: [u32; 2]) -> FlowSpec {
    flow(Kind::WireGuard { indexes }, fixed(A), fixed(B))
}

fn to(rig: &Rig, index: u32, from: &str) -> Result<String, Reason> {
    rig.route(Class::WireGuard { index }, from, US).map(|(to, _)| to)
}

/// A rig with these sessions between A and B, all of whose local addresses are known.
fn rig(sessions: &[[u32; 2]]) -> Rig {
    let mut rig = Rig::new(16);
    for indexes in sessions {
        rig.added(session(*indexes));
    }
    rig.resolve();
    rig.settle();
    rig
}

#[test]
fn sessions_between_the_same_ends_are_told_apart_by_their_indexes() {
    let mut rig = rig(&[[1, 2], [3, 4]]);
    for [a, b] in [[1, 2], [3, 4]] {
        assert_eq!(to(&rig, a, A), Ok(B.to_owned()));
        assert_eq!(to(&rig, b, B), Ok(A.to_owned()));
        assert_eq!(to(&rig, b, A), Err(Reason::UnknownSource), "the other end's index");
    }
    let first = rig.table.flows.values().next().unwrap().id;
    rig.remove(first);
    rig.settle();
    assert_eq!(to(&rig, 1, A), Err(Reason::UnknownSource));
    assert_eq!(to(&rig, 3, A), Ok(B.to_owned()));
}

#[test]
fn an_index_of_a_source_is_one_sessions() {
    let mut rig = rig(&[[1, 2]]);
    for indexes in [[1, 9], [9, 2]] {
        let refused = rig.add(session(indexes));
        assert!(matches!(refused, Err(AdmitError::SourceTaken { .. })), "{refused:?}");
    }
    // The other way round nothing is in common, and 0 is an index like any other.
    rig.added(session([2, 1]));
    rig.added(session([0, 0]));
    rig.resolve();
    rig.settle();
    assert_eq!(to(&rig, 0, A), Ok(B.to_owned()));
}

#[test]
fn its_ends_are_not_learnt_from_data() {
    let mut rig = rig(&[[1, 2]]);
    let learning = flow(Kind::WireGuard { indexes: [5, 6] }, fixed(A), learn(&["10.0.0.0/8"]));
    assert_eq!(rig.add(learning), Err(AdmitError::Learn));
    let class = Class::WireGuard { index: 1 };
    let stranger = rig.table.unknown(&datagram("10.0.0.7:7", US), class, rig.now);
    assert_eq!(stranger, Outcome::Refused(Refusal::NotAllowed));
    let here = rig.table.unknown(&datagram(A, "203.0.113.2:40000"), class, rig.now);
    let Outcome::Learnt { what, .. } = here else { panic!("{here:?}") };
    assert_eq!(what, Learnt::Local("203.0.113.2".parse().unwrap()), "the address that A uses");
}

#[test]
fn each_session_finds_its_own_place_again() {
    let rig = rig(&[[1, 2], [3, 4], [5, 6]]);
    let found = rig.tables.found();
    let mut table = FlowTable::new(settings(16));
    table.set_local_addresses(OURS.map(|ip| ip.parse().unwrap()));
    let specs = [session([5, 6]), session([1, 2]), session([7, 8])];
    let ids = table.adopt(&specs, &found, rig.now);
    let slots: Vec<_> = ids.iter().map(|id| id.as_ref().unwrap().slot()).collect();
    assert_eq!(slots[..2], [2, 0]);
    let mut rig = Rig { table, ..rig };
    rig.settle();
    assert_eq!(to(&rig, 5, A), Ok(B.to_owned()));
    assert_eq!(to(&rig, 2, B), Ok(A.to_owned()));
    assert_eq!(to(&rig, 3, A), Err(Reason::UnknownSource), "nobody wants it any more");
}
