//! A relay at work for as long as one likes: clients that come and go, UDP flows in the kernel that move, certificates that
//! are replaced, metrics that are scraped. At the end nothing may have grown, and every packet must be accounted for.
//!
//! The short run is an ordinary test. The long one is `cargo xtask soak`, which says by variables what it should be like.

#[path = "../upgrade/crowd.rs"]
mod crowd;
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
#[path = "../support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "../support/relay_client.rs"]
mod relay_client;
#[path = "../support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;
#[path = "../support/vitals.rs"]
mod vitals;

mod account;
mod clients;
mod drift;
mod flows;
mod laggard;
mod metrics;
mod probe;
mod relay;
mod stage;
mod witness;

use std::{env, time::Duration};

use crate::{crowd::Crowd, lab::Lab, stage::Stage};

/// What a run is like.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// How long it is observed.
    lasts: Duration,
    /// How long it goes on before that, so that whatever is made once has been made.
    warms_up: Duration,
    /// Clients of the DERP server: half of them stay.
    clients: usize,
    /// Packets per second that those who stay send together; `None` to find half of what the machine can do.
    rate: Option<u32>,
    /// Between two looks.
    samples: Duration,
    /// Between two replacements of the certificate.
    replaces: Duration,
    /// Whether memory and delays of its last quarter must be those of its second one.
    judges_drift: bool,
}

fn number<T: std::str::FromStr>(variable: &str) -> Option<T> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

fn soak(plan: &Plan) {
    let Some(lab) = Lab::create("soak") else { return };
    let crowd = match Crowd::settle(&lab) {
        Ok(crowd) => crowd,
        Err(reason) => return kernel::skip("soak", &reason),
    };
    Stage::set(&lab, &crowd, plan).run(plan);
}

#[test]
fn every_packet_of_half_a_minute_is_accounted_for() {
    soak(&Plan {
        lasts: Duration::from_secs(20),
        warms_up: Duration::from_secs(4),
        clients: 200,
        rate: Some(1000),
        samples: Duration::from_secs(1),
        replaces: Duration::from_secs(6),
        judges_drift: false,
    });
}

#[test]
#[ignore = "an hour: cargo xtask soak"]
fn soak_for_long() {
    let minutes: f64 = number("DERPD_SOAK_MINUTES").unwrap_or(60.0);
    let lasts = Duration::from_secs_f64(60.0 * minutes);
    soak(&Plan {
        lasts,
        warms_up: (lasts / 10).clamp(Duration::from_secs(20), Duration::from_secs(180)),
        clients: number("DERPD_SOAK_CLIENTS").unwrap_or(2000),
        rate: number("DERPD_SOAK_RATE"),
        samples: (lasts / 40).min(Duration::from_secs(30)),
        replaces: Duration::from_secs(30),
        judges_drift: true,
    });
}
