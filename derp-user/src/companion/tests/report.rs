use proptest::prelude::*;

use crate::companion::{Client, Endpoint, Report, Session};

/// As `tailscale debug peer-relay-sessions` gets it.
const ANSWER: &str = r#"{"UDPPort":40000,"Sessions":[
    {"VNI":9,"Client1":{"Endpoint":"","ShortDisco":"d:fedcba9876543210","PacketsTx":0,"BytesTx":0},
             "Client2":{"Endpoint":"[2001:db8::5]:41641","ShortDisco":"d:0000000000000001","PacketsTx":1,"BytesTx":2}},
    {"VNI":7,"Client1":{"Endpoint":"203.0.113.5:41641","ShortDisco":"d:0123456789abcdef","PacketsTx":12,"BytesTx":3456},
             "Client2":{"Endpoint":"[::ffff:192.0.2.1]:5","ShortDisco":"d:fedcba9876543210","PacketsTx":1,"BytesTx":2}}]}"#;

fn client(endpoint: Endpoint, key: [u8; 8]) -> Client {
    Client { endpoint, sender: u64::from_ne_bytes(key) }
}

fn at(address: &str) -> Endpoint {
    Endpoint::At(address.parse().unwrap())
}

fn refused(text: &str) -> String {
    Report::parse(text.as_bytes()).expect_err(text).to_string()
}

#[test]
fn the_answer_of_a_tailscaled_is_understood() {
    let one = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];
    let two = [0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10];
    let clients = [client(at("203.0.113.5:41641"), one), client(at("192.0.2.1:5"), two)];
    let seven = Session { vni: 7, clients };
    let clients = [
        client(Endpoint::Unbound, two),
        client(at("[2001:db8::5]:41641"), [0, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let nine = Session { vni: 9, clients };
    let expected = Report { port: Some(40_000), sessions: vec![seven, nine] };
    assert_eq!(Report::parse(ANSWER.as_bytes()).unwrap(), expected, "by VNI");
}

#[test]
fn a_tailscaled_that_is_no_relay_says_null() {
    for text in [r#"{"UDPPort":null,"Sessions":null}"#, "{}"] {
        let report = Report::parse(text.as_bytes()).unwrap();
        assert_eq!(report, Report { port: None, sessions: Vec::new() });
    }
    let report = Report::parse(br#"{"UDPPort":0,"Sessions":[]}"#).unwrap();
    assert_eq!(report.port, Some(0), "chosen by itself");
}

#[test]
fn addresses_that_say_nothing_leave_one_session_to_tailscaled() {
    for endpoint in ["[fe80::1%eth0]:1", "relay.example:1", "1.2.3.4", "1.2.3.4:65536"] {
        let text = ANSWER.replace("203.0.113.5:41641", endpoint);
        let report = Report::parse(text.as_bytes()).unwrap();
        assert_eq!(report.sessions[0].clients[0].endpoint, Endpoint::Unusable, "{endpoint}");
        assert_eq!(report.sessions[1].clients[1].endpoint, at("[2001:db8::5]:41641"));
    }
}

#[test]
fn an_answer_that_is_none_is_refused_as_a_whole() {
    for (text, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        ("5", "invalid type: integer `5`, expected struct WireReport at line 1 column 1"),
        (
            r#"{"UDPPort":65536}"#,
            "invalid value: integer `65536`, expected u16 at line 1 column 16",
        ),
        (r#"{"Sessions":[{"VNI":1}]}"#, "missing field `Client1` at line 1 column 22"),
    ] {
        assert_eq!(refused(text), expected);
    }
    for (from, to, expected) in [
        (r#""VNI":9"#, r#""VNI":0"#, "the VNI 0 is not between 1 and 16777215"),
        (r#""VNI":9"#, r#""VNI":16777216"#, "the VNI 16777216 is not between 1 and 16777215"),
        (r#""VNI":9"#, r#""VNI":7"#, "two sessions have the VNI 7"),
        (
            "d:0000000000000001",
            "d:0000000000000000",
            "the ShortDisco of VNI 9 is \"d:0000000000000000\", not d: and 16 hex digits",
        ),
        (
            "d:0000000000000001",
            "discokey:00000000000000010000000000000000000000",
            "the ShortDisco of VNI 9 is \"discokey:000000000000000\", not d: and 16 hex digits",
        ),
        (
            "d:0000000000000001",
            "d:+000000000000001",
            "the ShortDisco of VNI 9 is \"d:+000000000000001\", not d: and 16 hex digits",
        ),
    ] {
        assert_eq!(refused(&ANSWER.replace(from, to)), expected);
    }
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Report::parse(&bytes);
    }

    #[test]
    fn a_damaged_answer_panics_neither_and_has_no_vni_twice(
        at in 0..ANSWER.len(),
        byte in any::<u8>(),
        cut in 0..ANSWER.len(),
    ) {
        let mut bytes = ANSWER.as_bytes().to_vec();
        bytes[at] = byte;
        for bytes in [&bytes[..], &bytes[..cut]] {
            if let Ok(report) = Report::parse(bytes) {
                let vnis: Vec<_> = report.sessions.iter().map(|session| session.vni).collect();
                prop_assert!(vnis.is_sorted() && vnis.windows(2).all(|pair| pair[0] != pair[1]));
                prop_assert!(vnis.iter().all(|vni| (1..1 << 24).contains(vni)));
                let mut senders = report.sessions.iter().flat_map(|session| session.clients);
                prop_assert!(senders.all(|client| client.sender != 0));
            }
        }
    }
}
