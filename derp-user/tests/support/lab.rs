//! A relay's namespace between two clients' namespaces, and the daemon in the middle.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use derp_user::dataplane::{AttachedMode, Kernel};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{setsockopt, sockopt::RcvBufForce},
    },
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    kernel,
    netns::{run, run_in},
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The daemon's plain HTTP listener in the relay's namespace.
const HTTP_PORT: u16 = 8080;
/// Interfaces of the relay: to the first client, to the second.
pub(crate) const RELAY_A: &str = "relay-a";
pub(crate) const RELAY_B: &str = "relay-b";

/// Three namespaces: client A - relay - client B. Client networks are 10.78.1.0/24 and 10.78.2.0/24,
/// fd78:1::/64 and fd78:2::/64; the relay is .1 and .9, clients are .2 and .3.
pub(crate) struct Lab {
    pub(crate) relay: String,
    pub(crate) a: String,
    pub(crate) b: String,
    directory: TempDir,
    /// Pass-all programs on the clients' ends, which native XDP on veth needs.
    ends: Vec<Kernel>,
}

impl Lab {
    /// Makes the namespaces, or skips the test and says why.
    pub(crate) fn create(test: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut ends = vec![kernel::load(test)?, kernel::load(test)?];
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let name = |role: &str| format!("derpd-lab-{role}-{id}");
        let directory = TempDir::new().expect("a temporary directory");
        let mut lab =
            Self { relay: name("r"), a: name("a"), b: name("b"), directory, ends: vec![] };
        if let Err(reason) = lab.wire() {
            kernel::skip(test, &reason);
            return None;
        }
        for (namespace, interface) in [(lab.a.clone(), "a0"), (lab.b.clone(), "b0")] {
            let mut end = ends.pop().expect("one for each");
            lab.ends.push(run_in(&namespace, move || {
                end.attach(interface, AttachedMode::Native).expect("a client's end");
                end
            }));
        }
        Some(lab)
    }

