//! derpd: a DERP relay with an XDP data plane.

pub mod acme;
pub mod admit;
pub mod client;
pub mod companion;
pub mod config;
pub mod dataplane;
mod files;
pub mod flow;
pub mod forward;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod http;
mod local_api;
pub mod metrics;
pub mod peer_relay;
pub mod privilege;
pub mod proto;
pub mod proxy_protocol;
mod quiet;
pub mod relay;
pub mod server;
pub mod status;
pub mod stun;
pub mod tailnet;
pub mod tls;
pub mod tools;
pub mod udp;
pub mod udp_relay;
pub mod wireguard;
