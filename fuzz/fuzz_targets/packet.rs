//! Any frame, as `derp-common/tests` decide about it.

#![no_main]

#[path = "../../derp-common/tests/support/flows.rs"]
mod flows;
#[path = "../../derp-common/tests/support/fuzz.rs"]
mod fuzz;
#[path = "../../derp-common/tests/support/host.rs"]
mod host;
#[path = "../../derp-user/tests/support/packets.rs"]
mod packets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::packet(bytes));
