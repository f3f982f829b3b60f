//! Scripts: every expected effect of every event, and a model-based random test.

use proptest::prelude::*;

use super::*;

type Effects = Vec<Effect<&'static str>>;

fn key(byte: u8) -> NodePublic {
    NodePublic::from_bytes([byte; 32])
}

fn presence(key_byte: u8) -> Presence {
    Presence {
        key: key(key_byte),
        address: "192.0.2.1:1000".parse().unwrap(),
        traits: ClientTraits::default(),
    }
}

fn relay() -> (Relay<&'static str>, Instant) {
    (Relay::new(key(0xff)), Instant::now())
}

fn route(key_byte: u8, to: Option<&'static str>) -> Effect<&'static str> {
    Effect::Route { key: key(key_byte), to }
}

fn gone(to: &'static str, key_byte: u8) -> Effect<&'static str> {
    Effect::PeerGone { to, key: key(key_byte), reason: GoneReason::Disconnected }
}

fn present(to: &'static str, key_byte: u8) -> Effect<&'static str> {
    Effect::PeerPresent { to, presence: presence(key_byte) }
}

fn duplicate(connection: &'static str, duplicate: bool) -> Effect<&'static str> {
    Effect::Duplicate { connection, duplicate }
}

#[test]
fn the_last_to_join_or_speak_is_active() {
    let (mut relay, now) = relay();
    assert_eq!(relay.register(1, "a", presence(7), now), [route(7, Some("a"))]);
    assert_eq!(
        relay.register(2, "b", presence(7), now),
        [duplicate("b", true), duplicate("a", true), route(7, Some("b"))]
    );
    assert_eq!(
        relay.register(3, "c", presence(7), now),
        [duplicate("c", true), route(7, Some("c"))]
    );
    let census = relay.census();
    assert_eq!(
        (census.duplicate_keys, census.duplicate_connections, census.duplicates_ever),
        (1, 3, 2)
    );
    assert_eq!(relay.spoke(1), [route(7, Some("a"))]);
    assert_eq!(relay.spoke(1), Effects::new());
    assert_eq!(relay.unregister(1), [route(7, Some("c"))]);
    assert_eq!(relay.unregister(3), [duplicate("b", false), route(7, Some("b"))]);
    assert_eq!(relay.unregister(2), [route(7, None)]);
    assert_eq!(relay.unregister(2), Effects::new());
    assert_eq!(relay.census(), Census { duplicates_ever: 2, ..Census::default() });
}

#[test]
fn receivers_hear_of_a_departed_sender_once() {
    let (mut relay, now) = relay();
    relay.register(1, "receiver", presence(1), now);
    for (id, expected) in
        [(2, vec![route(2, None), gone("receiver", 2)]), (3, vec![route(2, None)])]
    {
        relay.register(id, "sender", presence(2), now);
        relay.first_packet(key(2), 1);
        assert_eq!(relay.unregister(id), expected);
    }
    assert_eq!(relay.unregister(1), [route(1, None)]);
    assert!(relay.departures.is_empty());
}

#[test]
fn a_sender_with_another_connection_has_not_departed() {
    let (mut relay, now) = relay();
    relay.register(1, "receiver", presence(1), now);
    relay.register(2, "sender", presence(2), now);
    relay.register(3, "again", presence(2), now);
    relay.first_packet(key(2), 1);
    assert_eq!(relay.unregister(2), [duplicate("again", false), route(2, Some("again"))]);
    assert_eq!(relay.unregister(3), [route(2, None), gone("receiver", 2)]);
}

#[test]
fn watchers_are_told_in_order() {
    let (mut relay, now) = relay();
    relay.register(1, "a", presence(1), now);
    relay.register(2, "watcher", presence(2), now);
    assert_eq!(relay.watch(2), [present("watcher", 1), present("watcher", 2)]);
    assert_eq!(
        relay.register(3, "b", presence(1), now),
        [duplicate("b", true), duplicate("a", true), route(1, Some("b")), present("watcher", 1)]
    );
    assert_eq!(relay.unregister(3), [duplicate("a", false), route(1, Some("a"))]);
    assert_eq!(relay.unregister(1), [route(1, None), gone("watcher", 1)]);
    assert_eq!(relay.unregister(2), [route(2, None)]);
}

#[test]
fn a_server_does_not_watch_itself() {
    let (mut relay, now) = relay();
    relay.register(1, "self", presence(0xff), now);
    assert_eq!(relay.watch(1), Effects::new());
    assert_eq!(relay.census().watchers, 0);
}

#[test]
fn close_peer_closes_every_connection_of_the_key() {
    let (mut relay, now) = relay();
    relay.register(1, "a", presence(1), now);
    relay.register(2, "b", presence(1), now);
    assert_eq!(relay.close_peer(&key(1)), [Effect::Close("a"), Effect::Close("b")]);
    assert_eq!(relay.close_peer(&key(2)), Effects::new());
}

#[test]
fn home_moves_count_only_when_settled() {
    let (mut relay, start) = relay();
    relay.register(1, "a", presence(1), start);
    let later = start + Duration::from_secs(6);
    assert_eq!(relay.note_preferred(1, true, start), None);
    assert_eq!(relay.census().home_connections, 1);
    assert_eq!(relay.note_preferred(1, true, later), None);
    assert_eq!(relay.note_preferred(1, false, later), Some(HomeMove::Out));
    assert_eq!(relay.note_preferred(1, true, later), Some(HomeMove::In));
    relay.unregister(1);
    assert_eq!(relay.census().home_connections, 0);
}

#[derive(Clone, Debug)]
enum Operation {
    Register(u8),
    Unregister(usize),
    Spoke(usize),
    FirstPacket(u8, usize),
    Watch(usize),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        3 => (0..4u8).prop_map(Operation::Register),
        2 => (0..8usize).prop_map(Operation::Unregister),
        2 => (0..8usize).prop_map(Operation::Spoke),
        1 => (0..4u8, 0..8usize).prop_map(|(sender, at)| Operation::FirstPacket(sender, at)),
        1 => (0..8usize).prop_map(Operation::Watch),
    ];
    proptest::collection::vec(operation, 0..60)
}

proptest! {
    /// The naive model: a list of (connection, key) in order of the last join or word.
    #[test]
    fn routes_follow_the_model(script in operations()) {
        let (mut relay, now) = (Relay::<ConnectionId>::new(key(0xff)), Instant::now());
        let mut model: Vec<(ConnectionId, u8)> = Vec::new();
        let mut routes: BTreeMap<NodePublic, ConnectionId> = BTreeMap::new();
        let mut next_id = 0;
        for operation in script {
            let nth = |at: usize| model.get(at).map_or(99_999, |entry| entry.0);
            let effects = match operation {
                Operation::Register(key_byte) => {
                    next_id += 1;
                    model.push((next_id, key_byte));
                    relay.register(next_id, next_id, presence(key_byte), now)
                }
                Operation::Unregister(at) => {
                    let id = nth(at);
                    model.retain(|entry| entry.0 != id);
                    relay.unregister(id)
                }
                Operation::Spoke(at) => {
                    let id = nth(at);
                    if at < model.len() {
                        let entry = model.remove(at);
                        model.push(entry);
                    }
                    relay.spoke(id)
                }
                Operation::FirstPacket(sender, at) => {
                    relay.first_packet(key(sender), nth(at));
                    Vec::new()
                }
                Operation::Watch(at) => relay.watch(nth(at)),
            };
            for effect in effects {
                match effect {
                    Effect::Route { key, to: Some(to) } => { routes.insert(key, to); }
                    Effect::Route { key, to: None } => { routes.remove(&key); }
                    Effect::PeerPresent { to, .. } | Effect::PeerGone { to, .. } => {
                        prop_assert!(model.iter().any(|entry| entry.0 == to), "told a stranger");
                    }
                    Effect::Duplicate { .. } | Effect::Close(_) => {}
                }
            }
            let expected: BTreeMap<NodePublic, ConnectionId> =
                model.iter().map(|&(id, key_byte)| (key(key_byte), id)).collect();
            prop_assert_eq!(&routes, &expected);
            prop_assert_eq!(relay.check(), Ok(()));
        }
    }
}
