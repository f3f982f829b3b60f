//! What somebody can bring about who knows every public key, and may forge source addresses.

use std::net::{Ipv4Addr, SocketAddr};

use derp_common::{Rate, Reason};

use super::support::*;
use crate::wireguard::{Limits, MOST_PLACES, Pairs, Refusal, SESSIONS_PER_PAIR};

const A: &str = "198.51.100.10:1001";
const B: &str = "192.0.2.20:2002";
const IMPOSTOR: &str = "203.0.113.200:666";
const ACCOMPLICE: &str = "203.0.113.201:667";

fn pair_with(limits: Limits, slots: u32) -> World {
    let mut world = World::with(&[network(2, Pairs::All)], limits, slots);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    world
}

fn pair() -> World {
    pair_with(Limits::default(), 256)
}

fn host(number: u32) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::from_bits(0x0a00_0000 + number).into(), 1000)
}

#[test]
fn a_forged_response_does_not_take_a_peer_from_its_place() {
    let mut world = pair();
    // The impostor asks, and forges A's response to itself in B's name.
    world.initiate(IMPOSTOR, 1, 66).unwrap();
    assert_eq!(world.respond(A, 2, 99, 66), Ok(vec![IMPOSTOR.to_owned()]));
    // It forges data both ways, too.
    world.exchange((IMPOSTOR, 66), (A, 99));
    for _ in 0..10 {
        world.pass(5);
        world.exchange((B, 2), (A, 10));
        world.exchange((IMPOSTOR, 66), (A, 99));
        world.review();
    }
    assert_eq!(world.whereabouts(2).as_deref(), Some(B), "it is heard of there");
    assert!(world.initiate(A, 2, 5).unwrap().contains(&B.to_owned()));
    world.respond(B, 1, 15, 5).unwrap();
    world.exchange((A, 5), (B, 15));
}

#[test]
fn forged_responses_do_not_push_the_session_in_use_out() {
    let mut world = pair();
    for round in 0..50_u32 {
        world.initiate(IMPOSTOR, 1, 1000 + round).unwrap();
        let _ = world.respond(A, 2, 2000 + round, 1000 + round);
        world.pass(2);
        world.exchange((B, 2), (A, 10));
        world.review();
        assert!(world.view().sessions <= SESSIONS_PER_PAIR);
    }
}

#[test]
fn an_impostor_of_a_peer_that_nobody_knows_is_found_out() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    // It waits where peer 1 could be, is asked in its place, and answers what it cannot read.
    world.initiate(IMPOSTOR, 2, 66).unwrap();
    assert_eq!(world.initiate(B, 1, 2), Ok(vec![IMPOSTOR.to_owned()]));
    world.respond(IMPOSTOR, 2, 99, 2).unwrap();
    assert_eq!(world.data(IMPOSTOR, 2), Ok(B.to_owned()), "which B cannot read either");
    world.review();
    assert_eq!(world.whereabouts(1), None, "B sends it nothing");
    assert_eq!(world.whereabouts(2), None);
    // The real one comes, and both are found.
    world.pass(5);
    world.initiate(A, 2, 1).unwrap();
    let to = world.initiate(B, 1, 3).unwrap();
    assert!(to.contains(&A.to_owned()), "{to:?}");
    world.respond(A, 2, 10, 3).unwrap();
    world.exchange((B, 3), (A, 10));
    world.review();
    assert_eq!(world.whereabouts(1).as_deref(), Some(A));
}

#[test]
fn sessions_that_were_in_vain_make_room() {
    let limits = Limits::default();
    let mut world = World::with(&[network(20, Pairs::All)], limits, 16);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    let mut index = 1000;
    let mut pretend = |world: &mut World, peers: (u8, u8)| {
        index += 3;
        world.initiate(IMPOSTOR, peers.1, index).unwrap();
        let to = world.initiate(ACCOMPLICE, peers.0, index + 1).unwrap();
        assert!(to.contains(&IMPOSTOR.to_owned()));
        world.respond(IMPOSTOR, peers.1, index + 2, index + 1)
    };
    for number in 3..18 {
        assert!(pretend(&mut world, (number, number + 1)).is_ok(), "{number}");
        world.pass(11);
    }
    assert_eq!(world.table.len(), 16);
    world.session((2, B, 50), (1, A, 60));
    world.exchange((B, 2), (A, 10));
    world.exchange((B, 50), (A, 60));
}

