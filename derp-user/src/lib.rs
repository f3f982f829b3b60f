//! derpd library.

pub mod dataplane;
pub mod stun;
