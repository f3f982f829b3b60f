//! The key that binds an ACME account to one that its operator has elsewhere.

use std::{fmt, str::FromStr};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// An external account (RFC 8555 section 7.3.4).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// Its name.
    pub id: String,
    /// The key it shares with the server.
    pub key: BindingKey,
}

/// A shared secret; written in base64, for the web or not, as derper takes it. Never shown.
#[derive(Clone)]
pub struct BindingKey(Zeroizing<Vec<u8>>);

impl BindingKey {
    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for BindingKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .or_else(|_| BASE64_STANDARD.decode(text))
            .map(|key| Self(Zeroizing::new(key)))
            .map_err(|_| "must be base64")
    }
}

impl PartialEq for BindingKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BindingKey {}

impl fmt::Debug for BindingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BindingKey([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_base64_are_taken_and_neither_is_shown() {
        for text in ["-_8A", "+/8A"] {
            let key: BindingKey = text.parse().unwrap();
            assert_eq!(key.as_bytes(), [0xfb, 0xff, 0x00]);
            assert_eq!(format!("{key:?}"), "BindingKey([redacted])");
        }
        assert_eq!("AAE".parse::<BindingKey>().unwrap().as_bytes(), [0, 1]);
        assert_eq!("AAE=".parse::<BindingKey>().unwrap().as_bytes(), [0, 1]);
        assert!("not base64!".parse::<BindingKey>().is_err());
    }
}
