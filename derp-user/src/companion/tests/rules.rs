use super::support::*;
use crate::companion::{Endpoint, Failure, QUIET, Serving, Session, Standing, Status};

const KEYS: [u64; 2] = [0x11, 0x22];

/// A world whose session 1 is forwarded.
fn forwarding() -> World {
    let mut world = World::new();
    world.set(session(1, KEYS, [A, B]));
    world.polls(5);
    assert_eq!(world.data(1, A), Some(address(B)));
    assert_eq!(world.data(1, B), Some(address(A)));
    world
}

/// How many polls it takes until session 1 is forwarded.
fn polls_until_forwarding(world: &mut World) -> u32 {
    for polls in 0..20 {
        if world.data(1, A).is_some() {
            return polls;
        }
        world.polls(1);
    }
    panic!("never");
}

#[test]
fn a_session_is_forwarded_after_two_equal_answers_half_a_second_later() {
    let mut world = World::new();
    world.set(session(1, KEYS, [A, B]));
    world.poll();
    let found = world.now;
    assert_eq!(world.count(Standing::Held), 1);
    let mut forwarded = None;
    while forwarded.is_none() {
        assert!(world.now < found + 10 * QUIET);
        world.now += 50 * MILLISECOND;
        let asked = world.now;
        world.poll();
        if world.data(1, A).is_some() {
            forwarded = Some(asked);
        }
    }
    let waited = forwarded.unwrap() - found;
    assert!((QUIET + 50 * MILLISECOND..QUIET + 150 * MILLISECOND).contains(&waited), "{waited}");
    assert_eq!(world.count(Standing::Forwarding), 1);
}

#[test]
fn only_sessions_that_the_kernel_can_forward_become_flows() {
    let here = format!("{OURS}:41641");
    let six = "[2001:db8::5]:1";
    let mut world = World::new();
    let none = Session { ..session(7, KEYS, [A, B]) };
    let mut unusable = none;
    unusable.clients[1].endpoint = Endpoint::Unusable;
    for session in [
        session(1, KEYS, [A, ""]),
        session(2, KEYS, ["", ""]),
        session(3, KEYS, [A, &here]),
        session(4, KEYS, [A, "127.0.0.1:5"]),
        session(5, KEYS, [six, B]),
        session(6, KEYS, [A, A]),
        unusable,
        session(8, KEYS, [A, "224.0.0.1:5"]),
        session(9, KEYS, [six, "[2001:db8::6]:1"]),
        session(9 + SLOTS, KEYS, [A, B]),
    ] {
        world.set(session);
    }
    world.polls(6);
    let expected = [
        (Standing::Forwarding, 1),
        (Standing::Held, 0),
        (Standing::Unbound, 2),
        (Standing::CrossFamily, 1),
        (Standing::ThisHost, 2),
        (Standing::SlotTaken, 1),
        (Standing::Unusable, 3),
    ];
    assert_eq!(expected.map(|(standing, _)| (standing, world.count(standing))), expected);
    assert_eq!(world.table.len(), 1);
    // The place of a session is free when it is over.
    world.sessions.remove(&9);
    world.polls(6);
    assert_eq!(world.data(9 + SLOTS, A), Some(address(B)));
    assert_eq!(world.count(Standing::SlotTaken), 0);
}

#[test]
fn a_control_packet_stops_the_kernel_at_once_until_all_is_quiet() {
    let mut world = forwarding();
    world.control(1, 0x33);
    assert!(world.data(1, A).is_some(), "a stranger's");
    world.control(1, KEYS[1]);
    assert_eq!((world.data(1, A), world.data(1, B)), (None, None));
    let polls = polls_until_forwarding(&mut world);
    // One that sees the note, one that forgets it, then half a second and two answers.
    assert!((4..=6).contains(&polls), "{polls}");
    assert_eq!(world.companion.view().suspicions, 1);

    // As long as they keep coming, tailscaled has it.
    world.control(1, KEYS[0]);
    for _ in 0..10 {
        world.polls(1);
        assert_eq!(world.data(1, A), None);
        world.control(1, KEYS[0]);
    }
    polls_until_forwarding(&mut world);
}

