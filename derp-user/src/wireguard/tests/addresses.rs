//! How the relay finds out where peers are.

use super::support::*;
use crate::wireguard::{Event, Pairs, PeerView, Refusal};

const A: &str = "198.51.100.10:1001";
const B: &str = "192.0.2.20:2002";
const C: &str = "192.0.2.30:3003";
const MOVED: &str = "198.51.100.99:999";
const STRANGER: &str = "203.0.113.200:666";

fn peer(world: &World, number: u8) -> PeerView {
    let text = key(number).to_string();
    world.view().peers.into_iter().find(|it| it.public_key == text).unwrap()
}

#[test]
fn two_peers_that_nobody_knows_find_each_other() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    assert_eq!(world.initiate(A, 2, 1), Ok(vec![]), "where peer 2 is is not known");
    assert_eq!(world.initiate(B, 1, 2), Ok(vec![A.to_owned()]), "the only one that can be peer 1");
    assert_eq!(world.respond(A, 2, 10, 2), Ok(vec![B.to_owned()]));
    world.exchange((B, 2), (A, 10));
    assert_eq!(world.whereabouts(1), None, "not before a review");
    let events = world.review();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(world.whereabouts(1).as_deref(), Some(A));
    assert_eq!(world.whereabouts(2).as_deref(), Some(B));
    assert_eq!(world.relay.counts().held, 1);
}

#[test]
fn peers_of_different_families_find_each_other() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    let six = "[2001:db8:b::20]:2002";
    world.initiate(A, 2, 1).unwrap();
    assert_eq!(world.initiate(six, 1, 2), Ok(vec![A.to_owned()]));
    assert_eq!(world.respond(A, 2, 10, 2), Ok(vec![six.to_owned()]));
    world.exchange((six, 2), (A, 10));
}

#[test]
fn every_pair_of_a_mesh_of_five_that_nobody_knows_finds_together() {
    let places: Vec<_> = (1..=5).map(|number| format!("198.51.100.{number}:{number}000")).collect();
    let mut world = World::new(&[network(5, Pairs::All)]);
    let mut connected = std::collections::BTreeSet::new();
    let mut index = 1;
    // Each tries all others every five seconds, the higher numbers last.
    for _ in 0..4 {
        for (from, place) in (1_u8..).zip(&places) {
            for to in (1..=5).filter(|to| *to != from) {
                index += 2;
                let Ok(destinations) = world.initiate(place, to, index) else { continue };
                assert!(destinations.len() <= crate::wireguard::MOST_PLACES);
                // Only the right one can read it.
                if destinations.contains(&places[usize::from(to) - 1]) {
                    let at = &places[usize::from(to) - 1].clone();
                    world.respond(at, from, index + 1, index).unwrap();
                    world.exchange((place, index), (at, index + 1));
                    connected.insert((from.min(to), from.max(to)));
                }
            }
        }
        world.live(5);
    }
    assert_eq!(connected.len(), 10, "{connected:?}");
    for (peer, place) in (1..).zip(&places) {
        assert_eq!(world.whereabouts(peer).as_ref(), Some(place));
    }
    // From now on nothing is tried twice.
    let copies = world.relay.counts().copies;
    for to in 2..=5 {
        index += 2;
        assert_eq!(
            world.initiate(&places[0], to, index).unwrap(),
            [places[usize::from(to) - 1].clone()]
        );
    }
    assert_eq!(world.relay.counts().copies, copies);
}

