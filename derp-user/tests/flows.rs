//! Flows through the whole daemon: two clients in namespaces of their own, the relay between them.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/pins.rs"]
mod pins;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    lab::{
        Daemon, End, Lab, PATIENCE, RELAY_A, RELAY_B, acquaint, converse, exchange, geneve, plain,
    },
    netns::run,
    packets::{STUN_PORT, tailscale_request},
    pins::BpfFs,
};

const PORT: u16 = 40000;

/// Flags that attach the program to both interfaces of the relay.
fn attached(mode: &str) -> Vec<String> {
    vec![
        format!("-xdp-interface={RELAY_A}"),
        format!("-xdp-interface={RELAY_B}"),
        format!("-xdp-mode={mode}"),
    ]
}

fn start(lab: &Lab, configuration: &str, mode: &str) -> Daemon {
    let flags = if mode == "off" { Vec::new() } else { attached(mode) };
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    lab.start(configuration, &flags)
}

/// A configuration of one flow.
fn flow(kind: &str, a: &str, b: &str) -> String {
    format!(
        "[relay]\nport = {PORT}\n\n[dataplane]\npin = false\n\n\
         [[flow]]\nname = \"test\"\n{kind}\n{a}\n{b}\n"
    )
}

fn fixed(side: char, address: &str) -> String {
    format!("{side} = \"{address}\"")
}

fn relay(address: &str) -> SocketAddr {
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    format!("{host}:{PORT}").parse().expect("an address")
}

/// Packets that the kernel and userspace have forwarded from both ends of the first flow.
fn forwarded(daemon: &Daemon) -> [u64; 2] {
    let flows = daemon.counted_flows();
    let ends = flows[0]["ends"].as_array().expect("ends");
    let count = |end: &Value, plane| end[plane]["packets"].as_u64().expect("a count");
    ["kernel", "userspace"].map(|plane| ends.iter().map(|end| count(end, plane)).sum())
}

/// Both ends of the first flow are forwarded by the kernel.
fn wait_for_kernel(daemon: &Daemon) {
    daemon.wait_for_flow("forwarded by the kernel", |flow| {
        let ends = flow["ends"].as_array();
        ends.is_some_and(|ends| ends.iter().all(|end| end["forwarder"] == "kernel"))
    });
    // What is decided is written within the update protocol's grace.
    thread::sleep(Duration::from_millis(50));
}

struct Case {
    kind: &'static str,
    a: &'static str,
    relay_a: &'static str,
    b: &'static str,
    relay_b: &'static str,
}

const GENEVE4: Case = Case {
    kind: "vni = 7",
    a: "10.78.1.2:41641",
    relay_a: "10.78.1.1",
    b: "10.78.2.2:51820",
    relay_b: "10.78.2.1",
};
const GENEVE6: Case = Case {
    kind: "vni = 16777215",
    a: "[fd78:1::2]:41641",
    relay_a: "fd78:1::1",
    b: "[fd78:2::2]:51820",
    relay_b: "fd78:2::1",
};
const ANY4: Case = Case { kind: "", ..GENEVE4 };
/// Both ends are behind one interface.
const SAME_INTERFACE: Case = Case { b: "10.78.1.3:51820", relay_b: "10.78.1.1", ..GENEVE4 };
const CROSS_FAMILY: Case = Case { b: "[fd78:2::2]:51820", relay_b: "fd78:2::1", ..GENEVE4 };

impl Case {
    fn configuration(&self) -> String {
        flow(self.kind, &fixed('a', self.a), &fixed('b', self.b))
    }

    fn packet(&self) -> impl Fn(u64) -> Vec<u8> + use<> {
        let vni = self.kind.strip_prefix("vni = ").map(|vni| vni.parse().expect("a VNI"));
        move |number| match vni {
            Some(vni) => geneve(vni, number, 100 + (number % 1200) as usize),
            None => plain(number, 8 + (number % 1300) as usize),
        }
    }

    fn converse(&self, lab: &Lab, count: u64) {
        let b_namespace = if self.b.contains("78.1.") { &lab.a } else { &lab.b };
        let sockets = [lab.socket(&lab.a, self.a), lab.socket(b_namespace, self.b)];
        let ends = [
            End { socket: &sockets[0], relay: relay(self.relay_a) },
            End { socket: &sockets[1], relay: relay(self.relay_b) },
        ];
        acquaint(&ends, &self.packet()(0));
        converse(&ends, 0, count, self.packet());
    }
}

