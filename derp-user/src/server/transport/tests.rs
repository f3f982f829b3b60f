//! A real TLS client in memory on the other side, honest and otherwise.

use std::{io::Read, sync::Arc, time::SystemTime};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets, crypto::CryptoProvider};

use super::*;
use crate::{
    proto::keys::NodePublic,
    tls::{self, AcceptAny, session::MAX_INCOMPLETE},
};

fn server() -> Transport {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let certificate = tls::load_or_create(directory.path(), "127.0.0.1", now).unwrap();
    let meta = tls::meta_certificate(&NodePublic::from_bytes([1; 32]), now).unwrap();
    Transport::tls(Arc::new(tls::server_config(certificate, meta).unwrap())).unwrap()
}

fn client(version: &'static rustls::SupportedProtocolVersion) -> ClientConnection {
    client_of(rustls::crypto::aws_lc_rs::default_provider(), version)
}

fn client_of(
    provider: CryptoProvider,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConnection {
    let provider = Arc::new(provider);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap()
}

/// Gives `bytes` to the server; what it read and what it wants to send.
fn feed(server: &mut Transport, bytes: &[u8]) -> Result<(Phase, Vec<u8>, Vec<u8>), TransportError> {
    let mut received = [server.incomplete(), bytes].concat();
    let (mut plain, mut outgoing) = (Vec::new(), Outgoing::default());
    let phase = server.receive(&mut received, &mut plain, &mut outgoing)?;
    Ok((phase, plain, outgoing.unsent().to_vec()))
}

fn client_bytes(client: &mut ClientConnection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn client_reads(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).unwrap();
        let state = client.process_new_packets().unwrap();
        let before = plain.len();
        plain.resize(before + state.plaintext_bytes_to_read(), 0);
        client.reader().read_exact(&mut plain[before..]).unwrap();
    }
    plain
}

/// A pair after the handshake, with every byte of the client delivered on its own if `drip`, and
/// reduced to records where possible if `reduced`.
fn established(
    version: &'static rustls::SupportedProtocolVersion,
    drip: bool,
    reduced: bool,
) -> (Transport, ClientConnection) {
    shake_hands(client(version), drip, reduced)
}

fn shake_hands(
    mut client: ClientConnection,
    drip: bool,
    reduced: bool,
) -> (Transport, ClientConnection) {
    let mut server = server();
    let mut phase = Phase::Handshaking;
    while phase == Phase::Handshaking || client.is_handshaking() {
        let bytes = client_bytes(&mut client);
        for piece in bytes.chunks(if drip { 1 } else { usize::MAX }) {
            let (now, plain, answer) = feed(&mut server, piece).unwrap();
            phase = now;
            assert!(plain.is_empty());
            client_reads(&mut client, &answer);
        }
    }
    if reduced {
        let is_tls13 = client.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        server = server.establish().unwrap();
        assert_eq!(matches!(server.layer, Layer::Records(_)), is_tls13);
    }
    (server, client)
}

fn send(server: &mut Transport, plain: &[u8]) -> Result<Vec<u8>, TransportError> {
    let mut outgoing = Outgoing::default();
    server.send(plain, &mut outgoing)?;
    Ok(outgoing.unsent().to_vec())
}

#[test]
fn both_versions_carry_data_both_ways() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (drip, reduced) in [(false, false), (true, false), (false, true)] {
            let (mut server, mut client) = established(version, drip, reduced);
            let large: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
            let bytes = send(&mut server, &large).unwrap();
            assert_eq!(client_reads(&mut client, &bytes), large);
            std::io::Write::write_all(&mut client.writer(), &large[..40_000]).unwrap();
            let mut plain = Vec::new();
            for piece in client_bytes(&mut client).chunks(1000) {
                plain.extend(feed(&mut server, piece).unwrap().1);
            }
            assert_eq!(plain, large[..40_000]);
            assert!(server.incomplete().is_empty());
        }
    }
}

