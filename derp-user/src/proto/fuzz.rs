//! Frames and logins out of any bytes.

use super::{
    client::{
        login::{LoginRequest, server_key},
        read::{self, Message, MessageReader},
    },
    frame::{self, FrameReader, HEADER_LENGTH, forward_to_recv, send_to_recv},
    keys::{NodePrivate, NodePublic},
    login::{ClientInfo, Progress, client_info_progress, open_client_info},
};
use crate::fuzzing::pieces;

/// Frames are the same however the stream is cut, for servers, mesh peers and clients.
pub(crate) fn frames(bytes: &[u8]) {
    for trusted in [false, true] {
        let of = |pieces: &[&[u8]]| {
            let mut reader = FrameReader::new(trusted);
            walk(pieces, |kept, at| match reader.next(kept, at) {
                Ok(frame::Found::Frame(_, range)) => Step::Frame(range),
                Ok(frame::Found::Unwanted(resume)) => Step::Unwanted(resume),
                Ok(frame::Found::Incomplete(from)) => Step::Incomplete(from),
                Err(violation) => Step::Fault(violation.to_string()),
            })
        };
        let found = of(&[bytes]);
        assert_eq!(found, of(&pieces(bytes)));
        for mut frame in found.0 {
            let mut other = frame.clone();
            let _ = send_to_recv(&mut frame, &NodePublic::from_bytes([1; 32]));
            let _ = forward_to_recv(&mut other);
        }
    }
    let of = |pieces: &[&[u8]]| {
        let mut reader = MessageReader::default();
        walk(pieces, |kept, at| match reader.next(kept, at) {
            Ok(read::Found::Frame(range)) => Step::Frame(range),
            Ok(read::Found::Unwanted(resume)) => Step::Unwanted(resume),
            Ok(read::Found::Incomplete(from)) => Step::Incomplete(from),
            Err(fault) => Step::Fault(fault.to_string()),
        })
    };
    let found = of(&[bytes]);
    assert_eq!(found, of(&pieces(bytes)));
    for frame in &found.0 {
        let _ = Message::parse(frame);
    }
}

enum Step {
    Frame(std::ops::Range<usize>),
    Unwanted(usize),
    Incomplete(usize),
    Fault(String),
}

fn walk(
    pieces: &[&[u8]],
    mut next: impl FnMut(&[u8], usize) -> Step,
) -> (Vec<Vec<u8>>, Option<String>) {
    let (mut kept, mut found) = (Vec::new(), Vec::new());
    for piece in pieces {
        kept.extend_from_slice(piece);
        let mut at = 0;
        loop {
            match next(&kept, at) {
                Step::Frame(range) => {
                    found.push(kept[range.clone()].to_vec());
                    at = range.end;
                }
                Step::Unwanted(resume) => at = resume,
                Step::Incomplete(from) => {
                    kept.drain(..from.min(kept.len()));
                    break;
                }
                Step::Fault(fault) => return (found, Some(fault)),
            }
        }
    }
    (found, None)
}

/// The first byte tells which side hears the rest: as it is, or sealed as if by somebody who has the right keys.
pub(crate) fn login(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let (server, client) = (NodePrivate::from_random([3; 32]), NodePrivate::from_random([4; 32]));
    match kind % 4 {
        0 => {
            if let Ok(Progress::Complete(end)) = client_info_progress(rest) {
                let _ = open_client_info(&server, &rest[HEADER_LENGTH..end]);
            }
        }
        1 => {
            let sealed = seal(&client, &server.public(), rest);
            let payload = [client.public().as_bytes(), &[5; 24][..], &sealed].concat();
            if let Ok(logged_in) = open_client_info(&server, &payload) {
                assert_eq!(logged_in.key, client.public());
                let answer = logged_in.server_info([6; 24], Some((1, 2)));
                let request =
                    LoginRequest::new(&client, &server.public(), &logged_in.info, [7; 24]);
                if let Ok(request) = request {
                    let (info, length) = request.server_info(&answer).unwrap().unwrap();
                    assert_eq!((info.bytes_per_second, length), (1, answer.len()));
                }
            }
        }
        2 => {
            let _ = server_key(rest);
        }
        _ => {
            let request =
                LoginRequest::new(&client, &server.public(), &ClientInfo::default(), [7; 24]);
            let request = request.expect("it is short");
            let _ = request.server_info(rest);
            let sealed = seal(&server, &client.public(), rest);
            let length = u32::try_from(24 + sealed.len()).expect("the fuzzer's inputs are short");
            let header = frame::header(frame::FrameType::ServerInfo, length);
            let _ = request.server_info(&[&header[..], &[5; 24], &sealed].concat());
        }
    }
}

fn seal(from: &NodePrivate, to: &NodePublic, text: &[u8]) -> Vec<u8> {
    use crypto_box::aead::Aead as _;
    let sealed = crypto_box::SalsaBox::new(
        &crypto_box::PublicKey::from_bytes(*to.as_bytes()),
        &from.secret(),
    );
    sealed.encrypt(crypto_box::Nonce::from_slice(&[5; 24]), text).expect("it is short")
}
