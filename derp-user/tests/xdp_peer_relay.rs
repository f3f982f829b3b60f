//! The peer relay with the loaded program: endpoints that only the kernel sees.

#[path = "../../derp-common/tests/support/flows.rs"]
mod flows;
#[path = "../../derp-common/tests/support/host.rs"]
mod host;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/relay_client.rs"]
mod relay_client;

use std::net::SocketAddr;

use derp_common::{
    AddressKind, Interface,
    flow::{Side, table::statistics_index},
};
use derp_user::{
    dataplane::{FlowMaps, Kernel, KernelTables, LocalAddress, Tables},
    flow::{FlowTable, Plane, Resolved, Sink as _, TableSettings},
    peer_relay::{
        Arrival, EndedBy, Limits, PeerRelay, PeerRelayOptions, Permission, Reaction,
        STEADY_STATE_LIFETIME, disco::EndpointRecord,
    },
    udp::now,
};

use crate::{
    flows::{INTERFACE, RELAY_PORT, ROUTER_MAC, SLOTS, client, data, peer, server},
    packets::{Ip, SERVER_MAC, udp_frame},
    relay_client::{RelayClient, RelayNode},
};

const SECOND: u64 = 1_000_000_000;
/// `XDP_DROP` and `XDP_TX`.
const DROPPED: u32 = 1;
const SENT_BACK: u32 = 3;

/// A relay whose data plane is the loaded program.
struct Rig {
    kernel: Kernel,
    _tables: Tables,
    maps: KernelTables,
    table: FlowTable,
    relay: PeerRelay,
    node: RelayNode,
    ip: Ip,
}

impl Rig {
    fn new(test: &str, ip: Ip) -> Option<Self> {
        let mut kernel = kernel::load_sized(test, SLOTS)?;
        let mut tables = kernel.take_tables().expect("tables");
        let local = LocalAddress { kind: AddressKind::Unicast, interface: INTERFACE };
        tables.insert_address(ip.server().into(), local).expect("address");
        tables.insert_interface(INTERFACE, Interface::new(SERVER_MAC)).expect("interface");
        kernel.configure(flows::settings()).expect("settings");
        let maps = FlowMaps::take(&mut kernel).expect("the flow tables");
        let maps = KernelTables::new(maps).expect("the flow tables");
        let settings = TableSettings { slots: SLOTS, idle_timeout: 120 * SECOND, seed: 5 };
        let mut table = FlowTable::new(settings);
        table.set_local_addresses([ip.server()]);
        let keys = RelayClient::new();
        let node = RelayNode { node: keys.node.public(), disco: keys.key() };
        let mut relay = PeerRelay::new(PeerRelayOptions {
            identity: keys.disco,
            seed: [3; 32],
            port: RELAY_PORT,
            limits: Limits::default(),
        });
        relay.set_addresses([server(ip, RELAY_PORT)]);
        Some(Self { kernel, _tables: tables, maps, table, relay, node, ip })
    }

    /// Has the kernel's tables follow, at a time that need not be now.
    fn settle(&mut self, mut now: u64) {
        for request in self.table.way_requests() {
            let way = Resolved {
                interface: INTERFACE,
                source_mac: SERVER_MAC,
                destination_mac: ROUTER_MAC,
                mtu: 1500,
                vlan: 0,
                local: self.ip.server(),
            };
            self.table.set_way(&request, Some(way));
        }
        loop {
            let changes = self.table.poll(now);
            self.maps.apply(&changes).expect("the kernel's tables can be written");
            self.table.applied(now);
            match self.table.next_deadline() {
                Some(deadline) => now = now.max(deadline),
                None if changes.is_empty() => return,
                None => {}
            }
        }
    }

