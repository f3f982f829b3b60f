//! Other flows in the configuration of a daemon that runs: what SIGHUP adds, removes and replaces, and what it leaves alone.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    lab::{Daemon, End, Lab, RELAY_A, RELAY_B, acquaint, converse, exchange, geneve, plain},
    netns::run_in,
    packets::{STUN_PORT, tailscale_request},
};

/// The flow that stays.
const STAYS: &str =
    "[[flow]]\nname = \"stays\"\nvni = 7\na = \"10.78.1.2:41641\"\nb = \"10.78.2.2:51820\"\n";
const PORT: u16 = 40000;
const OTHER_PORT: u16 = 40001;

fn configuration(flows: &str) -> String {
    format!("[relay]\nport = {PORT}\n[dataplane]\npin = false\n{flows}")
}

/// A flow of any payload on a port of its own.
fn other(b: &str) -> String {
    format!(
        "[[flow]]\nname = \"other\"\nport = {OTHER_PORT}\na = \"10.78.1.2:5001\"\nb = \"{b}\"\n"
    )
}

/// A relay whose first flow carries packets all the time.
struct Bed {
    lab: Arc<Lab>,
    daemon: Daemon,
    stop: Arc<AtomicBool>,
    traffic: Option<thread::JoinHandle<(u64, Vec<u64>)>>,
}

impl Bed {
    fn start(lab: Lab, mode: &str) -> Self {
        let mut flags = vec![format!("-xdp-mode={mode}")];
        if mode != "off" {
            flags.extend([RELAY_A, RELAY_B].map(|name| format!("-xdp-interface={name}")));
        }
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let daemon = lab.start(&configuration(STAYS), &flags);
        let lab = Arc::new(lab);
        let stop = Arc::new(AtomicBool::new(false));
        let sockets =
            [lab.socket(&lab.a, "10.78.1.2:41641"), lab.socket(&lab.b, "10.78.2.2:51820")];
        acquaint(&ends(&sockets, PORT), &geneve(7, 0, 200));
        if mode != "off" {
            wait_for_kernel(&daemon, "stays");
        }
        let traffic = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut number, mut lost) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let packet = |number| geneve(7, number, 200);
                    lost.extend(exchange(&ends(&sockets, PORT), number, 20, packet));
                    number += 20;
                    thread::sleep(Duration::from_millis(2));
                }
                (number, lost)
            }
        });
        Self { lab, daemon, stop, traffic: Some(traffic) }
    }

    /// Has the daemon read a file with these flows, and returns what it says of that.
    fn reload(&self, flows: &str) -> String {
        let path = self.lab.directory().join("derpd.toml");
        fs::write(path, configuration(flows)).expect("the configuration file");
        let before = self.daemon.log().len();
        let count = || self.daemon.metric("derpd_reloads_total", &[]);
        let counted = count();
        self.daemon.signal(Signal::SIGHUP);
        // What came of it is logged right after it is counted.
        self.daemon.wait_until("the reload is counted", || count() > counted);
        let said = || self.daemon.log()[before..].to_owned();
        self.daemon.wait_until("the reload is logged", || {
            said().contains("flows: ") || said().contains("reload failed, nothing has changed")
        });
        said()
    }

    /// Packets go both ways between two ends.
    fn converse(&self, b: &str, port: u16, packet: impl Fn(u64) -> Vec<u8>) {
        let namespaces = [&self.lab.a, &self.lab.b];
        let sockets = [0, 1].map(|it| self.lab.socket(namespaces[it], ["10.78.1.2:5001", b][it]));
        acquaint(&ends(&sockets, port), &packet(0));
        converse(&ends(&sockets, port), 0, 1000, packet);
    }

    fn is_stun_answered(&self) -> bool {
        let client = self.lab.socket(&self.lab.a, "10.78.1.2:5555");
        client.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
        client.send_to(&tailscale_request(), ("10.78.1.1", STUN_PORT)).expect("send");
        client.recv(&mut [0; 100]).is_ok()
    }

    /// Binds a port in the relay's namespace, if it is free.
    fn bind(&self, port: u16) -> Option<UdpSocket> {
        run_in(&self.lab.relay, move || UdpSocket::bind(("0.0.0.0", port)).ok())
    }

    fn finish(mut self) -> (u64, Vec<u64>) {
        self.stop.store(true, Ordering::Relaxed);
        self.traffic.take().expect("once").join().expect("traffic")
    }
}

