//! Hostile clients against a running relay: what they can do to its memory, its descriptors, its log, and to two
//! clients that mean well. Each attack lasts 2 s, or as long as `DERPD_HOSTILE_SECONDS` says. The tests
//! take turns, since each of them measures; `--nocapture` shows the figures, which docs/RELIABILITY.md explains.
//! `DERPD_HOSTILE_APART=MILLISECONDS` measures what the relay alone does (`apart`), with `DERPD_TEST_SERVER` of another build.

#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/packets.rs"]
mod packets;
#[path = "../support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "../support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;
#[path = "../support/vitals.rs"]
mod vitals;

mod apart;
mod arrivals;
mod clock;
mod descriptors;
mod faults;
mod pair;
mod scene;
mod sessions;
mod tls;
mod udp;
mod websocket;