/// The cipher reckons from the first record number it is shown, and after a few records it refused
/// one that seemed to go back.
#[test]
fn every_cipher_of_tls13_carries_data() {
    let all = rustls::crypto::aws_lc_rs::default_provider().cipher_suites;
    let tls13: Vec<_> = all.into_iter().filter(|suite| suite.tls13().is_some()).collect();
    assert_eq!(tls13.len(), 3);
    for suite in tls13 {
        let provider = CryptoProvider {
            cipher_suites: vec![suite],
            ..rustls::crypto::aws_lc_rs::default_provider()
        };
        let client = client_of(provider, &rustls::version::TLS13);
        let (mut server, mut client) = shake_hands(client, false, true);
        for round in 0..3u8 {
            client.refresh_traffic_keys().unwrap();
            std::io::Write::write_all(&mut client.writer(), &[round; 20_000]).unwrap();
            let (_, plain, _) = feed(&mut server, &client_bytes(&mut client)).unwrap();
            assert_eq!(plain, [round; 20_000], "{suite:?}");
            let bytes = send(&mut server, &[round; 20_000]).unwrap();
            assert_eq!(client_reads(&mut client, &bytes), [round; 20_000], "{suite:?}");
        }
    }
}

#[test]
fn regression_records_go_on_where_the_session_stopped() {
    for before in 0..5u8 {
        let (mut server, mut client) = established(&rustls::version::TLS13, false, false);
        for number in 0..before {
            let bytes = send(&mut server, &[number]).unwrap();
            assert_eq!(client_reads(&mut client, &bytes), [number]);
        }
        server = server.establish().unwrap();
        for number in 0..200 {
            let bytes = send(&mut server, &[number]).unwrap();
            assert_eq!(client_reads(&mut client, &bytes), [number]);
        }
    }
}

#[test]
fn data_may_not_go_before_the_handshake_ends() {
    assert!(matches!(
        send(&mut server(), b"x"),
        Err(TransportError::Session(SessionError::NotEstablished))
    ));
}

#[test]
fn a_farewell_goes_both_ways() {
    for (version, reduced) in BOTH_LAYERS {
        let (mut server, mut client) = established(version, false, reduced);
        let mut outgoing = Outgoing::default();
        server.close(&mut outgoing);
        client.read_tls(&mut outgoing.unsent()).unwrap();
        assert!(client.process_new_packets().unwrap().peer_has_closed());
        client.send_close_notify();
        assert_eq!(feed(&mut server, &client_bytes(&mut client)).unwrap().0, Phase::Ended);
    }
}

const BOTH_LAYERS: [(&rustls::SupportedProtocolVersion, bool); 3] = [
    (&rustls::version::TLS12, false),
    (&rustls::version::TLS13, false),
    (&rustls::version::TLS13, true),
];

/// A client that updates its keys, and asks for the same, is followed and gets what it asked for.
#[test]
fn key_updates_are_followed_both_ways() {
    for reduced in [false, true] {
        let (mut server, mut client) = established(&rustls::version::TLS13, false, reduced);
        for round in 0..100u8 {
            client.refresh_traffic_keys().unwrap();
            std::io::Write::write_all(&mut client.writer(), &[round]).unwrap();
            let (phase, plain, _) = feed(&mut server, &client_bytes(&mut client)).unwrap();
            assert_eq!((phase, plain), (Phase::Established, vec![round]));
            let bytes = send(&mut server, &[round]).unwrap();
            assert_eq!(client_reads(&mut client, &bytes), [round]);
        }
    }
}

#[test]
fn idle_key_updates_are_limited() {
    let (mut server, mut client) = established(&rustls::version::TLS13, false, true);
    let refused = (0..100).position(|_| {
        client.refresh_traffic_keys().unwrap();
        feed(&mut server, &client_bytes(&mut client)).is_err()
    });
    assert_eq!(refused, Some(32));
}

