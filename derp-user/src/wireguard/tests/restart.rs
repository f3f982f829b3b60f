//! Another configuration, and another process.

use std::net::SocketAddr;

use super::support::*;
use crate::{
    flow::{FlowTable, Found, Mirror, SharedMirror},
    wireguard::{Directory, Limits, Network, Pairs, Refusal, Stored, WireGuardRelay},
};

const A: &str = "198.51.100.10:1001";
const B: &str = "192.0.2.20:2002";
const C: &str = "192.0.2.30:3003";

/// Three peers, the first of whom has a session with each of the others.
fn three(pairs: Pairs) -> (World, Network) {
    let network = network(3, pairs);
    let mut world = World::new(std::slice::from_ref(&network));
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.session((3, C, 3), (1, A, 11));
    world.review();
    (world, network)
}

#[test]
fn a_reload_leaves_the_sessions_of_pairs_that_remain_alone() {
    let (mut world, mut network) = three(Pairs::All);
    // Another order, one peer less, and a new one.
    network.peers.remove(1);
    network.peers.reverse();
    network.peers.push(super::support::network(9, Pairs::All).peers[8].clone());
    world.relay.reload(&mut world.table, Directory::new(&[network.clone()]));
    world.settle();
    world.exchange((C, 3), (A, 11));
    assert!(world.data(B, 10).is_err(), "its peer is gone");
    assert_eq!(world.whereabouts(1).as_deref(), Some(A));
    assert_eq!(world.whereabouts(3).as_deref(), Some(C));
    assert_eq!(world.initiate(A, 2, 50), Err(Refusal::UnknownKey));
    world.initiate(A, 9, 51).unwrap();
    world.session((9, B, 52), (1, A, 53));
    // A pair that is none any more.
    network.pairs = Pairs::List(vec![[1, 2]]);
    world.relay.reload(&mut world.table, Directory::new(&[network]));
    world.settle();
    assert!(world.data(C, 11).is_err());
    world.exchange((B, 52), (A, 53));
}

#[test]
fn a_reload_keeps_what_waits_for_an_answer() {
    let (mut world, network) = three(Pairs::All);
    world.initiate(B, 1, 40).unwrap();
    world.relay.reload(&mut world.table, Directory::new(&[network]));
    world.respond(A, 2, 41, 40).unwrap();
    world.exchange((B, 40), (A, 41));
}

#[test]
fn a_peer_that_is_pinned_elsewhere_loses_its_sessions() {
    let (mut world, mut network) = three(Pairs::All);
    network.peers[1].address = Some(address("192.0.2.99:99"));
    world.relay.reload(&mut world.table, Directory::new(&[network]));
    world.settle();
    assert!(world.data(B, 10).is_err());
    assert_eq!(world.whereabouts(2).as_deref(), Some("192.0.2.99:99"));
    world.exchange((C, 3), (A, 11));
}

/// Ends the process, and begins another one that finds `found` in the kernel's tables.
fn restart(world: &World, networks: &[Network], seconds: u64, found: &Found) -> World {
    let json = world.relay.store(UNIX, world.now).to_json();
    resume(&json, networks, seconds, found)
}

/// Begins a process with what another one has saved so long ago.
fn resume(json: &str, networks: &[Network], seconds: u64, found: &Found) -> World {
    let stored = Stored::from_json(json.as_bytes()).unwrap();
    let directory = Directory::new(networks);
    let sessions = stored.sessions(&directory, PORT, UNIX + seconds);
    let specs: Vec<_> = sessions.iter().map(|it| it.spec.clone()).collect();
    let mut table = table(256);
    // By another monotonic clock, as after a reboot.
    let now = 7 * SECOND;
    let flows = table.adopt(&specs, found, now);
    let mut relay = WireGuardRelay::new(directory, PORT, Limits::default());
    let sessions = sessions.into_iter().zip(flows.into_iter().map(Result::unwrap));
    relay.resume(&mut table, &stored, sessions, UNIX + seconds, now);
    let mut next = World::new(networks);
    (next.relay, next.table, next.now) = (relay, table, now);
    next.settle();
    next
}

