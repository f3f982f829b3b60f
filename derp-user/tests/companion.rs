//! The whole daemon beside something that answers as a tailscaled which is a peer relay: two clients in namespaces of
//! their own, the relay between them, the kernel forwards natively.

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
#[path = "support/tailscaled.rs"]
mod tailscaled;

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    lab::{Daemon, End, Lab, acquaint, converse, geneve},
    pins::BpfFs,
    tailscaled::{Manner, Session, Tailscaled},
};

const PORT: u16 = 40000;
const VNI: u32 = 7;
const A: &str = "10.78.1.2:41641";
const B: &str = "10.78.2.2:51820";
const KEYS: [[u8; 8]; 2] = [*b"client-a", *b"client-b"];

/// The relay, what it accompanies, and two clients.
struct Scene {
    tailscaled: Tailscaled,
    a: UdpSocket,
    b: UdpSocket,
    lab: Lab,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        let lab = Lab::create(test)?;
        let tailscaled = Tailscaled::start(&lab.relay, &socket(&lab), PORT);
        tailscaled.set_sessions(&[session(A, B)]);
        let (a, b) = (lab.socket(&lab.a, A), lab.socket(&lab.b, B));
        Some(Self { tailscaled, a, b, lab })
    }

    fn start(&self, pin: &str) -> Daemon {
        let configuration = format!(
            "[dataplane]\npin = {pin}\n[companion]\nsocket = \"{}\"\npoll = \"100ms\"\nsample = \"1s\"\n",
            socket(&self.lab).display()
        );
        self.lab.start_native(&configuration)
    }

    fn ends(&self) -> [End<'_>; 2] {
        [
            End { socket: &self.a, relay: relay("10.78.1.1") },
            End { socket: &self.b, relay: relay("10.78.2.1") },
        ]
    }

    /// Has `count` packets go each way, and returns how many of them tailscaled has seen.
    fn converse(&self, count: u64) -> u64 {
        let before = self.tailscaled.received();
        converse(&self.ends(), 0, count, packet);
        self.tailscaled.received() - before
    }
}

fn socket(lab: &Lab) -> PathBuf {
    lab.directory().join("tailscaled.sock")
}

fn relay(address: &str) -> SocketAddr {
    format!("{address}:{PORT}").parse().expect("an address")
}

fn session(a: &str, b: &str) -> Session {
    let ends = [a, b].map(|end| Some(end.parse().expect("an address")));
    Session { vni: VNI, keys: KEYS, ends }
}

fn packet(number: u64) -> Vec<u8> {
    geneve(VNI, number, 100 + (number % 1200) as usize)
}

/// A packet of the bind handshake.
fn control(key: [u8; 8]) -> Vec<u8> {
    let mut packet = vec![0, 0x80, 0x7a, 0x11, 0, 0, VNI as u8, 0];
    packet.extend([0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]);
    packet.extend(key);
    packet.resize(160, 0);
    packet
}

/// The only flow is forwarded by the kernel, both ways.
fn wait_for_kernel(daemon: &Daemon) {
    daemon.wait_for_flow("forwarded by the kernel", |flow| {
        let ends = flow["ends"].as_array();
        flow["state"] == "forwarding"
            && ends.is_some_and(|ends| ends.iter().all(|end| end["forwarder"] == "kernel"))
    });
    thread::sleep(Duration::from_millis(50));
}

