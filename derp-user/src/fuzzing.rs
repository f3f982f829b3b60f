//! What the fuzzer runs: parsers on any bytes, and state machines against their models on any history.
//!
//! `fuzz/fuzz_targets` gives these to libFuzzer. What it has found worth keeping is in `fuzz/corpus`, and is run again by
//! the test below.

use arbitrary::{Arbitrary, Result, Unstructured, unstructured::Int};

use crate::{
    admit, companion, config, flow, http, peer_relay, proto, relay, server, stun, tailnet,
    wireguard,
};

/// Does something with the fuzzer's bytes, and panics if it goes wrong.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 16] = [
    ("companion_model", |bytes| companion::tests::model::run(&steps(bytes))),
    ("config_file", config::fuzz::file),
    ("config_flags", config::fuzz::flags),
    ("derp_frames", proto::fuzz::frames),
    ("derp_login", proto::fuzz::login),
    ("disco", peer_relay::disco::fuzz::message),
    ("documents", documents),
    ("flow_model", |bytes| flow::tests::model::run(&steps(bytes))),
    ("http", http::fuzz::request),
    ("peer_relay_model", |bytes| peer_relay::tests::model::run(&steps(bytes))),
    ("relay_model", |bytes| relay::model::run(&steps(bytes))),
    ("stun", stun::fuzz::messages),
    ("tailnet", tailnet::fuzz::control_server),
    ("tls", server::fuzz::tls),
    ("websocket", server::fuzz::websocket),
    ("wireguard_model", |bytes| wireguard::tests::model::run(&steps(bytes))),
];

/// The target of this name.
///
/// # Panics
///
/// If there is none.
pub fn target(name: &str) -> Target {
    let found = TARGETS.into_iter().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no target {name}")).1
}

/// Most steps of a history.
const MOST_STEPS: usize = 100;

fn steps<'a, T: Arbitrary<'a>>(bytes: &'a [u8]) -> Vec<T> {
    let mut input = Unstructured::new(bytes);
    let step = || (!input.is_empty()).then(|| T::arbitrary(&mut input).ok()).flatten();
    std::iter::from_fn(step).take(MOST_STEPS).collect()
}

/// A number below `end`.
pub(crate) fn below<N: Int, E: TryInto<N>>(
    end: E,
) -> impl FnOnce(&mut Unstructured<'_>) -> Result<N> {
    let last = end.try_into().map_or(N::ZERO, |end| end.wrapping_sub(N::ONE));
    move |input| input.int_in_range(N::ZERO..=last)
}

/// One of these.
pub(crate) fn one_of<T: Copy>(choices: &[T]) -> impl FnOnce(&mut Unstructured<'_>) -> Result<T> {
    move |input| input.choose(choices).copied()
}

/// None, one or two.
pub(crate) fn few<'a, T: Arbitrary<'a>>(input: &mut Unstructured<'a>) -> Result<Vec<T>> {
    (0..input.int_in_range(0..=2)?).map(|_| T::arbitrary(input)).collect()
}

/// `bytes` in pieces, whose lengths follow from the bytes.
pub(crate) fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut rest = bytes;
    while let Some((first, _)) = rest.split_first() {
        let (piece, others) = rest.split_at(rest.len().min(1 + usize::from(first % 64)));
        pieces.push(piece);
        rest = others;
    }
    pieces
}

/// Texts of other programs, the kind of which is in the first byte.
fn documents(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else { return };
    match kind % 5 {
        0 => {
            let text = String::from_utf8_lossy(text);
            let _ = text.parse::<crate::client::map::DerpMap>();
        }
        1 => admit::fuzz::answers(text),
        2 => {
            let _ = companion::Report::parse(text);
        }
        3 => {
            if let Ok(stored) = wireguard::Stored::from_json(text) {
                let again = wireguard::Stored::from_json(stored.to_json().as_bytes());
                assert_eq!(
                    again.expect("what was written can be read").to_json(),
                    stored.to_json()
                );
            }
        }
        _ => config::fuzz::small_files(text),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn every_corpus_is_run_again() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
        for (name, target) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpora.join(name)).expect(name).collect();
            assert!(!files.is_empty(), "{name}");
            for file in files {
                target(&fs::read(file.unwrap().path()).unwrap());
            }
        }
    }

    #[test]
    fn every_target_has_a_program() {
        let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
        for (name, _) in TARGETS {
            let text = fs::read_to_string(programs.join(name).with_extension("rs")).expect(name);
            assert!(text.contains(&format!("target(\"{name}\")")), "{name}");
        }
    }
}