#[test]
fn an_end_that_moves_is_followed() {
    const ELSEWHERE: &str = "198.51.100.11:5";
    let mut world = forwarding();
    world.control(1, KEYS[0]);
    world.set(session(1, KEYS, [ELSEWHERE, B]));
    for _ in 0..3 {
        world.polls(1);
        assert_eq!(
            (world.data(1, A), world.data(1, ELSEWHERE), world.data(1, B)),
            (None, None, None)
        );
    }
    world.polls(4);
    assert_eq!(world.data(1, ELSEWHERE), Some(address(B)));
    assert_eq!(world.data(1, B), Some(address(ELSEWHERE)));
    assert_eq!(world.data(1, A), None);

    // Also if no control packet was noticed, and if they change places.
    world.set(session(1, KEYS, [B, ELSEWHERE]));
    world.poll();
    assert_eq!((world.data(1, B), world.data(1, ELSEWHERE)), (None, None));
    world.polls(6);
    assert_eq!(world.data(1, B), Some(address(ELSEWHERE)));
}

#[test]
fn an_end_that_is_no_longer_bound_ends_the_flow_at_once() {
    let mut world = forwarding();
    world.set(session(1, KEYS, [A, ""]));
    world.poll();
    assert_eq!((world.data(1, A), world.table.len()), (None, 0));
}

#[test]
fn other_clients_under_the_same_vni_are_another_session() {
    let mut world = forwarding();
    world.set(session(1, [0x11, 0x33], [A, B]));
    world.poll();
    assert_eq!((world.data(1, A), world.data(1, B)), (None, None));
    assert!(polls_until_forwarding(&mut world) >= 2);
    world.control(1, 0x22);
    assert!(world.data(1, A).is_some(), "whoever was there before is a stranger now");
}

#[test]
fn every_doubt_about_tailscaled_ends_all_flows_at_once() {
    type Doubt = fn(&mut World);
    let doubts: [(&str, Doubt, Status); 6] = [
        ("unreachable", World::fail, Status::Failed(Failure::Unreachable)),
        (
            "no sessions",
            |world| {
                world.sessions.clear();
                world.poll();
            },
            Status::Accompanying { port: PORT },
        ),
        (
            "no relay",
            |world| {
                world.port = None;
                world.poll();
            },
            Status::NoRelay,
        ),
        (
            "a random port",
            |world| {
                world.port = Some(0);
                world.poll();
            },
            Status::RandomPort,
        ),
        (
            "our own port",
            |world| {
                world.port = Some(3478);
                world.poll();
            },
            Status::OwnPort { port: 3478 },
        ),
        (
            "another port",
            |world| {
                world.port = Some(PORT + 1);
                world.poll();
            },
            Status::Accompanying { port: PORT + 1 },
        ),
    ];
    for (what, doubt, status) in doubts {
        let mut world = forwarding();
        doubt(&mut world);
        assert_eq!((world.data(1, A), world.data(1, B)), (None, None), "{what}");
        assert_eq!(world.companion.view().status, status, "{what}");
        let serves = matches!(status, Status::Accompanying { .. });
        assert_eq!(world.companion.serving().is_some(), serves, "{what}");
        // And it begins anew.
        world.port = Some(PORT);
        world.set(session(1, KEYS, [A, B]));
        world.poll();
        assert_eq!(world.data(1, A), None, "{what}");
        world.polls(6);
        assert_eq!(world.data(1, A), Some(address(B)), "{what}");
    }
}

#[test]
fn the_kernel_stops_when_nobody_asks_any_more() {
    let mut world = forwarding();
    let Some(Serving { port, lease }) = world.companion.serving() else { panic!("nothing") };
    assert_eq!(port, PORT);
    world.now = lease - 1;
    assert!(world.data(1, A).is_some());
    world.now = lease;
    assert_eq!(world.data(1, A), None);
}

#[test]
fn an_answer_that_comes_late_or_by_a_clock_that_jumps_counts_as_the_first() {
    for jump in [LEASE + 1, 3_600_000 * MILLISECOND, 365 * 86_400_000 * MILLISECOND] {
        let mut world = forwarding();
        world.now += jump;
        world.poll();
        assert_eq!((world.data(1, A), world.count(Standing::Held)), (None, 1));
        assert!(polls_until_forwarding(&mut world) >= 3);
    }
    let mut world = forwarding();
    world.now -= 600_000 * MILLISECOND;
    world.poll();
    // The kernel's clock does not go back, and the tables keep to their grace by it; but nothing is believed.
    assert_eq!((world.count(Standing::Held), world.count(Standing::Forwarding)), (1, 0));
}
