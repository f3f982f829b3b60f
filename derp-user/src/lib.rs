//! derpd: a DERP relay with an XDP data plane.

pub mod metrics;
pub mod proto;
pub mod relay;
