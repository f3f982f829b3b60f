//! What relaying one UDP packet costs, over a veth pair at a bounded rate. Not a test but a measurement:
//! `cargo test --release --test relay_cost -- --ignored --nocapture`. `DERPD_RELAY_RATE` sets the packets per
//! second, `DERPD_RELAY_SECONDS` the length of each run, `DERPD_RELAY_ROUNDS` how often all are repeated.
//!
//! Senders and receivers are in one namespace, the relay in the other. Two figures of CPU are given per
//! delivered packet: that of the relay's own threads, or of the kernel program by the kernel's statistics; and
//! that of everything together, less what it takes to send the packets to a receiver in the relay's place.
//!
//! `DERPD_RELAY_ONLY` names the contestants that are wanted, by words in their names, separated by commas.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/relay.rs"]
mod relay;

use std::{
    collections::HashMap,
    env, fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use aya::sys::{Stats, enable_stats};
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
use nix::{
    sys::socket::{setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};

use crate::{
    netns::{
        CLIENT_INTERFACE, CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, link, run_in, spawn_in,
    },
    relay::{Relay, address, geneve},
};

const PORT: u16 = 40_000;
const FIRST_VNI: u32 = relay::SLOTS;

/// Sender and receiver of each flow.
type Pairs = Vec<(UdpSocket, UdpSocket)>;

/// A relay that can be started.
struct Contestant {
    name: &'static str,
    start: fn(&Namespaces, &Pairs) -> Box<dyn AtWork>,
}

/// A relay at work until dropped.
trait AtWork {
    /// Nanoseconds of CPU that are known to be its own.
    fn own_time(&self) -> u64;
}

const CONTESTANTS: [Contestant; 6] = [
    Contestant { name: "recvfrom/sendto", start: plain },
    Contestant { name: "userspace", start: ours },
    Contestant { name: "userspace, no GRO", start: ours_unmerged },
    Contestant { name: "kernel, native", start: kernel_native },
    Contestant { name: "kernel, generic", start: kernel_generic },
    SINK,
];

/// What takes the packets in a relay's place.
const SINK: Contestant = Contestant { name: "straight to a sink", start: sink };

/// The relay anybody would write first.
fn plain(namespaces: &Namespaces, pairs: &Pairs) -> Box<dyn AtWork> {
    let mut ways: HashMap<SocketAddr, SocketAddr> = HashMap::new();
    for (sender, receiver) in pairs {
        ways.insert(address(sender), address(receiver));
        ways.insert(address(receiver), address(sender));
    }
    serve(namespaces, "plain-relay", move |socket, data, from| {
        if let Some(to) = ways.get(&from) {
            let _ = socket.send_to(data, to);
        }
    })
}

/// Receives as the receivers do, and sends nothing on.
fn sink(namespaces: &Namespaces, _pairs: &Pairs) -> Box<dyn AtWork> {
    let socket = run_in(&namespaces.server, || UdpSocket::bind((SERVER4, PORT)).expect("bind"));
    socket.set_nonblocking(true).expect("nonblocking");
    setsockopt(&socket, sockopt::RcvBufForce, &(7 << 20)).expect("buffer");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let name = "sink";
    let thread = thread::Builder::new().name(name.to_owned());
    let thread = thread.spawn(move || receive(&[socket], &stopped, &AtomicU64::new(0)));
    Box::new(Thread { name, stop, thread: Some(thread.expect("thread")) })
}

fn serve(
    namespaces: &Namespaces,
    name: &'static str,
    mut each: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
) -> Box<dyn AtWork> {
    let socket = run_in(&namespaces.server, || UdpSocket::bind((SERVER4, PORT)).expect("bind"));
    setsockopt(&socket, sockopt::RcvBufForce, &(7 << 20)).expect("buffer");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let mut buffer = [0; 2048];
        while !stopped.load(Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                each(&socket, &buffer[..length], from);
            }
        }
    });
    Box::new(Thread { name, stop, thread: Some(thread.expect("thread")) })
}