fn lines(daemon: &Daemon, text: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_kernel_takes_a_session_over_and_gives_it_back_when_an_end_moves() {
    let Some(scene) = Scene::new("a session of tailscaled in the kernel") else { return };
    acquaint(&scene.ends(), &packet(0));
    assert_eq!(scene.converse(20), 40, "tailscaled forwards by itself");
    let daemon = scene.start("false");
    wait_for_kernel(&daemon);
    let flow = &daemon.flows()[0];
    assert_eq!((flow["source"].as_str(), flow["vni"].as_u64()), (Some("companion"), Some(7)));
    assert_eq!(flow["ends"][0]["remote"], A);
    assert_eq!(flow["ends"][1]["local"], "10.78.2.1", "as routing chooses for tailscaled's own");
    acquaint(&scene.ends(), &packet(0));
    wait_for_kernel(&daemon);

    // Samples, one a second and end, and what looks half computed.
    let started = Instant::now();
    let before = daemon.kernel_packets();
    let seen = scene.converse(5000);
    let most = 2 * (started.elapsed().as_secs() + 2) + 3;
    assert!(seen <= most, "tailscaled has seen {seen} of 10,000, not {most}");
    let forwarded = daemon.kernel_packets() - before;
    assert!(forwarded + seen as f64 >= 10_000.0, "{forwarded} in the kernel, {seen}");
    // A sample is due again, so that tailscaled knows the session to be in use.
    let before = scene.tailscaled.received();
    daemon.wait_until("no samples", || {
        scene.converse(1);
        scene.tailscaled.received() >= before + 4
    });

    // A begins to bind anew. From this packet on tailscaled decides.
    let moved = "10.78.1.3:5000";
    let elsewhere = scene.lab.socket(&scene.lab.a, moved);
    elsewhere.send_to(&control(KEYS[0]), relay("10.78.1.1")).expect("send");
    daemon.wait_until("it is not held", || {
        daemon.metric("derpd_companion_sessions", &["state=\"held\""]) == 1.0
    });
    assert_eq!(scene.converse(20), 40);
    scene.tailscaled.set_sessions(&[session(moved, B)]);
    let [a, b] = scene.ends();
    let ends = [End { socket: &elsewhere, relay: a.relay }, b];
    wait_for_kernel(&daemon);
    acquaint(&ends, &packet(0));
    let before = scene.tailscaled.received();
    converse(&ends, 0, 1000, packet);
    assert!(scene.tailscaled.received() - before < 100, "the kernel has it again");
    let before = (daemon.kernel_packets(), scene.tailscaled.received());
    scene.a.send_to(&packet(1), a.relay).expect("send");
    daemon.wait_until("the former address", || scene.tailscaled.received() > before.1);
    assert_eq!(daemon.kernel_packets(), before.0, "the former address is tailscaled's");
    assert_eq!(daemon.metric("derpd_companion_suspicions_total", &[]), 1.0);
}

#[test]
fn case_44_a_restart_of_tailscaled_flushes_the_kernel() {
    let Some(mut scene) = Scene::new("a restart of tailscaled") else { return };
    let daemon = scene.start("false");
    wait_for_kernel(&daemon);
    acquaint(&scene.ends(), &packet(0));
    assert_eq!(
        lines(&daemon, "the kernel forwards for tailscaled's peer relay, UDP port 40000"),
        1
    );

    scene.tailscaled.close();
    daemon.wait_until("it is not flushed", || daemon.flows().is_empty());
    let before = daemon.kernel_packets();
    assert_eq!(scene.converse(20), 40, "whoever has the socket has the packets");
    assert_eq!(daemon.kernel_packets(), before);
    let words = format!("{}: No such file or directory", socket(&scene.lab).display());
    assert_eq!(lines(&daemon, "tailscaled cannot be asked, its packets are left to it"), 1);
    assert_eq!(lines(&daemon, &words), 1, "{}", daemon.log());
    assert_eq!(daemon.metric("derpd_companion_accompanying", &[]), 0.0);
    assert_eq!(daemon.metric("derpd_companion_flushes_total", &[]), 1.0);

    // The same VNI, for other clients.
    let other = Session { keys: [*b"client-c", *b"client-b"], ..session("10.78.1.3:5000", B) };
    scene.tailscaled.set_sessions(&[other]);
    scene.tailscaled.open();
    wait_for_kernel(&daemon);
    assert_eq!(daemon.flows()[0]["ends"][0]["remote"], "10.78.1.3:5000");
    let before = daemon.kernel_packets();
    scene.a.send_to(&packet(1), relay("10.78.1.1")).expect("send");
    daemon.wait_until("it is dropped", || {
        daemon.metric("xdp_stun_server_packets_total", &["prog_end=\"unknown_leg\""]) > 0.0
    });
    assert_eq!(daemon.kernel_packets(), before, "who was there before is nobody");
}

#[test]
fn whatever_tailscaled_says_that_is_not_understood_leaves_everything_to_it() {
    let Some(scene) = Scene::new("odd answers of tailscaled") else { return };
    let daemon = scene.start("false");
    acquaint(&scene.ends(), &packet(0));
    let huge = format!(r#"{{"UDPPort":{PORT},"Sessions":[],"X":"{}"}}"#, "x".repeat(9 << 20));
    for (manner, words) in [
        (Manner::Body("{".to_owned()), "EOF while parsing an object at line 1 column 1"),
        (
            Manner::Status(500, "peer relay server extension unavailable\n"),
            "500 Internal Server Error: peer relay server extension unavailable",
        ),
        (Manner::Status(404, "404 page not found"), "404 Not Found: 404 page not found"),
        (Manner::Body(huge), "an answer of more than 8388608 bytes"),
        (Manner::Silently, "no answer within 1 s"),
    ] {
        wait_for_kernel(&daemon);
        scene.tailscaled.set_manner(manner);
        daemon.wait_until(words, || daemon.flows().is_empty());
        assert_eq!(scene.converse(5), 10, "{words}");
        assert_eq!(lines(&daemon, words), 1, "said once: {}", daemon.log());
        scene.tailscaled.set_manner(Manner::Well);
    }
    wait_for_kernel(&daemon);
    for (port, words) in [
        (None, "is no peer relay"),
        (Some(0), "has chosen its relay port itself"),
        (Some(3478), "relay port 3478 is this daemon's own"),
    ] {
        scene.tailscaled.set_port(port);
        daemon.wait_until(words, || daemon.flows().is_empty());
        assert_eq!(lines(&daemon, words), 1, "said once: {}", daemon.log());
        scene.tailscaled.set_port(Some(PORT));
        wait_for_kernel(&daemon);
    }
}

#[test]
fn whoever_stands_still_loses_the_kernels_help_and_nothing_else() {
    let Some(scene) = Scene::new("a daemon that stands still") else { return };
    let daemon = scene.start("false");
    wait_for_kernel(&daemon);
    acquaint(&scene.ends(), &packet(0));
    assert!(scene.converse(500) < 20);
    daemon.signal(Signal::SIGSTOP);
    // 1.35 s after the last answer was asked for.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.converse(20), 40, "the lease is over");
    daemon.signal(Signal::SIGCONT);
    daemon.wait_until("it does not go on", || scene.converse(100) < 20);
}

#[test]
fn case_49_a_daemon_that_is_killed_leaves_the_traffic_to_tailscaled() {
    let Some(scene) = Scene::new("a daemon that is killed") else { return };
    let bpf = match BpfFs::mount() {
        Ok(bpf) => bpf,
        Err(reason) => return kernel::skip("a pinned companion", &reason),
    };
    let pinned = format!("\"{}\"", bpf.pins().display());
    acquaint(&scene.ends(), &packet(0));
    for (pin, signal) in [
        ("false", Signal::SIGKILL),
        ("false", Signal::SIGTERM),
        // The program stays, and answers STUN; tailscaled's flows do not.
        (&pinned, Signal::SIGKILL),
        (&pinned, Signal::SIGTERM),
    ] {
        let daemon = scene.start(pin);
        wait_for_kernel(&daemon);
        assert!(scene.converse(500) < 20, "{pin} {signal}");
        daemon.end(signal);
        // No packet is lost on the way, whoever forwards it.
        scene.converse(500);
        if signal == Signal::SIGKILL {
            thread::sleep(Duration::from_secs(2));
        }
        assert_eq!(scene.converse(20), 40, "{pin} {signal}");
    }
    // Nor does a daemon without the section find anything of them.
    let configuration = format!("[dataplane]\npin = {pinned}\n");
    let daemon = scene.lab.start_native(&configuration);
    assert_eq!(scene.converse(20), 40);
    assert_eq!(daemon.flows(), Vec::<Value>::new());
}

#[test]
fn without_the_kernel_it_says_so_once_and_asks_nobody() {
    let Some(scene) = Scene::new("a companion without the kernel") else { return };
    let configuration = format!("[companion]\nsocket = \"{}\"\n", socket(&scene.lab).display());
    let daemon = scene.lab.start(&configuration, &[]);
    let words = "[companion] does nothing: only the kernel data plane (-xdp-interface) could";
    assert_eq!(lines(&daemon, words), 1, "{}", daemon.log());
    thread::sleep(Duration::from_millis(500));
    assert_eq!((scene.tailscaled.questions(), daemon.flows().len()), (0, 0));
}
