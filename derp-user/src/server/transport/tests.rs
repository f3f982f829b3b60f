//! A real TLS client in memory on the other side, honest and otherwise.

use std::{io::Read, sync::Arc, time::SystemTime};

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, ConnectionTrafficSecrets};

use super::*;
use crate::{
    proto::keys::NodePublic,
    tls::{self, accept_any::AcceptAny},
};

fn server() -> Transport {
    let directory = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let certificate = tls::load_or_create(directory.path(), "127.0.0.1", now).unwrap();
    let meta = tls::meta_certificate(&NodePublic::from_bytes([1; 32]), now).unwrap();
    Transport::tls(Arc::new(tls::server_config(certificate, meta).unwrap())).unwrap()
}

fn client(version: &'static rustls::SupportedProtocolVersion) -> ClientConnection {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
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
    Ok((phase, plain, outgoing.filled().to_vec()))
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

/// A pair after the handshake, with every byte of the client delivered on its own if `drip`.
fn established(
    version: &'static rustls::SupportedProtocolVersion,
    drip: bool,
) -> (Transport, ClientConnection) {
    let (mut server, mut client) = (server(), client(version));
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
    (server, client)
}

fn send(server: &mut Transport, plain: &[u8]) -> Result<Vec<u8>, TransportError> {
    let mut outgoing = Outgoing::default();
    server.send(plain, &mut outgoing)?;
    Ok(outgoing.filled().to_vec())
}

#[test]
fn both_versions_carry_data_both_ways() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for drip in [false, true] {
            let (mut server, mut client) = established(version, drip);
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

#[test]
fn data_may_not_go_before_the_handshake_ends() {
    assert!(matches!(send(&mut server(), b"x"), Err(TransportError::NotEstablished)));
}

#[test]
fn a_farewell_goes_both_ways() {
    let (mut server, mut client) = established(&rustls::version::TLS13, false);
    let mut outgoing = Outgoing::default();
    server.close(&mut outgoing);
    client.read_tls(&mut outgoing.filled()).unwrap();
    assert!(client.process_new_packets().unwrap().peer_has_closed());
    client.send_close_notify();
    assert_eq!(feed(&mut server, &client_bytes(&mut client)).unwrap().0, Phase::Ended);
}

/// Seals TLS 1.3 records with the client's own keys, so that they can be of any shape.
struct Forger {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Forger {
    fn new(client: ClientConnection) -> Self {
        let (sequence, secrets) = client.dangerous_extract_secrets().unwrap().tx;
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
    for split in 1..KEY_UPDATE.len() {
        let (mut server, client) = established(&rustls::version::TLS13, false);
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
    let (mut server, client) = established(&rustls::version::TLS13, false);
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
    let (mut server, client) = established(&rustls::version::TLS13, false);
    let mut forger = Forger::new(client);
    let bytes: Vec<u8> = [&b""[..], b"", b"data"]
        .iter()
        .flat_map(|data| forger.record(APPLICATION_DATA, data))
        .collect();
    assert_eq!(feed(&mut server, &bytes).unwrap().1, b"data");
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
    ) {
        let (mut server, client) = established(&rustls::version::TLS13, false);
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
