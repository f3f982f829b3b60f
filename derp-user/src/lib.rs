//! derpd library.

pub mod dataplane;