    /// An endpoint whose ends are bound at this time, from these addresses.
    fn open(&mut self, at: u64, ends: [(&RelayClient, SocketAddr); 2]) -> EndpointRecord {
        let [(a, _), (b, _)] = ends;
        let request = a.request(&self.node, [a.key(), b.key()]);
        let (table, any) = (&mut self.table, Permission::AnyKey);
        let response = self.relay.request(table, a.node.public(), any, &request, at);
        let endpoint = a.response(&self.node, &response.expect("an endpoint").packet);
        for (client, from) in ends {
            let local = server(self.ip, RELAY_PORT);
            let bind = client.bind(&endpoint, 1);
            let arrival = Arrival { from, local, payload: &bind };
            let Ok(Reaction::Challenge(challenge)) =
                self.relay.handshake(&mut self.table, &arrival, at)
            else {
                panic!("no challenge");
            };
            let answer = client.answer(&endpoint, &challenge.payload);
            let arrival = Arrival { from, local, payload: &answer };
            let bound = self.relay.handshake(&mut self.table, &arrival, at);
            assert!(matches!(bound, Ok(Reaction::Bound(_))), "{bound:?}");
        }
        self.settle(at);
        endpoint
    }

    /// What the program does with a packet of the endpoint from this address.
    fn run(&self, endpoint: &EndpointRecord, from: SocketAddr) -> u32 {
        let frame = udp_frame(from, server(self.ip, RELAY_PORT), &data(endpoint.vni));
        self.kernel.test_run(&frame).expect("test run").0
    }

    /// Tells the flow table what the program has counted, and returns why the endpoint ends, if it does.
    fn review(&mut self, endpoint: &EndpointRecord) -> Option<EndedBy> {
        let now = now();
        let slot = endpoint.vni & (SLOTS - 1);
        for (slot, counted) in self.maps.statistics([slot]).expect("statistics") {
            for (side, counted) in Side::ALL.into_iter().zip(counted) {
                let index = statistics_index(slot, side);
                self.table.observe(Plane::Kernel, index, &counted, now);
            }
        }
        let ended = self.relay.review(&mut self.table, now);
        self.settle(now);
        ended.first().map(|ended| ended.by)
    }
}

/// Both ends are bound five minutes and one second ago. What has come since was seen by the program alone, which stamps
/// it with the kernel's clock.
#[test]
fn case_37_the_kernel_alone_keeps_an_endpoint_and_a_silent_client_ends_it() {
    let age = STEADY_STATE_LIFETIME + SECOND;
    let Some(bound_at) = now().checked_sub(age) else {
        return kernel::skip("case 37", "this machine has run for less than five minutes");
    };
    for ip in Ip::BOTH {
        let (from_a, from_b) = (client(ip), peer(ip));
        for (talking, expected) in [
            (vec![from_a, from_b], None),
            (vec![from_a], Some(EndedBy::Silence)),
            (vec![from_b], Some(EndedBy::Silence)),
            (vec![], Some(EndedBy::Silence)),
        ] {
            let Some(mut rig) = Rig::new("case 37", ip) else { return };
            let (a, b) = (RelayClient::new(), RelayClient::new());
            let endpoint = rig.open(bound_at, [(&a, from_a), (&b, from_b)]);
            for from in &talking {
                assert_eq!(rig.run(&endpoint, *from), SENT_BACK, "{ip:?} {from}");
            }
            assert_eq!(rig.review(&endpoint), expected, "{ip:?} {talking:?}");
            // What has ended is dropped by the program from then on.
            let action = if expected.is_some() { DROPPED } else { SENT_BACK };
            assert_eq!(rig.run(&endpoint, from_a), action, "{ip:?} {talking:?}");

            let counted = rig.relay.traffic().by_plane(Plane::Kernel);
            assert_eq!(counted.packets, talking.len() as u64, "also of what has ended");
            assert_eq!(rig.relay.traffic().by_plane(Plane::Userspace).packets, 0);
            let way = usize::from(ip == Ip::V6) * 3;
            assert_eq!(rig.relay.traffic().by_transport()[way].2, counted);
        }
    }
}

#[test]
fn an_endpoint_that_was_just_bound_is_kept_without_traffic() {
    let Some(mut rig) = Rig::new("fresh endpoint", Ip::V4) else { return };
    let (a, b) = (RelayClient::new(), RelayClient::new());
    let ends = [(&a, client(Ip::V4)), (&b, peer(Ip::V4))];
    let endpoint = rig.open(now(), ends);
    assert_eq!(rig.review(&endpoint), None);
    assert_eq!(rig.run(&endpoint, client(Ip::V4)), SENT_BACK);
}
