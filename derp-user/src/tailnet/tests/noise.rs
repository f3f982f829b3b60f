//! The secure connection, against the responder of `snow` with records of the reference's form.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

use super::fake::{accept, machine, refuse, server_key};
use crate::tailnet::{
    fuzz::records as opened,
    keys::MachinePublic,
    noise::{
        Answer, Early, HEADER_LENGTH, Handshake, Incoming, MAX_CONTENT, MAX_RECORD, NoiseError,
        RESPONSE_LENGTH, Sealer, answer,
    },
    stream::NoiseStream,
};

#[tokio::test]
async fn both_sides_hear_each_other() {
    let (client, server) = duplex(1000);
    let (handshake, initiation) = Handshake::begin(&machine(), &server_key().public()).unwrap();
    assert_eq!(initiation[..5], [0, 130, 1, 0, 96]);
    let serve = async {
        let (mut stream, client) = accept(server, &initiation).await;
        assert_eq!(client, *machine().public().as_bytes());
        let mut bytes = vec![0; 20_000];
        stream.read_exact(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
    };
    let ask = async {
        let mut stream = NoiseStream::finish(client, handshake).await.unwrap();
        let sent: Vec<u8> = (0..20_000u32).map(|number| number.to_be_bytes()[3]).collect();
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.unwrap();
        assert!(received == sent);
    };
    tokio::join!(serve, ask);
}

#[tokio::test]
async fn a_refusal_is_shown_but_not_all_of_a_long_one() {
    for (text, shown) in
        [("no \"v130\"", "no \"v130\"".to_owned()), (&"x".repeat(999), "x".repeat(256))]
    {
        let (client, server) = duplex(2000);
        let (handshake, _) = Handshake::begin(&machine(), &server_key().public()).unwrap();
        refuse(server, text).await;
        let error = NoiseStream::finish(client, handshake).await.err().unwrap();
        let refused = NoiseError::Refused(shown);
        assert_eq!(error.to_string(), refused.to_string());
    }
}

#[test]
fn a_response_without_the_servers_key_is_refused() {
    let (handshake, _) = Handshake::begin(&machine(), &server_key().public()).unwrap();
    assert_eq!(handshake.finish(&[7; RESPONSE_LENGTH]).err(), Some(NoiseError::Response));
    // A key that no message can be sealed for is no key.
    let zero = format!("mkey:{}", "0".repeat(64)).parse::<MachinePublic>();
    assert!(zero.is_err());
}

#[test]
fn only_two_answers_are_known() {
    assert_eq!(answer([2, 0, 48]), Ok(Answer::Response));
    assert_eq!(answer([3, 1, 2]), Ok(Answer::Refusal(258)));
    for (header, kind, length) in
        [([2, 0, 49], 2, 49), ([4, 0, 48], 4, 48), ([b'H', b'T', b'T'], 72, 21588)]
    {
        assert_eq!(answer(header), Err(NoiseError::NoResponse { kind, length }));
    }
}

#[test]
fn records_have_the_reference_s_form_and_lengths() {
    let key = [9; 32];
    let mut sealer = Sealer::new(&key);
    let mut records = Vec::new();
    assert_eq!(sealer.seal(&[1; 2 * MAX_CONTENT], &mut records), Ok(MAX_CONTENT));
    assert_eq!(records.len(), MAX_RECORD);
    assert_eq!(records[..3], [4, 0x0f, 0xfd]);
    assert_eq!(opened(&mut Incoming::new(&key), &records), Ok(vec![1; MAX_CONTENT]));
    for (header, error) in [
        ([1, 0, 20], NoiseError::Type(1)),
        ([4, 0, 15], NoiseError::Length(15)),
        ([4, 0x0f, 0xfe], NoiseError::Length(4094)),
        ([4, 0xff, 0xff], NoiseError::Length(65535)),
    ] {
        assert_eq!(opened(&mut Incoming::new(&key), &header), Err(error));
    }
    // In another order they do not open.
    let mut second = Vec::new();
    sealer.seal(b"second", &mut second).unwrap();
    assert_eq!(opened(&mut Incoming::new(&key), &second), Err(NoiseError::Seal));
}

fn early(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&b"\xff\xff\xffTS"[..], &length.to_be_bytes(), payload].concat()
}

#[test]
fn an_early_payload_that_is_too_long_ends_the_connection() {
    let head = [&b"\xff\xff\xffTS"[..], &u32::MAX.to_be_bytes()].concat();
    let result = Early::default().strip(&head, &mut Vec::new());
    assert_eq!(result, Err(NoiseError::Early(u32::MAX)));
}

proptest! {
    #[test]
    fn what_is_sealed_is_opened_however_it_is_cut(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
        cut in 1usize..50,
    ) {
        let key = [3; 32];
        let (mut sealer, mut incoming) = (Sealer::new(&key), Incoming::new(&key));
        let mut records = Vec::new();
        for content in &contents {
            sealer.seal(content, &mut records).unwrap();
        }
        let mut received = Vec::new();
        for piece in records.chunks(cut) {
            received.extend(opened(&mut incoming, piece).unwrap());
        }
        prop_assert!(incoming.is_idle());
        prop_assert_eq!(received, contents.concat());
    }

    #[test]
    fn a_changed_record_does_not_open(at in 0usize..30, bit in 0u8..8) {
        let key = [3; 32];
        let mut records = Vec::new();
        Sealer::new(&key).seal(b"hello, relay", &mut records).unwrap();
        let at = at % records.len();
        records[at] ^= 1 << bit;
        // A length that says more waits for more.
        let result = opened(&mut Incoming::new(&key), &records);
        prop_assert!(result.is_err() || result == Ok(Vec::new()));
    }

    #[test]
    fn any_bytes_are_records_or_a_fault(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = opened(&mut Incoming::new(&[1; 32]), &bytes);
        let response = std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default());
        let (handshake, _) = Handshake::begin(&machine(), &server_key().public()).unwrap();
        prop_assert!(handshake.finish(&response).is_err());
        let _ = answer(std::array::from_fn::<u8, HEADER_LENGTH, _>(|at| response[at]));
    }

    #[test]
    fn an_early_payload_is_left_out_however_it_is_cut(
        payload in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        rest in prop::collection::vec(0u8..255, 9..60),
        cut in 1usize..20,
    ) {
        let sent = [payload.map(|it| early(&it)).unwrap_or_default(), rest.clone()].concat();
        let (mut state, mut http) = (Early::default(), Vec::new());
        for piece in sent.chunks(cut) {
            state.strip(piece, &mut http).unwrap();
        }
        prop_assert_eq!(http, rest);
    }
}
