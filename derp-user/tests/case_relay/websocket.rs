//! DERP over WebSocket (cases 18, 19, 21 and 22; case 20 is in `handshake`). The frames are written and
//! read here byte by byte, so that they can be of any shape.

use std::time::Instant;

use crypto_box::{PublicKey, SecretKey};

use crate::{
    differences::{is_derpd, kind},
    fake::{Fake, Reply},
    peer::{
        KEEP_ALIVE, MAGIC, MAX_PACKET, PING, PONG, Peer, RECV_PACKET, SERVER_INFO, SERVER_KEY,
        Wire, client_info, frame, header, open_server_info, random_bytes, random_secret,
        send_packet,
    },
    proxied::{self, TEXT as PROXY_HEADER, TRUST},
    server::{Kind, PATIENCE, Response, Server},
};

const INFO: &str = r#"{"version":2}"#;

// First bytes of frames: the type, and that the message ends with the frame.
const BEGINNING: u8 = 0x02;
const MIDDLE: u8 = 0x00;
const END: u8 = 0x80;
const TEXT: u8 = 0x81;
const WHOLE: u8 = 0x82;
const CLOSE: u8 = 0x88;
const ASK: u8 = 0x89;
const ANSWER: u8 = 0x8a;

/// A browser's request, in which the key is that of RFC 6455 section 1.3.
const REQUEST: &str = "GET /derp HTTP/1.1\r\nHost: relay\r\nOrigin: https://elsewhere.example\r\n\
     Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
     Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: derp\r\n\
     Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n";

/// Encodes a client's frame.
fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = random_bytes::<4>();
    let mut bytes = vec![first];
    match payload.len() {
        length @ ..126 => bytes.push(0x80 | length as u8),
        length @ ..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("checked").to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// A peer that speaks WebSocket.
struct Browser {
    wire: Wire,
    /// DERP bytes that nobody has taken.
    stream: Vec<u8>,
    /// How long the longest message was.
    longest: usize,
}

impl Browser {
    /// Connects with a request like [`REQUEST`]; the answer's head, too.
    fn open(server: &Server, request: &str) -> (Self, Response) {
        Self::open_on(Wire::connect(server), request.as_bytes())
    }

    /// The same, on a connection that there is already.
    fn open_on(mut wire: Wire, request: &[u8]) -> (Self, Response) {
        wire.write(request);
        let head = Response::parse(wire.response_head().as_bytes());
        (Self { wire, stream: Vec::new(), longest: 0 }, head)
    }

    /// Connects and logs in.
    fn connect(server: &Server, secret: &SecretKey) -> Self {
        let (mut browser, head) = Self::open(server, REQUEST);
        assert_eq!(head.status, 101, "{head:?}");
        let key = browser.server_key();
        browser.send(WHOLE, &client_info(secret, &key, INFO));
        let info = browser.derp(SERVER_INFO);
        assert_eq!(open_server_info(secret, &key, &info), r#"{"version":2}"#);
        browser
    }

    fn send(&mut self, first: u8, payload: &[u8]) {
        self.wire.write(&masked(first, payload));
    }

    /// Waits for a WebSocket frame: its first byte and its payload.
    fn message(&mut self) -> (u8, Vec<u8>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.take_message() {
                return message;
            }
            let more = self.wire.fill(deadline);
            assert!(matches!(more, Some(1..)), "no message, but {more:?}");
        }
    }

    fn take_message(&mut self) -> Option<(u8, Vec<u8>)> {
        let received = &mut self.wire.received;
        let (&[first, second], rest) = received.split_first_chunk()?;
        let (length, rest) = match second {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (usize::try_from(u64::from_be_bytes(*length)).expect("it fits"), rest)
            }
            length => (usize::from(length), rest),
        };
        assert!(length < 1 << 30, "a server's frames are not masked");
        let header = received.len() - rest.len();
        let payload = rest.get(..length)?.to_vec();
        received.drain(..header + length);
        Some((first, payload))
    }

    /// Waits for a DERP frame that has to come and be of this kind; keepalives may come before it.
    fn derp(&mut self, wanted: u8) -> Vec<u8> {
        loop {
            if let Some((&[kind, a, b, c, d], rest)) = self.stream.split_first_chunk()
                && let Some(payload) = rest.get(..u32::from_be_bytes([a, b, c, d]) as usize)
            {
                let payload = payload.to_vec();
                self.stream.drain(..5 + payload.len());
                if kind != KEEP_ALIVE {
                    assert_eq!(kind, wanted, "the type of the frame");
                    return payload;
                }
                continue;
            }
            let (first, payload) = self.message();
            assert_eq!(first, WHOLE, "DERP is in binary messages");
            self.longest = self.longest.max(payload.len());
            self.stream.extend(payload);
        }
    }

    fn server_key(&mut self) -> PublicKey {
        let payload = self.derp(SERVER_KEY);
        let key = payload.strip_prefix(MAGIC).expect("the frame starts with the magic");
        PublicKey::from_slice(key).expect("the rest of the frame is a key")
    }

    /// Waits until the relay has handled everything sent so far on this connection.
    fn round_trip(&mut self) {
        let token = random_bytes::<8>();
        self.send(WHOLE, &frame(PING, &token));
        assert_eq!(self.derp(PONG), token);
    }

    /// Waits for the relay to close with this code, answers, and checks that it hangs up.
    fn expect_close(mut self, code: u16) {
        loop {
            let (first, payload) = self.message();
            if first == CLOSE {
                assert_eq!(payload.get(..2), Some(&code.to_be_bytes()[..]), "the code");
                // derper waits for this; derpd may have hung up.
                self.wire.try_write(&masked(CLOSE, &payload[..2])).ok();
                return self.wire.expect_closed();
            }
        }
    }
}

