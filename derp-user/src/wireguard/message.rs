//! WireGuard's messages, as far as a relay without keys can read them (udp-relay reference, section 7.1).

use derp_common::flow::class::{COOKIE_REPLY, INITIATION, RESPONSE};

/// Bytes of a MAC.
pub(super) const MAC_LENGTH: usize = 16;
/// Where MAC1 of an initiation begins; it covers everything before.
const INITIATION_MAC1: usize = 116;
/// The same in a response.
const RESPONSE_MAC1: usize = 60;

/// An index that one end of a session has chosen, as it lies in the packet.
pub type Index = u32;

/// A message of a handshake.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Message<'a> {
    /// The first message, type 1.
    Initiation {
        /// Chosen by the sender: what it is to be sent has this as receiver index.
        sender: Index,
        /// The proof that the sender knows the responder's public key.
        mac1: Mac1<'a>,
    },
    /// The second one, type 2.
    Response {
        /// Chosen by the sender.
        sender: Index,
        /// The initiation it answers.
        receiver: Index,
        /// The proof that the sender knows the initiator's public key.
        mac1: Mac1<'a>,
    },
    /// The answer, type 3, of an end that is under load, to either of them.
    CookieReply {
        /// The message it answers.
        receiver: Index,
    },
}

/// A MAC1 with what it covers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mac1<'a> {
    /// The bytes before it.
    pub covered: &'a [u8],
    /// The MAC.
    pub mac: [u8; MAC_LENGTH],
}

impl<'a> Message<'a> {
    /// Reads a message; `None` if it is none of a handshake, or of another length than its type has.
    #[must_use]
    pub fn parse(payload: &'a [u8]) -> Option<Self> {
        let (&[kind, 0, 0, 0], _) = payload.split_first_chunk::<4>()? else { return None };
        match (kind, payload.len()) {
            (1, INITIATION) => Some(Self::Initiation {
                sender: index(payload, 4)?,
                mac1: mac1(payload, INITIATION_MAC1)?,
            }),
            (2, RESPONSE) => Some(Self::Response {
                sender: index(payload, 4)?,
                receiver: index(payload, 8)?,
                mac1: mac1(payload, RESPONSE_MAC1)?,
            }),
            (3, COOKIE_REPLY) => Some(Self::CookieReply { receiver: index(payload, 4)? }),
            _ => None,
        }
    }
}

fn index(payload: &[u8], at: usize) -> Option<Index> {
    payload.get(at..)?.first_chunk().copied().map(Index::from_ne_bytes)
}

fn mac1(payload: &[u8], at: usize) -> Option<Mac1<'_>> {
    let (covered, rest) = payload.split_at_checked(at)?;
    Some(Mac1 { covered, mac: *rest.first_chunk()? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: u8, length: usize) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.extend((4..length).map(|byte| byte as u8));
        message
    }

    #[test]
    fn fields_are_where_they_should_be() {
        let of = Index::from_ne_bytes;
        let initiation = message(1, 148);
        let Some(Message::Initiation { sender, mac1 }) = Message::parse(&initiation) else {
            panic!("an initiation");
        };
        assert_eq!(sender, of([4, 5, 6, 7]));
        assert_eq!((mac1.covered, &mac1.mac[..]), (&initiation[..116], &initiation[116..132]));
        let response = message(2, 92);
        let Some(Message::Response { sender, receiver, mac1 }) = Message::parse(&response) else {
            panic!("a response");
        };
        assert_eq!((sender, receiver), (of([4, 5, 6, 7]), of([8, 9, 10, 11])));
        assert_eq!((mac1.covered, &mac1.mac[..]), (&response[..60], &response[60..76]));
        let cookie = Message::parse(&message(3, 64)).map(|message| format!("{message:?}"));
        let expected = Message::CookieReply { receiver: of([4, 5, 6, 7]) };
        assert_eq!(cookie, Some(format!("{expected:?}")));
    }

    #[test]
    fn every_other_length_and_type_is_refused() {
        for kind in 0..=255 {
            for length in 0..200 {
                let is_one = matches!((kind, length), (1, 148) | (2, 92) | (3, 64));
                let message = &message(kind, length.max(4))[..length];
                assert_eq!(Message::parse(message).is_some(), is_one, "{kind} {length}");
            }
        }
        let mut reserved = message(1, 148);
        reserved[3] = 1;
        assert_eq!(Message::parse(&reserved), None);
    }

    proptest! {
        #[test]
        fn anything_can_be_looked_at(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&bytes);
        }
    }
}
