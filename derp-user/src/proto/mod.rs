//! The DERP wire protocol without I/O: bytes in, bytes out.
//!
//! Every frame is one type byte, a four-byte big-endian payload length and the payload
//! (reference section 1). [`frame`] knows the types, their legal lengths and the server's side of
//! reading them; [`message`] writes what a server sends; [`login`] is the exchange that opens a
//! session; [`disco`] recognises the packets that get a queue of their own; [`client`] is the other
//! side.

pub mod client;
pub mod disco;
pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
pub mod keys;
pub mod login;
pub mod message;