#[test]
fn case_18_websocket_with_the_subprotocol_is_derp_in_binary_messages() {
    let server = Server::start();
    let (mut browser, head) = Browser::open(&server, REQUEST);
    assert_eq!(head.status, 101);
    for (name, value) in [
        ("Upgrade", Some("websocket")),
        ("Connection", Some("Upgrade")),
        ("Sec-WebSocket-Accept", Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")),
        ("Sec-WebSocket-Protocol", Some("derp")),
        ("Sec-WebSocket-Extensions", None),
        ("Derp-Version", None),
    ] {
        assert_eq!(head.header(name), value, "{name}");
    }
    let (first, payload) = browser.message();
    assert_eq!((first, payload.len()), (WHOLE, 45));
    assert_eq!(payload[..5], header(SERVER_KEY, 40));
    assert_eq!(payload[5..13], *MAGIC);
    assert_eq!(payload[13..], *browser.wire.announced_key().as_bytes());

    let secret = random_secret();
    let mut browser = Browser::connect(&server, &secret);
    let mut peer = Peer::connect(&server);
    browser.send(WHOLE, &send_packet(&peer.key(), b"from the browser"));
    assert_eq!(peer.receive(), (secret.public_key(), b"from the browser".to_vec()));
    peer.send(&secret.public_key(), b"to the browser");
    let packet = browser.derp(RECV_PACKET);
    assert_eq!(packet, [peer.key().as_bytes(), &b"to the browser"[..]].concat());
    assert_eq!(server.metric("derp_websocket_accepts"), 2.0);
    assert_eq!(server.metric("derp_accepts"), 3.0);
}

#[test]
fn case_19_websocket_with_another_subprotocol_is_opened_and_closed() {
    let server = Server::start();
    let (browser, head) = Browser::open(&server, &REQUEST.replace(": derp\r", ": xderp\r"));
    assert_eq!((head.status, head.header("Sec-WebSocket-Protocol")), (101, None));
    browser.expect_close(1008);
    assert_eq!(server.metric("derp_websocket_accepts"), 0.0);
    assert_eq!(server.metric("derp_accepts"), 0.0);
}

#[test]
fn case_21_messages_and_frames_have_nothing_to_do_with_each_other() {
    let server = Server::start();
    let secret = random_secret();
    let mut browser = Browser::connect(&server, &secret);
    let mut peer = Peer::connect(&server);
    let [one, two, three] = [&b"one"[..], b"two", b"three"];
    let packets = [one, two, three].map(|packet| send_packet(&peer.key(), packet)).concat();
    let mut expect_all = || {
        for packet in [one, two, three] {
            assert_eq!(peer.receive(), (secret.public_key(), packet.to_vec()));
        }
    };
    // All of them in one message.
    browser.send(WHOLE, &packets);
    expect_all();
    // In two, cut anywhere.
    for cut in 0..=packets.len() {
        browser.send(WHOLE, &packets[..cut]);
        browser.send(WHOLE, &packets[cut..]);
        expect_all();
    }
    // In fragments of one message, with a ping between them, and every byte on its own.
    let (first, rest) = packets.split_at(20);
    let (middle, last) = rest.split_at(20);
    let fragments = [
        masked(BEGINNING, first),
        masked(ASK, b"still there?"),
        masked(MIDDLE, middle),
        masked(END, last),
    ];
    for byte in fragments.concat() {
        browser.wire.write(&[byte]);
    }
    expect_all();
    assert_eq!(browser.message(), (ANSWER, b"still there?".to_vec()));
    browser.send(ANSWER, b"nobody asked");
    browser.round_trip();
}

#[test]
fn case_22_a_text_message_closes() {
    let server = Server::start();
    let mut browser = Browser::connect(&server, &random_secret());
    browser.send(TEXT, b"hello");
    browser.expect_close(1003);
    server.wait_for_metric("derp_current_connections", 0.0);
}

/// derper takes a message of 32 KiB at the most, which not every packet fits, and sends each packet in
/// one message, however long; a JavaScript client then breaks off.
#[test]
fn the_largest_packets_pass_both_ways() {
    let server = Server::start();
    let secret = random_secret();
    let mut browser = Browser::connect(&server, &secret);
    let mut peer = Peer::connect(&server);
    let packet: Vec<u8> = (0..MAX_PACKET).map(|number| number as u8).collect();
    peer.send(&secret.public_key(), &packet);
    assert_eq!(browser.derp(RECV_PACKET)[32..], packet);
    let is_derpd = kind() == Kind::Derpd;
    assert_eq!(browser.longest <= 32 << 10, is_derpd);
    browser.send(WHOLE, &send_packet(&peer.key(), &packet[..32_000]));
    assert_eq!(peer.receive().1, packet[..32_000]);
    if is_derpd {
        browser.send(WHOLE, &send_packet(&peer.key(), &packet));
        assert_eq!(peer.receive().1, packet);
    }
}

#[test]
fn a_message_that_is_too_long_closes() {
    let server = Server::start();
    let mut browser = Browser::connect(&server, &random_secret());
    let is_derpd = kind() == Kind::Derpd;
    let longest = if is_derpd { 1 << 20 } else { 32 << 10 };
    // Frames of an unknown type, which are read and dropped.
    let filler = |length: usize| frame(0x77, &vec![0; length - 5]);
    browser.send(WHOLE, &filler(longest));
    browser.round_trip();
    // derpd closes at the header, derper when it has read as much.
    let longer = masked(WHOLE, &filler(longest + 100));
    browser.wire.write(if is_derpd { &longer[..1000] } else { &longer });
    browser.expect_close(1009);
}

#[test]
fn the_relay_closes_with_1000_whatever_ends_the_session() {
    let server = Server::start();
    let mut browser = Browser::connect(&server, &random_secret());
    browser.send(WHOLE, &frame(PING, b"short"));
    browser.expect_close(1000);

    let (mut browser, _) = Browser::open(&server, REQUEST);
    browser.server_key();
    browser.send(WHOLE, &frame(PING, &[0; 8]));
    browser.expect_close(1000);
}

#[test]
fn a_client_that_closes_gets_its_code_back() {
    let server = Server::start();
    for code in [1000, 1001] {
        let mut browser = Browser::connect(&server, &random_secret());
        browser.send(CLOSE, &[&u16::to_be_bytes(code)[..], b"bye"].concat());
        browser.expect_close(code);
        server.wait_for_metric("derp_current_connections", 0.0);
    }
}

#[test]
fn request_login_and_first_frame_may_come_at_once() {
    let server = Server::start();
    let wire = Wire::connect(&server);
    let (secret, key) = (random_secret(), wire.announced_key());
    let frames = [
        client_info(&secret, &key, INFO),
        send_packet(&secret.public_key(), b"early"),
        send_packet(&secret.public_key(), b"bird"),
    ]
    .concat();
    let (first, rest) = frames.split_at(frames.len() - 20);
    let burst = [REQUEST.as_bytes(), &masked(WHOLE, first), &masked(WHOLE, rest)].concat();
    let (mut browser, head) = Browser::open_on(wire, &burst);
    assert_eq!((head.status, browser.server_key()), (101, key));
    browser.derp(SERVER_INFO);
    assert_eq!(browser.derp(RECV_PACKET)[32..], *b"early");
    assert_eq!(browser.derp(RECV_PACKET)[32..], *b"bird");
}

/// Neither admission nor PROXY protocol knows of WebSocket.
#[test]
fn a_refused_browser_is_named_by_its_own_address() {
    if !is_derpd() {
        return;
    }
    let fake = Fake::on_tcp(Reply::new(200, r#"{"Allow":false}"#));
    let server = Server::start_with(&[TRUST, &format!("-verify-client-url={}", fake.url("/"))]);
    let wire = proxied::tls(&server, PROXY_HEADER).expect("the header is taken off before TLS");
    let (mut browser, _) = Browser::open_on(wire, REQUEST.as_bytes());
    let key = browser.server_key();
    browser.send(WHOLE, &client_info(&random_secret(), &key, INFO));
    browser.expect_close(1000);
    server.wait_for_log("derp: 203.0.113.9:4660: client nodekey:");
}

/// derper says 1000 to a frame without mask; RFC 6455 section 5.1 says 1002.
#[test]
fn frames_against_the_protocol_close() {
    let server = Server::start();
    let mut bystander = Browser::connect(&server, &random_secret());
    let unmasked = if kind() == Kind::Derpd { 1002 } else { 1000 };
    for (bytes, code) in [
        (vec![WHOLE, 1, b'x'], unmasked),
        (masked(WHOLE | 0x40, b"compressed"), 1002),
        (masked(0x83, b"reserved"), 1002),
        (masked(ASK, &[0; 126]), 1002),
        (masked(ASK & 0x7f, b"in pieces"), 1002),
        (masked(END, b"of nothing"), 1002),
    ] {
        let mut browser = Browser::connect(&server, &random_secret());
        browser.wire.write(&bytes);
        browser.expect_close(code);
    }
    bystander.round_trip();
}

#[test]
fn requests_that_are_no_websocket_handshake_are_refused() {
    let server = Server::start();
    for (old, new, status) in [
        ("keep-alive, Upgrade", "close", 426),
        ("HTTP/1.1", "HTTP/1.0", 426),
        ("GET", "POST", 405),
        ("Version: 13", "Version: 8", 400),
        ("dGhlIHNhbXBsZSBub25jZQ==", "bm90IDE2IGJ5dGVz", 400),
        ("Sec-WebSocket-Key", "Sec-WebSocket-Cay", 400),
    ] {
        let (_, head) = Browser::open(&server, &REQUEST.replacen(old, new, 1));
        assert_eq!(head.status, status, "{new}");
    }
    assert_eq!(server.metric("derp_websocket_accepts"), 0.0);
}
