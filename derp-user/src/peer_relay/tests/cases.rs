//! The numbered cases, as far as they can be seen without sockets.

use derp_common::{Reason, flow::Side};

use super::support::*;
use crate::{
    flow::Plane,
    peer_relay::{
        Arrival, EndedBy, EndpointState, Permission, ROTATION, Reaction, Refusal,
        disco::{AllocateRequest, DiscoPublic, Handshake, Message},
    },
};

#[test]
fn case_31_a_pair_gets_one_endpoint_whoever_asks_and_another_pair_a_later_one() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let first = world.endpoint(&a, &b);
    for (by, clients) in [
        (&a, [a.key(), b.key()]),
        (&a, [b.key(), a.key()]),
        (&b, [a.key(), b.key()]),
        (&b, [b.key(), a.key()]),
    ] {
        assert_eq!(world.ask(by, clients), Ok(first.clone()));
    }
    assert_eq!((first.lamport_id, first.server), (1, world.relay.public_key()));
    let mut clients = [a.key(), b.key()];
    clients.sort();
    assert_eq!(first.clients, clients);
    assert_eq!((first.bind_lifetime, first.steady_state_lifetime), (30 * SECOND, 300 * SECOND));
    assert_eq!(first.addresses, [RELAY, RELAY_6].map(address));
    let second = world.endpoint(&a, &c);
    assert_eq!(second.lamport_id, 2);
    assert_ne!(second.vni, first.vni);
    let counts = world.relay.counts();
    assert_eq!((counts.allocated, counts.repeated), (2, 4));
    world.bound(&a, &first, 1, A);
    world.bound(&b, &first, 1, B);
    assert_eq!(world.endpoint(&b, &a), first, "nor is it another one when it is in use");
}

#[test]
fn case_32_no_endpoint_for_the_servers_own_key_or_without_an_address() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let server = world.relay.public_key();
    for clients in [[a.key(), server], [server, a.key()]] {
        assert_eq!(world.ask(&a, clients), Err(Refusal::UnusableClients));
    }
    // Who pings the relay's own node would meet it there: it is no client of anybody.
    let node = world.identity;
    for clients in [[a.key(), node], [node, a.key()]] {
        assert_eq!(world.ask(&a, clients), Err(Refusal::UnusableClients));
    }
    assert_eq!(world.ask(&a, [a.key(), a.key()]), Err(Refusal::UnusableClients));
    let nobody = DiscoPublic::from_bytes([0; 32]);
    assert_eq!(world.ask(&a, [a.key(), nobody]), Err(Refusal::UnusableClients));
    world.relay.set_addresses([]);
    assert_eq!(world.ask(&a, [a.key(), b.key()]), Err(Refusal::NoAddress));
    assert!(world.table.is_empty() && world.live().is_empty());
    world.relay.set_addresses([address(RELAY_2)]);
    assert_eq!(world.endpoint(&a, &b).addresses, [address(RELAY_2)]);
}

#[test]
fn case_33_a_bind_message_must_fit_and_only_brings_a_challenge() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let endpoint = world.endpoint(&a, &b);
    let good = a.says(&endpoint, 1);
    let bad = [
        (Handshake { generation: 0, ..good }, Refusal::Generation),
        (Handshake { vni: good.vni ^ 1, ..good }, Refusal::Mismatch),
        (Handshake { remote: a.key(), ..good }, Refusal::Mismatch),
        (Handshake { remote: c.key(), ..good }, Refusal::Mismatch),
    ];
    for (message, refusal) in bad {
        let packet = a.control(&endpoint, &Message::Bind(message));
        assert_eq!(world.control(A, &packet), Err(refusal), "{message:?}");
    }
    let other = crate::peer_relay::disco::EndpointRecord { vni: good.vni ^ 1, ..endpoint.clone() };
    assert_eq!(world.control(A, &a.bind(&other, 1)), Err(Refusal::UnknownVni));
    assert_eq!(world.control(A, &c.bind(&endpoint, 1)), Err(Refusal::UnknownSender));

    let challenge = world.challenge(A, &a.bind(&endpoint, 1));
    let read = a.read_challenge(&endpoint, &challenge);
    assert_eq!(Handshake { challenge: [0; 32], ..read }, good);
    let view = world.relay.views().next().unwrap();
    assert_eq!((view.state, view.remotes), (EndpointState::Connecting, [None, None]));
}

