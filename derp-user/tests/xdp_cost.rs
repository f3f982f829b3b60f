//! What one packet costs in the kernel, by the kernel's own statistics. Not a test but a measurement:
//! `cargo test --release --test xdp_cost -- --ignored --nocapture`. With `DERPD_XDPDERPER` naming the binary of
//! Tailscale's `cmd/xdpderper`, its program is measured in turn with ours; `DERPD_COST_ROUNDS` sets how often.

#[path = "support/client.rs"]
mod client;
#[path = "support/flow_maps.rs"]
mod flow_maps;
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

use std::{
    collections::BTreeSet,
    env,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use aya::{
    programs::{ProgramInfo, loaded_programs},
    sys::{Stats, enable_stats},
};
use derp_common::{Address, AddressKind, Interface, Rate, Settings, flow::Leg};
use derp_user::dataplane::{AttachedMode, Kernel, LocalAddress};

use crate::{
    client::{ask, connect, environment, request},
    flow_maps::FlowMaps,
    flows::{Plan, RELAY_PORT, data},
    netns::{
        CLIENT_INTERFACE, CLIENT4, CLIENT6, Namespaces, SERVER_INTERFACE, SERVER4, SERVER6, link,
        run_in,
    },
    packets::STUN_PORT,
};

/// Per figure and round.
const REQUESTS: u64 = 200_000;
/// Ports of the two ends of the relayed flows.
const ENDS: [u16; 2] = [41_641, 51_820];

/// Something that answers on the server's interface until dropped.
enum Responder {
    Ours { _kernel: Box<Kernel> },
    Reference(Child),
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Self::Reference(child) = self {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }
}

fn program_ids() -> BTreeSet<u32> {
    loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

fn info(id: u32) -> ProgramInfo {
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id).expect("the program is loaded")
}

/// Nanoseconds per run of the program while `work` goes on.
fn cost(id: u32, work: impl FnOnce()) -> u128 {
    let before = info(id);
    work();
    let after = info(id);
    let runs = u128::from(after.run_count() - before.run_count());
    (after.run_time() - before.run_time()).as_nanos() / runs.max(1)
}

/// Sends requests and throws the answers away. (The reference loses an IPv6 answer now and then, because
/// it sends a checksum of zero.)
fn flood(from: &str, to: &str, port: u16) {
    let socket = UdpSocket::bind((from, 0)).expect("socket");
    socket.set_nonblocking(true).expect("nonblocking");
    for number in 0..REQUESTS {
        socket.send_to(&request(number), (to, port)).expect("send");
        while socket.recv(&mut [0; 100]).is_ok() {}
    }
}

/// Sends packets of a flow from one end, and receives them at the other.
fn relay(from: &str, to: &str, vni: u32) {
    let [sender, receiver] = ENDS.map(|port| UdpSocket::bind((from, port)).expect("socket"));
    receiver.set_nonblocking(true).expect("nonblocking");
    let payload = data(vni);
    let mut received = 0;
    for _ in 0..REQUESTS {
        sender.send_to(&payload, (to, RELAY_PORT)).expect("send");
        while receiver.recv(&mut [0; 100]).is_ok() {
            received += 1;
        }
    }
    assert!(received > REQUESTS / 2, "{received} of {REQUESTS} were forwarded");
}

fn measure(namespaces: &Namespaces, name: &str, responder: impl FnOnce() -> Responder) {
    let before = program_ids();
    let responder = responder();
    let id = *program_ids().difference(&before).last().expect("a new program");
    run_in(&namespaces.client, || {
        ask(&connect(CLIENT4, SERVER4), 0);
        ask(&connect(CLIENT6, SERVER6), 0);
    });
    let during = |work: fn()| cost(id, || run_in(&namespaces.client, work));
    let ipv4 = during(|| flood(CLIENT4, SERVER4, STUN_PORT));
    let ipv6 = during(|| flood(CLIENT6, SERVER6, STUN_PORT));
    let passed = during(|| flood(CLIENT4, SERVER4, 9));
    print!("{name:9} STUN IPv4 {ipv4:4} ns, IPv6 {ipv6:4} ns, unrelated {passed:4} ns");
    if matches!(responder, Responder::Ours { .. }) {
        let ipv4 = during(|| relay(CLIENT4, SERVER4, 1));
        let ipv6 = during(|| relay(CLIENT6, SERVER6, 2));
        print!(", relayed IPv4 {ipv4:4} ns, IPv6 {ipv6:4} ns");
    }
    println!();
    drop(responder);
}

/// The program with everything in place: limits, counters, a flow of each family.
fn ours(namespaces: &Namespaces) -> Responder {
    let mut kernel = kernel::load("cost of one packet").expect("it was loaded before");
    let mut tables = kernel.take_tables().expect("tables");
    let mut maps = FlowMaps::take(&mut kernel);
    let (index, mac) = link(&namespaces.server, SERVER_INTERFACE);
    let (_, client_mac) = link(&namespaces.client, CLIENT_INTERFACE);
    tables.insert_interface(index, Interface::new(mac)).expect("interface");
    let mut plan = Plan::default();
    for (vni, client, server) in [(1, CLIENT4, SERVER4), (2, CLIENT6, SERVER6)] {
        let [client, server]: [IpAddr; 2] = [client, server].map(|ip| ip.parse().expect("address"));
        tables
            .insert_address(
                Address::from(server),
                LocalAddress { kind: AddressKind::Unicast, interface: index },
            )
            .expect("address");
        let server = SocketAddr::new(server, RELAY_PORT);
        let legs = ENDS.map(|port| Leg {
            interface: index,
            source_mac: flows::halves(mac),
            ..flows::leg(SocketAddr::new(client, port), server, client_mac)
        });
        plan.geneve(vni, legs);
    }
    maps.apply(&plan);
    // High enough that nothing is refused.
    let stun_rate = Rate::per_second(10_000_000, 1_000_000);
    kernel.configure(Settings { stun_rate, ..flows::settings() }).expect("settings");
    let kernel = run_in(&namespaces.server, move || {
        kernel.attach(SERVER_INTERFACE, AttachedMode::Native).expect("server's end");
        kernel
    });
    Responder::Ours { _kernel: Box::new(kernel) }
}

fn reference(binary: &str, namespaces: &Namespaces) -> Responder {
    let before = program_ids();
    let child = Command::new("ip")
        .args(["netns", "exec", &namespaces.server, binary, "-device", SERVER_INTERFACE])
        .args(["-mode", "xdpdrv", "-http", "127.0.0.1:0", "-dst-port", &STUN_PORT.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the reference responder");
    for _ in 0..200 {
        if program_ids() != before {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    // It is loaded before it is attached.
    thread::sleep(Duration::from_secs(1));
    Responder::Reference(child)
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_one_packet() {
    let Some((namespaces, client_end)) = environment("cost of one packet") else { return };
    let _statistics = enable_stats(Stats::RunTime).expect("statistics");
    let reference_binary = env::var("DERPD_XDPDERPER").ok();
    let rounds = env::var("DERPD_COST_ROUNDS").map_or(5, |text| text.parse().expect("a number"));
    println!("{:?}", client_end.program_info().expect("info"));
    for _ in 0..rounds {
        measure(&namespaces, "derpd", || ours(&namespaces));
        if let Some(binary) = &reference_binary {
            measure(&namespaces, "xdpderper", || reference(binary, &namespaces));
        }
    }
}
