//! Faults of the machine under running flows, and of the daemon that keeps them: interfaces that are renamed, go and come,
//! links and addresses that change, tables that are full, a daemon that is killed at random moments.

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
#[path = "../support/relay_client.rs"]
mod relay_client;
#[path = "../support/vitals.rs"]
mod vitals;

mod bed;
mod interfaces;
mod kills;
mod tables;