fn ends(sockets: &[UdpSocket; 2], port: u16) -> [End<'_>; 2] {
    let relay = |host: [u8; 4]| SocketAddr::from((host, port));
    [
        End { socket: &sockets[0], relay: relay([10, 78, 1, 1]) },
        End { socket: &sockets[1], relay: relay([10, 78, 2, 1]) },
    ]
}

/// Both ends of a flow are forwarded by the kernel.
fn wait_for_kernel(daemon: &Daemon, name: &str) {
    daemon.wait_until("forwarded by the kernel", || {
        let flows = daemon.flows();
        let flow = flows.iter().find(|flow| flow["name"] == name);
        let ends = flow.and_then(|flow| flow["ends"].as_array());
        ends.is_some_and(|ends| ends.iter().all(|end| end["forwarder"] == "kernel"))
    });
    // What is decided is written within the update protocol's grace.
    thread::sleep(Duration::from_millis(50));
}

/// Packets of the first flow that userspace had to forward.
fn in_userspace(daemon: &Daemon) -> u64 {
    let flows = daemon.counted_flows();
    let flow = flows.iter().find(|flow| flow["name"] == "stays").expect("the flow");
    let ends = flow["ends"].as_array().expect("ends");
    ends.iter().map(|end| end["userspace"]["packets"].as_u64().expect("a count")).sum()
}

