//! Machine keys: what a machine and a control server know each other by.

use std::{fmt, str::FromStr};

use zeroize::Zeroizing;

use crate::proto::keys::{KEY_LENGTH, KeyError, PrivateBytes, decode_hex, encode_hex};

const PUBLIC_PREFIX: &str = "mkey:";

/// The public half of a machine key: 32 bytes of Curve25519.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct MachinePublic([u8; KEY_LENGTH]);

impl MachinePublic {
    pub(super) const fn as_bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.0
    }
}

impl fmt::Display for MachinePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", encode_hex(&self.0))
    }
}

impl fmt::Debug for MachinePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MachinePublic({self})")
    }
}

impl FromStr for MachinePublic {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let digits = text.strip_prefix(PUBLIC_PREFIX).ok_or(KeyError::Prefix(PUBLIC_PREFIX))?;
        let bytes = decode_hex(digits)?;
        if bytes == [0; KEY_LENGTH] {
            return Err(KeyError::Zero);
        }
        Ok(Self(bytes))
    }
}

/// The private half of a machine key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct MachinePrivate(PrivateBytes);

impl MachinePrivate {
    /// Makes a key of 32 random bytes, clamped as the reference clamps new keys.
    #[must_use]
    pub fn from_random(bytes: [u8; KEY_LENGTH]) -> Self {
        Self(PrivateBytes::from_random(bytes))
    }

    /// Returns the public half.
    #[must_use]
    pub fn public(&self) -> MachinePublic {
        MachinePublic(self.0.public())
    }

    /// Returns the text form `privkey:` and 64 digits, for the key file only.
    #[must_use]
    pub fn to_secret_text(&self) -> String {
        self.0.to_secret_text()
    }

    pub(super) fn secret_bytes(&self) -> Zeroizing<[u8; KEY_LENGTH]> {
        Zeroizing::new(self.0.secret().to_bytes())
    }
}

impl FromStr for MachinePrivate {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        text.parse().map(Self)
    }
}

impl fmt::Debug for MachinePrivate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MachinePrivate([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms_round_trip_and_secrets_never_print() {
        let private = MachinePrivate::from_random([7; KEY_LENGTH]);
        let read: MachinePrivate = private.to_secret_text().parse().unwrap();
        assert_eq!(read.public(), private.public());
        assert_eq!(private.public().to_string().parse(), Ok(private.public()));
        assert_eq!(format!("{private:?}"), "MachinePrivate([redacted])");
        assert_eq!("nodekey:".parse::<MachinePublic>(), Err(KeyError::Prefix("mkey:")));
        let zero = format!("mkey:{}", "0".repeat(64));
        assert_eq!(zero.parse::<MachinePublic>(), Err(KeyError::Zero));
    }
}