#[test]
fn a_full_relay_says_so() {
    let mut world = World::with(&[network(2, Pairs::All)], Limits::default(), 1);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    world.initiate(B, 1, 3).unwrap();
    assert_eq!(world.respond(A, 2, 11, 3), Err(Refusal::Full));
    world.exchange((B, 2), (A, 10));
}

#[test]
fn a_flood_of_strangers_costs_a_bounded_number_of_macs_and_does_not_stop_peers() {
    let mut world = pair();
    let mut looked_at = 0;
    for number in 0..200_000_u32 {
        // Each source is another one; the key is nobody's.
        let message = initiation(&key(99), number, 0);
        match world.arrives(host(number), &message) {
            Outcome::Handshake(Err(Refusal::UnknownKey)) => looked_at += 1,
            Outcome::Handshake(Err(Refusal::StrangersOverRate)) => {}
            outcome @ (Outcome::Handshake(_) | Outcome::Data(_)) => panic!("{outcome:?}"),
        }
        if number % 50_000 == 0 {
            assert_eq!(world.initiate(B, 1, 5000 + number), Ok(vec![A.to_owned()]));
        }
    }
    let trials = looked_at * 2;
    assert!((150_000..=210_000).contains(&trials), "{trials}");
}

#[test]
fn one_source_and_one_target_have_their_allowances() {
    let limits = Limits {
        messages_per_source: Rate::per_second(10, 20),
        strangers_per_target: Rate::per_second(5, 10),
        initiations_per_target: Rate::per_second(5, 10),
        pending_per_pair: usize::MAX,
        ..Limits::default()
    };
    let mut world = pair_with(limits, 256);
    world.pass(10);
    let count = |world: &mut World, from: &str, first: u32| {
        let results: Vec<_> = (first..first + 40).map(|it| world.initiate(from, 1, it)).collect();
        let of = |wanted: Result<(), Refusal>| {
            results.iter().filter(|it| (*it).clone().map(|_| ()) == wanted).count()
        };
        (of(Ok(())), of(Err(Refusal::TargetOverRate)), of(Err(Refusal::SourceOverRate)))
    };
    assert_eq!(count(&mut world, IMPOSTOR, 1000), (10, 10, 20));
    assert_eq!(count(&mut world, ACCOMPLICE, 2000), (0, 20, 20), "strangers share an allowance");
    let (passed, _, _) = count(&mut world, B, 3000);
    assert!((9..=10).contains(&passed), "known peers have another one: {passed}");
}

#[test]
fn nothing_is_amplified() {
    let mut world = World::new(&[network(30, Pairs::All)]);
    // Somebody has a victim ask for peer 30, under many ports.
    for port in 1..=100_u32 {
        let from = format!("192.0.2.1:{port}");
        let _ = world.initiate(&from, 30, port);
    }
    // Then it asks for others, who could all be the victim.
    let (mut sent, mut to_victim) = (0, 0);
    for number in 0..1000_u32 {
        let message = initiation(&key(1 + (number % 29) as u8), 10_000 + number, 1);
        if let Outcome::Handshake(Ok(relayed)) = world.arrives(host(number), &message) {
            assert!(relayed.destinations().len() <= MOST_PLACES);
            let victim = Ipv4Addr::new(192, 0, 2, 1);
            sent += relayed.destinations().len();
            to_victim += relayed.destinations().iter().filter(|it| it.to.ip() == victim).count();
        }
    }
    assert!(to_victim <= 41, "{to_victim} to one victim");
    // No more than come in, but for the copies that everybody together is allowed.
    assert!(sent <= 1000 + 200, "{sent} for 1000");
    assert!(world.relay.counts().copies <= 200);
}