/// The kernel forwards a flow's packets, all of them, once it knows the way.
fn forwards_in_the_kernel(case: &Case, mode: &str) {
    let Some(lab) = Lab::create("flows in the kernel") else { return };
    let daemon = start(&lab, &case.configuration(), mode);
    // The first packets may come before the neighbours are known.
    case.converse(&lab, 10);
    wait_for_kernel(&daemon);
    let before = forwarded(&daemon);
    let cpu = daemon.cpu_seconds();
    case.converse(&lab, 20_000);
    let cpu = daemon.cpu_seconds() - cpu;
    let after = forwarded(&daemon);
    let [kernel, userspace] = [after[0] - before[0], after[1] - before[1]];
    // Those of the acquaintance, and the few whose checksums look half computed.
    assert!(
        kernel >= 39_990 && userspace < 10,
        "{kernel}, {userspace}\n{}",
        daemon.kernel_counts()
    );
    println!("{mode}: 40,000 packets, daemon's CPU {cpu:.3} s");
}

#[test]
fn native_forwards_ipv4_between_two_interfaces() {
    forwards_in_the_kernel(&GENEVE4, "native");
}

#[test]
fn native_forwards_ipv6_between_two_interfaces() {
    forwards_in_the_kernel(&GENEVE6, "native");
}

#[test]
fn native_forwards_any_payload_between_two_interfaces() {
    forwards_in_the_kernel(&ANY4, "native");
}

#[test]
fn native_forwards_out_of_the_interface_it_came_in_by() {
    forwards_in_the_kernel(&SAME_INTERFACE, "native");
}

#[test]
fn generic_forwards_ipv4_between_two_interfaces() {
    forwards_in_the_kernel(&GENEVE4, "generic");
}

#[test]
fn generic_forwards_ipv6_between_two_interfaces() {
    forwards_in_the_kernel(&GENEVE6, "generic");
}

#[test]
fn userspace_forwards_where_the_kernel_does_not() {
    for case in [GENEVE4, GENEVE6, ANY4, SAME_INTERFACE] {
        let Some(lab) = Lab::create("flows in userspace") else { return };
        let daemon = start(&lab, &case.configuration(), "off");
        println!("{} {} {}", case.kind, case.a, case.b);
        case.converse(&lab, 5_000);
        let [kernel, userspace] = forwarded(&daemon);
        assert!(kernel == 0 && userspace >= 10_000, "{kernel} {userspace}\n{}", daemon.log());
    }
}

#[test]
fn case_24_ends_of_different_families_are_joined_in_userspace() {
    for mode in ["native", "off"] {
        let Some(lab) = Lab::create("cross-family flows") else { return };
        let daemon = start(&lab, &CROSS_FAMILY.configuration(), mode);
        CROSS_FAMILY.converse(&lab, 2_000);
        assert!(forwarded(&daemon)[1] >= 4_000, "{}", daemon.log());
    }
}

#[test]
fn the_first_packet_from_an_allowed_network_is_learnt() {
    for mode in ["native", "off"] {
        let Some(lab) = Lab::create("learning") else { return };
        let learn = "learn_b = [\"10.78.2.0/24\"]";
        let daemon = start(&lab, &flow("vni = 7", &fixed('a', GENEVE4.a), learn), mode);
        let a = lab.socket(&lab.a, GENEVE4.a);
        let strangers =
            [lab.socket(&lab.a, "10.78.1.3:9999"), lab.socket(&lab.b, "[fd78:2::2]:9999")];
        for (stranger, to) in strangers.iter().zip(["10.78.1.1", "fd78:2::1"]) {
            stranger.send_to(&geneve(7, 1, 100), relay(to)).expect("send");
        }
        let b = lab.socket(&lab.b, "10.78.2.3:1234");
        daemon.wait_for_flow("the end is learnt", |flow| {
            b.send_to(&geneve(7, 2, 100), relay("10.78.2.1")).expect("send");
            flow["ends"][1]["remote"] == "10.78.2.3:1234" && flow["state"] == "forwarding"
        });
        drop((a, b));
        Case { b: "10.78.2.3:1234", ..GENEVE4 }.converse(&lab, 2_000);
    }
}

