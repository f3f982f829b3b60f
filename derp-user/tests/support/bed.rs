//! The loaded program with a flow of each sort, and what is asked of it.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{collections::BTreeMap, net::SocketAddr};

use derp_common::{
    Address, AddressKind, Family, Interface, Reason, Settings, Switches, Verdict,
    flow::{LegStatistics, Side, table::statistics_index},
};
use derp_user::dataplane::{Kernel, LocalAddress, Tables};

use crate::{
    flow_maps::FlowMaps,
    flows::{self, INTERFACE, OTHER_INTERFACE, OTHER_MAC, Plan, SLOTS},
    kernel::{self, action},
    packets::{Ip, SERVER_MAC},
};

/// The program under test.
pub(crate) struct Bed {
    pub(crate) kernel: Kernel,
    pub(crate) tables: Tables,
    pub(crate) maps: FlowMaps,
    pub(crate) settings: Settings,
}

impl Bed {
    /// Loads it, or skips the test.
    pub(crate) fn new(test: &str) -> Option<Self> {
        let mut kernel = kernel::load_sized(test, SLOTS)?;
        let mut tables = kernel.take_tables().expect("tables");
        for (address, kind) in addresses() {
            tables
                .insert_address(address, LocalAddress { kind, interface: INTERFACE })
                .expect("address");
        }
        for (index, interface) in interfaces() {
            tables.insert_interface(index, interface).expect("interface");
        }
        let mut maps = FlowMaps::take(&mut kernel);
        maps.apply(&Plan::everything());
        let settings = flows::settings();
        kernel.configure(settings).expect("settings");
        Some(Self { kernel, tables, maps, settings })
    }

    /// Changes the settings.
    pub(crate) fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.settings);
        self.kernel.configure(self.settings).expect("settings");
    }

    /// Switches to the mode in which another process owns the sockets.
    pub(crate) fn companion(&mut self) {
        self.configure(|settings| {
            settings.switches |= Switches::COMPANION;
            settings.lease = u64::MAX;
        });
    }

    /// Writes a flow.
    pub(crate) fn apply(&mut self, change: impl FnOnce(&mut Plan)) {
        let mut plan = Plan::default();
        change(&mut plan);
        self.maps.apply(&plan);
    }

    /// Runs one frame, and checks what becomes of it: reason by the one counter that moves, verdict, bytes.
    #[track_caller]
    pub(crate) fn expect(&self, what: &str, input: &[u8], reason: Reason, output: &[u8]) {
        let before = self.counters();
        let (got_action, got) = self.kernel.test_run(input).expect("test run");
        self.check(what, &before, input, reason, output, (got_action, got));
    }

    #[track_caller]
    pub(crate) fn check(
        &self,
        what: &str,
        before: &BTreeMap<(Family, Reason), (u64, u64)>,
        input: &[u8],
        reason: Reason,
        output: &[u8],
        (got_action, got): (u32, Vec<u8>),
    ) {
        let mut moved = self.counters();
        moved.retain(|key, (packets, bytes)| {
            let (old_packets, old_bytes) = before.get(key).copied().unwrap_or_default();
            *packets -= old_packets;
            *bytes -= old_bytes;
            (*packets, *bytes) != (0, 0)
        });
        let mut verdict = reason.verdict();
        if verdict == Verdict::Drop && self.settings.has(Switches::COMPANION) {
            verdict = Verdict::Pass;
        }
        let key = (family(input, self.settings.has(Switches::VLAN)), reason);
        assert_eq!(moved, [(key, (1, got.len() as u64))].into(), "{what}: counters");
        assert_eq!(got_action, action(verdict), "{what}: action");
        assert_eq!(hex(&got), hex(output), "{what}: bytes");
    }

    /// Like [`Bed::expect`], for what must come out as it went in.
    #[track_caller]
    pub(crate) fn expect_untouched(&self, what: &str, frame: &[u8], reason: Reason) {
        self.expect(what, frame, reason, frame);
    }

    /// Every counter that is not 0.
    pub(crate) fn counters(&self) -> BTreeMap<(Family, Reason), (u64, u64)> {
        kernel::counters(&self.kernel)
    }

    /// What has come from one end of the flow in this slot.
    pub(crate) fn statistics(&self, slot: u32, side: Side) -> LegStatistics {
        self.maps.statistics.get(&statistics_index(slot, side), 0).expect("statistics")
    }

    /// Writes what has come from one end, as if it had.
    pub(crate) fn set_statistics(&mut self, slot: u32, side: Side, value: LegStatistics) {
        self.maps.statistics.set(statistics_index(slot, side), value, 0).expect("statistics");
    }

    /// Clears every suspicion.
    pub(crate) fn trust_all(&mut self) {
        for slot in 0..SLOTS {
            let seen = self.statistics(slot, Side::A);
            self.set_statistics(slot, Side::A, LegStatistics { suspect_since: 0, ..seen });
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The address family a frame is counted under.
fn family(frame: &[u8], vlan: bool) -> Family {
    let ethertype = |at: usize| frame.get(at..at + 2).map(|it| [it[0], it[1]]);
    let ethertype = match ethertype(12) {
        Some([0x81, 0]) if vlan => ethertype(16),
        other => other,
    };
    match ethertype {
        Some([0x08, 0x00]) => Family::Ipv4,
        Some([0x86, 0xdd]) => Family::Ipv6,
        _ => Family::Unknown,
    }
}

/// The addresses of the host under test.
pub(crate) fn addresses() -> Vec<(Address, AddressKind)> {
    let mut addresses = kernel::local_addresses().to_vec();
    for ip in Ip::BOTH {
        addresses.push((Address::from(flows::second_address(ip)), AddressKind::Unicast));
    }
    addresses
}

/// Its interfaces.
pub(crate) fn interfaces() -> Vec<(u32, Interface)> {
    let target = Interface { is_redirect_target: 1, ..Interface::new(OTHER_MAC) };
    vec![
        (INTERFACE, Interface::new(SERVER_MAC)),
        (OTHER_INTERFACE, target),
        (flows::CLOSED_INTERFACE, Interface::new(OTHER_MAC)),
    ]
}

/// A frame of the flow of this VNI, from the client.
pub(crate) fn from_client(ip: Ip, vni: u32) -> Vec<u8> {
    relay_frame(flows::client(ip), ip, &flows::data(vni))
}

/// A frame to the relay port.
pub(crate) fn relay_frame(from: SocketAddr, ip: Ip, payload: &[u8]) -> Vec<u8> {
    crate::packets::udp_frame(from, flows::server(ip, flows::RELAY_PORT), payload)
}

/// An address with another port.
pub(crate) fn with_port(address: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.ip(), port)
}
