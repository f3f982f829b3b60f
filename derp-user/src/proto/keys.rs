//! Key types and their text forms (reference section 0).

use std::{fmt, str::FromStr};

use subtle::ConstantTimeEq;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// Bytes of every key in the protocol.
pub const KEY_LENGTH: usize = 32;

const NODE_PUBLIC_PREFIX: &str = "nodekey:";
const PRIVATE_PREFIX: &str = "privkey:";

/// Why a text is not a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// The text does not start with the prefix of its kind.
    #[error("a key must start with {0:?}")]
    Prefix(&'static str),
    /// The part after the prefix is not exactly 64 hexadecimal digits.
    #[error("a key must have exactly 64 hexadecimal digits")]
    Digits,
    /// The key is all zero, which stands for "no key".
    #[error("the key is all zero")]
    Zero,
}

/// Public key of a node or of a DERP server: 32 bytes of Curve25519.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodePublic([u8; KEY_LENGTH]);

impl NodePublic {
    /// Wraps the 32 bytes as they stand on the wire.
    pub const fn from_bytes(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes as they stand on the wire.
    pub const fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }

    /// Whether this is the all-zero key, which no node can own.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; KEY_LENGTH]
    }

    /// The 64 lower-case hexadecimal digits without prefix, as in `Derp-Public-Key`.
    pub fn to_hex(&self) -> String {
        encode_hex(&self.0)
    }

    /// The short form for logs: the first five characters of the base64 form in brackets; empty for the zero key.
    pub fn short(&self) -> ShortKey<'_> {
        ShortKey(self)
    }
}

impl fmt::Display for NodePublic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{NODE_PUBLIC_PREFIX}{}", self.to_hex())
    }
}

impl fmt::Debug for NodePublic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "NodePublic({})", self.short())
    }
}

impl FromStr for NodePublic {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits =
            text.strip_prefix(NODE_PUBLIC_PREFIX).ok_or(KeyError::Prefix(NODE_PUBLIC_PREFIX))?;
        decode_hex(digits).map(Self)
    }
}

/// Displays a key as `[abcde]`.
pub struct ShortKey<'a>(&'a NodePublic);

impl fmt::Display for ShortKey<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            return Ok(());
        }
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let head = self.0.0[..4].iter().fold(0u32, |bits, &byte| bits << 8 | u32::from(byte));
        formatter.write_str("[")?;
        for position in 0..5 {
            let digit = (head >> (26 - 6 * position)) & 63;
            write!(formatter, "{}", char::from(ALPHABET[digit as usize]))?;
        }
        formatter.write_str("]")
    }
}

/// What every private key on Curve25519 is, whoever owns it. Wiped from memory when dropped; has no text form but
/// the one for a key file.
#[derive(Clone, ZeroizeOnDrop)]
pub(crate) struct PrivateBytes([u8; KEY_LENGTH]);

impl PrivateBytes {
    /// Makes a key of 32 random bytes, clamped as the reference clamps new keys.
    pub(crate) fn from_random(mut bytes: [u8; KEY_LENGTH]) -> Self {
        bytes[0] &= 0xF8;
        bytes[KEY_LENGTH - 1] = bytes[KEY_LENGTH - 1] & 0x7F | 0x40;
        Self(bytes)
    }

    /// The bytes of the public key that belongs to this one.
    pub(crate) fn public(&self) -> [u8; KEY_LENGTH] {
        *self.secret().public_key().as_bytes()
    }

    /// The text form `privkey:` and 64 digits.
    pub(crate) fn to_secret_text(&self) -> String {
        let digits = Zeroizing::new(encode_hex(&self.0));
        [PRIVATE_PREFIX, &digits].concat()
    }

    pub(crate) fn secret(&self) -> crypto_box::SecretKey {
        crypto_box::SecretKey::from_bytes(self.0)
    }
}

impl FromStr for PrivateBytes {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.strip_prefix(PRIVATE_PREFIX).ok_or(KeyError::Prefix(PRIVATE_PREFIX))?;
        let key = Self(decode_hex(digits)?);
        if key.0.ct_eq(&[0; KEY_LENGTH]).into() {
            return Err(KeyError::Zero);
        }
        Ok(key)
    }
}

/// Private key of a node or of this server. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct NodePrivate(PrivateBytes);

impl NodePrivate {
    /// Makes a key of 32 random bytes, clamped as the reference clamps new keys.
    pub fn from_random(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(PrivateBytes::from_random(bytes))
    }

    /// The public key that belongs to this one.
    pub fn public(&self) -> NodePublic {
        NodePublic(self.0.public())
    }

