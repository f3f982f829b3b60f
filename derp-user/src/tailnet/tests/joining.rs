//! How a node joins a tailnet, and stays in it.

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    fake::{Fake, Node, Script, identity},
    netmap::{disco_key, grant, node, node_key},
};
use crate::{
    peer_relay::{Permission, Refusal},
    tailnet::Phase,
};

const EARLY: &str = r#"{"nodeKeyChallenge":"chalpub:00"}"#;

fn early() -> Vec<u8> {
    let length = u32::try_from(EARLY.len()).unwrap();
    [&b"\xff\xff\xffTS"[..], &length.to_be_bytes(), EARLY.as_bytes()].concat()
}

/// The first message of a stream: this node, two peers, and a region that is this server's.
pub(super) fn first() -> Value {
    json!({
        "Node": node(9), "Peers": [node(1), node(2)], "PacketFilter": [grant(&["100.64.0.1"])],
        "DERPMap": {"Regions": {
            "7": {"RegionName": "a & \"b\" <c>", "Nodes": [{"HostName": "other.example"}]},
            "900": {"Nodes": [{"HostName": "derp.example"}]},
        }},
        "UserProfiles": [{"DisplayName": "\u{1f980} & <\u{e9}>"}],
    })
}

#[tokio::test]
async fn a_node_registers_publishes_and_follows() {
    let mut fake = Fake::start(Script { early: early(), ..Script::default() }).await;
    let node = Node::start(&fake, &identity());
    let key = identity().node.public();

    let register = fake.heard().await;
    assert_eq!((register.method.as_str(), register.path.as_str()), ("POST", "/machine/register"));
    let register = register.json();
    assert_eq!(register["NodeKey"], json!(key.to_string()));
    assert_eq!(register["Auth"]["AuthKey"], json!("tskey-auth-1"));
    assert_eq!((&register["OldNodeKey"], &register["Version"]), (&Value::Null, &json!(130)));
    let update = fake.heard_at("/machine/map").await;
    assert_eq!(update["DiscoKey"], json!(disco_key(99).to_string()));
    assert_eq!(update["Hostinfo"]["Hostname"], json!("relay"));
    assert_eq!((&update["Stream"], &update["OmitPeers"]), (&json!(false), &json!(true)));
    assert_eq!(update["Hostinfo"]["NetInfo"], Value::Null, "the region is not known yet");
    let stream = fake.stream().await;
    assert_eq!(fake.heard_at("/machine/map").await["Stream"], json!(true));
    assert_eq!(node.saved().registered_with, Some(format!("http://{}", fake.address)));

    // Nothing is allowed before the tailnet is known.
    assert_eq!(node.handle.permission(&node_key(1)), Permission::Denied(Refusal::UnknownNode));
    stream.send(&first()).await;
    let update = fake.heard_at("/machine/map").await;
    assert_eq!(update["Hostinfo"]["NetInfo"]["PreferredDERP"], json!(900));
    assert_eq!(update["Hostinfo"]["Hostname"], json!("relay"), "all of it is sent each time");
    let status = node.until(|status| status.home_region == Some(900)).await;
    assert_eq!((status.phase, status.joins), (Phase::Connected, 1));
    assert_eq!((status.peers, status.granted_peers), (2, 1));
    assert_eq!(status.name, "n9.example.ts.net");
    assert_eq!((status.last_error, status.key_expiry), (None, None));
    assert_eq!(node.handle.permission(&node_key(1)), Permission::Key(disco_key(1)));
    assert_eq!(node.handle.permission(&node_key(2)), Permission::Denied(Refusal::NotGranted));

    stream.send(&json!({"KeepAlive": true})).await;
    stream
        .send(&json!({"PeersChangedPatch": [{"NodeID": 1, "DiscoKey": disco_key(11).to_string()}]}))
        .await;
    node.until_permitted(&node_key(1), Permission::Key(disco_key(11))).await;
    stream.send(&json!({"PacketFilters": {"more": [grant(&["100.64.0.2"])]}})).await;
    node.until_permitted(&node_key(2), Permission::Key(disco_key(2))).await;
    stream.send(&json!({"PeersRemoved": [1]})).await;
    node.until_permitted(&node_key(1), Permission::Denied(Refusal::UnknownNode)).await;
    // The region is no longer there: what was published is taken back.
    stream.send(&json!({"DERPMap": {"Regions": {}}})).await;
    let update = fake.heard_at("/machine/map").await;
    assert_eq!(update["Hostinfo"]["NetInfo"], Value::Null);
    assert!(node.handle.status().messages >= 6);
}

