//! The loaded program on packets of flows: cases 1 to 30 of the relay's test plan, by number. Every frame's
//! verdict, bytes and counters are checked.
//!
//! `BPF_PROG_TEST_RUN` runs the program on one frame that has come in by the loopback or a named interface;
//! a redirect ends with its action. What needs a network (frames really crossing interfaces, the userspace
//! forwarder's half of case 24, the self-test of case 30) is tested elsewhere.

#[path = "../support/bed.rs"]
mod bed;
#[path = "../support/flow_maps.rs"]
mod flow_maps;
#[path = "../../../derp-common/tests/support/flows.rs"]
mod flows;
#[path = "../../../derp-common/tests/support/host.rs"]
mod host;
#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/netns.rs"]
mod netns;
#[path = "../support/packets.rs"]
mod packets;

mod allowances;
mod control;
mod data;
mod headers;
mod ways;
mod wireguard_data;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use derp_common::{
    Address, Rate, Reason, Switches,
    flow::{
        Leg, LegStatistics, Side,
        table::{GRACE, source_value},
    },
    maps::Event,
};

use crate::{
    bed::{Bed, from_client, relay_frame, with_port},
    flows::{
        ANY_PORT, ANY_SLOT, CLOSED_VNI, CROSS_VNI, INDEX, OFF_VNI, OTHER_INTERFACE, RELAY_PORT,
        ROUTER_MAC, SENDERS, SLOTS, UNBOUND_VNI, UNRESOLVED_VNI, VLAN_VNI, WIREGUARD_PORT,
        WIREGUARD_SLOT, client, control, data, forwarded, geneve, leg, legs, peer, redirected_vni,
        second_address, server, source, vni, wireguard,
    },
    packets::{
        CLIENT_MAC, Ip, SERVER_MAC, answer, fix_checksums, fix_ip_checksum, fix_udp_checksum,
        frame, message, success, tailscale_request, udp_frame,
    },
};

fn slot(ip: Ip) -> u32 {
    vni(ip) & (SLOTS - 1)
}