#[test]
fn a_client_that_uses_the_other_address_of_the_relay_hears_from_it() {
    for mode in ["native", "off"] {
        let Some(lab) = Lab::create("two addresses") else { return };
        let daemon = start(&lab, &GENEVE4.configuration(), mode);
        let b = lab.socket(&lab.b, GENEVE4.b);
        // The flow was installed with the address that routing prefers.
        daemon.wait_for_flow("the address is learnt", |flow| {
            b.send_to(&geneve(7, 1, 100), relay("10.78.2.9")).expect("send");
            flow["ends"][1]["local"] == "10.78.2.9"
        });
        drop(b);
        Case { relay_b: "10.78.2.9", ..GENEVE4 }.converse(&lab, 2_000);
    }
}

#[test]
fn a_neighbour_that_moves_is_followed() {
    let Some(lab) = Lab::create("a moving neighbour") else { return };
    let daemon = start(&lab, &GENEVE4.configuration(), "native");
    GENEVE4.converse(&lab, 10);
    wait_for_kernel(&daemon);
    run(&format!("ip -n {} link set b0 address 02:00:00:00:99:02", lab.b)).expect("ip");
    // The relay's stack finds out by asking again, as it would for its own traffic.
    run(&format!("ip -n {} neigh flush all", lab.relay)).expect("ip");
    run(&format!("ip -n {} neigh flush all", lab.b)).expect("ip");
    let b = lab.socket(&lab.b, "10.78.2.2:9");
    b.send_to(b"hello", "10.78.2.1:9").expect("send");
    drop(b);
    let deadline = Instant::now() + PATIENCE;
    let (a, b) = (lab.socket(&lab.a, GENEVE4.a), lab.socket(&lab.b, GENEVE4.b));
    b.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    // Frames to the old MAC address are lost, as the stack's own would be.
    loop {
        a.send_to(&geneve(7, 1, 100), relay(GENEVE4.relay_a)).expect("send");
        if b.recv(&mut [0; 200]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "the new MAC address is not noticed");
    }
    drop((a, b));
    wait_for_kernel(&daemon);
    let before = forwarded(&daemon)[0];
    GENEVE4.converse(&lab, 1_000);
    assert!(forwarded(&daemon)[0] - before >= 1_990);
}

/// Sends both ways, paced, until told to stop. Returns how many packets each end has sent, and which were lost.
fn converse_until(lab: &Lab, stop: &AtomicBool) -> (u64, Vec<u64>) {
    let sockets = [lab.socket(&lab.a, GENEVE4.a), lab.socket(&lab.b, GENEVE4.b)];
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
    }
    let relays = [relay(GENEVE4.relay_a), relay(GENEVE4.relay_b)];
    let ends = [0, 1].map(|end| End { socket: &sockets[end], relay: relays[end] });
    let (mut number, mut lost) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        lost.extend(exchange(&ends, number, 20, |number| geneve(7, number, 200)));
        number += 20;
        thread::sleep(Duration::from_millis(2));
    }
    (number, lost)
}

/// What [`converse_until`] does, in a thread of its own.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<(u64, Vec<u64>)>,
}

impl Traffic {
    fn start(lab: &Arc<Lab>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (lab, stop) = (Arc::clone(lab), Arc::clone(&stop));
            move || converse_until(&lab, &stop)
        });
        Self { stop, thread }
    }

    fn stop(self) -> (u64, Vec<u64>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("traffic")
    }
}

#[test]
fn case_49_killing_and_restarting_the_daemon_interrupts_no_flow() {
    let Some(lab) = Lab::create("restart under traffic") else { return };
    let bpf = match BpfFs::mount() {
        Ok(bpf) => bpf,
        Err(reason) => return kernel::skip("restart under traffic", &reason),
    };
    let pins = bpf.pins().display().to_string();
    let configuration =
        GENEVE4.configuration().replace("pin = false", &format!("pin = \"{pins}\""));
    let mut daemon = start(&lab, &configuration, "native");
    GENEVE4.converse(&lab, 10);
    wait_for_kernel(&daemon);
    let lab = Arc::new(lab);
    let traffic = Traffic::start(&lab);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        thread::sleep(Duration::from_millis(300));
        daemon.end(signal);
        thread::sleep(Duration::from_millis(500));
        daemon = start(&lab, &configuration, "native");
        wait_for_kernel(&daemon);
    }
    thread::sleep(Duration::from_millis(300));
    let (number, lost) = traffic.stop();
    println!("{number} packets each way over three restarts; lost: {lost:?}");
    // While no daemon runs, nobody forwards the one of 65,536 that the kernel hands up because its checksum looks
    // half computed. An interruption would cost at least a dozen.
    assert!(lost.len() as u64 <= 1 + number / 16_384, "{lost:?}");
    assert!(number > 1_000, "{number}");
    daemon.end(Signal::SIGTERM);
    let detach = std::process::Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["detach", "--pin", &pins])
        .output()
        .expect("derpd detach");
    assert!(detach.status.success(), "{detach:?}");
    assert!(!bpf.pins().exists(), "the pins are gone");
}