#[test]
fn case_33_what_is_no_handshake_message_is_dropped() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    let bind = a.bind(&endpoint, 1);
    let changed = |at: usize, bits: u8| {
        let mut packet = bind.clone();
        packet[at] ^= bits;
        packet
    };
    let malformed = [
        ("a version", changed(0, 0x40)),
        ("an option", changed(0, 1)),
        ("no control packet", changed(1, 0x80)),
        ("a critical option", changed(1, 0x40)),
        ("another protocol", changed(3, 3)),
        ("the reserved byte", changed(7, 1)),
        ("another magic", changed(8, 1)),
        ("a byte less", bind[..159].to_vec()),
        ("a byte more", [&bind[..], &[0]].concat()),
        ("nothing", Vec::new()),
    ];
    for (what, packet) in malformed {
        assert_eq!(world.control(A, &packet), Err(Refusal::Malformed), "{what}");
    }
    assert_eq!(world.control(A, &changed(159, 1)), Err(Refusal::Seal));
    assert_eq!(world.control(A, &changed(46, 1)), Err(Refusal::Seal));
    let challenge = Message::Challenge(a.says(&endpoint, 1));
    assert_eq!(world.control(A, &a.control(&endpoint, &challenge)), Err(Refusal::OtherMessage));
    assert_eq!(world.relay.counts().refused(Refusal::Malformed), 10);
    assert_eq!(world.relay.counts().refused(Refusal::Seal), 2);
}

#[test]
fn case_34_only_the_address_that_was_challenged_can_answer() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    let challenge = world.challenge(A, &a.bind(&endpoint, 1));
    let answer = a.answer(&endpoint, &challenge);
    assert_eq!(world.control(A_MOVED, &answer), Err(Refusal::Challenge));
    assert_eq!(world.control(B, &answer), Err(Refusal::Challenge));
    let Ok(Reaction::Bound(bound)) = world.control(A, &answer) else { panic!("not bound") };
    assert_eq!((bound.remote, bound.before), (address(A), None));
    let side = if endpoint.clients[0] == a.key() { Side::A } else { Side::B };
    assert_eq!(bound.side, side);
    assert_eq!(world.control(A, &answer), Err(Refusal::Generation), "a handshake ends once");
}

#[test]
fn regression_the_packet_right_behind_the_last_answer_goes_on() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    let [high, middle, low] = [16, 8, 0].map(|shift| (endpoint.vni >> shift) as u8);
    let ping = [&[0, 0, 0x7a, 0x11, high, middle, low, 0][..], b"ping"].concat();
    let early = |world: &World, from| {
        let arrival = Arrival { from: address(from), local: address(RELAY), payload: &ping };
        world.relay.early(&arrival)
    };
    let challenge = world.challenge(A, &a.bind(&endpoint, 1));
    world.control(A, &a.answer(&endpoint, &challenge)).unwrap();
    assert_eq!(early(&world, A), None, "the other end is not bound");
    let challenge = world.challenge(B, &b.bind(&endpoint, 1));
    world.control(B, &b.answer(&endpoint, &challenge)).unwrap();
    let onward = early(&world, B).expect("both ends are bound");
    assert_eq!((onward.from, onward.to), (address(RELAY), address(A)));
    assert_eq!(onward.payload, ping);
    assert_eq!(early(&world, A_MOVED), None, "nobody is bound there");
}

#[test]
fn case_34_an_answer_without_or_with_a_made_up_challenge_binds_nothing() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    let answer = |generation, challenge| {
        let says = Handshake { challenge, ..a.says(&endpoint, generation) };
        a.control(&endpoint, &Message::Answer(says))
    };
    assert_eq!(world.control(A, &answer(1, [0; 32])), Err(Refusal::Generation));
    assert_eq!(world.control(A, &answer(0, [0; 32])), Err(Refusal::Generation));
    let challenge = world.challenge(A, &a.bind(&endpoint, 1));
    assert_eq!(world.control(A, &answer(1, [0; 32])), Err(Refusal::Challenge));
    // The same challenge, brought by the other client: it is not that one's handshake.
    let read = a.read_challenge(&endpoint, &challenge);
    let stolen = Message::Answer(Handshake { remote: a.key(), ..read });
    assert_eq!(world.control(A, &b.control(&endpoint, &stolen)), Err(Refusal::Generation));
}

