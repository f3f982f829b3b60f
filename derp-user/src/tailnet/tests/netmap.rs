//! What messages make of the netmap.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    peer_relay::{Permission, Refusal, disco::DiscoPublic},
    proto::keys::NodePublic,
    tailnet::{
        control::json as read,
        netmap::Netmap,
        response::{MapResponse, RegisterResponse},
    },
};

pub(super) fn node_key(number: u8) -> NodePublic {
    NodePublic::from_bytes([number; 32])
}

pub(super) fn disco_key(number: u8) -> DiscoPublic {
    DiscoPublic::from_bytes([number; 32])
}

/// A node whose keys and addresses follow from its number.
pub(super) fn node(number: u8) -> Value {
    json!({
        "ID": number, "Name": format!("n{number}.example.ts.net."),
        "Key": node_key(number).to_string(), "DiscoKey": disco_key(number).to_string(),
        "Addresses": [format!("100.64.0.{number}/32"), format!("fd7a:115c:a1e0::{number:x}/128")],
        "MachineAuthorized": true,
    })
}

/// A rule that grants the relay to these sources.
pub(super) fn grant(sources: &[&str]) -> Value {
    json!({"SrcIPs": sources, "CapGrant": [
        {"Dsts": ["100.64.0.9/32", "fd7a:115c:a1e0::9/128"], "CapMap": {"tailscale.com/cap/relay": null}},
    ]})
}

fn apply(netmap: &mut Netmap, message: &Value) {
    let message: MapResponse = serde_json::from_value(message.clone()).unwrap();
    netmap.apply(message).unwrap();
}