/// One byte between two updates made them as cheap for the client as they are expensive here.
#[test]
fn regression_key_updates_with_little_data_between_them_are_limited_too() {
    let (mut server, mut client) = established(&rustls::version::TLS13, false, true);
    let update = |server: &mut Transport, client: &mut ClientConnection, data: &[u8]| {
        client.refresh_traffic_keys().unwrap();
        std::io::Write::write_all(&mut client.writer(), data).unwrap();
        feed(server, &client_bytes(client)).is_ok()
    };
    for round in 0..300 {
        assert!(update(&mut server, &mut client, &[0; 1024]), "round {round}");
    }
    let more = (0..300).position(|_| !update(&mut server, &mut client, &[0]));
    assert!(more.is_some_and(|more| (64..=128).contains(&more)), "{more:?}");
}

/// A write key is replaced before it has sealed as many records as its cipher allows.
#[test]
fn the_write_key_is_replaced_in_time() {
    let (mut server, mut client) = established(&rustls::version::TLS13, false, true);
    let Layer::Records(layer) = &mut server.layer else { panic!("not reduced") };
    assert_eq!(layer.skip_to_the_last_records_of_the_write_key(), 1 << 24);
    // The client cannot follow the jump, so the records are counted instead.
    assert_eq!(records(&send(&mut server, b"update, then data").unwrap()), 2);
    assert_eq!(records(&send(&mut server, b"data").unwrap()), 1);
    client.send_close_notify();
}

#[test]
fn a_tampered_record_gets_an_alert() {
    let (mut server, mut client) = established(&rustls::version::TLS13, false, true);
    std::io::Write::write_all(&mut client.writer(), b"data").unwrap();
    let mut bytes = client_bytes(&mut client);
    *bytes.last_mut().unwrap() ^= 1;
    let (mut plain, mut outgoing) = (Vec::new(), Outgoing::default());
    let error = server.receive(&mut bytes, &mut plain, &mut outgoing).unwrap_err();
    assert!(matches!(error, TransportError::Record(RecordFault::Seal)), "{error}");
    client.read_tls(&mut outgoing.unsent()).unwrap();
    let told = client.process_new_packets().unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
    assert!(send(&mut server, b"no more").is_err());
}

/// Seals TLS 1.3 records with the client's own keys, so that they can be of any shape.
struct Forger {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    fn new(client: ClientConnection) -> Self {
        Self::of_secrets(client.dangerous_extract_secrets().unwrap())
    }

    fn of_secrets(secrets: rustls::ExtractedSecrets) -> Self {
        let (sequence, secrets) = secrets.tx;
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } | _ => {
                panic!("a cipher suite that the test does not know")
            }
        };
        let key = LessSafeKey::new(UnboundKey::new(algorithm, key.as_ref()).unwrap());
        Self { key, iv: iv.as_ref().try_into().unwrap(), sequence }
    }

    /// A record of `content` with the given content type (RFC 8446 section 5.2).
    fn record(&mut self, content_type: u8, content: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let mut sealed = [content, &[content_type]].concat();
        let length = u16::try_from(sealed.len() + 16).unwrap().to_be_bytes();
        let header = [23, 3, 3, length[0], length[1]];
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
        [&header[..], &sealed].concat()
    }
}

const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// KeyUpdate that asks for an update in return (RFC 8446 section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 1];

/// Between the two halves of a split handshake message the TLS library remembers positions in the
/// received bytes. Whoever sends then must show it those bytes, or it reads out of bounds.
#[test]
fn regression_sending_between_the_halves_of_a_key_update() {
    for (split, reduced) in (1..KEY_UPDATE.len()).flat_map(|split| [(split, false), (split, true)])
    {
        let (mut server, client) = established(&rustls::version::TLS13, false, reduced);
        let mut forger = Forger::new(client);
        let first = forger.record(HANDSHAKE, &KEY_UPDATE[..split]);
        let second = forger.record(HANDSHAKE, &KEY_UPDATE[split..]);
        let (phase, plain, answer) = feed(&mut server, &first).unwrap();
        assert_eq!((phase, plain.len(), answer.len()), (Phase::Established, 0, 0));
        assert!(!send(&mut server, b"from another worker").unwrap().is_empty());
        assert_eq!(feed(&mut server, &second).unwrap().0, Phase::Established);
        // The update in return goes in front of the next data.
        assert_eq!(records(&send(&mut server, b"under the old key, then the new").unwrap()), 2);
        assert_eq!(records(&send(&mut server, b"under the new key").unwrap()), 1);
    }
}