fn slots(table: &FlowTable) -> Vec<String> {
    let viewer = crate::flow::Viewer { has_kernel: false, interface_name: &|_| None, now: 0 };
    table.views(&viewer).iter().map(|flow| format!("{} {}", flow.slot, flow.name)).collect()
}

#[test]
fn a_restart_needs_no_new_handshake() {
    let (mut world, network) = three(Pairs::All);
    world.pass(20);
    let mut next = restart(&world, &[network], 3, &Found::default());
    next.exchange((B, 2), (A, 10));
    next.exchange((C, 3), (A, 11));
    for (peer, place) in (1..).zip([A, B, C]) {
        assert_eq!(next.whereabouts(peer).as_deref(), Some(place));
    }
    next.review();
    assert_eq!(next.view().pairs[0].sessions[0].idle_seconds, 0, "it has just been heard of");
    next.session((2, B, 70), (1, A, 71));
    assert_eq!(next.initiate(B, 1, 2), Err(Refusal::IndexCollision), "an index in use");
}

#[test]
fn what_the_kernel_holds_goes_on_in_its_place() {
    use derp_common::flow::{
        Side, Tables as _,
        table::{leg_index, source_value},
    };
    let (world, network) = three(Pairs::All);
    let before = slots(&world.table);
    let mut found = Found::default();
    {
        let mirror = world.mirror.read();
        for slot in 0..4 {
            let control = mirror.control(slot).unwrap_or_default();
            let leg = |side| *mirror.leg(leg_index(slot, control.copy(), side)).unwrap();
            if control.forwards() {
                let senders = mirror.senders(slot).unwrap();
                found.add(slot, control, Side::ALL.map(leg), senders);
            }
        }
        for session in world.view().pairs.iter().flat_map(|pair| &pair.sessions) {
            let [a, b]: [SocketAddr; 2] = session.addresses;
            let indexes = if a == address(B) { [10, 2] } else { [11, 3] };
            for (side, (remote, index)) in
                Side::ALL.into_iter().zip([a, b].into_iter().zip(indexes))
            {
                let source = crate::flow::source_of(remote, PORT, raw(index));
                assert_eq!(mirror.source(&source), Some(source_value(session.slot, side)));
                found.sources.push((source, source_value(session.slot, side)));
            }
        }
    }
    let mut next = restart(&world, &[network], 3, &found);
    assert_eq!(slots(&next.table), before, "nothing has moved");
    // The kernel's copy has all of it; the new forwarder's is filled from a snapshot.
    let mut mirror = Mirror::new(256);
    next.table.snapshot().iter().for_each(|change| mirror.change(change));
    next.mirror = SharedMirror::new(mirror);
    next.exchange((B, 2), (A, 10));
    next.exchange((C, 3), (A, 11));
}

#[test]
fn sessions_that_are_over_or_not_allowed_any_more_are_not_resumed() {
    let (world, network) = three(Pairs::All);
    let late = restart(&world, std::slice::from_ref(&network), 300, &Found::default());
    assert_eq!((late.view().sessions, late.table.len()), (0, 0));
    assert_eq!(late.whereabouts(1).as_deref(), Some(A), "where it was is worth knowing");
    let fewer = Network { pairs: Pairs::List(vec![[0, 2]]), ..network };
    let mut changed = restart(&world, &[fewer], 3, &Found::default());
    assert!(changed.data(B, 10).is_err());
    changed.exchange((C, 3), (A, 11));
}

#[test]
fn a_clock_that_was_set_back_does_no_harm() {
    let (world, network) = three(Pairs::All);
    let json = world.relay.store(UNIX, world.now).to_json();
    let stored = Stored::from_json(json.as_bytes()).unwrap();
    assert_eq!(stored.sessions(&Directory::new(&[network]), PORT, UNIX - 1000).len(), 2);
}

