//! The cases of the reference's section 9.2, and what belongs to them.

use derp_common::Reason;

use super::support::*;
use crate::wireguard::{Event, Pairs, Refusal};

const HUB: &str = "198.51.100.1:51820";
const SPOKES: [&str; 3] = ["198.51.100.10:1001", "198.51.100.11:1002", "192.0.2.12:1003"];
const THIRD: &str = "192.0.2.99:9";

/// A hub, peer 1, and three spokes, all of whom have data with it.
fn star() -> World {
    let mut world = World::new(&[network(4, Pairs::Star(0))]);
    for (spoke, number) in SPOKES.into_iter().zip(2..) {
        let index = u32::from(number);
        // The hub must be known, or its spokes ask in vain; it asks one of them.
        if number == 2 {
            assert_eq!(world.initiate(HUB, 2, 90).unwrap(), [""; 0], "nobody is there yet");
        }
        world.session((number, spoke, index), (1, HUB, 100 + index));
    }
    world.review();
    world
}

#[test]
fn case_46_a_star_on_one_port_works_for_all_pairs() {
    let mut world = star();
    for (spoke, index) in SPOKES.into_iter().zip(2..) {
        world.exchange((spoke, index), (HUB, 100 + index));
    }
    for (peer, place) in (1..).zip([HUB, SPOKES[0], SPOKES[1], SPOKES[2]]) {
        assert_eq!(world.whereabouts(peer).as_deref(), Some(place));
    }
    assert_eq!(world.view().pairs.len(), 3);
}

#[test]
fn case_46_a_spoke_that_has_moved_recovers_at_its_next_handshake() {
    let mut world = star();
    let moved = "203.0.113.77:4242";
    assert_eq!(world.data(moved, 102), Err(Reason::UnknownSource), "data proves nothing");
    world.session((2, moved, 20), (1, HUB, 120));
    // The old session stays where it was, until it is silent.
    world.exchange((SPOKES[0], 2), (HUB, 102));
    assert_eq!(world.whereabouts(2).as_deref(), Some(SPOKES[0]));
    let mut events = Vec::new();
    for _ in 0..9 {
        world.pass(5);
        world.exchange((moved, 20), (HUB, 120));
        events.extend(world.review());
    }
    assert_eq!(world.whereabouts(2).as_deref(), Some(moved));
    let roamed = events.iter().filter(|event| {
        matches!(event, Event::Located { at, before: Some(before), .. }
            if at.to_string() == moved && before.to_string() == SPOKES[0])
    });
    assert_eq!(roamed.count(), 1, "{events:?}");
}

#[test]
fn case_46_a_replayed_initiation_from_a_third_address_makes_no_flow() {
    let mut world = star();
    let captured = initiation(&key(1), 50, 7);
    assert_eq!(world.handshake(SPOKES[0], &captured), Ok(vec![HUB.to_owned()]));
    assert_eq!(world.handshake(THIRD, &captured), Err(Refusal::Replayed), "while it is pending");
    world.respond(HUB, 2, 150, 50).unwrap();
    world.exchange((SPOKES[0], 50), (HUB, 150));
    let sessions = world.view().sessions;
    assert_eq!(world.handshake(THIRD, &captured), Err(Refusal::Replayed));
    world.live(60);
    assert_eq!(world.handshake(THIRD, &captured), Err(Refusal::Replayed), "while it is in use");
    assert_eq!(world.refused(Refusal::Replayed), 3);
    // Much later it goes to the hub, which does not answer what it has seen.
    world.live(300);
    assert_eq!(world.handshake(THIRD, &captured), Ok(vec![HUB.to_owned()]));
    assert!(world.view().sessions < sessions);
    assert_eq!(world.data(THIRD, 150), Err(Reason::UnknownSource));
    assert_eq!(world.whereabouts(2).as_deref(), Some(SPOKES[0]));
}

#[test]
fn case_47_two_spokes_that_choose_the_same_index_do_not_hear_each_other() {
    let mut world = star();
    let same = 77;
    world.initiate(SPOKES[0], 1, same).unwrap();
    assert_eq!(world.initiate(SPOKES[1], 1, same), Err(Refusal::IndexCollision), "while pending");
    assert_eq!(world.respond(HUB, 2, 177, same), Ok(vec![SPOKES[0].to_owned()]));
    world.exchange((SPOKES[0], same), (HUB, 177));
    assert_eq!(world.initiate(SPOKES[1], 1, same), Err(Refusal::IndexCollision), "while in use");
    assert_eq!(world.data(HUB, same), Ok(SPOKES[0].to_owned()));
    // With the next index, which it chooses after five seconds, the other one is served as well.
    world.session((3, SPOKES[1], 78), (1, HUB, 178));
    world.exchange((SPOKES[0], same), (HUB, 177));
    assert_eq!(world.refused(Refusal::IndexCollision), 2);
}

#[test]
fn case_47_hubs_that_choose_the_same_index_do_not_matter_to_different_spokes() {
    let mut world = World::new(&[network(4, Pairs::List(vec![[0, 2], [1, 3]]))]);
    let (hubs, spokes) = ([HUB, THIRD], [SPOKES[0], SPOKES[1]]);
    for (number, (hub, spoke)) in (3..).zip(hubs.into_iter().zip(spokes)) {
        world.initiate(hub, number, 1000 + u32::from(number)).unwrap();
        world.session((number, spoke, 5), (number - 2, hub, 555));
    }
    for (hub, spoke) in hubs.into_iter().zip(spokes) {
        world.exchange((spoke, 5), (hub, 555));
    }
}

#[test]
fn case_47_one_spoke_is_not_given_the_same_index_by_two_hubs() {
    let mut world = World::new(&[network(3, Pairs::Star(2))]);
    let (spoke, hubs) = (SPOKES[0], [HUB, THIRD]);
    for (number, hub) in (1..).zip(hubs) {
        world.initiate(hub, 3, 1000 + number).unwrap();
    }
    world.session((3, spoke, 5), (1, HUB, 555));
    world.initiate(spoke, 2, 6).unwrap();
    assert_eq!(world.respond(THIRD, 3, 555, 6), Err(Refusal::IndexCollision));
    world.session((3, spoke, 7), (2, THIRD, 556));
    world.exchange((spoke, 5), (HUB, 555));
    world.exchange((spoke, 7), (THIRD, 556));
}

#[test]
fn case_48_an_initiation_for_nobody_is_dropped_before_the_hub_sees_it() {
    let mut world = star();
    for from in [THIRD, SPOKES[0]] {
        assert_eq!(world.initiate(from, 99, 1), Err(Refusal::UnknownKey));
    }
    let mut damaged = initiation(&key(1), 1, 1);
    damaged[50] ^= 1;
    assert_eq!(world.handshake(THIRD, &damaged), Err(Refusal::UnknownKey));
    assert_eq!(world.refused(Refusal::UnknownKey), 3);
}

#[test]
fn case_48_data_with_a_known_index_from_a_foreign_source_moves_nothing() {
    let mut world = star();
    for index in [102, 103, 104, 2, 3, 4] {
        assert_eq!(world.data(THIRD, index), Err(Reason::UnknownSource));
    }
    // Nor from another member: each index is only its own pair's.
    assert_eq!(world.data(SPOKES[0], 103), Err(Reason::UnknownSource));
    for (spoke, index) in SPOKES.into_iter().zip(2..) {
        world.exchange((spoke, index), (HUB, 100 + index));
    }
}
