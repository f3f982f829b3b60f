//! Disco, the clients' path discovery protocol, as far as relays speak it.
//!
//! ```text
//! 0   6   magic
//! 6   32  the sender's disco public key
//! 38  24  nonce
//! 62      NaCl box: the tag, then the message
//! ```
//!
//! The crate `ts_disco_protocol` (0.6) is not used: of the messages of relays, 04 to 09, it has the numbers only,
//! and what it adds to the 62 bytes above would bring six crates along.

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod keys;
mod message;

use derp_common::flow::class::DISCO_MAGIC;

pub(super) use self::message::address_bytes;
pub use self::{
    keys::{DiscoPrivate, DiscoPublic, SharedKey},
    message::{
        AllocateRequest, AllocateResponse, EndpointRecord, Handshake, MAX_ADDRESSES, Message,
        MessageError, TRANSACTION_LENGTH,
    },
};
use crate::proto::keys::KEY_LENGTH;

/// Bytes of a box's nonce.
pub const NONCE_LENGTH: usize = 24;

/// A disco packet as it came, with its box unopened.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'a> {
    /// Who says to have sent it; a box that can be opened proves it.
    pub sender: DiscoPublic,
    nonce: &'a [u8; NONCE_LENGTH],
    sealed: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Takes a packet apart; `None` when it is not disco.
    #[must_use]
    pub fn parse(packet: &'a [u8]) -> Option<Self> {
        let rest = packet.strip_prefix(&DISCO_MAGIC)?;
        let (sender, rest) = rest.split_first_chunk::<KEY_LENGTH>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LENGTH>()?;
        Some(Self { sender: DiscoPublic::from_bytes(*sender), nonce, sealed })
    }

    /// Opens the box with the key shared with the sender, and returns the message in it as bytes; `None` when it
    /// was not sealed with that key.
    #[must_use]
    pub fn open(&self, shared: &SharedKey) -> Option<Vec<u8>> {
        shared.open(self.nonce, self.sealed)
    }
}

/// Appends a disco packet to `packet`. `shared` is between `sender` and the recipient; `nonce` must be random.
pub fn seal(
    packet: &mut Vec<u8>,
    sender: &DiscoPublic,
    shared: &SharedKey,
    nonce: &[u8; NONCE_LENGTH],
    message: &Message,
) {
    packet.extend(DISCO_MAGIC);
    packet.extend(sender.as_bytes());
    packet.extend(nonce);
    packet.extend(shared.seal(nonce, &message.encode()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn handshake(challenge: [u8; 32]) -> Message {
        let remote = DiscoPublic::from_bytes([3; 32]);
        Message::Challenge(Handshake { vni: 1, generation: 2, remote, challenge })
    }

    #[test]
    fn both_ends_share_a_key() {
        let (a, b) = (DiscoPrivate::from_random([1; 32]), DiscoPrivate::from_random([2; 32]));
        let message = handshake([4; 32]);
        let mut packet = Vec::new();
        seal(&mut packet, &a.public(), &a.shared(&b.public()), &[5; 24], &message);
        assert_eq!(packet.len() + 8, derp_common::flow::class::CONTROL_LENGTH);
        let envelope = Envelope::parse(&packet).unwrap();
        assert_eq!(envelope.sender, a.public());
        let opened = envelope.open(&b.shared(&a.public())).unwrap();
        assert_eq!(Message::decode(&opened), Ok(message));
        let other = DiscoPrivate::from_random([6; 32]);
        assert_eq!(envelope.open(&other.shared(&a.public())), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_disco_or_not(packet in prop::collection::vec(any::<u8>(), 0..200)) {
            let is_disco = crate::proto::disco::looks_like_disco(&packet);
            prop_assert_eq!(Envelope::parse(&packet).is_some(), is_disco);
        }

        #[test]
        fn one_changed_or_missing_byte_closes_the_box(at in 6usize..152, bit in 0u8..8) {
            let (a, b) = (DiscoPrivate::from_random([1; 32]), DiscoPrivate::from_random([2; 32]));
            let shared = b.shared(&a.public());
            let mut packet = Vec::new();
            seal(&mut packet, &a.public(), &shared, &[5; 24], &handshake([4; 32]));
            let envelope = Envelope::parse(&packet[..at]);
            prop_assert!(envelope.is_none_or(|envelope| envelope.open(&shared).is_none()));
            packet[at] ^= 1 << bit;
            let envelope = Envelope::parse(&packet).unwrap();
            let key = if at < 38 { b.shared(&envelope.sender) } else { shared };
            prop_assert!(envelope.open(&key).is_none() || at == 37 && bit == 7);
        }
    }
}