#[test]
fn pending_initiations_are_bounded() {
    let limits = Limits {
        strangers_per_target: Rate::UNLIMITED,
        strangers_per_source: Rate::UNLIMITED,
        messages_per_source: Rate::UNLIMITED,
        pending_per_pair: 200,
        ..Limits::default()
    };
    let mut world = pair_with(limits, 256);
    for number in 0..5000 {
        let _ = world.arrives(host(number), &initiation(&key(1), 10_000 + number, 1));
    }
    assert_eq!(world.view().pending, limits.pending_strangers);
    assert_eq!(world.view().strangers.len(), 100, "as many as are shown");
    assert!(world.refused(Refusal::TooManyPending) > 2000);
    assert_eq!(world.initiate(B, 1, 5), Ok(vec![A.to_owned()]), "peers have room of their own");
    world.pass(11);
    for number in 0..500 {
        let _ = world.initiate(IMPOSTOR, 1, 20_000 + number);
    }
    assert_eq!(world.view().pending, limits.pending_per_stranger);
}

#[test]
fn data_never_makes_or_moves_anything() {
    let mut world = pair();
    let before = world.view();
    for (from, index) in [(IMPOSTOR, 10), (IMPOSTOR, 2), (A, 10), (B, 2), (A, 99)] {
        assert_eq!(world.data(from, index), Err(Reason::UnknownSource), "{from} {index}");
    }
    assert_eq!(world.view(), before);
}

#[test]
fn regression_an_impostor_that_answers_first_keeps_nobody_out() {
    let mut world = pair();
    world.live(300);
    // Peer 1 was not heard of for a while, and somebody waits where it could be now.
    world.initiate(IMPOSTOR, 2, 66).unwrap();
    assert_eq!(world.initiate(B, 1, 3).unwrap(), [A, IMPOSTOR]);
    assert_eq!(world.respond(IMPOSTOR, 2, 99, 3), Ok(vec![B.to_owned()]), "which B cannot read");
    assert_eq!(world.respond(IMPOSTOR, 2, 98, 3), Err(Refusal::Answered), "once");
    assert_eq!(world.respond(A, 2, 15, 3), Ok(vec![B.to_owned()]));
    world.exchange((B, 3), (A, 15));
    assert_eq!(world.data(IMPOSTOR, 3), Ok(B.to_owned()));
    world.review();
    assert_eq!(world.initiate(B, 1, 4).unwrap(), [A], "it is not asked again");
}

#[test]
fn regression_impostors_do_not_push_out_the_session_that_has_yet_to_be_used() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    assert!(world.initiate(B, 1, 2).unwrap().contains(&A.to_owned()));
    world.respond(A, 2, 10, 2).unwrap();
    // Before any of its data was counted, two impostors shake hands with each other as often as they may.
    let mut forged = 0;
    for index in (1000..1040).step_by(3) {
        let _ = world.initiate(IMPOSTOR, 2, index);
        let to = world.initiate(ACCOMPLICE, 1, index + 1).unwrap_or_default();
        if to.contains(&IMPOSTOR.to_owned()) {
            forged += usize::from(world.respond(IMPOSTOR, 2, index + 2, index + 1).is_ok());
        }
    }
    assert!(forged > SESSIONS_PER_PAIR, "{forged}");
    world.exchange((B, 2), (A, 10));
}

/// Two impostors that have played peers 1 and 2 to each other, while both were silent.
fn usurped() -> World {
    let mut world = pair();
    world.live(300);
    world.initiate(IMPOSTOR, 2, 66).unwrap();
    let to = world.initiate(ACCOMPLICE, 1, 67).unwrap();
    assert!(to.contains(&IMPOSTOR.to_owned()), "{to:?}");
    world.respond(IMPOSTOR, 2, 68, 67).unwrap();
    world.exchange((ACCOMPLICE, 67), (IMPOSTOR, 68));
    world.review();
    assert_eq!(world.whereabouts(1).as_deref(), Some(IMPOSTOR));
    assert_eq!(world.whereabouts(2).as_deref(), Some(ACCOMPLICE));
    world
}

