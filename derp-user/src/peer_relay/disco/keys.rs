//! Disco keys and their text forms.

use std::{fmt, str::FromStr};

use crypto_box::{Nonce, PublicKey, SalsaBox, aead::Aead as _};

use super::NONCE_LENGTH;
use crate::proto::{
    keys::{KEY_LENGTH, KeyError, PrivateBytes, decode_hex, encode_hex},
    login::is_degenerate,
};

const PUBLIC_PREFIX: &str = "discokey:";

/// The public half of a disco key: 32 bytes of Curve25519. A client makes a new one whenever it starts.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DiscoPublic([u8; KEY_LENGTH]);

impl DiscoPublic {
    /// Wraps the 32 bytes as they stand on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes as they stand on the wire.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// Tells whether boxes from and to this key prove nothing: what they are sealed with is known to everybody.
    #[must_use]
    pub fn is_degenerate(&self) -> bool {
        is_degenerate(&self.0)
    }

    /// Returns the first eight bytes, as they lie in a packet: what the flow tables know a sender by.
    #[must_use]
    pub const fn prefix(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Returns the short form for logs and pages, as Tailscale writes it: `d:` and the first eight bytes.
    #[must_use]
    pub fn short(&self) -> String {
        format!("d:{}", encode_hex(&self.0[..8]))
    }
}

impl fmt::Display for DiscoPublic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PUBLIC_PREFIX}{}", encode_hex(&self.0))
    }
}

impl fmt::Debug for DiscoPublic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DiscoPublic({})", self.short())
    }
}

impl FromStr for DiscoPublic {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.strip_prefix(PUBLIC_PREFIX).ok_or(KeyError::Prefix(PUBLIC_PREFIX))?;
        decode_hex(digits).map(Self)
    }
}

/// The private half of a disco key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct DiscoPrivate(PrivateBytes);

impl DiscoPrivate {
    /// Makes a key of 32 random bytes, clamped as the reference clamps new keys.
    #[must_use]
    pub fn from_random(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(PrivateBytes::from_random(bytes))
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> DiscoPublic {
        DiscoPublic(self.0.public())
    }

    /// Returns what boxes between this key and `other` are sealed with: a Diffie-Hellman, some 50 µs.
    #[must_use]
    pub fn shared(&self, other: &DiscoPublic) -> SharedKey {
        SharedKey(SalsaBox::new(&PublicKey::from_bytes(other.0), &self.0.secret()))
    }

    /// Returns the text form `privkey:` and 64 digits, for the key file only.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        self.0.to_secret_text()
    }
}

impl FromStr for DiscoPrivate {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for DiscoPrivate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("DiscoPrivate([redacted])")
    }
}

/// What the boxes between two disco keys are sealed with, in both directions. Wiped from memory when dropped.
pub struct SharedKey(SalsaBox);

impl SharedKey {
    /// Seals `text`. No nonce may be used twice.
    pub(super) fn seal(&self, nonce: &[u8; NONCE_LENGTH], text: &[u8]) -> Vec<u8> {
        let sealed = self.0.encrypt(Nonce::from_slice(nonce), text);
        sealed.expect("a message of a few KiB is within the cipher's limit")
    }

    /// Opens a box, if it was sealed with this key.
    pub(super) fn open(&self, nonce: &[u8; NONCE_LENGTH], sealed: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(Nonce::from_slice(nonce), sealed).ok()
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting() -> DiscoPublic {
        DiscoPublic::from_bytes(std::array::from_fn(|index| index as u8))
    }

    #[test]
    fn text_forms_round_trip() {
        let text = counting().to_string();
        assert!(text.starts_with("discokey:00010203"));
        assert_eq!(text.parse(), Ok(counting()));
        assert_eq!(counting().short(), "d:0001020304050607");
        assert_eq!(format!("{:?}", counting()), "DiscoPublic(d:0001020304050607)");
        assert!("nodekey:00".parse::<DiscoPublic>().is_err());
        let private = DiscoPrivate::from_random([7; 32]);
        let read: DiscoPrivate = private.to_secret_text().parse().unwrap();
        assert_eq!(read.public(), private.public());
        assert_eq!(
            format!("privkey:{}", "0".repeat(64)).parse::<DiscoPrivate>().err(),
            Some(KeyError::Zero)
        );
    }

    #[test]
    fn secrets_never_print() {
        let private = DiscoPrivate::from_random([7; 32]);
        assert_eq!(format!("{private:?}"), "DiscoPrivate([redacted])");
        assert_eq!(format!("{:?}", private.shared(&counting())), "SharedKey([redacted])");
    }

    #[test]
    fn the_prefix_is_what_lies_in_a_packet() {
        assert_eq!(counting().prefix().to_ne_bytes(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