#[test]
fn case_35_a_newer_bind_message_makes_the_older_answer_void() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    let older = world.challenge(A, &a.bind(&endpoint, 1));
    let newer = world.challenge(A, &a.bind(&endpoint, 2));
    let answer = a.answer(&endpoint, &older);
    assert_eq!(world.control(A, &answer), Err(Refusal::Generation));
    assert!(matches!(world.control(A, &a.answer(&endpoint, &newer)), Ok(Reaction::Bound(_))));
    assert_eq!(world.control(A, &answer), Err(Refusal::Generation));
    let replayed = a.bind(&endpoint, 2);
    assert_eq!(world.control(A, &replayed), Err(Refusal::Generation), "it is over");
}

#[test]
fn case_36_a_challenge_outlives_one_rotation_of_the_secret() {
    for (rotations, is_bound) in [(0, true), (1, true), (2, false)] {
        let mut world = World::new();
        let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
        let endpoint = world.endpoint(&a, &b);
        let challenge = world.challenge(A, &a.bind(&endpoint, 1));
        for _ in 0..rotations {
            world.pass(ROTATION);
            // Any other challenge is made with the new secret.
            let other = world.endpoint(&b, &c);
            world.challenge(B, &b.bind(&other, world.now as u32));
        }
        let answered = world.control(A, &a.answer(&endpoint, &challenge));
        if is_bound {
            assert!(matches!(answered, Ok(Reaction::Bound(_))), "{rotations}: {answered:?}");
        } else {
            assert_eq!(answered, Err(Refusal::Challenge));
        }
    }
}

#[test]
fn case_37_an_endpoint_that_is_not_bound_in_time_ends() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    world.bound(&a, &endpoint, 1, A);
    world.pass(29 * SECOND);
    assert_eq!(world.relay.review(&mut world.table, world.now), []);
    world.pass(2 * SECOND);
    let ended = world.relay.review(&mut world.table, world.now);
    assert_eq!((ended[0].vni, ended[0].by), (endpoint.vni, EndedBy::NotBound));
    assert!(ended.len() == 1 && world.live().is_empty() && world.table.is_empty());
    assert_eq!(world.control(B, &b.bind(&endpoint, 1)), Err(Refusal::UnknownVni));
    let next = world.endpoint(&a, &b);
    assert!(next.lamport_id > endpoint.lamport_id);
}

#[test]
fn case_37_both_data_planes_keep_an_endpoint_and_each_silent_client_ends_it() {
    /// Five minutes and one second in which these ends were heard of by these planes, every 60 seconds.
    fn ended(heard: &[(Plane, [bool; 2])]) -> Option<EndedBy> {
        let mut world = World::new();
        let (a, b) = (Client::new(1), Client::new(2));
        let endpoint = world.open(&a, &b);
        for step in [60, 60, 60, 60, 61] {
            world.pass(step * SECOND);
            for (plane, ends) in heard {
                let now = world.now;
                world.observe(*plane, &endpoint, ends.map(|it| if it { now } else { 0 }));
            }
        }
        let ended = world.relay.review(&mut world.table, world.now);
        assert_eq!(ended.is_empty(), world.live() == [endpoint.vni]);
        assert_eq!(ended.is_empty(), !world.table.is_empty());
        ended.first().map(|ended| ended.by)
    }
    assert_eq!(ended(&[]), Some(EndedBy::Silence));
    assert_eq!(ended(&[(Plane::Kernel, [true, true])]), None);
    assert_eq!(ended(&[(Plane::Userspace, [true, true])]), None);
    assert_eq!(ended(&[(Plane::Kernel, [true, false])]), Some(EndedBy::Silence));
    assert_eq!(ended(&[(Plane::Kernel, [false, true])]), Some(EndedBy::Silence));
    let mixed = [(Plane::Kernel, [true, false]), (Plane::Userspace, [false, true])];
    assert_eq!(ended(&mixed), None);
}

#[test]
fn case_37_a_handshake_is_no_traffic_but_its_end_counts() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.open(&a, &b);
    world.pass(299 * SECOND);
    world.bound(&a, &endpoint, 2, A);
    world.challenge(B, &b.bind(&endpoint, 2));
    world.pass(2 * SECOND);
    let ended = world.relay.review(&mut world.table, world.now);
    assert_eq!(ended[0].by, EndedBy::Silence, "of B");

    let endpoint = world.open(&a, &b);
    world.pass(299 * SECOND);
    world.bound(&a, &endpoint, 2, A);
    world.bound(&b, &endpoint, 2, B);
    world.pass(299 * SECOND);
    assert_eq!(world.relay.review(&mut world.table, world.now), []);
    world.pass(2 * SECOND);
    assert_eq!(world.relay.review(&mut world.table, world.now).len(), 1);
}

