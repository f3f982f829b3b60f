//! A control server that says anything.

use std::time::{Duration, UNIX_EPOCH};

use super::{
    frames::Frames,
    netmap::Netmap,
    noise::{Early, Incoming, MAX_CONTENT, Sealer, answer},
    response::{MapResponse, RegisterResponse},
};
use crate::{fuzzing::pieces, proto::keys::NodePublic};

/// The first byte tells at which layer it says it.
pub(crate) fn control_server(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    match kind % 3 {
        0 => maps(rest),
        1 => stream(rest),
        _ => {
            let mut incoming = Incoming::new(&[9; 32]);
            let _ = records(&mut incoming, rest);
            if let Some(header) = rest.first_chunk() {
                let _ = answer(*header);
            }
        }
    }
}

/// Answers of the map, one in each line.
fn maps(text: &[u8]) {
    let mut netmap = Netmap::default();
    for line in text.split(|byte| *byte == b'\n') {
        if let Ok(response) = super::control::json::<MapResponse>("/machine/map", line) {
            let _ = netmap.apply(response);
        }
        let _ = super::control::json::<RegisterResponse>("/machine/register", line);
    }
    let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for number in 0..4 {
        let _ = netmap.permission(&NodePublic::from_bytes([number; 32]), now);
    }
    assert!(netmap.granted_peers(now) <= netmap.peers());
}

/// What is sealed is opened however it is cut, and comes out as the same messages.
fn stream(content: &[u8]) {
    let mut sealer = Sealer::new(&[9; 32]);
    let mut sealed = Vec::new();
    let mut rest = content;
    while !rest.is_empty() {
        let taken = sealer.seal(rest, &mut sealed).expect("there are few records");
        assert!(taken <= MAX_CONTENT);
        rest = &rest[taken..];
    }
    let mut opened = Vec::new();
    let mut incoming = Incoming::new(&[9; 32]);
    for piece in pieces(&sealed) {
        opened.extend(records(&mut incoming, piece).expect("they were sealed with this key"));
    }
    assert_eq!(opened, content);

    let mut without = Vec::new();
    let mut early = Early::default();
    let _ = pieces(content).into_iter().try_for_each(|piece| early.strip(piece, &mut without));
    assert!(without.len() <= content.len());

    let messages = |mut pieces: Vec<&[u8]>| {
        let mut frames = Frames::default();
        let mut messages = Vec::new();
        for piece in &mut pieces {
            while let Some(message) = frames.next(piece)? {
                messages.push(message);
            }
        }
        Ok::<_, super::frames::TooLong>(messages)
    };
    let whole = messages(vec![content]);
    assert_eq!(whole, messages(content.chunks(3).collect()));
}

/// What is in the records that come with `bytes`.
pub(super) fn records(
    incoming: &mut Incoming,
    mut bytes: &[u8],
) -> Result<Vec<u8>, super::noise::NoiseError> {
    let mut content = Vec::new();
    while !bytes.is_empty() {
        let space = incoming.space();
        let count = space.len().min(bytes.len());
        let (taken, rest) = bytes.split_at(count);
        space[..count].copy_from_slice(taken);
        bytes = rest;
        content.extend_from_slice(incoming.advance(count)?.unwrap_or_default());
    }
    Ok(content)
}