#[test]
fn where_it_is_ambiguous_the_likely_ones_are_tried_and_that_is_shown() {
    let mut world = World::new(&[network(4, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    world.initiate(B, 3, 2).unwrap();
    let stranger = world.view().strangers.into_iter().find(|it| it.address == address(A)).unwrap();
    assert_eq!((stranger.wants.len(), stranger.may_be.len()), (1, 3), "{stranger:?}");
    // A asks for 2 and B for 3: either may be peer 1; neither 2 nor 3 can ask for itself.
    let mut tried = world.initiate(C, 1, 3).unwrap();
    tried.sort_unstable();
    assert_eq!(tried, [B, A]);
    let two = world.initiate(C, 2, 4).unwrap();
    assert_eq!(two, [B], "A asks for 2, so it is another one");
    assert_eq!(world.relay.counts().copies, 1);
}

#[test]
fn a_hub_that_nobody_knows_is_found_by_its_spokes() {
    let mut world = World::new(&[network(6, Pairs::Star(0))]);
    let hub = "198.51.100.1:51820";
    let spoke = |number: u32| format!("192.0.2.{number}:{number}");
    for number in 2..=6 {
        assert_eq!(world.initiate(&spoke(number), 1, number).unwrap(), [""; 0]);
    }
    // What the hub asks of one spoke goes to some that may be it, at most so many.
    let tried = world.initiate(hub, 2, 100).unwrap();
    assert!(tried.len() <= crate::wireguard::MOST_PLACES && !tried.contains(&hub.to_owned()));
    world.pass(5);
    for number in 2..=6 {
        let to = world.initiate(&spoke(number), 1, 10 + number).unwrap();
        assert_eq!(to, [hub], "only the hub asks for spokes");
        let spoke_number = u8::try_from(number).unwrap();
        world.respond(hub, spoke_number, 200 + number, 10 + number).unwrap();
        world.exchange((&spoke(number), 10 + number), (hub, 200 + number));
    }
}

#[test]
fn a_pinned_peer_is_asked_at_once_and_served_nowhere_else() {
    let mut network = network(3, Pairs::All);
    network.peers[0].address = Some(address(A));
    let mut world = World::new(&[network]);
    assert_eq!(world.initiate(B, 1, 1), Ok(vec![A.to_owned()]));
    world.respond(A, 2, 10, 1).unwrap();
    world.exchange((B, 1), (A, 10));
    world.review();
    assert!(peer(&world, 1).is_pinned);
    // Somebody elsewhere who is said to be it.
    world.initiate(STRANGER, 2, 5).unwrap();
    assert_eq!(world.respond(B, 1, 11, 5), Err(Refusal::Pinned));
    assert_eq!(world.whereabouts(1).as_deref(), Some(A));
}

#[test]
fn nobody_can_talk_to_a_peer_whose_partners_are_pinned_elsewhere() {
    let mut network = network(2, Pairs::All);
    network.peers[0].address = Some(address(A));
    let mut world = World::new(&[network]);
    assert_eq!(world.initiate(STRANGER, 2, 1), Err(Refusal::Pinned));
}

#[test]
fn who_is_no_pair_is_not_connected() {
    let mut world = World::new(&[network(3, Pairs::Star(0))]);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    assert_eq!(world.initiate(B, 3, 3), Err(Refusal::NotAllowed), "a spoke asks for a spoke");
    // A stranger may ask, and the hub's key in the response shows that it was somebody else.
    world.initiate(STRANGER, 1, 4).unwrap();
    assert_eq!(world.respond(A, 99, 11, 4), Err(Refusal::NotAllowed));
    assert_eq!(world.view().sessions, 1);
}

#[test]
fn data_through_the_kernel_alone_keeps_a_session_and_confirms_addresses() {
    use derp_common::flow::Side;
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    world.initiate(B, 1, 2).unwrap();
    world.respond(A, 2, 10, 2).unwrap();
    let slot = world.view().pairs[0].sessions[0].slot;
    for round in 1..100 {
        world.pass(10);
        for side in Side::ALL {
            world.kernel_saw(slot, side, round);
        }
        world.review();
    }
    assert_eq!(world.view().sessions, 1, "after 1000 s");
    assert_eq!(world.whereabouts(1).as_deref(), Some(A));
    let peer = peer(&world, 1);
    assert_eq!((peer.sent.packets, peer.received.packets), (99, 99));
    let events = world.live(300);
    assert_eq!(world.view().sessions, 0);
    let silent = events.iter().filter(|event| matches!(event, Event::Silent { .. })).count();
    assert_eq!(silent, 2, "{events:?}");
    assert_eq!(world.table.len(), 0, "its flow is gone, too");
    assert_eq!(world.initiate(B, 1, 3), Ok(vec![A.to_owned()]), "where it was is still known");
}

#[test]
fn both_may_move_at_the_same_time() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    world.live(300);
    let b_moved = "192.0.2.77:7";
    // To where the other one was, in vain, and to nobody else yet.
    assert_eq!(world.initiate(MOVED, 2, 20), Ok(vec![B.to_owned()]));
    let to = world.initiate(b_moved, 1, 21).unwrap();
    assert_eq!(to, [A, MOVED]);
    world.respond(MOVED, 2, 30, 21).unwrap();
    world.exchange((b_moved, 21), (MOVED, 30));
    world.review();
    assert_eq!(world.whereabouts(1).as_deref(), Some(MOVED));
    assert_eq!(world.whereabouts(2).as_deref(), Some(b_moved));
}

#[test]
fn no_more_sessions_of_a_pair_are_kept_than_its_ends_use() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    for generation in 0..20 {
        let (i, j) = (100 + generation, 200 + generation);
        world.session((2, B, i), (1, A, j));
        // The one before is still good, while packets of it are on their way.
        if generation > 0 {
            world.exchange((B, i - 1), (A, j - 1));
        }
        world.review();
        world.pass(2);
    }
    assert_eq!(world.view().sessions, crate::wireguard::SESSIONS_PER_PAIR);
    assert_eq!(world.table.len(), crate::wireguard::SESSIONS_PER_PAIR);
}