/// How many TLS records `bytes` are.
fn records(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let [_, _, _, high, low, rest @ ..] = bytes {
        bytes = &rest[usize::from(u16::from_be_bytes([*high, *low]))..];
        count += 1;
    }
    count
}

#[test]
fn a_handshake_message_that_never_ends_is_refused() {
    let (mut server, client) = established(&rustls::version::TLS13, false, false);
    let mut forger = Forger::new(client);
    let endless = (0..100).map(|number| {
        // A NewSessionTicket of 16 MiB, begun and never finished.
        let head: &[u8] = if number == 0 { &[4, 0xff, 0xff, 0xff] } else { &[] };
        forger.record(HANDSHAKE, &[head, &[0; 8000]].concat())
    });
    let outcomes: Vec<bool> =
        endless.map(|record| feed(&mut server, &record).is_ok()).take_while(|&ok| ok).collect();
    assert!(outcomes.len() < 20, "{} records were swallowed", outcomes.len());
}

#[test]
fn empty_records_are_no_data() {
    for reduced in [false, true] {
        let (mut server, client) = established(&rustls::version::TLS13, false, reduced);
        let mut forger = Forger::new(client);
        let bytes: Vec<u8> = [&b""[..], b"", b"data"]
            .iter()
            .flat_map(|data| forger.record(APPLICATION_DATA, data))
            .collect();
        assert_eq!(feed(&mut server, &bytes).unwrap().1, b"data");
    }
}

/// The layers keep apart what each of them says: WebSocket's answers are in TLS, its farewell is
/// followed by that of TLS.
#[test]
fn websocket_over_tls() {
    // FIN and opcode, length, a mask of zeros, payload.
    let frame = |first: u8, payload: &[u8]| {
        let length = 0x80 | u8::try_from(payload.len()).unwrap();
        [&[first, length, 0, 0, 0, 0], payload].concat()
    };
    for (version, reduced) in BOTH_LAYERS {
        let (mut server, mut client) = established(version, false, false);
        server.begin_websocket(frame(0x82, b"early"));
        assert_eq!(feed(&mut server, &[]).unwrap().1, b"early");
        if reduced {
            server = server.establish().unwrap();
        }
        let both = [frame(0x82, b"data"), frame(0x89, b"ping")].concat();
        std::io::Write::write_all(&mut client.writer(), &both).unwrap();
        let mut plain = Vec::new();
        // The answer is sealed while half a record waits.
        for piece in client_bytes(&mut client).chunks(7) {
            let (phase, data, answer) = feed(&mut server, piece).unwrap();
            assert_eq!(phase, Phase::Established);
            plain.extend(data);
            if !answer.is_empty() {
                assert_eq!(client_reads(&mut client, &answer), b"\x8a\x04ping");
            }
            let bytes = send(&mut server, b"more").unwrap();
            assert_eq!(client_reads(&mut client, &bytes), b"\x82\x04more");
        }
        assert_eq!(plain, b"data");
        std::io::Write::write_all(&mut client.writer(), &frame(0x81, b"text")).unwrap();
        let mut outgoing = Outgoing::default();
        let mut received = client_bytes(&mut client);
        let result = server.receive(&mut received, &mut plain, &mut outgoing);
        assert!(matches!(result, Err(TransportError::WebSocket(WebSocketFault::Text))));
        client.read_tls(&mut outgoing.unsent()).unwrap();
        let state = client.process_new_packets().unwrap();
        assert!(state.peer_has_closed());
        let mut farewell = vec![0; state.plaintext_bytes_to_read()];
        client.reader().read_exact(&mut farewell).unwrap();
        assert_eq!(farewell, b"\x88\x10\x03\xeba text message");
    }
}

