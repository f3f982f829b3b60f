//! The DERP wire protocol without I/O: bytes in, bytes out.

pub mod keys;