#[test]
fn case_38_both_ways_twice_then_moved_and_in_mixed_families() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    assert_eq!(world.route(endpoint.vni, A, RELAY), Err(Reason::UnknownVni));
    for generation in 1..3 {
        world.bound(&a, &endpoint, generation, A);
        world.bound(&b, &endpoint, generation, B);
    }
    let from_relay = address(RELAY);
    assert_eq!(world.route(endpoint.vni, A, RELAY), Ok((address(B), from_relay)));
    assert_eq!(world.route(endpoint.vni, B, RELAY), Ok((address(A), from_relay)));
    world.bound(&a, &endpoint, 4, A_MOVED);
    assert_eq!(world.route(endpoint.vni, A_MOVED, RELAY), Ok((address(B), from_relay)));
    assert_eq!(world.route(endpoint.vni, B, RELAY), Ok((address(A_MOVED), from_relay)));
    world.bound_at(&b, &endpoint, 4, B_6, RELAY_6);
    assert_eq!(world.route(endpoint.vni, A_MOVED, RELAY), Ok((address(B_6), address(RELAY_6))));
    assert_eq!(world.route(endpoint.vni, B_6, RELAY_6), Ok((address(A_MOVED), from_relay)));
    assert_eq!(world.relay.endpoints(EndpointState::Open), 1);
}

#[test]
fn case_39_only_a_permitted_node_with_its_own_key_may_ask_for_itself() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    let request = |clients| Message::AllocateRequest(AllocateRequest { clients, generation: 1 });
    let packet = a.packet(&world.identity, &request([a.key(), b.key()]));
    let refused = [
        (Permission::Denied(Refusal::NotGranted), &packet, Refusal::NotGranted),
        (Permission::Key(b.key()), &packet, Refusal::OtherKey),
        (
            Permission::AnyKey,
            &a.packet(&world.identity, &request([b.key(), c.key()])),
            Refusal::NotListed,
        ),
        (Permission::AnyKey, &a.packet(&b.key(), &request([a.key(), b.key()])), Refusal::Seal),
        (Permission::AnyKey, &packet[..61].to_vec(), Refusal::Malformed),
        (Permission::AnyKey, &[packet.clone(), vec![0; 1024]].concat(), Refusal::Malformed),
    ];
    for (permission, packet, refusal) in refused {
        assert_eq!(world.request(&a, permission, packet), Err(refusal));
        assert!(world.relay.counts().refused(refusal) >= 1, "{refusal:?} is counted");
    }
    // Someone else's packet, sent again.
    assert_eq!(world.request(&c, Permission::Key(c.key()), &packet), Err(Refusal::OtherKey));
    let other = a.packet(
        &world.identity,
        &Message::Bind(Handshake { vni: 1, generation: 1, remote: b.key(), challenge: [0; 32] }),
    );
    assert_eq!(world.request(&a, Permission::AnyKey, &other), Err(Refusal::OtherMessage));
    assert!(world.live().is_empty());
    assert!(world.request(&a, Permission::Key(a.key()), &packet).is_ok());
}

/// `tailscale ping` to the relay's node has the client ask for an endpoint between itself and that node.
#[test]
fn regression_no_endpoint_is_given_to_the_relay_itself() {
    let mut world = World::new();
    let a = Client::new(1);
    for own in [world.identity, world.relay.public_key()] {
        for clients in [[a.key(), own], [own, a.key()]] {
            assert_eq!(world.ask(&a, clients), Err(Refusal::UnusableClients));
        }
    }
    assert!(world.live().is_empty());
}

#[test]
fn a_ping_by_derp_is_answered_to_whoever_may_ask() {
    let mut world = World::new();
    let a = Client::new(1);
    let transaction = [7; 12];
    let ping = a.packet(&world.identity, &Message::Ping { transaction });
    let denied = world.request(&a, Permission::Denied(Refusal::UnknownNode), &ping);
    assert_eq!(denied, Err(Refusal::UnknownNode));
    for (region, source) in [(0, "127.3.3.40:0"), (900, "127.3.3.40:900")] {
        world.relay.set_home_region(region);
        let pong = Message::Pong { transaction, source: address(source) };
        assert_eq!(world.message(&a, Permission::Key(a.key()), &ping), Ok(pong));
    }
    assert_eq!(world.relay.counts().pinged, 2);
}

