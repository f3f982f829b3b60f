//! The state machine with its flow table.

#[cfg(test)]
mod addresses;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod defences;
#[cfg(test)]
mod handshakes;
pub(crate) mod model;
#[cfg(test)]
mod restart;
#[cfg_attr(not(test), expect(dead_code, reason = "the models need a part of it"))]
mod support;

#[cfg(test)]
use super::{Network, Pairs, PeerSettings, PublicKey};

/// A hub that is served at its own address only, with two spokes.
#[cfg(test)]
pub(crate) fn star() -> Network {
    let peer = |label: &str, byte| PeerSettings {
        label: label.to_owned(),
        key: PublicKey::from_bytes([byte; 32]),
        address: (byte == 1).then(|| "192.0.2.1:51820".parse().unwrap()),
    };
    let peers = vec![peer("nas", 1), peer("phone", 2), peer("laptop", 3)];
    Network { name: "home".to_owned(), peers, pairs: Pairs::Star(0) }
}
