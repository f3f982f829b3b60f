//! A flow between two interfaces (case 21 of the UDP relay's): ways from the routing tables, legs in the kernel's
//! maps, packets redirected, in both directions.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use derp_common::{
    Address, Interface, Port, Reason, Services, Settings,
    flow::{
        Control, Leg, Side, Source,
        table::{leg_index, source_value, statistics_index},
    },
};
use derp_user::{
    dataplane::{
        AttachedMode, FlowMaps, Kernel, KernelTables, Mode, Watcher, Xdp, XdpOptions,
        route::{Pair, Resolver},
    },
    flow::{Change, Resolved, Sink as _},
};
use tokio::runtime;

use crate::{
    netns::{CLIENT_INTERFACE, Namespaces, SERVER_INTERFACE, run_in},
    packets::STUN_PORT,
};

const RELAY_PORT: u16 = 40_000;
const SLOT: u32 = 5;
const PACKETS: u64 = 50;
const SECOND_SERVER: &str = "server1";
const SECOND_CLIENT: &str = "client1";

/// The ends of the flow, the second behind the second interface, and the addresses of ours they speak with.
const V4: [(&str, &str); 2] = [("10.77.0.2:5000", "10.77.0.1"), ("10.78.0.2:5001", "10.78.0.1")];
const V6: [(&str, &str); 2] = [("[fd77::2]:5000", "fd77::1"), ("[fd78::2]:5001", "fd78::1")];

