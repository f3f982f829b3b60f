//! Keys, which the simulation numbers: those of clients from 0, those of servers behind them.

use derp_user::{proto::keys::NodePublic, relay::Heard};

pub(crate) type KeyNumber = u32;

/// Spread over all keys, as real ones are, with the number in it.
pub(crate) fn key(number: KeyNumber) -> NodePublic {
    let mut bytes = [0xd5; 32];
    let spread = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&spread.to_be_bytes());
    bytes[8..12].copy_from_slice(&number.to_be_bytes());
    NodePublic::from_bytes(bytes)
}

/// Which key this is.
pub(crate) fn number(key: &NodePublic) -> KeyNumber {
    let bytes = key.as_bytes();
    let number = u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
    debug_assert_eq!(self::key(number), *key);
    number
}

/// What a watcher is told of a key, in four bytes: a large region has many of them on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News(u32);

impl News {
    pub(crate) fn present(key: &NodePublic) -> Self {
        Self(number(key) << 1)
    }

    pub(crate) fn gone(key: &NodePublic) -> Self {
        Self(number(key) << 1 | 1)
    }

    pub(crate) fn heard(self) -> Heard {
        let key = key(self.0 >> 1);
        if self.0 & 1 == 0 { Heard::Present(key) } else { Heard::Gone(key) }
    }

    /// Bytes of the PeerPresent or PeerGone frame.
    pub(crate) fn length(self) -> u32 {
        if self.0 & 1 == 0 { 5 + 32 + 16 + 2 + 1 } else { 5 + 32 + 1 }
    }
}
