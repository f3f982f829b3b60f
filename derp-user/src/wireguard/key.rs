//! Public keys, and what can be proved with them.

use std::{fmt, str::FromStr};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use blake2::{
    Blake2s256, Blake2sMac,
    digest::{Digest as _, KeyInit, Mac as _, consts::U16},
};

use super::message::Mac1;

/// Bytes of a public key.
pub const KEY_LENGTH: usize = 32;
/// Letters of the short form.
const SHORT: usize = 8;
/// What keys of MAC1 are derived with.
const LABEL: &[u8] = b"mac1----";

/// A WireGuard public key.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PublicKey([u8; KEY_LENGTH]);

/// Why a text is no public key. The text is not repeated: it may be a private one.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be a WireGuard public key: 44 letters of base64, as `wg pubkey` prints them")]
pub struct PublicKeyError;

impl PublicKey {
    /// Takes the bytes of a key.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// Returns enough of it to tell it from others, for the log.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(SHORT);
        text
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| PublicKeyError)?;
        let bytes: [u8; KEY_LENGTH] = bytes.try_into().map_err(|_| PublicKeyError)?;
        // `wg` takes it for no key.
        if bytes == [0; KEY_LENGTH] { Err(PublicKeyError) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64_STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// The key that MAC1 of messages *to* one peer is made with: anybody who knows the peer's public key has it.
#[derive(Clone)]
pub struct Mac1Key(Blake2sMac<U16>);

impl Mac1Key {
    /// Derives it: BLAKE2s-256 of `mac1----` and the recipient's public key.
    #[must_use]
    pub fn of(recipient: &PublicKey) -> Self {
        let key = Blake2s256::new().chain_update(LABEL).chain_update(recipient.0).finalize();
        Self(KeyInit::new(&key))
    }

    /// Tells whether a message was made for the peer.
    #[must_use]
    pub fn verifies(&self, mac1: &Mac1<'_>) -> bool {
        self.0.clone().chain_update(mac1.covered).verify((&mac1.mac).into()).is_ok()
    }
}

impl fmt::Debug for Mac1Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mac1Key")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::message::Message;

    fn hex(text: &str) -> Vec<u8> {
        let pairs = text.as_bytes().chunks(2);
        pairs.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    /// The public key of the reference vectors.
    fn reference_key() -> PublicKey {
        PublicKey::from_bytes(std::array::from_fn(|byte| byte as u8))
    }

    #[test]
    fn mac1_is_as_in_the_reference_vectors() {
        let bytes = |most: u8| (0..=most).collect::<Vec<u8>>();
        let initiation = [
            hex("0100000078563412"),
            bytes(0x6b),
            hex("1efc917437b5398edbcd32f1a1bc2087"),
            vec![0; 16],
        ]
        .concat();
        let response = [
            hex("02000000ddccbbaa78563412"),
            bytes(0x2f),
            hex("a6b6bc811c2d1832764c45daa9f8f936"),
            vec![0; 16],
        ]
        .concat();
        let key = Mac1Key::of(&reference_key());
        for message in [initiation, response] {
            for flipped in [None, Some(0), Some(4), Some(59), Some(message.len() - 17)] {
                let mut message = message.clone();
                if let Some(at) = flipped {
                    // The last bit of the type would make it another message.
                    let bit = if at == 0 { continue } else { 1 };
                    message[at] ^= bit;
                }
                let (Message::Initiation { mac1, .. } | Message::Response { mac1, .. }) =
                    Message::parse(&message).unwrap()
                else {
                    panic!("another message");
                };
                assert_eq!(key.verifies(&mac1), flipped.is_none(), "{flipped:?}");
                let other = Mac1Key::of(&PublicKey::from_bytes([7; 32]));
                assert!(!other.verifies(&mac1));
            }
        }
    }

    #[test]
    fn the_derived_key_is_as_in_the_reference_vector() {
        let derived = Blake2s256::new().chain_update(LABEL).chain_update(reference_key().0);
        let expected = "4fb2527ac956001553dc1ad9b55171b7d9daa3de1cdbcd71451830170c7e6cac";
        assert_eq!(derived.finalize().to_vec(), hex(expected));
    }

    #[test]
    fn keys_are_read_and_written_as_wg_does() {
        let text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        assert_eq!(text.parse(), Ok(reference_key()));
        assert_eq!(reference_key().to_string(), text);
        assert_eq!(reference_key().short(), "AAECAwQF");
        let bad = [
            "",
            "AAECAwQF",
            &text[..43],
            &format!("{text}A"),
            "nodekey:00",
            &" ".repeat(44),
            &"A".repeat(43),
        ];
        for text in bad {
            assert_eq!(text.parse::<PublicKey>(), Err(PublicKeyError), "{text}");
        }
    }
}