/// What the records accept after the handshake, and what they refuse, one mutation each.
#[test]
fn records_refuse_everything_but_data_farewells_and_key_updates() {
    let update_in_two = [&KEY_UPDATE[..], &KEY_UPDATE[..]].concat();
    let long = vec![0; RECORD_PAYLOAD + 1];
    let cases: [(u8, &[u8], bool); 14] = [
        (APPLICATION_DATA, b"data", true),
        (HANDSHAKE, &KEY_UPDATE, true),
        (21, &[1, 0], true),
        (21, &[1, 90], true),
        (21, &[2, 80], false),
        (21, &[1], false),
        (20, &[1], false),
        (HANDSHAKE, b"", false),
        (HANDSHAKE, &[24, 0, 0, 1, 2], false),
        (HANDSHAKE, &[4, 0, 0, 1, 0], false),
        (HANDSHAKE, &update_in_two, false),
        (APPLICATION_DATA, &long, false),
        // Behind the content stands its type, then padding.
        (0, b"data\x17\0\0", true),
        (0, b"\0\0", false),
    ];
    for (content_type, content, accepted) in cases {
        let (mut server, client) = established(&rustls::version::TLS13, false, true);
        let record = Forger::new(client).record(content_type, content);
        assert_eq!(
            feed(&mut server, &record).is_ok(),
            accepted,
            "{content_type} {:?}",
            content.first()
        );
    }
    for unsealed in [
        &[20, 3, 3, 0, 1, 1][..],
        &[21, 3, 3, 0, 2, 1, 0],
        &[22, 3, 3, 0, 1, 0],
        &[23, 3, 3, 0xff, 0xff],
    ] {
        let (mut server, _client) = established(&rustls::version::TLS13, false, true);
        assert!(feed(&mut server, unsealed).is_err(), "{unsealed:?}");
    }
}

/// A transport in which this server is the client, and the real server at the other end, whose
/// handshake is over; it has sent its tickets, which are returned.
fn as_client(
    version: &'static rustls::SupportedProtocolVersion,
) -> (Transport, rustls::ServerConnection, Vec<u8>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.send_tls13_tickets = 3;
    config.enable_secret_extraction = true;
    let mut server = rustls::ServerConnection::new(Arc::new(config)).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let mut wire = Wire::tls(Arc::new(client), "127.0.0.1".try_into().unwrap()).unwrap();
    let (mut phase, mut bytes, mut outgoing) =
        (Phase::Handshaking, Vec::new(), Outgoing::default());
    while phase == Phase::Handshaking {
        let mut received = [wire.incomplete(), &bytes].concat();
        phase = wire.receive(&mut received, &mut |_| (), &mut outgoing).unwrap();
        server.read_tls(&mut outgoing.unsent()).unwrap();
        outgoing.clear();
        server.process_new_packets().unwrap();
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
    }
    (Transport::of_client(wire).unwrap(), server, bytes)
}

fn server_says(server: &mut rustls::ServerConnection, plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Write::write_all(&mut server.writer(), plain).unwrap();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    bytes
}