/// Tables of another size are new ones. What comes while the programs change places must find the ways in them.
#[test]
fn regression_new_tables_hold_the_ways_before_they_are_used() {
    let Some(lab) = Lab::create("new tables under traffic") else { return };
    let bpf = match BpfFs::mount() {
        Ok(bpf) => bpf,
        Err(reason) => return kernel::skip("new tables under traffic", &reason),
    };
    let pins = bpf.pins().display().to_string();
    let configuration = |slots: u32| {
        let slots = format!("port = {PORT}\nslots = {slots}");
        let text = GENEVE4.configuration().replace(&format!("port = {PORT}"), &slots);
        text.replace("pin = false", &format!("pin = \"{pins}\""))
    };
    let mut daemon = start(&lab, &configuration(1024), "native");
    GENEVE4.converse(&lab, 10);
    wait_for_kernel(&daemon);
    let lab = Arc::new(lab);
    let traffic = Traffic::start(&lab);
    for slots in [2048, 1024, 2048] {
        thread::sleep(Duration::from_millis(300));
        daemon.end(Signal::SIGTERM);
        daemon = start(&lab, &configuration(slots), "native");
        thread::sleep(Duration::from_millis(300));
        let [_, in_userspace] = forwarded(&daemon);
        // One of 65,536, its checksum looks half computed.
        let halves = daemon.metric("xdp_stun_server_packets_total", &["invalid_udp_csum"]);
        let counts = daemon.kernel_counts();
        assert!(in_userspace as f64 <= halves, "{in_userspace}\n{counts}\n{}", daemon.log());
    }
    let (number, lost) = traffic.stop();
    println!("{number} packets each way over three changes of tables; lost: {lost:?}");
    assert!(lost.len() as u64 <= 1 + number / 16_384, "{lost:?}");
}

#[test]
fn stun_is_shed_and_taken_up_again_on_sighup() {
    for mode in ["native", "off"] {
        let Some(lab) = Lab::create("shedding") else { return };
        let configuration =
            |shed: bool| format!("{}\n[stun]\nshed = {shed}\n", GENEVE4.configuration());
        let daemon = start(&lab, &configuration(false), mode);
        let client = lab.socket(&lab.a, "10.78.1.2:5555");
        client.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        let is_answered = || {
            client.send_to(&tailscale_request(), ("10.78.1.1", STUN_PORT)).expect("send");
            client.recv(&mut [0; 100]).is_ok()
        };
        let reload = |text: &str, answered: bool| {
            std::fs::write(lab.directory().join("derpd.toml"), text).expect("write");
            daemon.signal(Signal::SIGHUP);
            let deadline = Instant::now() + PATIENCE;
            while is_answered() != answered {
                assert!(Instant::now() < deadline, "{mode}, {answered}: {}", daemon.log());
            }
        };
        assert!(is_answered() || is_answered(), "{}", daemon.log());
        reload(&configuration(true), false);
        let shed = ["reason=\"stun_shed\"", "prog_end=\"stun_shed\""];
        let counted = daemon.metric("derpd_udp_refused_packets_total", &[shed[0]])
            + daemon.metric("xdp_stun_server_packets_total", &[shed[1]]);
        assert!(counted > 0.0, "{mode}");
        reload(&configuration(false), true);
        // What is wrong changes nothing.
        reload("[stun]\nshed = 7\n", true);
        let deadline = Instant::now() + PATIENCE;
        while !daemon.log().contains("reload failed, nothing has changed") {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            thread::sleep(Duration::from_millis(10));
        }
        assert!(is_answered());
    }
}