#[tokio::test]
async fn after_a_lost_stream_everything_is_published_again_and_the_map_stays_until_then() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start(&fake, &identity());
    let stream = fake.stream().await;
    stream.send(&first()).await;
    node.until(|status| status.home_region == Some(900)).await;
    drop(stream);
    node.until_error("closed the stream").await;
    assert_eq!(node.handle.permission(&node_key(1)), Permission::Key(disco_key(1)));
    let stream = fake.stream().await;
    let mut requests = Vec::new();
    loop {
        let heard = fake.heard().await;
        let is_last = heard.body.contains("\"Stream\":true") && requests.len() > 2;
        requests.push((heard.path.clone(), heard.json()));
        if is_last {
            break;
        }
    }
    let registers = requests.iter().filter(|(path, _)| path == "/machine/register").count();
    assert_eq!(registers, 1, "the server still knows the node");
    let (_, update) = &requests[requests.len() - 2];
    assert_eq!(update["Hostinfo"]["NetInfo"]["PreferredDERP"], json!(900), "it is known at once");
    // A new stream begins with everything: whoever is not named is gone.
    stream.send(&json!({"Node": super::netmap::node(9), "Peers": [super::netmap::node(2)]})).await;
    node.until_permitted(&node_key(1), Permission::Denied(Refusal::UnknownNode)).await;
    let status = node.until(|status| status.joins == 2).await;
    assert_eq!((status.phase, status.peers, status.granted_peers), (Phase::Connected, 1, 0));
}

#[tokio::test]
async fn a_known_node_needs_no_auth_key_until_the_server_wants_one() {
    let mut fake = Fake::start(Script::default()).await;
    let mut known = identity();
    known.registered_with = Some(format!("http://{}", fake.address));
    let node = Node::start(&fake, &known);
    assert_eq!(fake.heard_at("/machine/register").await["Auth"], Value::Null);
    fake.stream().await;
    drop(node);

    let url = "https://control.example/a/1";
    for refusal in [json!({"Error": "unknown \u{0026} gone"}), json!({"AuthURL": url})] {
        let good = json!({"MachineAuthorized": true});
        fake.change(|script| {
            script.register = vec![(StatusCode::OK, refusal), (StatusCode::OK, good)];
        });
        let node = Node::start(&fake, &known);
        assert_eq!(fake.heard_at("/machine/register").await["Auth"], Value::Null);
        let second = fake.heard_at("/machine/register").await;
        assert_eq!(second["Auth"]["AuthKey"], json!("tskey-auth-1"));
        assert_eq!(second["NodeKey"], json!(known.node.public().to_string()));
        fake.stream().await;
        drop(node);
    }
}

#[tokio::test]
async fn a_server_that_has_forgotten_the_node_gets_it_registered_again() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start(&fake, &identity());
    let stream = fake.stream().await;
    fake.change(|script| script.map = StatusCode::NOT_FOUND);
    drop(stream);
    node.until_error("HTTP status 404").await;
    fake.change(|script| script.map = StatusCode::OK);
    let stream = fake.stream().await;
    stream.send(&first()).await;
    node.until(|status| status.phase == Phase::Connected).await;
}

#[tokio::test]
async fn an_expired_key_is_replaced_and_the_new_one_is_kept_before_it_is_told() {
    let expired = json!({"NodeKeyExpired": true});
    let script = Script {
        register: vec![
            (StatusCode::OK, expired.clone()),
            (StatusCode::INTERNAL_SERVER_ERROR, json!("oops")),
            (StatusCode::OK, expired),
            (StatusCode::OK, json!({"MachineAuthorized": true})),
        ],
        ..Script::default()
    };
    let mut fake = Fake::start(script).await;
    let mut known = identity();
    known.registered_with = Some(format!("http://{}", fake.address));
    let mut node = Node::start(&fake, &known);
    let (old, mut next) = (known.node.public().to_string(), Vec::new());
    for (attempt, is_new) in [false, true, false, true].into_iter().enumerate() {
        let register = fake.heard_at("/machine/register").await;
        assert_eq!(register["OldNodeKey"].is_string(), is_new, "{attempt}");
        if is_new {
            assert_eq!(register["OldNodeKey"], json!(old));
            assert_eq!(register["Auth"]["AuthKey"], json!("tskey-auth-1"));
            next.push(register["NodeKey"].clone());
        }
        if attempt == 1 {
            let saved = node.saved();
            assert_eq!(json!(saved.next_node.unwrap().public().to_string()), next[0]);
            assert_eq!(saved.node.public(), known.node.public());
        }
    }
    assert_eq!(next[0], next[1], "the same one is tried again");
    fake.stream().await;
    let saved = node.saved();
    assert!(saved.next_node.is_none());
    assert_eq!(json!(saved.node.public().to_string()), next[0]);
    assert_eq!(node.handle.next_node().await.public(), saved.node.public());
    assert_eq!(json!(node.handle.status().node_key), next[0]);
}

