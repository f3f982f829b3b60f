//! What one node, one source or one client can use up.

use derp_common::Rate;

use super::support::*;
use crate::peer_relay::{
    Limits, Permission, Refusal,
    disco::{AllocateRequest, DiscoPublic, Message},
};

/// Keys of clients that nobody is.
fn key(number: u32) -> DiscoPublic {
    let mut bytes = [0x55; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    DiscoPublic::from_bytes(bytes)
}

#[test]
fn case_40_a_flood_of_one_node_gets_no_more_than_its_share() {
    let mut world = World::with(Limits::default(), 1024);
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let mut refused = [0; 2];
    for number in 0..10_000 {
        world.pass(SECOND / 10_000);
        match world.ask(&a, [a.key(), key(number)]) {
            Ok(_) => {}
            Err(Refusal::OverRate) => refused[0] += 1,
            Err(Refusal::NodeFull) => refused[1] += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(world.live().len(), 256);
    assert!(refused[0] > 9_700, "{refused:?}");
    assert!(world.ask(&b, [b.key(), c.key()]).is_ok(), "others have theirs");
    world.pass(60 * SECOND);
    assert_eq!(world.ask(&a, [a.key(), key(20_000)]), Err(Refusal::NodeFull));
    assert_eq!(world.relay.review(&mut world.table, world.now).len(), 257);
    assert!(world.ask(&a, [a.key(), key(20_000)]).is_ok());
}

#[test]
fn there_are_no_more_endpoints_than_allowed_or_than_slots() {
    let limits = Limits { endpoints: 3, ..Limits::default() };
    for (limits, slots, most) in [(limits, 64, 3), (Limits::default(), 4, 4)] {
        let mut world = World::with(limits, slots);
        let a = Client::new(1);
        for number in 0..most {
            assert!(world.ask(&a, [a.key(), key(number)]).is_ok());
        }
        assert_eq!(world.ask(&a, [a.key(), key(99)]), Err(Refusal::Full));
        assert!(world.ask(&a, [a.key(), key(0)]).is_ok(), "what there is can still be had");
    }
}

#[test]
fn everybody_together_is_limited_too() {
    let limits = Limits { requests: Rate::per_second(10, 20), ..Limits::default() };
    let mut world = World::with(limits, 1024);
    let asked = (1..=60).filter(|number| {
        let client = Client::new(*number);
        world.ask(&client, [client.key(), key(1)]).is_ok()
    });
    assert_eq!(asked.count(), 20);
}

#[test]
fn a_client_without_permission_uses_up_nothing() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let request = AllocateRequest { clients: [a.key(), b.key()], generation: 1 };
    let packet = a.packet(&world.identity, &Message::AllocateRequest(request));
    for _ in 0..5_000 {
        let refused = world.request(&a, Permission::Denied(Refusal::NotPermitted), &packet);
        assert_eq!(refused, Err(Refusal::NotPermitted));
    }
    assert!(world.ask(&a, [a.key(), b.key()]).is_ok());
}

#[test]
fn handshakes_of_one_client_are_limited_and_the_other_has_its_own_allowance() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    // Anyone who has seen a packet of A can send these, from anywhere; they cannot be opened.
    let mut forged = a.bind(&endpoint, 1);
    forged[100] ^= 1;
    let from = |number: u32| format!("10.0.{}.{}:5000", number >> 8, number & 255);
    let opened = (0..1_000).filter(|number| match world.control(&from(*number), &forged) {
        Err(Refusal::Seal) => true,
        Err(Refusal::OverRate) => false,
        other => panic!("{other:?}"),
    });
    assert_eq!(opened.count(), 40);
    assert_eq!(world.control(A, &a.bind(&endpoint, 1)), Err(Refusal::OverRate));
    world.bound(&b, &endpoint, 1, B);
    world.pass(SECOND);
    world.bound(&a, &endpoint, 1, A);
}

#[test]
fn handshakes_from_one_source_are_limited_over_all_endpoints() {
    let limits = Limits { handshakes_per_source: Rate::per_second(10, 20), ..Limits::default() };
    let mut world = World::with(limits, 64);
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let endpoints = [world.endpoint(&a, &b), world.endpoint(&a, &c)];
    let challenged = (1..=30).filter(|number| {
        let endpoint = &endpoints[*number as usize % 2];
        let from = format!("198.51.100.10:{number}");
        world.control(&from, &a.bind(endpoint, *number)).is_ok()
    });
    assert_eq!(challenged.count(), 20);
    world.challenge("198.51.100.11:1", &a.bind(&endpoints[0], 99));
    // Strangers use up nothing.
    for _ in 0..100 {
        let refused = world.control("198.51.100.12:1", &c.bind(&endpoints[0], 1));
        assert_eq!(refused, Err(Refusal::UnknownSender));
    }
    world.challenge("198.51.100.12:1", &a.bind(&endpoints[0], 100));
}