#[test]
fn a_server_is_a_client_of_its_mesh_peers_on_both_versions() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (mut client, mut server, tickets) = as_client(version);
        let is_tls13 = version.version == rustls::ProtocolVersion::TLSv1_3;
        assert_eq!(matches!(client.layer, Layer::Records(_)), is_tls13);
        assert_eq!(!tickets.is_empty(), is_tls13, "tickets come after the handshake");
        // However they are cut.
        for piece in tickets.chunks(100) {
            let (phase, plain, answer) = feed(&mut client, piece).unwrap();
            assert_eq!((phase, plain.len(), answer.len()), (Phase::Established, 0, 0));
        }
        for round in 0..3u8 {
            if is_tls13 {
                server.refresh_traffic_keys().unwrap();
            }
            let bytes = server_says(&mut server, &[round; 20_000]);
            let plain: Vec<u8> =
                bytes.chunks(777).flat_map(|piece| feed(&mut client, piece).unwrap().1).collect();
            assert_eq!(plain, [round; 20_000]);
            let bytes = send(&mut client, &[round; 20_000]).unwrap();
            let mut bytes = bytes.as_slice();
            let mut plain = Vec::new();
            while !bytes.is_empty() {
                server.read_tls(&mut bytes).unwrap();
                let ready = server.process_new_packets().unwrap().plaintext_bytes_to_read();
                let before = plain.len();
                plain.resize(before + ready, 0);
                server.reader().read_exact(&mut plain[before..]).unwrap();
            }
            assert_eq!(plain, [round; 20_000]);
        }
        let mut outgoing = Outgoing::default();
        client.close(&mut outgoing);
        server.read_tls(&mut outgoing.unsent()).unwrap();
        assert!(server.process_new_packets().unwrap().peer_has_closed());
    }
}

/// What a client's records take from a server beyond a server's from a client: tickets.
#[test]
fn tickets_are_skipped_within_limits() {
    let ticket =
        |length: usize| [&[4, 0, (length >> 8) as u8, length as u8], &*vec![0; length]].concat();
    let two = [ticket(200), ticket(0)].concat();
    let behind = [ticket(1), KEY_UPDATE.to_vec()].concat();
    let cases: [(&[&[u8]], bool); 7] = [
        (&[&two], true),
        (&[&two[..3], &two[3..150], &two[150..]], true),
        (&[&KEY_UPDATE], true),
        (&[&behind], false),
        (&[&[4, 0, 0x40, 1]], false),
        (&[&[4, 1, 0, 0]], false),
        (&[&[1, 0, 0, 0]], false),
    ];
    for (pieces, accepted) in cases {
        let (mut client, server, tickets) = as_client(&rustls::version::TLS13);
        feed(&mut client, &tickets).unwrap();
        let mut forger = Forger::of_secrets(server.dangerous_extract_secrets().unwrap());
        let fed: Result<Vec<_>, _> = pieces
            .iter()
            .map(|piece| feed(&mut client, &forger.record(HANDSHAKE, piece)))
            .collect();
        assert_eq!(fed.is_ok(), accepted, "{:?}", pieces.first());
    }
    let (mut client, server, tickets) = as_client(&rustls::version::TLS13);
    feed(&mut client, &tickets).unwrap();
    let mut forger = Forger::of_secrets(server.dangerous_extract_secrets().unwrap());
    let refused =
        (0..100).position(|_| feed(&mut client, &forger.record(HANDSHAKE, &ticket(9))).is_err());
    assert_eq!(refused, Some(32 - 3), "three came with the handshake");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_instead_of_a_handshake(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5),
    ) {
        let mut server = server();
        for piece in pieces {
            if feed(&mut server, &piece).is_err() {
                break;
            }
            prop_assert!(server.incomplete().len() <= MAX_INCOMPLETE);
        }
    }

    #[test]
    fn any_record_after_the_handshake(
        records in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 1..6),
        cut in any::<prop::sample::Index>(),
        reduced: bool,
    ) {
        let (mut server, client) = established(&rustls::version::TLS13, false, reduced);
        let mut forger = Forger::new(client);
        let types = [20, 21, HANDSHAKE, APPLICATION_DATA];
        let bytes: Vec<u8> = records
            .iter()
            .flat_map(|(kind, content)| forger.record(types[usize::from(*kind) % 4], content))
            .collect();
        let (first, second) = bytes.split_at(cut.index(bytes.len()));
        for piece in [first, second] {
            if feed(&mut server, piece).is_err() {
                break;
            }
            let _ = send(&mut server, b"from another worker");
        }
        let mut outgoing = Outgoing::default();
        server.close(&mut outgoing);
    }
}
