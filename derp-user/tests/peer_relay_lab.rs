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
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
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
    netns::{run, spawn_in},
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

/// Answers as EC2's metadata service does, at its address in the relay's namespace, about one interface. Returns which paths
/// are asked for.
fn metadata_service(lab: &Lab, is_silent: &Arc<AtomicBool>) -> Receiver<String> {
    run(&format!("ip -n {} addr add 169.254.169.254/32 dev lo", lab.relay)).expect("ip");
    let (sender, receiver) = channel();
    let (bound, is_bound) = channel();
    let is_silent = Arc::clone(is_silent);
    spawn_in(&lab.relay, move || {
        let listener = TcpListener::bind("169.254.169.254:80").expect("the service's port");
        bound.send(()).expect("the test waits");
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let Some((head, path)) = request(&stream) else { continue };
            let is_token = head.starts_with("put /latest/api/token ")
                && head.contains("x-aws-ec2-metadata-token-ttl-seconds: 10");
            assert!(is_token || head.contains("x-aws-ec2-metadata-token: c2vjcmv0"), "{head}");
            let name = path.rsplit('/').next().unwrap_or_default();
            let (status, body) = match name {
                "token" => ("200 OK", "c2VjcmV0"),
                "" => ("200 OK", "0e:49:61:0f:c3:11/"),
                "public-ipv4s" => ("200 OK", "203.0.113.21\n203.0.113.22"),
                _ => ("404 Not Found", "<html>"),
            };
            if sender.send(path).is_err() {
                return;
            }
            if is_silent.load(Ordering::Relaxed) {
                kept.push(stream);
                continue;
            }
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nServer: EC2ws\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).expect("an answer");
        }
    });
    is_bound.recv().expect("the service starts");
    receiver
}

/// The head of a request in small letters, and its path; nothing if the connection was closed before.
fn request(stream: &TcpStream) -> Option<(String, String)> {
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let mut text = String::new();
    let mut reader = BufReader::new(stream);
    while !text.ends_with("\r\n\r\n") {
        if reader.read_line(&mut text).ok()? == 0 {
            return None;
        }
    }
    let path = text.split(' ').nth(1)?.to_owned();
    Some((text.to_lowercase(), path))
}

/// This machine is found to be in no cloud, so the service is not asked unless the file says so.
#[test]
fn a_clouds_metadata_service_tells_the_relay_its_public_addresses() {
    let Some(lab) = Lab::create("metadata of a cloud") else { return };
    let is_silent = Arc::<AtomicBool>::default();
    let asked = metadata_service(&lab, &is_silent);
    let vendor = std::fs::read_to_string("/sys/class/dmi/id/bios_vendor").unwrap_or_default();
    let is_in_cloud = vendor.to_lowercase().contains("amazon");
    if is_in_cloud {
        println!("skipped: a machine in no cloud: this one is in Amazon EC2");
    }
    for line in ["", "cloud = \"off\""].into_iter().skip(usize::from(is_in_cloud)) {
        let (daemon, _) = start(&lab, MODES[1], line);
        wait_for(&daemon, "addresses", |view| view["addresses"][0].is_string());
        thread::sleep(Duration::from_secs(1));
        assert!(asked.try_recv().is_err(), "it is asked, with {line:?}");
    }

    let (daemon, node) = start(&lab, MODES[1], "cloud = \"aws\"");
    let view = wait_for(&daemon, "addresses of the cloud", |view| view["cloud"][1].is_string());
    let (_, _, endpoint) = clients(&lab, &node);
    let told: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(told[..2], ["203.0.113.21:40000", "203.0.113.22:40000"], "{view:#}");
    assert!(told.contains(&"10.78.1.1:40000".to_owned()), "interfaces follow: {told:?}");
    assert!(!told.iter().any(|it| it.starts_with("169.254.")), "{told:?}");
    let paths: Vec<_> = asked.try_iter().collect();
    let interfaces = "/latest/meta-data/network/interfaces/macs/";
    let interface = format!("{interfaces}0e:49:61:0f:c3:11");
    let expected = [
        "/latest/api/token".to_owned(),
        interfaces.to_owned(),
        format!("{interface}/public-ipv4s"),
        format!("{interface}/ipv6s"),
    ];
    assert_eq!(paths, expected);
    drop(daemon);

    // A service that says nothing keeps nobody waiting, and is complained of once.
    is_silent.store(true, Ordering::Relaxed);
    let (daemon, node) = start(&lab, MODES[1], "cloud = \"aws\"");
    let (_, _, endpoint) = clients(&lab, &node);
    let told: Vec<_> = endpoint.addresses.iter().map(ToString::to_string).collect();
    assert!(told.contains(&"10.78.1.1:40000".to_owned()), "{told:?}");
    let words = "peer relay: the metadata service of Amazon EC2: no answer within 2s";
    let deadline = Instant::now() + PATIENCE;
    while !daemon.log().contains(words) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(daemon.log().matches(words).count(), 1, "{}", daemon.log());
}
