//! Real WireGuard implementations through a running relay: boringtun and wireguard-go on hosts behind routers that
//! translate addresses, in network namespaces.
//!
//! What they send is compared byte by byte at the other end. `DERPD_WIREGUARD_MEGABYTES` sets how much each way.
//! `DERPD_OLD_BINARY` names a derpd that an upgrade is to lead from.

#[path = "../support/go.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod go;
#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/lab.rs"]
mod lab;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/packets.rs"]
mod packets;
#[path = "../support/party.rs"]
mod party;
#[path = "../support/pins.rs"]
mod pins;

mod builds;
mod internet;
mod labs;
mod peer;
mod programs;
mod quick;
mod relay;
mod transfer;

use std::{env, time::Duration};

/// How long a test waits for what must happen. A peer that is not heard any more begins anew after 15 s, and TCP
/// tries again at ever longer intervals.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// How much a transfer moves each way.
pub(crate) fn transfer_bytes() -> u64 {
    let megabytes =
        env::var("DERPD_WIREGUARD_MEGABYTES").map_or(50, |text| text.parse().expect("a number"));
    megabytes * 1_000_000
}
