//! Single messages.

use super::support::*;
use crate::wireguard::{Pairs, Refusal};

const A: &str = "198.51.100.10:1001";
const B: &str = "192.0.2.20:2002";
const STRANGER: &str = "203.0.113.200:666";

/// Peers 1 at A and 2 at B, with a session (B's index 2, A's 10).
fn pair() -> World {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    world
}

#[test]
fn a_message_goes_on_as_it_is_from_where_its_receiver_sends_to() {
    let mut world = pair();
    let message = initiation(&key(1), 5, 5);
    let Outcome::Handshake(Ok(relayed)) = world.arrives(address(B), &message) else {
        panic!("not relayed");
    };
    let [to] = relayed.destinations() else { panic!("{relayed:?}") };
    assert_eq!((to.from, to.to), (address(RELAY), address(A)));
}

#[test]
fn a_cookie_reply_goes_to_whoever_is_to_come_back_with_it() {
    let mut world = pair();
    world.initiate(B, 1, 5).unwrap();
    assert_eq!(world.handshake(A, &cookie_reply(5)), Ok(vec![B.to_owned()]), "to an initiation");
    world.respond(A, 2, 15, 5).unwrap();
    assert_eq!(world.handshake(B, &cookie_reply(15)), Ok(vec![A.to_owned()]), "to a response");
    assert_eq!(world.handshake(B, &cookie_reply(16)), Err(Refusal::Unasked));
    assert_eq!(world.handshake(STRANGER, &cookie_reply(15)), Err(Refusal::Unasked));
    world.pass(11);
    assert_eq!(world.handshake(B, &cookie_reply(15)), Err(Refusal::Unasked), "much later");
    assert_eq!(world.relay.counts().cookie_replies, 2);
}

#[test]
fn a_response_is_taken_once_and_only_from_where_it_was_asked_for() {
    let mut world = pair();
    world.initiate(B, 1, 5).unwrap();
    assert_eq!(world.respond(STRANGER, 2, 15, 5), Err(Refusal::Unasked));
    assert_eq!(world.respond(A, 2, 15, 6), Err(Refusal::Unasked), "another index");
    assert_eq!(world.respond(A, 1, 15, 5), Err(Refusal::NotAllowed), "not for its own maker");
    assert_eq!(world.respond(A, 2, 15, 5), Ok(vec![B.to_owned()]));
    assert_eq!(world.respond(A, 2, 15, 5), Err(Refusal::Answered), "again");
    assert_eq!(world.respond(A, 2, 16, 5), Err(Refusal::Answered), "another one");
    world.exchange((B, 5), (A, 15));
    world.initiate(B, 1, 7).unwrap();
    world.pass(11);
    assert_eq!(world.respond(A, 2, 17, 7), Err(Refusal::Unasked), "too late");
}

#[test]
fn both_may_begin_at_the_same_time() {
    let mut world = pair();
    world.initiate(A, 2, 50).unwrap();
    world.initiate(B, 1, 60).unwrap();
    assert_eq!(world.respond(B, 1, 51, 50), Ok(vec![A.to_owned()]));
    assert_eq!(world.respond(A, 2, 61, 60), Ok(vec![B.to_owned()]));
    world.exchange((A, 50), (B, 51));
    world.exchange((B, 60), (A, 61));
}

#[test]
fn an_index_may_have_any_value() {
    let mut world = pair();
    // Zero, which stands for no index elsewhere, and STUN's magic cookie.
    let cookie = u32::from_le_bytes([0x21, 0x12, 0xa4, 0x42]);
    for (i, j) in [(0, cookie), (cookie, 0), (u32::MAX, 1)] {
        world.session((2, B, i), (1, A, j));
        world.exchange((B, i), (A, j));
    }
}

#[test]
fn from_a_source_that_cannot_be_nothing_is_taken() {
    let mut world = pair();
    for from in [RELAY, RELAY_6, "255.255.255.255:1", "224.0.0.1:1", "[fe80::1]:1"] {
        let result = world.initiate(from, 1, 5);
        assert_eq!(result, Err(Refusal::UnusableSource), "{from}");
    }
    let same_host = world.initiate("203.0.113.1:4000", 1, 5);
    assert_eq!(same_host, Ok(vec![A.to_owned()]), "a peer on the relay's own machine");
}