struct Thread {
    name: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl AtWork for Thread {
    fn own_time(&self) -> u64 {
        thread_time(self.name)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl AtWork for Relay {
    fn own_time(&self) -> u64 {
        thread_time("udp-relay")
    }
}

fn ours(namespaces: &Namespaces, pairs: &Pairs) -> Box<dyn AtWork> {
    ours_with(namespaces, pairs, Merging::On)
}

fn ours_unmerged(namespaces: &Namespaces, pairs: &Pairs) -> Box<dyn AtWork> {
    ours_with(namespaces, pairs, Merging::Off)
}

fn ours_with(namespaces: &Namespaces, pairs: &Pairs, merging: Merging) -> Box<dyn AtWork> {
    let relay = run_in(&namespaces.server, move || {
        Relay::start_with(Services::GENEVE, &Notices::default(), merging, 1, PORT)
    });
    for (slot, (sender, receiver)) in (0..).zip(pairs) {
        let ends = [(address(sender), SERVER4), (address(receiver), SERVER4)];
        relay.flow(slot, slot + FIRST_VNI, ends);
    }
    Box::new(relay)
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

fn kernel_native(namespaces: &Namespaces, pairs: &Pairs) -> Box<dyn AtWork> {
    let client_end = run_in(&namespaces.client, || {
        let mut kernel = Kernel::load().expect("load");
        kernel.attach(CLIENT_INTERFACE, AttachedMode::Native).expect("client's end");
        kernel
    });
    in_kernel(namespaces, pairs, AttachedMode::Native, Some(client_end))
}

fn kernel_generic(namespaces: &Namespaces, pairs: &Pairs) -> Box<dyn AtWork> {
    in_kernel(namespaces, pairs, AttachedMode::Generic, None)
}

fn in_kernel(
    namespaces: &Namespaces,
    pairs: &Pairs,
    mode: AttachedMode,
    client_end: Option<Kernel>,
) -> Box<dyn AtWork> {
    let (interface, mac) = link(&namespaces.server, SERVER_INTERFACE);
    let (_, client_mac) = link(&namespaces.client, CLIENT_INTERFACE);
    let mut kernel = Kernel::load().expect("load");
    let mut tables = kernel.take_tables().expect("tables");
    tables.insert_interface(interface, Interface::new(mac)).expect("interface");
    let server = address_of(SERVER4);
    let local = LocalAddress { kind: AddressKind::Unicast, interface };
    tables.insert_address(server, local).expect("address");
    let mut flows = KernelTables::new(FlowMaps::take(&mut kernel).expect("maps")).expect("tables");
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
    for (vni, (sender, receiver)) in (FIRST_VNI..).zip(pairs) {
        let legs = Side::ALL.into_iter().zip([address(sender), address(receiver)]);
        let legs = legs
            .map(|(side, remote)| Change::Leg { index: leg_index(vni, 0, side), leg: leg(remote) });
        let control = Change::Control { slot: vni, control: Control::forward(vni, 0) };
        flows.apply(&legs.chain([control]).collect::<Vec<_>>()).expect("a flow");
    }
    let mut settings = Settings::new(0);
    settings.ports[0] = Port { number: PORT.to_be(), services: Services::GENEVE };
    kernel.configure(settings).expect("settings");
    let kernel = run_in(&namespaces.server, move || {
        kernel.attach(SERVER_INTERFACE, mode).expect("server's end");
        kernel
    });
    Box::new(InKernel { kernel, _client_end: client_end })
}

fn address_of(ip: &str) -> Address {
    Address::from(ip.parse::<IpAddr>().expect("address"))
}

fn halves([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

/// Nanoseconds of CPU that this process's threads of a name have used.
fn thread_time(name: &str) -> u64 {
    let tasks = fs::read_dir("/proc/self/task").expect("proc").filter_map(Result::ok);
    let time = |task: fs::DirEntry| {
        let comm = fs::read_to_string(task.path().join("comm")).ok()?;
        comm.starts_with(name).then_some(())?;
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(time).sum()
}

/// Nanoseconds of CPU this process and the kernel's network threads have used.
fn machine_time() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("clock");
    let own = u64::try_from(Duration::from(time).as_nanos()).expect("less than a century");
    let processes = fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    let softirq = |process: fs::DirEntry| {
        let comm = fs::read_to_string(process.path().join("comm")).ok()?;
        comm.starts_with("ksoftirqd").then_some(())?;
        let text = fs::read_to_string(process.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    own + processes.filter_map(softirq).sum::<u64>()
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// What one run has shown.
struct Figures {
    sent: u64,
    delivered: u64,
    own: u64,
    machine: u64,
}

/// Sends at `rate` for a while, and counts what arrives.
fn run(
    namespaces: &Namespaces,
    pairs: Pairs,
    size: usize,
    rate: u64,
    relay: &dyn AtWork,
) -> Figures {
    let duration = Duration::from_secs(number("DERPD_RELAY_SECONDS", 2));
    let stop = Arc::new(AtomicBool::new(false));
    let delivered = Arc::new(AtomicU64::new(0));
    let (senders, receivers): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let receiving = {
        let (stop, delivered) = (Arc::clone(&stop), Arc::clone(&delivered));
        spawn_in(&namespaces.client, move || receive(&receivers, &stop, &delivered))
    };
    let before = (relay.own_time(), machine_time());
    let sending = spawn_in(&namespaces.client, move || send(&senders, size, rate, duration));
    let sent = sending.join().expect("sender");
    thread::sleep(Duration::from_millis(50));
    let after = (relay.own_time(), machine_time());
    stop.store(true, Relaxed);
    receiving.join().expect("receiver");
    let delivered = delivered.load(Relaxed);
    Figures { sent, delivered, own: after.0 - before.0, machine: after.1 - before.1 }
}

fn send(sockets: &[UdpSocket], size: usize, rate: u64, duration: Duration) -> u64 {
    let packets: Vec<_> = (0..sockets.len() as u32)
        .map(|slot| geneve(slot + FIRST_VNI, &vec![0; size - 8]))
        .collect();
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < duration {
        let due = (start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        while sent < due {
            let index = (sent % sockets.len() as u64) as usize;
            let _ = sockets[index].send_to(&packets[index], (SERVER4, PORT));
            sent += 1;
        }
        thread::sleep(Duration::from_micros(50));
    }
    sent
}

/// Looks every millisecond rather than be woken: waking receivers is their host's business, and would be
/// charged to the relay here.
fn receive(sockets: &[UdpSocket], stop: &AtomicBool, delivered: &AtomicU64) {
    while !stop.load(Relaxed) {
        let drain =
            |socket: &UdpSocket| (0..).take_while(|_| socket.recv(&mut [0; 2048]).is_ok()).count();
        let packets: usize = sockets.iter().map(drain).sum();
        delivered.fetch_add(packets as u64, Relaxed);
        thread::sleep(Duration::from_millis(1));
    }
}

fn pairs(namespaces: &Namespaces, flows: usize) -> Pairs {
    run_in(&namespaces.client, move || {
        let socket = || {
            let socket = UdpSocket::bind((CLIENT4, 0)).expect("bind");
            socket.set_nonblocking(true).expect("nonblocking");
            setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("buffer");
            socket
        };
        (0..flows).map(|_| (socket(), socket())).collect()
    })
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_relaying() {
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => return println!("skipped: cost of relaying: {reason}"),
    };
    // As network cards do: what arrives together is handed up together.
    let gro = Command::new("ip")
        .args(["netns", "exec", &namespaces.server, "ethtool", "-K", SERVER_INTERFACE, "gro", "on"])
        .status();
    assert!(gro.expect("ethtool").success());
    if kernel::load("cost of relaying").is_none() {
        return;
    }
    let _statistics = enable_stats(Stats::RunTime).expect("statistics");
    let rate = number("DERPD_RELAY_RATE", 50_000);
    for round in 0..number("DERPD_RELAY_ROUNDS", 1) {
        println!("round {round}, {rate} packets per second offered");
        for flows in [1, 64] {
            for size in [64, 512, 1400] {
                measure(&namespaces, flows, size, rate);
            }
        }
    }
}

fn measure(namespaces: &Namespaces, flows: usize, size: usize, rate: u64) {
    let only = env::var("DERPD_RELAY_ONLY").unwrap_or_default();
    let is_wanted = |name: &str| only.split(',').any(|word| name.contains(word));
    let figures = CONTESTANTS.iter().filter(|it| is_wanted(it.name) || it.name == SINK.name);
    let figures: Vec<_> = figures
        .map(|contestant| {
            let pairs = pairs(namespaces, flows);
            let relay = (contestant.start)(namespaces, &pairs);
            (contestant, run(namespaces, pairs, size, rate, &*relay))
        })
        .collect();
    let (_, sink) = figures.last().expect("the sink");
    let outside = sink.machine as f64 / sink.sent as f64;
    for (contestant, figures) in &figures {
        let each = |nanoseconds: u64| nanoseconds as f64 / figures.delivered.max(1) as f64;
        println!(
            "{flows:2} flows, {size:4} B: {:18} sent {:7}, delivered {:7}; CPU per packet: \
             its own {:6.0} ns, everything {:6.0} ns",
            contestant.name,
            figures.sent,
            figures.delivered,
            each(figures.own),
            (figures.machine as f64 - outside * figures.sent as f64)
                / figures.delivered.max(1) as f64,
        );
    }
}
