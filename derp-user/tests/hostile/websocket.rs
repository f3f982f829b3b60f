//! Browsers that take WebSocket's rules to their ends.

use std::{thread, time::Duration};

use crate::{
    peer::{SERVER_INFO, Wire, client_info, random_bytes, random_secret},
    scene::{Attack, MEGABYTE, Scene, shrink},
};

const BEGINNING: u8 = 0x02;
const MIDDLE: u8 = 0x00;
const WHOLE: u8 = 0x82;
const ASK: u8 = 0x89;

const REQUEST: &str = "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
     Sec-WebSocket-Protocol: derp\r\n\r\n";

/// A client's frame with at most 125 bytes, or with any length that fits 16 bits.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = random_bytes::<4>();
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("a short frame").to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A browser that has logged in.
fn browser(attack: &Attack<'_>) -> Wire {
    let mut wire = Wire::connect(attack.server);
    wire.write(REQUEST.as_bytes());
    let head = wire.response_head();
    assert!(head.starts_with("HTTP/1.1 101 "), "refused: {head}");
    let key = wire.announced_key();
    wire.write(&masked(WHOLE, &client_info(&random_secret(), &key, r#"{"version":2}"#)));
    // ServerKey, then ServerInfo, each somewhere in a message.
    while !wire.received.windows(2).any(|bytes| bytes == [SERVER_INFO, 0]) {
        let more = wire.fill(std::time::Instant::now() + Duration::from_secs(30));
        assert!(matches!(more, Some(1..)), "no ServerInfo");
    }
    wire
}

#[test]
fn fragments_without_end() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("WebSocket fragments", |attack| {
        // An unknown frame that is skipped, one byte per fragment; and fragments with nothing in them.
        let ones = masked(MIDDLE, &[0]).repeat(2000);
        let empty = masked(MIDDLE, &[]).repeat(4000);
        thread::scope(|scope| {
            for pieces in [&ones, &empty] {
                scope.spawn(move || {
                    while attack.goes_on() {
                        let mut wire = browser(attack);
                        wire.write(&masked(BEGINNING, &[0x77, 0, 15, 0, 0]));
                        while attack.goes_on() && wire.try_write(pieces).is_ok() {}
                    }
                });
            }
        });
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn control_frames_whose_answers_nobody_reads() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("WebSocket pings, nothing read", |attack| {
        let pings = masked(ASK, &[7; 125]).repeat(200);
        while attack.goes_on() {
            let mut wire = browser(attack);
            shrink(wire.socket());
            wire.socket().set_write_timeout(Some(Duration::from_millis(500))).expect("legal");
            while attack.goes_on() && wire.try_write(&pings).is_ok() {}
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}