fn flows_come_and_go(mode: &str) {
    let Some(lab) = Lab::create("flows on SIGHUP") else { return };
    let bed = Bed::start(lab, mode);
    let is_in_kernel = mode != "off";
    let before = in_userspace(&bed.daemon);

    let said = bed.reload(&format!("{}{STAYS}", other("10.78.2.2:5001")));
    assert!(said.contains("flows: 1 added (\"other\"), 1 as before"), "{said}");
    bed.converse("10.78.2.2:5001", OTHER_PORT, |number| plain(number, 100));
    if is_in_kernel {
        wait_for_kernel(&bed.daemon, "other");
    }

    // What is wrong changes nothing, whatever else is right.
    let reserved = bed.bind(40002).expect("a free port");
    let third = |port: u16, kind: &str| {
        format!(
            "[[flow]]\nname = \"third\"\nport = {port}\n{kind}a = \"10.78.1.3:1\"\nb = \"10.78.2.3:1\"\n"
        )
    };
    for (bad, sentence) in [
        (
            third(40002, ""),
            "cannot relay UDP on 0.0.0.0:40002: the port is in use by another process",
        ),
        (third(PORT, "vni = 16391\n"), "the VNI 16391 needs a slot that the flow \"stays\" has"),
        (
            third(500, ""),
            "cannot relay UDP on 0.0.0.0:500: ports below 1024 need root or CAP_NET_BIND_SERVICE, which derpd has given \
             up since it started: this port takes a restart",
        ),
        (
            third(STUN_PORT, ""),
            "flows without vni need a port of their own, and port 3478 also has STUN",
        ),
        (third(40003, "vni = 0\n"), "[[flow]] \"third\" vni: must be a number from 1 to 16777215"),
    ] {
        let said = bed.reload(&format!("{STAYS}{bad}"));
        assert!(said.contains("reload failed, nothing has changed"), "{said}");
        assert!(said.contains(sentence), "{said}");
        assert!(!said.contains("files in directories"), "this is about ports: {said}");
        assert_eq!(bed.daemon.flows().len(), 2);
    }
    assert!(bed.bind(40003).is_some(), "what was bound for a reload that failed is closed");
    drop(reserved);
    bed.converse("10.78.2.2:5001", OTHER_PORT, |number| plain(number, 100));

    let said = bed.reload(&format!("{STAYS}{}", other("10.78.2.3:5002")));
    assert!(said.contains("flows: 1 replaced (\"other\"), 1 as before"), "{said}");
    bed.converse("10.78.2.3:5002", OTHER_PORT, |number| plain(number, 100));

    // The port of STUN, whose server has to let go of it.
    let stun = format!(
        "[[flow]]\nname = \"beside STUN\"\nport = {STUN_PORT}\nvni = 9\na = \"10.78.1.2:5001\"\nb = \"10.78.2.2:5003\"\n"
    );
    for _ in 0..2 {
        assert!(bed.is_stun_answered() || bed.is_stun_answered());
        let said = bed.reload(&format!("{STAYS}{stun}"));
        assert!(said.contains("flows: 1 added (\"beside STUN\"), 1 removed (\"other\")"), "{said}");
        assert!(bed.is_stun_answered() || bed.is_stun_answered(), "{}", bed.daemon.log());
        bed.converse("10.78.2.2:5003", STUN_PORT, |number| geneve(9, number, 100));
        let said = bed.reload(&format!("{STAYS}{}", other("10.78.2.2:5001")));
        assert!(said.contains("1 removed (\"beside STUN\")"), "{said}");
        bed.converse("10.78.2.2:5001", OTHER_PORT, |number| plain(number, 100));
    }

    assert!(bed.bind(OTHER_PORT).is_none(), "a port that is served is taken");
    let said = bed.reload(&STAYS.replace("stays", "stayed"));
    let expected =
        "flows: 1 removed (\"other\"), 1 with another name or rate (\"stayed\"), 0 as before";
    assert!(said.contains(expected), "{said}");
    assert!(bed.bind(OTHER_PORT).is_some(), "a port that is no longer served is free");
    bed.reload(STAYS);
    if is_in_kernel {
        let halves = bed.daemon.metric("xdp_stun_server_packets_total", &["invalid_udp_csum"]);
        let after = in_userspace(&bed.daemon);
        assert!((after - before) as f64 <= halves, "{before} {after} {halves}");
    }
    let log = bed.daemon.log();
    let (number, lost) = bed.finish();
    println!("{mode}: {number} packets each way beside eleven reloads; lost: {lost:?}");
    assert!(number > 100 && lost.is_empty(), "{lost:?}\n{log}");
}

#[test]
fn sighup_changes_flows_in_userspace_and_the_others_lose_nothing() {
    flows_come_and_go("off");
}

#[test]
fn sighup_changes_flows_in_generic_xdp_and_the_others_lose_nothing() {
    flows_come_and_go("generic");
}

#[test]
fn sighup_changes_flows_in_native_xdp_and_the_others_lose_nothing() {
    flows_come_and_go("native");
}

#[test]
fn the_first_flow_comes_to_a_relay_that_was_told_of_none() {
    for mode in ["native", "off"] {
        let Some(lab) = Lab::create("the first flow on SIGHUP") else { return };
        let interfaces = [RELAY_A, RELAY_B].map(|name| format!("-xdp-interface={name}"));
        let mode = format!("-xdp-mode={mode}");
        let flags = [&interfaces[0], &interfaces[1], &mode].map(String::as_str);
        let daemon = lab.start(&configuration(""), &flags);
        assert!(daemon.flows().is_empty());
        fs::write(lab.directory().join("derpd.toml"), configuration(STAYS)).expect("the file");
        daemon.signal(Signal::SIGHUP);
        daemon.wait_until("a flow", || daemon.flows().len() == 1);
        let sockets =
            [lab.socket(&lab.a, "10.78.1.2:41641"), lab.socket(&lab.b, "10.78.2.2:51820")];
        acquaint(&ends(&sockets, PORT), &geneve(7, 0, 200));
        converse(&ends(&sockets, PORT), 0, 1000, |number| geneve(7, number, 200));
        if mode.ends_with("native") {
            wait_for_kernel(&daemon, "stays");
        }
    }
}