fn environment(test: &str) -> Option<(Namespaces, Kernel)> {
    kernel::load(test)?;
    let namespaces = Namespaces::create().inspect_err(|reason| kernel::skip(test, reason)).ok()?;
    let Namespaces { server, client } = &namespaces;
    ip(&format!(
        "link add {SECOND_SERVER} netns {server} type veth peer name {SECOND_CLIENT} netns {client}"
    ));
    for (namespace, interface, last) in [(server, SECOND_SERVER, 1), (client, SECOND_CLIENT, 2)] {
        ip(&format!("-n {namespace} addr add 10.78.0.{last}/24 dev {interface}"));
        ip(&format!("-n {namespace} addr add fd78::{last}/64 dev {interface} nodad"));
        ip(&format!("-n {namespace} link set {interface} up"));
    }
    ip(&format!("netns exec {client} ethtool -K {SECOND_CLIENT} tx off"));
    let client_ends = run_in(client, || {
        let mut kernel = Kernel::load().expect("load");
        for interface in [CLIENT_INTERFACE, SECOND_CLIENT] {
            kernel.attach(interface, AttachedMode::Native).expect("client's end");
        }
        kernel
    });
    Some((namespaces, client_ends))
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// Finds the ways to both ends, as the daemon does.
fn ways(ends: [(&str, &str); 2]) -> [Resolved; 2] {
    let (resolver, ways) = Resolver::<usize>::new(2).expect("resolver");
    for (claim, (remote, local)) in ends.into_iter().enumerate() {
        let remote: SocketAddr = remote.parse().expect("address");
        let local = Some(local.parse().expect("address"));
        ways.want(claim, Some(Pair { local, remote: remote.ip() })).expect("room");
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let found = runtime.block_on(async {
        let resolve = async {
            loop {
                if let (Some(Ok(a)), Some(Ok(b))) = (ways.known(0), ways.known(1)) {
                    return [a, b];
                }
                ways.answered().await;
                let _ = ways.answers();
            }
        };
        tokio::select! {
            end = Watcher::for_routes(resolver).run() => panic!("the watcher ended: {end:?}"),
            found = tokio::time::timeout(Duration::from_secs(20), resolve) => found,
        }
    });
    found.expect("both ways are found")
}

fn leg(remote: SocketAddr, way: &Resolved) -> Leg {
    Leg {
        remote: Address::from(remote.ip()),
        local: Address::from(way.local),
        remote_port: remote.port().to_be(),
        local_port: RELAY_PORT.to_be(),
        interface: way.interface,
        source_mac: Interface::new(way.source_mac).mac,
        destination_mac: Interface::new(way.destination_mac).mac,
        mtu: way.mtu,
        vlan: way.vlan,
        nanoseconds_per_kibibyte: 0,
        burst_microseconds: 0,
    }
}

fn install(tables: &mut KernelTables, ends: [(&str, &str); 2], ways: &[Resolved; 2]) {
    let mut changes = Vec::new();
    for ((side, (remote, _)), way) in Side::ALL.into_iter().zip(ends).zip(ways) {
        let leg = leg(remote.parse().expect("address"), way);
        let source = Source {
            address: leg.remote,
            port: leg.remote_port,
            local_port: leg.local_port,
            index: 0,
        };
        changes.push(Change::ResetStatistics { index: statistics_index(SLOT, side) });
        changes.push(Change::Leg { index: leg_index(SLOT, 0, side), leg });
        changes.push(Change::InsertSource { source, value: source_value(SLOT, side) });
    }
    changes.push(Change::Control { slot: SLOT, control: Control::forward(0, 0) });
    tables.apply(&changes).expect("installed");
}

fn packets_cross(mode: Mode, ends: [(&'static str, &'static str); 2]) {
    let test = format!("a flow between two interfaces, {mode}");
    let Some((namespaces, _client_ends)) = environment(&test) else { return };
    let (mut xdp, mut tables) = run_in(&namespaces.server, move || {
        let options = XdpOptions {
            interfaces: vec![SERVER_INTERFACE.to_owned(), SECOND_SERVER.to_owned()],
            mode,
            stun_port: STUN_PORT,
            ..XdpOptions::default()
        };
        let mut prepared = Xdp::prepare(&options).expect("prepare").expect("a program");
        let mut settings = Settings::new(STUN_PORT);
        settings.ports[1] = Port { number: RELAY_PORT.to_be(), services: Services::ANY };
        prepared.configure(settings).expect("configure");
        let maps = FlowMaps::take(prepared.kernel_mut()).expect("maps");
        let mut tables = KernelTables::new(maps).expect("sizes");
        install(&mut tables, ends, &ways(ends));
        let xdp = prepared.commit().expect("attach");
        assert_eq!(xdp.attachments().len(), 2);
        (xdp, tables)
    });
    // Drivers tell what they can do once a program is there.
    let watcher = xdp.take_watcher().expect("watcher");
    run_in(&namespaces.server, move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let _ = tokio::time::timeout(Duration::from_millis(200), watcher.run()).await;
        });
    });

    run_in(&namespaces.client, move || {
        let sockets = ends.map(|(end, _)| UdpSocket::bind(end).expect("socket"));
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        }
        let relay = |side: usize| {
            SocketAddr::new(ends[side].1.parse::<IpAddr>().expect("address"), RELAY_PORT)
        };
        for number in 0..PACKETS {
            for (from, to) in [(0, 1), (1, 0)] {
                let payload = [number.to_be_bytes().as_slice(), &[0xa5; 100]].concat();
                sockets[from].send_to(&payload, relay(from)).expect("send");
                let mut buffer = [0; 200];
                let (length, sender) = sockets[to].recv_from(&mut buffer).expect("forwarded");
                assert_eq!((&buffer[..length], sender), (payload.as_slice(), relay(to)));
            }
        }
    });
    let counts = xdp.counters().expect("counters");
    let redirected = counts.iter().filter(|count| count.reason == Reason::Redirected);
    assert_eq!(redirected.map(|count| count.packets).sum::<u64>(), 2 * PACKETS);
    let statistics = tables.statistics([SLOT]).expect("statistics");
    for side in statistics[0].1 {
        assert_eq!((side.packets, side.bytes), (PACKETS, PACKETS * 108));
    }
    assert_eq!(tables.stored_flows().expect("flows").len(), 1);
    assert_eq!(tables.stored_sources().expect("sources").len(), 2);
    // Off is off: nobody in userspace listens here.
    tables.apply(&[Change::Control { slot: SLOT, control: Control::OFF }]).expect("off");
    assert!(tables.stored_flows().expect("flows").is_empty());
}

#[test]
fn native_redirects_ipv4() {
    packets_cross(Mode::Native, V4);
}

#[test]
fn native_redirects_ipv6() {
    packets_cross(Mode::Native, V6);
}

#[test]
fn generic_redirects_both_families() {
    packets_cross(Mode::Generic, V4);
    packets_cross(Mode::Generic, V6);
}
