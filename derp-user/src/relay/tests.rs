//! Scripts: every expected effect of every event.

use super::{
    model::{key, presence},
    *,
};

type Effects = Vec<Effect<&'static str>>;

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

/// Senders are keys, of which anybody can have as many as he likes.
#[test]
fn regression_all_connections_together_remember_so_many_senders() {
    let (mut relay, now) = relay();
    for id in 1..=2 {
        relay.register(id, "receiver", presence(id as u8), now);
    }
    let sender = |number: u32| {
        let mut bytes = [0xff; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        NodePublic::from_bytes(bytes)
    };
    relay.senders = SENDERS_OF_ALL - 100;
    (0..1000).for_each(|number| relay.first_packet(sender(number), 1));
    assert_eq!(relay.clients[&1].senders.len(), 100);
    (0..1000).for_each(|number| relay.first_packet(sender(number), 2));
    assert_eq!(relay.clients[&2].senders.len(), SENDERS_OF_ONE, "a few for everybody");
    relay.unregister(1);
    relay.unregister(2);
    assert_eq!(relay.senders, SENDERS_OF_ALL - 100);
    assert!(relay.departures.is_empty());
}

fn heard(present: &[u8], gone: &[u8]) -> Vec<Heard> {
    let present = present.iter().map(|&byte| Heard::Present(key(byte)));
    present.chain(gone.iter().map(|&byte| Heard::Gone(key(byte)))).collect()
}

#[test]
fn a_long_list_is_told_in_pieces_and_news_of_the_rest_is_not() {
    let (mut relay, now) = relay();
    let number = |number: u16| {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        NodePublic::from_bytes(bytes)
    };
    let count = 2 * PIECE as u16 + 10;
    for each in 0..count {
        let presence = Presence { key: number(each), ..presence(0) };
        relay.register(u64::from(each), "client", presence, now);
    }
    relay.register(70_000, "watcher", presence(0xee), now);
    let mut told = BTreeSet::new();
    let mut hear = |effects: Effects| {
        let before = told.len();
        for effect in effects {
            match effect {
                Effect::PeerPresent { to: "watcher", presence } => told.insert(presence.key),
                Effect::PeerGone { to: "watcher", key, .. } => told.remove(&key),
                Effect::Route { .. }
                | Effect::Duplicate { .. }
                | Effect::PeerPresent { .. }
                | Effect::PeerGone { .. }
                | Effect::Close(_) => false,
            };
        }
        told.len() as i64 - before as i64
    };
    assert_eq!(hear(relay.watch(70_000)), PIECE as i64);
    assert!(relay.tells_more(70_000));
    // One of those told, and one whose turn has not come.
    assert_eq!(hear(relay.unregister(7)), -1);
    assert_eq!(hear(relay.unregister(u64::from(count) - 7)), 0);
    let late = Presence { key: number(count + 1), ..presence(0) };
    assert_eq!(hear(relay.register(70_001, "late", late, now)), 0);
    assert_eq!(hear(relay.watch_more(70_000)), PIECE as i64);
    hear(relay.watch_more(70_000));
    assert!(!relay.tells_more(70_000));
    assert_eq!(relay.watch_more(70_000), Effects::new());
    assert_eq!(told, relay.rosters.keys().copied().collect());
    assert_eq!(relay.unregister(70_000), [Effect::Route { key: key(0xee), to: None }]);
}

#[test]
fn keys_behind_links_are_routed_there_unless_they_are_here() {
    let (mut relay, now) = relay();
    relay.link_up(10, "link", key(0xaa));
    assert_eq!(
        relay.link_heard(10, heard(&[1, 2, 0xff], &[])),
        [route(1, Some("link")), route(2, Some("link")),]
    );
    assert_eq!((relay.census().remote_keys, relay.link_keys(10)), (2, 2), "not this server itself");
    assert_eq!(relay.link_heard(10, heard(&[1], &[])), Effects::new());
    assert_eq!(relay.register(1, "here", presence(1), now), [route(1, Some("here"))]);
    assert_eq!(relay.census().remote_keys, 1, "local wins");
    assert_eq!(relay.unregister(1), [route(1, Some("link"))]);
    assert_eq!(relay.census().remote_keys, 2);
    relay.register(1, "here", presence(1), now);
    assert_eq!(relay.link_heard(10, heard(&[], &[1])), Effects::new());
    assert_eq!(relay.census().forwarders_deleted_other, 0);
    relay.link_heard(10, heard(&[], &[1]));
    assert_eq!(relay.census().forwarders_deleted_other, 1, "it was only local");
    assert_eq!(relay.link_heard(10, heard(&[], &[9])), Effects::new());
    assert_eq!(relay.unregister(1), [route(1, None)]);
    assert_eq!(relay.link_heard(10, heard(&[], &[2])), [route(2, None)]);
    assert_eq!(relay.check(), Ok(()));
}

#[test]
fn regression_a_link_leads_to_so_many_keys_and_no_more() {
    let mut relay = Relay::with_most_keys(key(0xff), 2);
    relay.link_up(10, "link", key(0xaa));
    relay.link_up(11, "other", key(0xab));
    let two = [route(1, Some("link")), route(2, Some("link"))];
    assert_eq!(relay.link_heard(10, heard(&[1, 2, 3], &[])), two);
    assert_eq!((relay.link_keys(10), relay.refused_keys()), (2, 1));
    assert_eq!(relay.link_heard(10, heard(&[2], &[])), Effects::new());
    assert_eq!(relay.refused_keys(), 1, "it knows that one");
    assert_eq!(relay.link_heard(11, heard(&[3], &[])), [route(3, Some("other"))], "its own two");
    assert_eq!(relay.link_heard(10, heard(&[], &[1])), [route(1, None)]);
    assert_eq!(relay.link_heard(10, heard(&[4], &[])), [route(4, Some("link"))], "room again");
    assert_eq!(relay.refused_keys(), 1);
    assert_eq!(relay.check(), Ok(()));
}

/// Reference section 3.11, line by line.
#[test]
fn case_48_the_forwarder_seen_first_is_preferred() {
    let (mut relay, _) = relay();
    for (link, name) in [(10, "a"), (11, "b"), (12, "c")] {
        relay.link_up(link, name, key(0xa0 + link as u8));
    }
    let counts = |relay: &Relay<&str>| {
        let census = relay.census();
        let Census { multi_forwarders_created, multi_forwarders_deleted, .. } = census;
        (multi_forwarders_created, multi_forwarders_deleted, census.forwarders_deleted_other)
    };
    assert_eq!(relay.link_heard(10, heard(&[1], &[])), [route(1, Some("a"))]);
    assert_eq!(relay.link_heard(11, heard(&[], &[1])), Effects::new());
    assert_eq!(counts(&relay), (0, 0, 1), "another one's");
    assert_eq!(relay.link_heard(11, heard(&[1], &[])), Effects::new());
    assert_eq!(relay.link_heard(12, heard(&[1, 1], &[])), Effects::new());
    assert_eq!(counts(&relay), (1, 0, 1));
    assert_eq!(relay.link_heard(10, heard(&[], &[1])), [route(1, Some("b"))], "known longest");
    assert_eq!(counts(&relay), (1, 0, 1));
    assert_eq!(relay.link_heard(10, heard(&[1], &[])), Effects::new(), "it comes last now");
    assert_eq!(relay.link_heard(12, heard(&[], &[1])), Effects::new());
    assert_eq!(counts(&relay), (1, 0, 1));
    assert_eq!(relay.link_heard(11, heard(&[], &[1])), [route(1, Some("a"))]);
    assert_eq!(counts(&relay), (1, 1, 1));
    assert_eq!(relay.link_heard(10, heard(&[], &[1])), [route(1, None)]);
    assert_eq!(relay.census().remote_keys, 0);
    assert_eq!(relay.check(), Ok(()));
}

/// A key has left the region only when neither this server nor a link has it.
#[test]
fn receivers_hear_when_a_sender_leaves_the_region() {
    let (mut relay, now) = relay();
    relay.register(1, "receiver", presence(1), now);
    relay.register(2, "watcher", presence(3), now);
    relay.watch(2);
    relay.link_up(10, "link", key(0xaa));
    relay.link_heard(10, heard(&[2], &[]));
    relay.first_packet(key(2), 1);
    relay.register(4, "moved", presence(2), now);
    assert_eq!(
        relay.unregister(4),
        [route(2, Some("link")), gone("watcher", 2)],
        "watchers hear of this server alone"
    );
    relay.register(5, "moved", presence(2), now);
    assert_eq!(relay.link_heard(10, heard(&[], &[2])), Effects::new());
    assert_eq!(relay.unregister(5), [route(2, None), gone("receiver", 2), gone("watcher", 2)]);

    relay.link_heard(10, heard(&[6], &[]));
    relay.first_packet(key(6), 1);
    assert_eq!(relay.link_heard(10, heard(&[], &[6])), [route(6, None), gone("receiver", 6)]);
}

#[test]
fn case_49_a_broken_link_takes_its_keys_along() {
    let (mut relay, now) = relay();
    relay.register(1, "receiver", presence(1), now);
    relay.link_up(10, "a", key(0xaa));
    relay.link_up(11, "b", key(0xbb));
    relay.link_heard(10, heard(&[2, 3, 4], &[]));
    relay.link_heard(11, heard(&[3], &[]));
    for sender in [2, 3, 4] {
        relay.first_packet(key(sender), 1);
    }
    let (first, more) = relay.link_down(10, 2);
    assert_eq!(first, [route(4, None), gone("receiver", 4), route(3, Some("b"))]);
    assert!(more);
    let (rest, more) = relay.link_down(10, 2);
    assert_eq!(rest, [route(2, None), gone("receiver", 2)]);
    assert!(!more);
    assert_eq!(relay.census().links, 1);
    assert_eq!(relay.link_heard(10, heard(&[5], &[])), Effects::new(), "too late");
    assert_eq!(relay.check(), Ok(()));
}

#[test]
fn servers_that_a_link_leads_to_are_no_remote_keys() {
    let (mut relay, _) = relay();
    assert_eq!(relay.link_up(10, "a", key(0xaa)), Effects::new());
    assert_eq!(relay.link_heard(10, heard(&[0xbb], &[])), [route(0xbb, Some("a"))]);
    assert_eq!(relay.link_up(11, "b", key(0xbb)), [route(0xbb, None)], "known by its own link now");
    assert_eq!(relay.link_heard(10, heard(&[0xbb], &[])), Effects::new());
    assert_eq!(relay.link_heard(11, heard(&[0xaa, 1], &[])), [route(1, Some("b"))]);
    assert_eq!(relay.census().remote_keys, 1);
    assert_eq!(relay.link_heard(10, heard(&[], &[0xbb])), Effects::new());
    assert_eq!(relay.link_down(11, 9), (vec![route(1, None)], false));
    assert_eq!(relay.link_heard(10, heard(&[0xbb], &[])), [route(0xbb, Some("a"))]);
    assert_eq!(relay.check(), Ok(()));
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
