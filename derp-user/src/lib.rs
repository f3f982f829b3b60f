//! derpd library.