fn whole() -> Netmap {
    let mut netmap = Netmap::default();
    let peers = [node(1), node(2), node(3)];
    let message = json!({"Node": node(9), "Peers": peers, "PacketFilter": [grant(&["*"])]});
    apply(&mut netmap, &message);
    netmap
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn permission(netmap: &Netmap, number: u8) -> Permission {
    netmap.permission(&node_key(number), now())
}

const UNKNOWN: Permission = Permission::Denied(Refusal::UnknownNode);
const EXPIRED: Permission = Permission::Denied(Refusal::ExpiredNode);
const NOT_GRANTED: Permission = Permission::Denied(Refusal::NotGranted);

#[test]
fn peers_come_change_and_go() {
    let mut netmap = whole();
    assert_eq!(permission(&netmap, 1), Permission::Key(disco_key(1)));
    assert_eq!(permission(&netmap, 4), UNKNOWN);
    assert_eq!(netmap.peers(), 3);
    let mut moved = node(2);
    moved["DiscoKey"] = json!(disco_key(22).to_string());
    let changes = json!({"PeersChanged": [moved, node(4)], "PeersRemoved": [1, 77]});
    apply(&mut netmap, &changes);
    assert_eq!(permission(&netmap, 1), UNKNOWN);
    assert_eq!(permission(&netmap, 2), Permission::Key(disco_key(22)));
    assert_eq!(permission(&netmap, 4), Permission::Key(disco_key(4)));
    assert_eq!((netmap.peers(), netmap.granted_peers(now())), (3, 3));
    // All of them anew: what is said of changes beside that does not count.
    apply(
        &mut netmap,
        &json!({"Peers": [node(5)], "PeersChanged": [node(6)], "PeersRemoved": [5]}),
    );
    assert_eq!(permission(&netmap, 5), Permission::Key(disco_key(5)));
    assert_eq!([2, 4, 6].map(|number| permission(&netmap, number)), [UNKNOWN; 3]);
    apply(&mut netmap, &json!({"KeepAlive": true, "Peers": [node(6)]}));
    apply(&mut netmap, &json!({"Peers": null, "PeersChanged": [], "PeersRemoved": null}));
    assert_eq!(netmap.peers(), 1);
}

#[test]
fn patches_change_keys_and_leave_unknown_nodes_alone() {
    let mut netmap = whole();
    let patch = json!({"PeersChangedPatch": [
        {"NodeID": 1, "Key": node_key(11).to_string(), "DiscoKey": disco_key(12).to_string()},
        {"NodeID": 2, "KeyExpiry": "2027-01-01T00:00:00Z", "Endpoints": ["1.2.3.4:5"], "Online": false},
        {"NodeID": 3, "DERPRegion": 900},
        {"NodeID": 50, "Key": node_key(50).to_string()},
    ]});
    apply(&mut netmap, &patch);
    assert_eq!(permission(&netmap, 1), UNKNOWN);
    assert_eq!(permission(&netmap, 11), Permission::Key(disco_key(12)));
    assert_eq!(permission(&netmap, 2), EXPIRED);
    assert_eq!(permission(&netmap, 3), Permission::Key(disco_key(3)));
    assert_eq!(permission(&netmap, 50), UNKNOWN);
    let patch =
        json!({"PeersChangedPatch": [{"NodeID": 2, "KeyExpiry": "2030-01-01T00:00:00+01:00"}]});
    apply(&mut netmap, &patch);
    assert_eq!(permission(&netmap, 2), Permission::Key(disco_key(2)));
}

#[test]
fn a_node_that_takes_over_another_s_key_is_the_one_that_counts() {
    let mut netmap = whole();
    let mut heir = node(4);
    heir["Key"] = json!(node_key(1).to_string());
    apply(&mut netmap, &json!({"PeersChanged": [heir]}));
    assert_eq!(permission(&netmap, 1), Permission::Key(disco_key(4)));
    apply(&mut netmap, &json!({"PeersRemoved": [1]}));
    assert_eq!(permission(&netmap, 1), Permission::Key(disco_key(4)));
    apply(&mut netmap, &json!({"PeersRemoved": [4]}));
    assert_eq!(permission(&netmap, 1), UNKNOWN);
}

#[test]
fn expired_unsigned_and_keyless_peers_may_not_ask() {
    let mut netmap = whole();
    let with = |number: u8, field: &str, value: Value| {
        let mut node = node(number);
        node[field] = value;
        node
    };
    let zero_disco = json!(format!("discokey:{}", "0".repeat(64)));
    let changes = json!({"PeersChanged": [
        with(1, "Expired", json!(true)),
        with(2, "KeyExpiry", json!("2026-01-01T00:00:00.5Z")),
        with(3, "UnsignedPeerAPIOnly", json!(true)),
        with(4, "DiscoKey", zero_disco),
        with(5, "DiscoKey", json!(null)),
        with(6, "KeyExpiry", json!("0001-01-01T00:00:00Z")),
        with(7, "Addresses", json!(["100.64.0.7/31", "nonsense", "::1/128"])),
        with(8, "Key", json!("nodekey:short")),
    ]});
    apply(&mut netmap, &changes);
    let other_key = Permission::Denied(Refusal::OtherKey);
    let expected = [
        EXPIRED,
        EXPIRED,
        NOT_GRANTED,
        other_key,
        other_key,
        Permission::Key(disco_key(6)),
        Permission::Key(disco_key(7)),
        UNKNOWN,
    ];
    for (number, expected) in (1..).zip(expected) {
        assert_eq!(permission(&netmap, number), expected, "{number}");
    }
}

#[test]
fn nodes_with_addresses_of_one_family_are_granted_by_that() {
    let one = |number: u8, address: &str| {
        let mut node = node(number);
        node["Addresses"] = json!([address]);
        node
    };
    let mut netmap = Netmap::default();
    let peers = [one(1, "100.64.0.1/32"), one(2, "fd7a:115c:a1e0::2/128"), node(3)];
    let filter = [grant(&["fd7a:115c:a1e0::/48"])];
    apply(&mut netmap, &json!({"Node": node(9), "Peers": peers, "PacketFilter": filter}));
    // The first address with a family in common decides, as in the reference.
    assert_eq!(permission(&netmap, 1), NOT_GRANTED);
    assert_eq!(permission(&netmap, 2), Permission::Key(disco_key(2)));
    assert_eq!(permission(&netmap, 3), NOT_GRANTED);
    apply(&mut netmap, &json!({"Node": one(9, "fd7a:115c:a1e0::9/128")}));
    assert_eq!(permission(&netmap, 1), NOT_GRANTED);
    assert_eq!(permission(&netmap, 3), Permission::Key(disco_key(3)));
    apply(&mut netmap, &json!({"Node": one(9, "100.64.0.9/32")}));
    assert_eq!([1, 2, 3].map(|number| permission(&netmap, number)), [NOT_GRANTED; 3]);
}

#[test]
fn the_filter_changes_by_parts() {
    let mut netmap = whole();
    let may = |netmap: &Netmap| {
        [1, 2, 3].map(|number| matches!(permission(netmap, number), Permission::Key(_)))
    };
    assert_eq!(may(&netmap), [true; 3]);
    for (message, expected) in [
        (json!({"PacketFilter": null}), [true; 3]),
        (json!({"PacketFilter": []}), [false; 3]),
        (json!({"PacketFilters": {"a": [grant(&["100.64.0.1"])]}}), [true, false, false]),
        (json!({"PacketFilters": {"b": [grant(&["100.64.0.2"])]}}), [true, true, false]),
        (json!({"PacketFilters": {"a": null}}), [false, true, false]),
        (json!({"PacketFilter": [grant(&["100.64.0.3"])]}), [false, true, true]),
        (json!({"PacketFilters": {"base": null}}), [false, true, false]),
        (
            json!({"PacketFilters": {"*": null, "c": [grant(&["100.64.0.1"])]}}),
            [true, false, false],
        ),
        (
            json!({"PacketFilter": [grant(&["100.64.0.2"])], "PacketFilters": {"*": null}}),
            [false; 3],
        ),
    ] {
        apply(&mut netmap, &message);
        assert_eq!(may(&netmap), expected, "{message}");
    }
}

#[test]
fn awkward_texts_and_unknown_fields_are_all_right() {
    let text = r#"{
        "Node": {"ID": -7, "Name": "\u0026\u003c\u003e\"\\\ud83e\udd80.ts.net.", "Key": null, "User": 5,
            "Addresses": null, "KeyExpiry": "garbage", "Future": {"x": [1, 2.5, null]}},
        "DERPMap": {"Regions": {"1": null, "900": {"RegionName": "caf\u00e9 \u0026 <b>", "Nodes": null}}},
        "Peers": [{"ID": 9223372036854775807, "Key": 5}],
        "UserProfiles": [{"DisplayName": "\"\\\u0000"}]}"#;
    // A key that is no text is a fault of the server.
    assert!(serde_json::from_str::<MapResponse>(text).is_err());
    let text = text.replace("\"Key\": 5", "\"Key\": \"newkey:5\"");
    let mut netmap = Netmap::default();
    netmap.apply(serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(netmap.own().unwrap().name, "&<>\"\\\u{1f980}.ts.net");
    assert_eq!((netmap.peers(), netmap.regions().len()), (0, 1));
    apply(&mut netmap, &json!({"DERPMap": {"Regions": null, "HomeParams": {}}}));
    assert_eq!(netmap.regions().len(), 1);
}

#[test]
fn tailnet_lock_is_known_until_it_is_switched_off() {
    let mut netmap = whole();
    for (message, has_lock) in [
        (json!({"TKAInfo": {"Head": "ABC"}}), true),
        (json!({"TKAInfo": null}), true),
        (json!({"TKAInfo": {"Disabled": true}}), false),
    ] {
        apply(&mut netmap, &message);
        assert_eq!(netmap.has_lock(), has_lock, "{message}");
    }
}

#[test]
fn there_are_only_so_many_parts_of_the_filter() {
    let parts: serde_json::Map<_, _> = (0..4097).map(|it| (format!("p{it}"), json!([]))).collect();
    let message = serde_json::from_value(json!({"PacketFilters": parts})).unwrap();
    let error = Netmap::default().apply(message).unwrap_err();
    assert_eq!(error.to_string(), "the tailnet has more than 4096 parts of the packet filter");
}

/// Each part was bounded by the length of a message, all of them by nothing.
#[test]
fn regression_there_are_only_so_many_networks_in_the_filter() {
    let part = |name: &str| {
        let sources: Vec<_> = (0..600_000).map(|_| "*").collect();
        json!({"PacketFilters": {name: [grant(&sources)]}})
    };
    let mut netmap = Netmap::default();
    let error = netmap.apply(serde_json::from_value(part("a")).unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the tailnet has more than 1000000 networks in the packet filter"
    );
}

#[test]
fn regression_the_own_name_and_addresses_are_bounded() {
    let mut own = node(9);
    own["Name"] = "x".repeat(1 << 20).into();
    own["Addresses"] = (0..1000).map(|it| format!("100.64.{}.{}/32", it / 250, it % 250)).collect();
    let mut netmap = Netmap::default();
    apply(&mut netmap, &json!({"Node": own}));
    let own = netmap.own().unwrap();
    assert_eq!((own.name.len(), own.addresses.len()), (255, 64));
}

/// JSON of the server's kind, with anything in the place of anything.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec![
            "",
            "*",
            "100.64.0.1/32",
            "nodekey:1",
            "tailscale.com/cap/relay"
        ])
        .prop_map(Value::from),
        Just(json!(node_key(1).to_string())),
        Just(node(2)),
    ];
    let names = prop::sample::select(vec![
        "Node",
        "Peers",
        "PeersChanged",
        "PeersRemoved",
        "PeersChangedPatch",
        "PacketFilter",
        "PacketFilters",
        "DERPMap",
        "Regions",
        "Nodes",
        "ID",
        "NodeID",
        "Key",
        "DiscoKey",
        "Addresses",
        "KeyExpiry",
        "SrcIPs",
        "CapGrant",
        "Dsts",
        "Caps",
        "CapMap",
        "1",
        "*",
        "PingRequest",
        "URL",
        "TKAInfo",
        "AuthURL",
        "Error",
        "NodeKeyExpired",
    ]);
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6).prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, it)| (name.to_owned(), it)).collect())
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_json_is_a_message_or_a_fault(messages in prop::collection::vec(any_json(), 1..4)) {
        let mut netmap = whole();
        for message in messages {
            let text = message.to_string();
            if let Ok(message) = read::<MapResponse>("/machine/map", text.as_bytes()) {
                let _ = netmap.apply(message);
            }
            let _ = read::<RegisterResponse>("/machine/register", text.as_bytes());
        }
        for number in 0..10 {
            let _ = permission(&netmap, number);
        }
        prop_assert!(netmap.granted_peers(now()) <= netmap.peers());
    }

    #[test]
    fn any_bytes_are_json_or_a_short_fault(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Err(error) = read::<MapResponse>("/machine/map", &bytes) {
            prop_assert!(error.to_string().len() < 1000);
        }
    }

    /// However peers come and go, a key leads to a node that has it, and to the one that has got it last.
    #[test]
    fn keys_lead_to_their_nodes(changes in prop::collection::vec((1u8..6, 1u8..6, any::<bool>()), 0..40)) {
        let mut netmap = whole();
        let mut model: Vec<(u8, u8)> = vec![(1, 1), (2, 2), (3, 3)];
        for (id, key, is_removal) in changes {
            model.retain(|(it, _)| *it != id);
            if is_removal {
                apply(&mut netmap, &json!({"PeersRemoved": [id]}));
            } else {
                let mut changed = node(id);
                changed["Key"] = json!(node_key(key).to_string());
                apply(&mut netmap, &json!({"PeersChanged": [changed]}));
                model.push((id, key));
            }
            for key in 1..6 {
                let owners = model.iter().filter(|(_, it)| *it == key);
                let allowed: Vec<_> =
                    owners.map(|(id, _)| Permission::Key(disco_key(*id))).collect();
                let known = permission(&netmap, key);
                prop_assert!(known == UNKNOWN || allowed.contains(&known), "{:?}", known);
                if let Some((id, it)) = model.last() && !is_removal && *it == key {
                    prop_assert_eq!(known, Permission::Key(disco_key(*id)));
                }
            }
        }
        prop_assert_eq!(netmap.peers(), model.len());
    }
}
