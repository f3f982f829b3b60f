//! The client's half of the protocol: bytes in, bytes out.
//!
//! [`login`] opens a session, [`read`] finds and understands what a server sends afterwards, and
//! [`mod@write`] makes the frames that a client sends.

pub mod login;
pub mod read;
pub mod write;