    fn wire(&self) -> Result<(), String> {
        let Self { relay, a, b, .. } = self;
        for namespace in [relay, a, b] {
            run(&format!("ip netns add {namespace}"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
        }
        for (net, client, interface, relay_interface) in
            [(1, a, "a0", RELAY_A), (2, b, "b0", RELAY_B)]
        {
            run(&format!(
                "ip link add {relay_interface} netns {relay} type veth peer name {interface} netns {client}"
            ))?;
            // Routing prefers .1: of IPv4 addresses the first, of IPv6 ones the last.
            for (host4, host6) in [(1, 9), (9, 1)] {
                run(&format!(
                    "ip -n {relay} addr add 10.78.{net}.{host4}/24 brd + dev {relay_interface}"
                ))?;
                run(&format!(
                    "ip -n {relay} addr add fd78:{net}::{host6}/64 dev {relay_interface} nodad"
                ))?;
            }
            for host in [2, 3] {
                run(&format!(
                    "ip -n {client} addr add 10.78.{net}.{host}/24 brd + dev {interface}"
                ))?;
                run(&format!(
                    "ip -n {client} addr add fd78:{net}::{host}/64 dev {interface} nodad"
                ))?;
            }
            run(&format!("ip -n {relay} link set {relay_interface} up"))?;
            run(&format!("ip -n {client} link set {interface} up"))?;
            run(&format!("ip netns exec {client} ethtool -K {interface} tx off"))?;
            run(&format!("ip netns exec {relay} ethtool -K {relay_interface} tx off"))?;
        }
        Ok(())
    }

    /// A directory of this lab's own.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A client's socket.
    pub(crate) fn socket(&self, namespace: &str, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().expect("an address");
        run_in(namespace, move || {
            let deadline = Instant::now() + PATIENCE;
            // A program that another test starts holds a socket closed here until it executes.
            let socket = loop {
                match UdpSocket::bind(address) {
                    Err(error)
                        if error.kind() == ErrorKind::AddrInUse && Instant::now() < deadline =>
                    {
                        thread::sleep(Duration::from_millis(1));
                    }
                    bound => break bound.expect("a client's socket"),
                }
            };
            socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
            setsockopt(&socket, RcvBufForce, &(8 << 20)).expect("receive buffer");
            socket
        })
    }

    /// Starts the daemon in the relay's namespace with this configuration file and further flags.
    pub(crate) fn start(&self, configuration: &str, flags: &[&str]) -> Daemon {
        Daemon::start(&self.relay, self.directory(), configuration, flags)
    }

    /// The same with the program attached natively to both interfaces of the relay.
    pub(crate) fn start_native(&self, configuration: &str) -> Daemon {
        let interfaces = [RELAY_A, RELAY_B].map(|name| format!("-xdp-interface={name}"));
        self.start(configuration, &[&interfaces[0], &interfaces[1], "-xdp-mode=native"])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.ends.clear();
        for namespace in [&self.relay, &self.a, &self.b] {
            // It may not have been made.
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}

/// The daemon, killed when dropped.
pub(crate) struct Daemon {
    process: Child,
    relay: String,
    log: PathBuf,
}

impl Daemon {
    /// Starts the daemon in a namespace, with its files in a directory.
    pub(crate) fn start(
        namespace: &str,
        directory: &Path,
        configuration: &str,
        flags: &[&str],
    ) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_derpd"));
        Self::start_build(program, namespace, directory, configuration, flags)
    }

    /// The same with this build of it.
    pub(crate) fn start_build(
        program: &Path,
        namespace: &str,
        directory: &Path,
        configuration: &str,
        flags: &[&str],
    ) -> Self {
        let path = directory.join("derpd.toml");
        fs::write(&path, configuration).expect("the configuration file");
        let log = directory.join("log");
        let output = File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = Command::new(program);
        command
            .arg(format!("-a=:{HTTP_PORT}"))
            .arg(format!("-c={}", directory.join("key").display()))
            .arg(format!("-config={}", path.display()))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let process = run_in(namespace, move || command.spawn().expect("the daemon can be run"));
        let mut daemon = Self { process, relay: namespace.to_owned(), log };
        let deadline = Instant::now() + PATIENCE;
        while daemon.get("/debug/check").is_none() {
            let ended = daemon.process.try_wait().expect("wait");
            assert!(ended.is_none(), "the daemon ended, {ended:?}:\n{}", daemon.log());
            assert!(Instant::now() < deadline, "the daemon does not serve:\n{}", daemon.log());
            thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    /// Everything logged so far, by earlier daemons of this lab too.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Id of the daemon's process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("the daemon runs");
    }

    /// Ends the daemon with a signal and waits.
    pub(crate) fn end(mut self, signal: Signal) {
        self.signal(signal);
        self.process.wait().expect("wait");
    }

    /// The body of a page, if it is served.
    pub(crate) fn get(&self, path: &str) -> Option<String> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
        let answer = run_in(&self.relay, move || {
            let mut stream = TcpStream::connect(("127.0.0.1", HTTP_PORT)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    /// The admin view of the flows.
    pub(crate) fn flows(&self) -> Vec<Value> {
        self.flows_page().1
    }

    /// The same, once everything up to now has been counted.
    pub(crate) fn counted_flows(&self) -> Vec<Value> {
        let asked = Instant::now();
        loop {
            let (counted, flows) = self.flows_page();
            if counted < asked.elapsed().as_secs_f64() {
                return flows;
            }
            assert!(asked.elapsed() < PATIENCE, "nothing is counted\n{}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// How many seconds ago flows were counted, and the flows.
    fn flows_page(&self) -> (f64, Vec<Value>) {
        let text = self.get("/debug/flows?format=json").expect("the page of flows");
        let page: Value = serde_json::from_str(&text).expect("JSON");
        let flows = page["flows"].as_array().expect("a list of flows").clone();
        // Null where nothing was ever counted.
        (page["counted_seconds"].as_f64().unwrap_or(f64::INFINITY), flows)
    }

    /// Waits until the admin view of the first flow satisfies `is_so`.
    pub(crate) fn wait_for_flow(&self, what: &str, is_so: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let flows = self.flows();
            if flows.first().is_some_and(&is_so) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {flows:#?}\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// A metric, summed over the label sets that contain all of `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = self.get("/debug/varz").expect("metrics");
        let lines = text.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until something is so, for a minute at most.
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + 3 * PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}\n{:#?}\n{}", self.flows(), self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// How many packets the kernel has forwarded.
    pub(crate) fn kernel_packets(&self) -> f64 {
        let labels = ["prog_end=\"forwarded\"", "prog_end=\"redirected\""];
        labels.iter().map(|label| self.metric("xdp_stun_server_packets_total", &[label])).sum()
    }

    /// What the program has counted, but for zeroes.
    pub(crate) fn kernel_counts(&self) -> String {
        let text = self.get("/debug/varz").expect("metrics");
        let lines = text.lines().filter(|line| line.contains("xdp_stun_server_packets_total{"));
        lines.filter(|line| !line.ends_with(" 0")).collect::<Vec<_>>().join("\n")
    }

    /// Seconds of CPU the daemon has used.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/schedstat", self.process.id()));
        let text = text.expect("schedstat");
        let first = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
        first.expect("a number") / 1e9
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A packet of a flow with this VNI: Geneve header and a payload with a number in it.
pub(crate) fn geneve(vni: u32, number: u64, length: usize) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let mut packet = vec![0, 0, 0x7a, 0x12, high, middle, low, 0];
    packet.extend_from_slice(&plain(number, length - 8));
    packet
}

/// A payload with a number in it.
pub(crate) fn plain(number: u64, length: usize) -> Vec<u8> {
    let mut payload = number.to_be_bytes().to_vec();
    payload.resize(length, (number % 251) as u8);
    payload
}

/// One end of a conversation: its socket, and where it sends to.
pub(crate) struct End<'a> {
    pub(crate) socket: &'a UdpSocket,
    pub(crate) relay: SocketAddr,
}

/// The number in a packet of [`geneve`] or [`plain`].
fn number(packet: &[u8]) -> u64 {
    let at = if packet.starts_with(&[0, 0, 0x7a, 0x12]) { 8 } else { 0 };
    let bytes = packet.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_be_bytes(bytes.unwrap_or_else(|| panic!("{} bytes", packet.len())))
}

/// Sends packets until one has arrived in each direction, so that neighbours and addresses are known, and
/// reads what is left.
pub(crate) fn acquaint(ends: &[End<'_>; 2], packet: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 2048];
    let mut met = [false; 2];
    for end in ends {
        end.socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
    }
    while met != [true; 2] {
        assert!(Instant::now() < deadline, "nothing arrives: {met:?}");
        for end in ends {
            end.socket.send_to(packet, end.relay).expect("send");
        }
        for (end, met) in ends.iter().zip(&mut met) {
            *met |= end.socket.recv(&mut buffer).is_ok();
        }
    }
    for end in ends {
        while end.socket.recv(&mut buffer).is_ok() {}
        end.socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    }
}

/// Sends `count` packets, numbered from `first`, in each direction, at most 64 in flight, and checks that each
/// arrives once, unchanged, and from the address its receiver knows the relay by.
///
/// The order is not checked: of 65,536 packets the kernel hands one to userspace, whose checksum looks like one
/// that is only half computed.
pub(crate) fn converse(
    ends: &[End<'_>; 2],
    first: u64,
    count: u64,
    packet: impl Fn(u64) -> Vec<u8>,
) {
    let missing = exchange(ends, first, count, packet);
    assert!(missing.is_empty(), "{missing:?} have not arrived");
}

/// As [`converse`], and returns the numbers of those that have not arrived, each once for each direction.
pub(crate) fn exchange(
    ends: &[End<'_>; 2],
    first: u64,
    count: u64,
    packet: impl Fn(u64) -> Vec<u8>,
) -> Vec<u64> {
    const IN_FLIGHT: u64 = 64;
    let mut buffer = [0; 2048];
    let mut sent = 0;
    let mut received = [BTreeSet::new(), BTreeSet::new()];
    let mut gave_up = false;
    while !gave_up && received.iter().any(|received| (received.len() as u64) < count) {
        let least = received.iter().map(BTreeSet::len).min().unwrap_or_default() as u64;
        while sent < count && sent < least + IN_FLIGHT {
            for end in ends {
                end.socket.send_to(&packet(first + sent), end.relay).expect("send");
            }
            sent += 1;
        }
        for (end, received) in ends.iter().zip(&mut received) {
            if received.len() as u64 == count {
                continue;
            }
            let Ok((length, from)) = end.socket.recv_from(&mut buffer) else {
                gave_up = true;
                continue;
            };
            assert_eq!(from, end.relay, "the packet comes from where its receiver sends to");
            let number = number(&buffer[..length]);
            assert!(buffer[..length] == packet(number), "packet {number} has changed");
            assert!(received.insert(number), "packet {number} has come twice");
        }
    }
    let missing = |received: &BTreeSet<u64>| {
        (first..first + sent).filter(|number| !received.contains(number)).collect::<Vec<_>>()
    };
    received.iter().flat_map(missing).collect()
}
