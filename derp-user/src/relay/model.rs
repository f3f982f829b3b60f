//! Random histories against a naive model.

use arbitrary::Arbitrary;
#[cfg(test)]
use proptest::prelude::*;

use super::*;
use crate::fuzzing::below;

pub(super) fn key(byte: u8) -> NodePublic {
    NodePublic::from_bytes([byte; 32])
}

pub(super) fn presence(key_byte: u8) -> Presence {
    Presence {
        key: key(key_byte),
        address: "192.0.2.1:1000".parse().unwrap(),
        traits: ClientTraits::default(),
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Operation {
    Register(#[arbitrary(with = below(4))] u8),
    Unregister(#[arbitrary(with = below(8))] usize),
    Spoke(#[arbitrary(with = below(8))] usize),
    FirstPacket(#[arbitrary(with = below(4))] u8, #[arbitrary(with = below(8))] usize),
    Watch(#[arbitrary(with = below(8))] usize),
    LinkUp(#[arbitrary(with = below(3))] u64),
    LinkHeard(#[arbitrary(with = below(3))] u64, bool, #[arbitrary(with = below(4))] u8),
    LinkDown(#[arbitrary(with = below(3))] u64),
}

#[cfg(test)]
fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        3 => (0..4u8).prop_map(Operation::Register),
        2 => (0..8usize).prop_map(Operation::Unregister),
        2 => (0..8usize).prop_map(Operation::Spoke),
        1 => (0..4u8, 0..8usize).prop_map(|(sender, at)| Operation::FirstPacket(sender, at)),
        1 => (0..8usize).prop_map(Operation::Watch),
        1 => (0..3u64).prop_map(Operation::LinkUp),
        4 => (0..3u64, any::<bool>(), 0..4u8)
            .prop_map(|(link, present, key)| Operation::LinkHeard(link, present, key)),
        1 => (0..3u64).prop_map(Operation::LinkDown),
    ];
    proptest::collection::vec(operation, 0..60)
}

/// The naive model: a list of (connection, key) in order of the last join or word, and a list of
/// (link, key) in the order in which links announced them. Links are numbered from 1000.
pub(crate) fn run(script: &[Operation]) {
    const MOST_KEYS: usize = 3;
    let (mut relay, now) =
        (Relay::<ConnectionId>::with_most_keys(key(0xff), MOST_KEYS), Instant::now());
    let mut model: Vec<(ConnectionId, u8)> = Vec::new();
    let mut forwarders: Vec<(ConnectionId, u8)> = Vec::new();
    let mut links = BTreeSet::new();
    let mut routes: BTreeMap<NodePublic, ConnectionId> = BTreeMap::new();
    let mut next_id = 0;
    for operation in script.iter().copied() {
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
            Operation::LinkUp(link) => {
                if links.insert(link) {
                    // The model's clients include the first server.
                    let server = if link == 0 { 0 } else { 0xa0 + link as u8 };
                    if link == 0 {
                        forwarders.retain(|(_, key_byte)| *key_byte != 0)
                    }
                    relay.link_up(1000 + link, 1000 + link, key(server))
                } else {
                    Vec::new()
                }
            }
            Operation::LinkHeard(link, is_present, key_byte) => {
                let entry = (1000 + link, key_byte);
                if !is_present {
                    forwarders.retain(|other| *other != entry);
                } else if links.contains(&link)
                    && !forwarders.contains(&entry)
                    && !(key_byte == 0 && links.contains(&0))
                    && forwarders.iter().filter(|other| other.0 == entry.0).count() < MOST_KEYS
                {
                    forwarders.push(entry);
                }
                let key = key(key_byte);
                let heard = if is_present { Heard::Present(key) } else { Heard::Gone(key) };
                relay.link_heard(1000 + link, [heard])
            }
            Operation::LinkDown(link) => {
                links.remove(&link);
                forwarders.retain(|(other, _)| *other != 1000 + link);
                let (mut effects, mut more) = relay.link_down(1000 + link, 1);
                while more {
                    let rest;
                    (rest, more) = relay.link_down(1000 + link, 1);
                    effects.extend(rest);
                }
                effects
            }
        };
        for effect in effects {
            match effect {
                Effect::Route { key, to: Some(to) } => {
                    routes.insert(key, to);
                }
                Effect::Route { key, to: None } => {
                    routes.remove(&key);
                }
                Effect::PeerPresent { to, .. } | Effect::PeerGone { to, .. } => {
                    assert!(model.iter().any(|entry| entry.0 == to), "told a stranger");
                }
                Effect::Duplicate { .. } | Effect::Close(_) => {}
            }
        }
        // The first announcement of a key is inserted last, and stays unless the key is here.
        let elsewhere = forwarders.iter().rev();
        let expected: BTreeMap<NodePublic, ConnectionId> =
            elsewhere.chain(&model).map(|&(id, key_byte)| (key(key_byte), id)).collect();
        assert_eq!(&routes, &expected);
        let remote = expected.values().filter(|id| **id >= 1000).count() as u64;
        assert_eq!(relay.census().remote_keys, remote);
        assert_eq!(relay.check(), Ok(()));
    }
}

#[cfg(test)]
proptest! {
    #[test]
    fn routes_follow_the_model(script in operations()) {
        run(&script);
    }
}