    /// The text form `privkey:` and 64 digits, for the key file only.
    pub fn to_secret_text(&self) -> String {
        self.0.to_secret_text()
    }

    pub(super) fn secret(&self) -> crypto_box::SecretKey {
        self.0.secret()
    }
}

impl FromStr for NodePrivate {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for NodePrivate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NodePrivate([redacted])")
    }
}

/// The secret that servers of one mesh share. Compared in constant time; never printed.
#[derive(Clone, ZeroizeOnDrop)]
pub struct MeshKey([u8; KEY_LENGTH]);

impl MeshKey {
    /// Whether this is the all-zero key, which counts as no key at all.
    pub fn is_zero(&self) -> bool {
        self.0.ct_eq(&[0; KEY_LENGTH]).into()
    }

    /// The 64 digits, for the sealed ClientInfo only.
    pub fn to_secret_text(&self) -> String {
        encode_hex(&self.0)
    }
}

impl PartialEq for MeshKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for MeshKey {}

impl FromStr for MeshKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode_hex(text).map(Self)
    }
}

impl fmt::Debug for MeshKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("MeshKey([redacted])")
    }
}

/// The lower-case hexadecimal digits of `bytes`.
pub fn encode_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    // In one piece from the start: the bytes may be a secret.
    let mut text = String::with_capacity(2 * bytes.len());
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    text.extend(digits.map(|digit| char::from(DIGITS[usize::from(digit)])));
    text
}

/// Reads 64 hexadecimal digits.
pub(crate) fn decode_hex(digits: &str) -> Result<[u8; KEY_LENGTH], KeyError> {
    let digits = digits.as_bytes();
    if digits.len() != 2 * KEY_LENGTH {
        return Err(KeyError::Digits);
    }
    let mut bytes = [0; KEY_LENGTH];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16).ok_or(KeyError::Digits);
        *byte = (nibble(pair[0])? << 4 | nibble(pair[1])?) as u8;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting_key() -> NodePublic {
        NodePublic::from_bytes(std::array::from_fn(|index| index as u8))
    }

    #[test]
    fn text_forms_round_trip_in_either_case() {
        let text = counting_key().to_string();
        assert_eq!(
            text,
            "nodekey:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        );
        assert_eq!(text.parse(), Ok(counting_key()));
        let upper = text.to_uppercase().replace("NODEKEY:", "nodekey:");
        assert_eq!(upper.parse(), Ok(counting_key()));
    }

    #[test]
    fn wrong_texts_are_refused() {
        let digits = "0".repeat(64);
        assert_eq!(digits.parse::<NodePublic>(), Err(KeyError::Prefix("nodekey:")));
        assert_eq!("nodekey:12".parse::<NodePublic>(), Err(KeyError::Digits));
        assert_eq!(
            format!("nodekey:{}g", &digits[1..]).parse::<NodePublic>(),
            Err(KeyError::Digits)
        );
        assert_eq!(
            format!("nodekey:{}\u{e9}", &digits[2..]).parse::<NodePublic>(),
            Err(KeyError::Digits)
        );
        assert_eq!(format!("privkey:{digits}").parse::<NodePrivate>().err(), Some(KeyError::Zero));
        assert!("".parse::<MeshKey>().is_err());
    }

    #[test]
    fn short_form_is_the_head_of_base64() {
        assert_eq!(counting_key().short().to_string(), "[AAECA]");
        assert_eq!(NodePublic::from_bytes([0; 32]).short().to_string(), "");
        assert_eq!(NodePublic::from_bytes([0xff; 32]).short().to_string(), "[/////]");
    }

    /// RFC 7748 section 6.1, Bob's keys.
    #[test]
    fn public_key_follows_rfc_7748() {
        let private: NodePrivate =
            "privkey:5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"
                .parse()
                .unwrap();
        assert_eq!(
            private.public().to_hex(),
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
        );
    }

    #[test]
    fn secrets_never_print() {
        let private = NodePrivate::from_random([7; 32]);
        assert_eq!(format!("{private:?}"), "NodePrivate([redacted])");
        let mesh: MeshKey = "07".repeat(32).parse().unwrap();
        assert_eq!(format!("{mesh:?}"), "MeshKey([redacted])");
    }

    #[test]
    fn new_keys_are_clamped() {
        let key = NodePrivate::from_random([0xff; 32]);
        assert!(key.to_secret_text().starts_with("privkey:f8ff"));
        assert!(key.to_secret_text().ends_with("7f"));
    }
}
