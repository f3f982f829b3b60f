//! Servers and networks that are not as they should be: each fault is named, and the node comes back.

use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;

use super::{
    fake::{Fake, Node, Script, identity},
    joining::first,
};
use crate::tailnet::Phase;

/// Faults before the stream, and what is said of them.
#[tokio::test]
async fn faults_on_the_way_to_the_stream_are_named_and_got_over() {
    let good = Script::default;
    let register = |status, answer| Script { register: vec![(status, answer)], ..good() };
    let key = |status, text: &str| Script { key: Some((status, text.to_owned())), ..good() };
    let long = format!("{{\"publicKey\":\"{}\"}}", "x".repeat(2 << 20));
    let magic_and = |length: u32| [&b"\xff\xff\xffTS"[..], &length.to_be_bytes()].concat();
    let other = format!("{{\"publicKey\":\"mkey:{}\"}}", "7".repeat(64));
    let cases = [
        (key(StatusCode::NOT_FOUND, " no <here> "), "/key: HTTP status 404, \"no <here>\""),
        (key(StatusCode::FOUND, ""), "/key: HTTP status 302"),
        (key(StatusCode::OK, "<html>"), "/key: expected value at line 1"),
        (key(StatusCode::OK, "{\"publicKey\":\"\"}"), "/key: there is no \"publicKey\" like mkey:"),
        (key(StatusCode::OK, &long), "/key: length limit exceeded"),
        (
            Script { refusal: Some("go away".to_owned()), ..good() },
            "/ts2021: the server refuses the Noise handshake: \"go away\"",
        ),
        (Script { early: magic_and(u32::MAX), ..good() }, "/machine/register: "),
        (Script { early: b"SSH-2.0-OpenSSH".to_vec(), ..good() }, "/machine/register: "),
        (
            register(StatusCode::OK, json!({"Error": "invalid key: <no> \"such\" & key"})),
            "refuses this node: \"invalid key: <no> \\\"such\\\" & key\"",
        ),
        (
            register(StatusCode::OK, json!({"AuthURL": "https://c.example/a/1"})),
            "wants somebody to log in at \"https://c.example/a/1\"",
        ),
        (register(StatusCode::OK, json!({"NodeKeyExpired": true})), "new key expired, too"),
        (register(StatusCode::OK, json!("garbage")), "/machine/register: expected value at line 1"),
        (
            register(StatusCode::OK, json!({"Error": 5})),
            "/machine/register: invalid type: integer `5`",
        ),
        (
            register(StatusCode::INTERNAL_SERVER_ERROR, json!("boom")),
            "/machine/register: HTTP status 500, \"boom\"",
        ),
        (Script { map: StatusCode::BAD_GATEWAY, ..good() }, "/machine/map: HTTP status 502"),
        (key(StatusCode::OK, &other), "/ts2021: "),
    ];
    // Pauses are waited for together.
    let mut tests = JoinSet::new();
    for (script, expected) in cases {
        tests.spawn(async move {
            let mut fake = Fake::start(script).await;
            let node = Node::start(&fake, &identity());
            node.until_error(expected).await;
            // The server comes to its senses.
            fake.change(|script| *script = good());
            let stream = fake.stream().await;
            stream.send(&first()).await;
            node.until(|status| status.phase == Phase::Connected).await;
        });
    }
    while let Some(test) = tests.join_next().await {
        test.unwrap();
    }
}

#[tokio::test]
async fn faults_of_the_stream_are_named_and_got_over() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start(&fake, &identity());
    let framed = |length: u32, text: &str| [&length.to_le_bytes()[..], text.as_bytes()].concat();
    for (joins, bytes, expected) in [
        (1, framed(u32::MAX, "{"), "4294967295 bytes, but at most 67108864"),
        (2, framed(3, "{x}"), "/machine/map: key must be a string at line 1"),
        (3, framed(4, "null"), "/machine/map: invalid type: null"),
        (4, framed(0, ""), "/machine/map: EOF while parsing"),
        (5, framed(11, "{\"Node\": 5}"), "/machine/map: invalid type: integer `5`"),
    ] {
        let stream = fake.stream().await;
        stream.send(&first()).await;
        node.until(|status| status.phase == Phase::Connected && status.joins == joins).await;
        assert!(stream.send_raw(bytes).await);
        node.until_error(expected).await;
        stream.closed().await;
    }
}

#[tokio::test]
async fn a_silent_stream_is_given_up() {
    let mut fake = Fake::start(Script::default()).await;
    let node = Node::start_with(&fake, &identity(), Some(Duration::from_secs(5)));
    let stream = fake.stream().await;
    for _ in 0..13 {
        stream.send(&json!({"KeepAlive": true})).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(node.handle.status().last_error, None, "it is not silent");
    // Half a message now and then is silence, too.
    while stream.send_raw(vec![1]).await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    node.until_error("silent for 5s").await;
}
