//! What relaying one Geneve packet costs, over a veth pair. Not a test but a measurement:
//! `cargo test --release --test relay_cost -- --ignored --nocapture`. What is measured, and which variables of the
//! environment change it, is said in `support/cost.rs`.

#[path = "support/cost.rs"]
mod cost;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/relay.rs"]
mod relay;

use std::net::{IpAddr, SocketAddr};

use derp_common::{
    Address, AddressKind, Interface, Port, Services, Settings,
    flow::{Control, Leg, Side, table::leg_index},
};
use derp_user::{
    dataplane::{AttachedMode, FlowMaps, Kernel, KernelTables, LocalAddress},
    flow::{Change, Sink as _},
    forward::Notices,
    udp::Merging,
};

use crate::{
    cost::{
        AtWork, Comparison, Contestant, Flow, Started, accept_native_xdp, address, client_socket,
        task_time,
    },
    netns::{CLIENT_INTERFACE, Namespaces, SERVER_INTERFACE, SERVER4, link, run_in},
    relay::{Relay, geneve},
};

const PORT: u16 = 40_000;
const FIRST_VNI: u32 = relay::SLOTS;

const COMPARISON: Comparison = Comparison {
    port: PORT,
    sizes: &[64, 512, 1400],
    contestants: &[
        Contestant { name: "recvfrom/sendto", start: plain },
        Contestant { name: "userspace", start: ours },
        Contestant { name: "userspace, no GRO", start: ours_unmerged },
        Contestant { name: "kernel, generic", start: kernel_generic },
        Contestant { name: "kernel, native", start: kernel_native },
    ],
};

/// Sockets of so many flows, each with a VNI of its own.
fn flows(namespaces: &Namespaces, count: usize) -> Vec<Flow> {
    let flow = |vni: u32| Flow {
        sender: client_socket(),
        receiver: client_socket(),
        header: geneve(vni, &[]),
    };
    run_in(&namespaces.client, move || (FIRST_VNI..).take(count).map(flow).collect())
}

fn ends(flow: &Flow) -> [SocketAddr; 2] {
    [&flow.sender, &flow.receiver].map(address)
}

fn plain(namespaces: &Namespaces, count: usize) -> Started {
    let flows = flows(namespaces, count);
    let relay = cost::plain(namespaces, PORT, flows.iter().map(ends));
    (Box::new(relay), flows)
}

impl AtWork for Relay {
    fn own_time(&self) -> u64 {
        task_time("/proc/self/task", |comm| comm.starts_with("udp-relay"))
    }
}

fn ours(namespaces: &Namespaces, count: usize) -> Started {
    ours_with(namespaces, count, Merging::On)
}

fn ours_unmerged(namespaces: &Namespaces, count: usize) -> Started {
    ours_with(namespaces, count, Merging::Off)
}

fn ours_with(namespaces: &Namespaces, count: usize, merging: Merging) -> Started {
    let relay = run_in(&namespaces.server, move || {
        Relay::start_with(Services::GENEVE, &Notices::default(), merging, 1, PORT)
    });
    let flows = flows(namespaces, count);
    for (slot, flow) in (0..).zip(&flows) {
        relay.flow(slot, slot + FIRST_VNI, ends(flow).map(|end| (end, SERVER4)));
    }
    (Box::new(relay), flows)
}

/// The kernel program with its tables, and what the client's end of the veth pair needs to take its frames.
struct InKernel {
    kernel: Kernel,
    _client_end: Option<Kernel>,
}

impl AtWork for InKernel {
    fn own_time(&self) -> u64 {
        let info = self.kernel.program_info().expect("the program's statistics");
        u64::try_from(info.run_time().as_nanos()).expect("less than a century")
    }
}

fn kernel_generic(namespaces: &Namespaces, count: usize) -> Started {
    in_kernel(namespaces, count, AttachedMode::Generic)
}

fn kernel_native(namespaces: &Namespaces, count: usize) -> Started {
    in_kernel(namespaces, count, AttachedMode::Native)
}

fn in_kernel(namespaces: &Namespaces, count: usize, mode: AttachedMode) -> Started {
    let client_end = (mode == AttachedMode::Native).then(|| accept_native_xdp(namespaces));
    let (interface, mac) = link(&namespaces.server, SERVER_INTERFACE);
    let (_, client_mac) = link(&namespaces.client, CLIENT_INTERFACE);
    let mut kernel = Kernel::load().expect("load");
    let mut tables = kernel.take_tables().expect("tables");
    tables.insert_interface(interface, Interface::new(mac)).expect("interface");
    let server = address_of(SERVER4);
    let local = LocalAddress { kind: AddressKind::Unicast, interface };
    tables.insert_address(server, local).expect("address");
    let mut table = KernelTables::new(FlowMaps::take(&mut kernel).expect("maps")).expect("tables");
    let leg = |remote: SocketAddr| Leg {
        remote: Address::from(remote.ip()),
        local: server,
        remote_port: remote.port().to_be(),
        local_port: PORT.to_be(),
        interface,
        source_mac: halves(mac),
        destination_mac: halves(client_mac),
        mtu: 1500,
        vlan: 0,
        nanoseconds_per_kibibyte: 0,
        burst_microseconds: 0,
    };
    let flows = flows(namespaces, count);
    for (vni, flow) in (FIRST_VNI..).zip(&flows) {
        let legs = Side::ALL.into_iter().zip(ends(flow));
        let legs = legs
            .map(|(side, remote)| Change::Leg { index: leg_index(vni, 0, side), leg: leg(remote) });
        let control = Change::Control { slot: vni, control: Control::forward(vni, 0) };
        table.apply(&legs.chain([control]).collect::<Vec<_>>()).expect("a flow");
    }
    let mut settings = Settings::new(0);
    settings.ports[0] = Port { number: PORT.to_be(), services: Services::GENEVE };
    kernel.configure(settings).expect("settings");
    let kernel = run_in(&namespaces.server, move || {
        kernel.attach(SERVER_INTERFACE, mode).expect("server's end");
        kernel
    });
    (Box::new(InKernel { kernel, _client_end: client_end }), flows)
}

fn address_of(ip: &str) -> Address {
    Address::from(ip.parse::<IpAddr>().expect("address"))
}

fn halves([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_relaying() {
    COMPARISON.run("cost of relaying");
}
