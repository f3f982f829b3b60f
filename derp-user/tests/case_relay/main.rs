//! Protocol cases against a running relay over real sockets, numbered as the cases of the protocol
//! reference. With `DERPD_TEST_SERVER` set to Tailscale's derper the same tests check that relay;
//! where derpd differs on purpose the test says so.

#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "../support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

// In the order the harness runs them: the ones that wait for minutes overlap all others.
mod admission;
mod browser;
mod clocks;
mod differences;
mod duplicates;
mod frames;
mod handshake;
mod http;
mod identity;
mod limits;
mod malformed;
mod mesh;
mod observed;
mod peer_gone;
mod proxied;
mod queues;
mod stun;
mod websocket;
