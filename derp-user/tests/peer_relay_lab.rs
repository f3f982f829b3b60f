//! The peer relay through the whole daemon: clients in namespaces of their own, the relay between them, in the kernel
//! and in userspace.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/relay_client.rs"]
mod relay_client;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use derp_user::{client::Trust, peer_relay::disco::EndpointRecord};
use serde_json::Value;

use crate::{
    lab::{Daemon, End, Lab, PATIENCE, RELAY_A, RELAY_B, acquaint, converse, geneve},
    relay_client::{Derp, RelayClient, RelayNode},
};

const PORT: u16 = 40000;
/// Flags that attach the program natively to both interfaces of the relay, or none.
const MODES: [(&str, &[&str]); 2] = [("native", &["-xdp-mode=native"]), ("off", &[])];

/// A daemon with these further lines of `[peer_relay]`.
fn start(lab: &Lab, (mode, flags): (&str, &[&str]), lines: &str) -> (Daemon, RelayNode) {
    let keys = lab.directory().join("relay.keys");
    let configuration = format!(
        "[dataplane]\npin = false\n[peer_relay]\nport = {PORT}\nkey_file = {:?}\nallow = \"any\"\n{lines}\n",
        keys.display().to_string()
    );
    let interfaces = [RELAY_A, RELAY_B].map(|it| format!("-xdp-interface={it}"));
    let mut all: Vec<&str> = flags.to_vec();
    if mode != "off" {
        all.extend(interfaces.iter().map(String::as_str));
    }
    let daemon = lab.start(&configuration, &all);
    (daemon, RelayNode::of_file(&keys))
}

fn view(daemon: &Daemon) -> Value {
    let page = daemon.get("/debug/peer-relay?format=json").expect("the page");
    serde_json::from_str(&page).expect("JSON")
}

/// Waits until the page satisfies `is_so`.
fn wait_for(daemon: &Daemon, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let view = view(daemon);
        if is_so(&view) {
            return view;
        }
        assert!(Instant::now() < deadline, "{what}: {view:#}\n{}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// Two clients with an endpoint that is not bound.
fn clients(lab: &Lab, node: &RelayNode) -> (RelayClient, RelayClient, EndpointRecord) {
    let (a, b) = (RelayClient::new(), RelayClient::new());
    let derp = Derp::connect(Some(lab.a.as_str()), "http://10.78.1.1:8080", &a.node, Trust::System);
    let endpoint = a.ask(&derp, node, &b);
    (a, b, endpoint)
}

/// The relay has two addresses on the way to each client. A binds its end by the one that routing would not choose, B by the
/// other.
fn a_client_is_answered_from_the_address_it_bound(mode: (&'static str, &'static [&'static str])) {
    let name = mode.0;
    for (family, client_a, relay_a, client_b, relay_b) in [
        ("udp4", "10.78.1.2:41641", "10.78.1.9:40000", "10.78.2.2:51820", "10.78.2.1:40000"),
        (
            "udp6",
            "[fd78:1::2]:41641",
            "[fd78:1::9]:40000",
            "[fd78:2::2]:51820",
            "[fd78:2::1]:40000",
        ),
    ] {
        let Some(lab) = Lab::create(&format!("case 45, {name}, {family}")) else { return };
        let (daemon, node) = start(&lab, mode, "");
        let (a, b, endpoint) = clients(&lab, &node);
        let sockets = [lab.socket(&lab.a, client_a), lab.socket(&lab.b, client_b)];
        let relays: [SocketAddr; 2] = [relay_a, relay_b].map(|it| it.parse().expect("an address"));
        a.bind_end(&sockets[0], relays[0], &endpoint, 1);
        b.bind_end(&sockets[1], relays[1], &endpoint, 1);
        wait_for(&daemon, "an open endpoint", |view| view["sessions"][0]["state"] == "open");

        let ends = [0, 1].map(|it: usize| End { socket: &sockets[it], relay: relays[it] });
        acquaint(&ends, &geneve(endpoint.vni, u64::MAX, 100));
        let expected = if name == "off" { "no_xdp" } else { "kernel" };
        wait_for(&daemon, expected, |view| {
            let clients = view["sessions"][0]["clients"].as_array();
            clients.is_some_and(|clients| clients.iter().all(|it| it["forwarder"] == expected))
        });
        // What is decided is written within the update protocol's grace.
        thread::sleep(Duration::from_millis(50));
        let count = 500;
        converse(&ends, 0, count, |number| geneve(endpoint.vni, number, 100));

        // The figures say where they went; they are read every few seconds.
        let plane = if name == "off" { "userspace" } else { "kernel" };
        let transports = format!("transport_in=\"{family}\",transport_out=\"{family}\"");
        let view = wait_for(&daemon, "the counts", |view| {
            let forwarded = |plane| view["forwarded"][plane][0].as_u64().unwrap_or(0);
            let all = (forwarded("kernel") + forwarded("userspace")) as f64;
            let packets = "tailscaled_peer_relay_forwarded_packets_total";
            // Of 65,536 packets the kernel hands one up.
            forwarded(plane) >= 2 * count - 2
                && daemon.metric(packets, &[&transports]) == all
                && daemon.metric(packets, &[]) == all
                && daemon.metric("tailscaled_peer_relay_forwarded_bytes_total", &[]) == 100.0 * all
        });
        assert_eq!(daemon.metric("tailscaled_peer_relay_endpoints", &["open"]), 1.0);
        assert_eq!(daemon.metric("tailscaled_peer_relay_endpoints", &["connecting"]), 0.0);
        assert_eq!(daemon.metric("derpd_peer_relay_handshake_messages_total", &["bound"]), 2.0);
        let ends = view["sessions"][0]["clients"].as_array().expect("two clients");
        let mut locals: Vec<_> = ends.iter().filter_map(|end| end["local"].as_str()).collect();
        locals.sort_unstable();
        let mut bound = relays.map(|relay| relay.ip().to_string());
        bound.sort_unstable();
        assert_eq!(locals, bound);
    }
}

#[test]
fn case_45_the_kernel_answers_from_the_address_that_a_client_bound() {
    a_client_is_answered_from_the_address_it_bound(MODES[0]);
}

#[test]
fn case_45_userspace_answers_from_the_address_that_a_client_bound() {
    a_client_is_answered_from_the_address_it_bound(MODES[1]);
}

/// A STUN server that says it sees something else than it does, as behind a NAT: this address, and the port given here.
/// Returns who has asked, and a switch that ends it.
fn stun_server(
    lab: &Lab,
    address: &str,
    seen_port: u16,
) -> (Receiver<SocketAddr>, Arc<AtomicBool>) {
    let socket: UdpSocket = lab.socket(&lab.b, address);
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    let (sender, receiver) = channel();
    let stop = Arc::new(AtomicBool::new(false));
    thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut buffer = [0; 1500];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                let request = &buffer[..length];
                assert_eq!(request[..2], [0, 1], "a Binding request");
                let mut transaction = [0; 12];
                transaction.copy_from_slice(&request[8..20]);
                let seen = "203.0.113.7".parse().expect("an address");
                // An answer that is not to this request must count for nothing.
                let mut other = transaction;
                other[0] ^= 1;
                let wrong = "203.0.113.66".parse().expect("an address");
                for answer in [
                    packets::success(&other, wrong, 6666),
                    packets::success(&transaction, seen, seen_port),
                ] {
                    socket.send_to(&answer, from).expect("send");
                }
                if sender.send(from).is_err() {
                    return;
                }
            }
        }
    });
    (receiver, stop)
}

