//! Loads the kernel program for a test, or says why it cannot be.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;

use derp_common::{Address, AddressKind, Family, Interface, Reason, Settings, Verdict};
use derp_user::dataplane::{DataplaneError, Kernel, LocalAddress, Tables};

use crate::packets::{BROADCAST4, SERVER_MAC, SERVER4, SERVER6, STUN_PORT};

/// Whatever `BPF_PROG_TEST_RUN` runs comes in by this interface, the loopback.
pub(crate) const TEST_RUN_INTERFACE: u32 = 1;

/// Says on standard output that a test was skipped; fails it where it must not be skipped.
pub(crate) fn skip(what: &str, reason: &str) {
    println!("skipped: {what}: {reason}");
    let required = std::env::var_os("DERPD_REQUIRE_XDP").is_some_and(|value| value == "1");
    assert!(!required, "DERPD_REQUIRE_XDP=1, but {what} cannot run: {reason}");
}

/// Loads the program, or skips the test when there is none or no right to.
pub(crate) fn load(test: &str) -> Option<Kernel> {
    load_sized(test, derp_common::maps::DEFAULT_SLOTS)
}

/// Like [`load`], with this many slots for flows.
pub(crate) fn load_sized(test: &str, slots: u32) -> Option<Kernel> {
    match Kernel::load_sized(slots) {
        Ok(kernel) => Some(kernel),
        Err(error @ (DataplaneError::NoObject | DataplaneError::MissingCapability { .. })) => {
            skip(test, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Loads and configures the program for the addresses in [`crate::packets`].
pub(crate) fn load_configured(test: &str) -> Option<(Kernel, Tables)> {
    let mut kernel = load(test)?;
    let mut tables = kernel.take_tables().expect("tables");
    for (address, kind) in local_addresses() {
        tables
            .insert_address(address, LocalAddress { kind, interface: TEST_RUN_INTERFACE })
            .expect("address");
    }
    let interface = Interface::new(SERVER_MAC);
    tables.insert_interface(TEST_RUN_INTERFACE, interface).expect("interface");
    kernel.configure(Settings::new(STUN_PORT)).expect("settings");
    Some((kernel, tables))
}

/// The addresses of the host in the packet tests.
pub(crate) fn local_addresses() -> [(Address, AddressKind); 3] {
    [
        (Address::from(std::net::IpAddr::from(SERVER4)), AddressKind::Unicast),
        (Address::from(std::net::IpAddr::from(SERVER6)), AddressKind::Unicast),
        (Address::from(std::net::IpAddr::from(BROADCAST4)), AddressKind::Broadcast),
    ]
}

/// The action the kernel takes for a verdict (`enum xdp_action`).
pub(crate) fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Aborted => 0,
        Verdict::Drop => 1,
        Verdict::Pass => 2,
        Verdict::Transmit => 3,
        Verdict::Redirect => 4,
    }
}

/// Every counter of the program that is not 0: packets and bytes.
pub(crate) fn counters(kernel: &Kernel) -> BTreeMap<(Family, Reason), (u64, u64)> {
    let counts = kernel.counters().expect("counters").into_iter();
    let seen = counts.filter(|count| count.packets != 0);
    seen.map(|count| ((count.family, count.reason), (count.packets, count.bytes))).collect()
}