#[test]
fn regression_peers_whose_places_were_taken_while_they_were_silent_are_still_found() {
    let mut world = usurped();
    let to = world.initiate(B, 1, 3).unwrap();
    assert_eq!(to, [IMPOSTOR, A]);
    world.respond(A, 2, 15, 3).unwrap();
    world.exchange((B, 3), (A, 15));
}

#[test]
fn regression_peers_that_come_back_elsewhere_after_their_places_were_taken_find_each_other() {
    let (a, b) = ("198.51.100.99:99", "192.0.2.88:88");
    let mut world = usurped();
    let pretend = |world: &mut World| world.exchange((ACCOMPLICE, 67), (IMPOSTOR, 68));
    let to = world.initiate(a, 2, 20).unwrap();
    assert_eq!(to, [ACCOMPLICE, B]);
    let to = world.initiate(b, 1, 21).unwrap();
    assert_eq!(to, [IMPOSTOR, A, a]);
    world.respond(a, 2, 30, 21).unwrap();
    world.exchange((b, 21), (a, 30));
    // They go on to, with a new session every two minutes, which only one of them asks for.
    for generation in 0..5_u32 {
        for _ in 0..24 {
            world.pass(5);
            pretend(&mut world);
            world.exchange((b, 21 + generation * 10), (a, 30 + generation * 10));
            world.review();
        }
        let next = 31 + generation * 10;
        let to = world.initiate(b, 1, next).unwrap();
        assert!(to.contains(&a.to_owned()), "{to:?}");
        world.respond(a, 2, next + 9, next).unwrap();
        world.exchange((b, next), (a, next + 9));
    }
}

#[test]
fn regression_one_host_does_not_use_up_what_strangers_are_allowed() {
    let mut world = pair();
    for number in 0..3000_u32 {
        // It knows both keys, and has many ports.
        let from = format!("203.0.113.200:{}", 1000 + number % 500);
        let _ = world.initiate(&from, 1 + (number % 2) as u8, 10_000 + number);
        world.now += SECOND / 200;
    }
    let moved = "198.51.100.99:999";
    assert_eq!(world.initiate(moved, 1, 5).unwrap()[0], A);
    assert!(world.view().pending < 500, "{}", world.view().pending);
}

#[test]
fn regression_a_peer_does_not_use_up_what_others_may_ask_of_its_partner() {
    const C: &str = "192.0.2.30:3003";
    let mut world = World::new(&[network(3, Pairs::Star(0))]);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.session((3, C, 3), (1, A, 11));
    world.review();
    for number in 0..2000_u32 {
        let _ = world.initiate(B, 1, 10_000 + number);
        world.now += SECOND / 200;
    }
    assert!(world.view().pending <= 10, "{}", world.view().pending);
    assert_eq!(world.refused(Refusal::TargetOverRate), 0);
    assert_eq!(world.initiate(C, 1, 5), Ok(vec![A.to_owned()]));
}

#[test]
fn regression_answers_that_are_nobodys_cost_a_bounded_number_of_macs() {
    let limits = Limits { trials: Rate::per_second(1000, 4000), ..Limits::default() };
    let mut world = World::with(&[network(200, Pairs::All)], limits, 256);
    world.initiate(IMPOSTOR, 2, 66).unwrap();
    assert_eq!(world.initiate(B, 1, 3).unwrap(), [IMPOSTOR]);
    for index in 0..50 {
        let _ = world.respond(IMPOSTOR, 250, index, 3);
    }
    let tried = world.refused(Refusal::NotAllowed);
    assert!((10..=20).contains(&tried), "{tried} times 199 of 4000, less two initiations");
    assert_eq!(world.refused(Refusal::StrangersOverRate), 50 - tried);
}

#[test]
fn regression_one_host_does_not_crowd_out_other_places_where_a_peer_may_be() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    for port in 1000..1020 {
        world.initiate(&format!("203.0.113.200:{port}"), 2, 100 + port).unwrap();
    }
    let to = world.initiate(B, 1, 3).unwrap();
    assert_eq!(to.len(), MOST_PLACES);
    assert!(to.contains(&A.to_owned()), "{to:?}");
}