#[test]
fn case_43_a_client_that_moves_is_followed_and_its_old_address_is_nobodys() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.open(&a, &b);
    let challenge = world.challenge(A_MOVED, &a.bind(&endpoint, 2));
    world.settle();
    assert!(world.route(endpoint.vni, A, RELAY).is_ok(), "until the new one has proved itself");
    assert_eq!(world.route(endpoint.vni, A_MOVED, RELAY), Err(Reason::UnknownLeg));
    let answered = world.control(A_MOVED, &a.answer(&endpoint, &challenge));
    let Ok(Reaction::Bound(bound)) = answered else { panic!("{answered:?}") };
    assert_eq!(bound.before, Some(address(A)));
    world.settle();
    assert_eq!(world.route(endpoint.vni, A, RELAY), Err(Reason::UnknownLeg));
    assert_eq!(world.route(endpoint.vni, B, RELAY).unwrap().0, address(A_MOVED));
}

#[test]
fn case_45_a_client_that_uses_the_second_address_is_answered_from_there() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    world.bound_at(&a, &endpoint, 1, A, RELAY_2);
    world.bound_at(&b, &endpoint, 1, B, RELAY);
    assert_eq!(world.route(endpoint.vni, B, RELAY), Ok((address(A), address(RELAY_2))));
    assert_eq!(world.route(endpoint.vni, A, RELAY_2), Ok((address(B), address(RELAY))));
    world.bound_at(&a, &endpoint, 2, A, RELAY);
    assert_eq!(world.route(endpoint.vni, B, RELAY), Ok((address(A), address(RELAY))));
}

#[test]
fn an_address_that_cannot_be_told_from_the_other_clients_is_not_bound() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.open(&a, &b);
    let challenge = world.challenge(A, &b.bind(&endpoint, 2));
    let answer = b.answer(&endpoint, &challenge);
    assert_eq!(world.control(A, &answer), Err(Refusal::Address));
    world.settle();
    assert_eq!(world.route(endpoint.vni, A, RELAY).unwrap().0, address(B), "all stays as it was");
}

#[test]
fn being_asked_again_gives_the_clients_their_time_anew() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let endpoint = world.endpoint(&a, &b);
    world.pass(29 * SECOND);
    assert_eq!(world.endpoint(&b, &a), endpoint);
    world.pass(29 * SECOND);
    assert_eq!(world.relay.review(&mut world.table, world.now), []);
    world.pass(2 * SECOND);
    assert_eq!(world.relay.review(&mut world.table, world.now).len(), 1);
}

#[test]
fn an_endpoint_whose_flow_was_taken_away_ends_too() {
    let mut world = World::new();
    let (a, b) = (Client::new(1), Client::new(2));
    let first = world.open(&a, &b);
    let taken_away = |world: &mut World| {
        let found = world.relay.endpoints.values().next().map(|endpoint| endpoint.flow);
        assert!(world.table.remove(found.unwrap()));
    };
    taken_away(&mut world);
    let second = world.endpoint(&a, &b);
    assert_ne!(second.vni, first.vni);
    assert_eq!(world.live(), [second.vni]);
    taken_away(&mut world);
    let bind = a.bind(&second, 1);
    let challenge = world.challenge(A, &bind);
    assert_eq!(world.control(A, &a.answer(&second, &challenge)), Err(Refusal::UnknownVni));
    world.endpoint(&a, &b);
    taken_away(&mut world);
    assert_eq!(world.relay.review(&mut world.table, world.now)[0].by, EndedBy::Removal);
    assert!(world.live().is_empty());
}

#[test]
fn a_relay_that_is_closed_leaves_no_flow() {
    let mut world = World::new();
    let (a, b, c) = (Client::new(1), Client::new(2), Client::new(3));
    world.open(&a, &b);
    world.endpoint(&b, &c);
    world.relay.close(&mut world.table);
    assert!(world.live().is_empty() && world.table.is_empty());
    assert_eq!(world.relay.counts().ended, 2);
}
