//! Disco packets out of any bytes.

use super::{Envelope, Message};

/// What is read is written as it was, as far as it is understood.
pub(crate) fn message(bytes: &[u8]) {
    if let Some(envelope) = Envelope::parse(bytes) {
        assert!(bytes.len() > 32, "{envelope:?}");
    }
    if let Ok(message) = Message::decode(bytes) {
        let written = message.encode();
        let again = Message::decode(&written);
        assert_eq!(again.as_ref(), Ok(&message));
        assert!(written.len() <= bytes.len(), "{message:?}");
    }
}