#[test]
fn a_state_that_is_none_is_refused() {
    for (json, reason) in [
        ("", "EOF"),
        ("{}", "missing field `version`"),
        (r#"{"version":2}"#, "version 2 of the format, where 1 is known"),
        (r#"{"version":1}"#, "missing field `saved_at`"),
        (
            r#"{"version":1,"saved_at":1,"peers":[{"public_key":"x","address":"192.0.2.1:1","local":"::","idle_seconds":0}],"sessions":[]}"#,
            "must be a WireGuard public key",
        ),
    ] {
        let error = Stored::from_json(json.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(reason), "{json}: {error}");
    }
}

#[test]
fn regression_a_session_that_was_saved_before_its_first_data_outlives_a_crash() {
    let network = network(2, Pairs::All);
    let mut world = World::new(std::slice::from_ref(&network));
    world.initiate(A, 2, 1).unwrap();
    world.initiate(B, 1, 2).unwrap();
    world.respond(A, 2, 10, 2).unwrap();
    // Nothing that is saved happens for the next two minutes, but data goes both ways. Then the process dies.
    let saved = world.relay.store(UNIX, world.now).to_json();
    let mut next = resume(&saved, &[network], 100, &Found::default());
    next.review();
    next.exchange((B, 2), (A, 10));
    next.live(120);
    next.exchange((B, 2), (A, 10));
    next.live(300);
    assert_eq!(next.view().sessions, 0, "and ends like any other");
}

#[test]
fn regression_the_first_data_of_a_session_is_saved() {
    let mut world = World::new(&[network(2, Pairs::All)]);
    world.initiate(A, 2, 1).unwrap();
    world.session((2, B, 2), (1, A, 10));
    world.review();
    assert!(world.relay.take_changed());
    world.session((2, B, 3), (1, A, 11));
    assert!(world.relay.take_changed(), "the session");
    world.review();
    assert!(world.relay.take_changed(), "its data");
    world.exchange((B, 3), (A, 11));
    world.review();
    assert!(!world.relay.take_changed(), "more of it");
}

#[test]
fn regression_what_another_build_has_added_to_the_state_is_skipped() {
    let (world, network) = three(Pairs::All);
    let json = world.relay.store(UNIX, world.now).to_json();
    let added = json.replace("{\n", "{\n\"of_a_later_build\": [1, 2],\n");
    assert!(added.matches("of_a_later_build").count() > 6, "{added}");
    let mut next = resume(&added, &[network], 3, &Found::default());
    next.exchange((B, 2), (A, 10));
    next.exchange((C, 3), (A, 11));
}

#[test]
fn regression_addresses_that_nobody_can_have_are_not_resumed() {
    let (world, network) = three(Pairs::All);
    let json = world.relay.store(UNIX, world.now).to_json();
    for nobodys in ["0.0.0.0:2002", "224.0.0.1:2002", "192.0.2.20:0", "[fe80::1]:2002"] {
        let mut next =
            resume(&json.replace(B, nobodys), std::slice::from_ref(&network), 3, &Found::default());
        assert_eq!(next.whereabouts(2), None, "{nobodys}");
        assert_eq!(next.view().sessions, 1, "{nobodys}");
        next.exchange((C, 3), (A, 11));
    }
}

#[test]
fn regression_a_peer_that_has_just_moved_is_still_found_after_a_restart() {
    let (mut world, network) = three(Pairs::All);
    let moved = "192.0.2.77:7";
    world.session((2, moved, 20), (1, A, 30));
    world.review();
    assert_eq!(world.whereabouts(2).as_deref(), Some(B), "it may still be there");
    let mut next = restart(&world, &[network], 3, &Found::default());
    let mut to = next.initiate(A, 2, 40).unwrap();
    to.sort_unstable();
    assert_eq!(to, [B, moved]);
}