/// Two servers outside see the relay with different ports, so the relay's own port is told, too. Their answers come to the
/// relay port, where the kernel has to let them through.
#[test]
fn case_29_stun_servers_tell_the_relay_where_it_is_seen() {
    for mode in MODES {
        // With STUN on the relay's own port, and on another one.
        for (stun_port, reason) in [(PORT, "not_binding_request"), (3478, "unusual_geneve")] {
            let Some(lab) = Lab::create("case 29") else { return };
            let servers = [("10.78.2.2:3478", 50_001), ("10.78.2.3:3479", 50_002)];
            let running = servers.map(|(address, port)| stun_server(&lab, address, port));
            let flag = format!("-stun-port={stun_port}");
            let flags = [mode.1, &[flag.as_str()]].concat();
            let lines = "stun = [\"10.78.2.2\", \"10.78.2.3:3479\"]";
            let (daemon, node) = start(&lab, (mode.0, flags.as_slice()), lines);
            for (asked, _) in &running {
                let from = asked.recv_timeout(PATIENCE).expect("asked");
                assert_eq!(from, "10.78.2.1:40000".parse().expect("an address"));
            }
            let view = wait_for(&daemon, "both mappings", |view| {
                view["mappings"].as_array().is_some_and(|mappings| mappings.len() == 2)
            });
            let expected = ["203.0.113.7:50001", "203.0.113.7:50002", "203.0.113.7:40000"];
            let (_, _, endpoint) = clients(&lab, &node);
            let told: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
            assert_eq!(told[..3], expected, "{view:#}");
            // Interfaces follow; private IPv6 is not told where there is something else.
            let interfaces = ["10.78.1.1:40000", "10.78.1.9:40000", "10.78.2.1:40000"];
            assert!(interfaces.iter().all(|it| told.contains(&(*it).to_owned())), "{told:?}");
            assert!(!told.iter().any(|it| it.contains("fd78") || it.contains("66")), "{told:?}");
            assert_eq!(daemon.metric("derpd_peer_relay_stun_mappings", &[]), 2.0);
            assert_eq!(daemon.metric("derpd_peer_relay_addresses", &[]), told.len() as f64);
            let passed = daemon.metric("xdp_stun_server_packets_total", &["\"pass\"", reason]);
            assert_eq!(passed > 0.0, mode.0 != "off", "{reason}: {}", daemon.kernel_counts());
            let seen = daemon.log().matches("STUN servers see it at").count();
            assert!((1..=2).contains(&seen), "each change once: {}", daemon.log());
            running.iter().for_each(|(_, stop)| stop.store(true, Ordering::Relaxed));
        }
    }
}