#[tokio::test]
async fn a_key_that_expires_while_connected_is_replaced() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start(&fake, &identity());
    let stream = fake.stream().await;
    fake.heard_at("/machine/register").await;
    stream.send(&first()).await;
    node.until(|status| status.phase == Phase::Connected).await;
    let mut own = super::netmap::node(9);
    let soon = SystemTime::now() + Duration::from_secs(2);
    let soon = soon.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let time = time::OffsetDateTime::from_unix_timestamp(i64::try_from(soon).unwrap()).unwrap();
    let (date, clock) = (time.date(), time.time());
    let (hour, minute, second) = clock.as_hms();
    own["KeyExpiry"] = json!(format!("{date}T{hour:02}:{minute:02}:{second:02}Z"));
    stream.send(&json!({"Node": own})).await;
    node.until(|status| status.key_expiry == Some(soon)).await;
    let register = fake.heard_at("/machine/register").await;
    assert_eq!(register["OldNodeKey"], json!(identity().node.public().to_string()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(now >= soon, "not before its time");
    let stream = fake.stream().await;
    stream.send(&first()).await;
    node.until(|status| status.joins == 2).await;
}

#[tokio::test]
async fn a_node_waits_for_an_administrator() {
    let script = Script {
        register: vec![(StatusCode::OK, json!({"MachineAuthorized": false}))],
        ..Script::default()
    };
    let mut fake = Fake::start(script).await;
    let node = Node::start(&fake, &identity());
    let stream = fake.stream().await;
    let mut own = super::netmap::node(9);
    own["MachineAuthorized"] = json!(false);
    stream.send(&json!({"Node": own})).await;
    node.until(|status| status.phase == Phase::AwaitingApproval).await;
    stream.send(&first()).await;
    let status = node.until(|status| status.phase == Phase::Connected).await;
    assert_eq!(status.joins, 1);
}

#[tokio::test]
async fn pings_are_answered_each_in_its_way() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start(&fake, &identity());
    let stream = fake.stream().await;
    stream.send(&first()).await;
    node.until(|status| status.home_region == Some(900)).await;
    let ping = |path: &str, types: &str| {
        json!({"PingRequest": {"URL": format!("https://unused.example{path}"), "URLIsNoise": true,
            "Types": types, "IP": "100.64.0.1"}})
    };
    let unknown_kind =
        r#"{"Type":"disco","IP":"100.64.0.1","Err":"derpd does not send such pings"}"#;
    let no_page = "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n";
    for (path, types, method, body) in [
        ("/p/1?x=y", "", "HEAD", ""),
        ("/c2n/2", "c2n", "POST", no_page),
        ("/p/3", "disco", "POST", unknown_kind),
    ] {
        // Twice the same one is one.
        stream.send(&ping(path, types)).await;
        stream.send(&ping(path, types)).await;
        let heard = loop {
            let heard = fake.heard().await;
            if !heard.path.starts_with("/machine") {
                break heard;
            }
        };
        assert_eq!((heard.method.as_str(), heard.path.as_str()), (method, path));
        assert_eq!(heard.body, body);
    }
    node.until(|status| status.pings == 3).await;
    // Also with a message that only keeps the connection alive; not with an address that is none.
    let mut alive = ping("/p/4", "");
    alive["KeepAlive"] = json!(true);
    stream.send(&alive).await;
    node.until(|status| status.pings == 4).await;
    stream.send(&json!({"PingRequest": {"URL": "ftp://x"}})).await;
    stream.send(&ping("/p/5", "")).await;
    let status = node.until(|status| status.pings == 5).await;
    assert_eq!(status.phase, Phase::Connected);
}
