//! What relaying WireGuard costs, over a veth pair. Not a test but a measurement, `cargo xtask bench --wireguard`:
//! `cargo test --release --test wireguard_cost -- --ignored --nocapture`. `DERPD_RELAY_RATE` sets the packets per second
//! of the paced loads, `DERPD_RELAY_SECONDS` the length of each run, `DERPD_RELAY_ROUNDS` how often all are repeated.
//!
//! Peers are in one namespace, the relay in the other. Handshakes are real, and go by way of the relay; the data that is
//! then measured only has their indices, as a relay cannot tell. Two figures of CPU are given per delivered packet: that
//! of the relay's own process, or of the kernel program by the kernel's statistics; and that of everything together,
//! softirqs included, less what it takes to send the packets to a receiver in the relay's place. Delays are from just
//! before the sender's call to the kernel's time stamp at the receiver's socket.
//!
//! `DERPD_RELAY_ONLY` names the contestants that are wanted, by words in their names, separated by commas.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/party.rs"]
mod party;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env, fs,
    io::IoSliceMut,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use derp_user::dataplane::{AttachedMode, Kernel};
use hdrhistogram::Histogram;
use nix::{
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};
use tempfile::TempDir;

use crate::{
    lab::Daemon,
    netns::{CLIENT_INTERFACE, CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, run_in, spawn_in},
    party::{Host, Keys, shake_hands},
};

const PORT: u16 = 51_820;
/// Bytes of a WireGuard data message around the packet in it.
const OVERHEAD: usize = 32;
/// Lengths of UDP payloads: a small packet, and one that fills a tunnel with an MTU of 1420.
const SIZES: [usize; 2] = [128, 1420 + OVERHEAD];

/// One direction of a tunnel: who sends, who receives, and the index in what is sent.
struct Flow {
    sender: UdpSocket,
    receiver: UdpSocket,
    index: [u8; 4],
}

/// A relay that can be started.
struct Contestant {
    name: &'static str,
    start: fn(&Namespaces, &mut [Pair]) -> Box<dyn AtWork>,
}

/// Two peers of each other that reach each other by way of the relay.
struct Pair {
    keys: [Keys; 2],
    hosts: [Host; 2],
}

/// A relay at work until dropped.
trait AtWork {
    /// Nanoseconds of CPU that are known to be its own.
    fn own_time(&self) -> u64;

    /// The same of a process of its own; 0 if it has none.
    fn process_time(&self) -> u64 {
        0
    }
}

const CONTESTANTS: [Contestant; 5] = [
    Contestant { name: "recvfrom/sendto", start: plain },
    Contestant { name: "userspace", start: userspace },
    Contestant { name: "kernel, generic", start: kernel_generic },
    Contestant { name: "kernel, native", start: kernel_native },
    SINK,
];

/// What takes the packets in a relay's place.
const SINK: Contestant = Contestant { name: "straight to a sink", start: sink };

/// The forwarder anybody would write first: a packet goes to the partner of its source.
fn plain(namespaces: &Namespaces, pairs: &mut [Pair]) -> Box<dyn AtWork> {
    let mut ways: HashMap<SocketAddr, SocketAddr> = HashMap::new();
    for pair in &*pairs {
        let [a, b] = pair.hosts.each_ref().map(|host| address(&host.socket));
        ways.insert(a, b);
        ways.insert(b, a);
    }
    let socket = relay_socket(namespaces);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let relay = Thread::start("plain-relay", move |stop| {
        let mut buffer = [0; 2048];
        while !stop.load(Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer)
                && let Some(to) = ways.get(&from)
            {
                let _ = socket.send_to(&buffer[..length], to);
            }
        }
    });
    establish(pairs);
    Box::new(relay)
}

/// Receives as the receivers do, and sends nothing on.
fn sink(namespaces: &Namespaces, _pairs: &mut [Pair]) -> Box<dyn AtWork> {
    let socket = relay_socket(namespaces);
    socket.set_nonblocking(true).expect("nonblocking");
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("time stamps");
    let sink = Thread::start("sink", move |stop| {
        receive(&[socket], stop, &AtomicU64::new(0));
    });
    Box::new(sink)
}

fn relay_socket(namespaces: &Namespaces) -> UdpSocket {
    let socket = run_in(&namespaces.server, || UdpSocket::bind((SERVER4, PORT)).expect("bind"));
    setsockopt(&socket, sockopt::RcvBufForce, &(7 << 20)).expect("buffer");
    socket
}

/// A thread of this process.
struct Thread {
    name: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Thread {
    fn start(name: &'static str, work: impl FnOnce(&AtomicBool) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || work(&stopped));
        Self { name, stop, thread: Some(thread.expect("thread")) }
    }
}

impl AtWork for Thread {
    fn own_time(&self) -> u64 {
        task_time("/proc/self/task", |comm| comm == self.name)
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

/// derpd, with the kernel program or without.
struct Derpd {
    daemon: Daemon,
    /// Ids of the kernel programs that came with it.
    programs: BTreeSet<u32>,
    _client_end: Option<Kernel>,
    _directory: TempDir,
}

impl AtWork for Derpd {
    fn own_time(&self) -> u64 {
        if self.programs.is_empty() {
            return self.process_time();
        }
        let programs = loaded_programs().filter_map(Result::ok);
        let ours = programs.filter(|program| self.programs.contains(&program.id()));
        let time: Duration = ours.map(|program| program.run_time()).sum();
        u64::try_from(time.as_nanos()).expect("less than a century")
    }

    fn process_time(&self) -> u64 {
        task_time(&format!("/proc/{}/task", self.daemon.id()), |_| true)
    }
}

fn userspace(namespaces: &Namespaces, pairs: &mut [Pair]) -> Box<dyn AtWork> {
    derpd(namespaces, pairs, None)
}

fn kernel_generic(namespaces: &Namespaces, pairs: &mut [Pair]) -> Box<dyn AtWork> {
    derpd(namespaces, pairs, Some(AttachedMode::Generic))
}

fn kernel_native(namespaces: &Namespaces, pairs: &mut [Pair]) -> Box<dyn AtWork> {
    derpd(namespaces, pairs, Some(AttachedMode::Native))
}

fn derpd(
    namespaces: &Namespaces,
    pairs: &mut [Pair],
    mode: Option<AttachedMode>,
) -> Box<dyn AtWork> {
    let client_end = (mode == Some(AttachedMode::Native)).then(|| {
        run_in(&namespaces.client, || {
            let mut kernel = Kernel::load().expect("load");
            kernel.attach(CLIENT_INTERFACE, AttachedMode::Native).expect("client's end");
            kernel
        })
    });
    let directory = TempDir::new().expect("a directory");
    let interface = format!("-xdp-interface={SERVER_INTERFACE}");
    let flags: &[&str] = match mode {
        None => &["-xdp-mode=off"],
        Some(AttachedMode::Generic) => &[&interface, "-xdp-mode=generic"],
        Some(AttachedMode::Native) => &[&interface, "-xdp-mode=native"],
    };
    let before = program_ids();
    let configuration = configuration(pairs, directory.path());
    let daemon = Daemon::start(&namespaces.server, directory.path(), &configuration, flags);
    establish(pairs);
    let programs = program_ids().difference(&before).copied().collect();
    Box::new(Derpd { daemon, programs, _client_end: client_end, _directory: directory })
}

/// One network of so many pairs, whose addresses are configured: so many strangers at one address would be slowed down.
fn configuration(pairs: &[Pair], directory: &std::path::Path) -> String {
    let labels = |number: usize| [format!("a{number}"), format!("b{number}")];
    let allowed: Vec<_> = (0..pairs.len()).map(|number| format!("{:?}", labels(number))).collect();
    let peers = pairs.iter().enumerate().flat_map(|(number, pair)| {
        let peers = labels(number).into_iter().zip(&pair.keys).zip(&pair.hosts);
        peers.map(|((label, keys), host)| {
            let key = BASE64_STANDARD.encode(keys.public.as_bytes());
            let address = address(&host.socket);
            format!(
                "[[wireguard.network.peer]]\nlabel = \"{label}\"\npublic_key = \"{key}\"\naddress = \"{address}\"\n"
            )
        })
    });
    format!(
        "[dataplane]\npin = false\n[wireguard]\nport = {PORT}\nstate_file = \"{}\"\n\
         [[wireguard.network]]\nname = \"pairs\"\npairs = [{}]\n{}",
        directory.join("wireguard.json").display(),
        allowed.join(", "),
        peers.collect::<String>(),
    )
}

fn program_ids() -> BTreeSet<u32> {
    loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

/// Gives each pair a session.
fn establish(pairs: &mut [Pair]) {
    for pair in pairs {
        let [a, b] = &mut pair.hosts;
        shake_hands((a, 0), (b, 0));
    }
}

fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

/// Nanoseconds of CPU that the threads in a directory of `/proc` have used, those whose name is wanted.
fn task_time(directory: &str, is_wanted: impl Fn(&str) -> bool) -> u64 {
    let tasks = fs::read_dir(directory).expect("proc").filter_map(Result::ok);
    let time = |task: fs::DirEntry| {
        let comm = fs::read_to_string(task.path().join("comm")).ok()?;
        is_wanted(comm.trim()).then_some(())?;
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(time).sum()
}

/// Nanoseconds of CPU this process, the kernel's network threads and the relay have used.
fn machine_time(relay: &dyn AtWork) -> u64 {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("clock");
    let own = u64::try_from(Duration::from(time).as_nanos()).expect("less than a century");
    own + task_time("/proc", |comm| comm.starts_with("ksoftirqd")) + relay.process_time()
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

/// What one run has shown.
struct Figures {
    sent: u64,
    delivered: u64,
    per_second: f64,
    own: u64,
    machine: u64,
    delays: Histogram<u64>,
}

/// Sends at `rate` for a while, flat out if it is 0, and counts what arrives.
fn run(
    namespaces: &Namespaces,
    flows: &Arc<Vec<Flow>>,
    size: usize,
    rate: u64,
    relay: &dyn AtWork,
) -> Figures {
    let duration = Duration::from_secs(number("DERPD_RELAY_SECONDS", 2));
    let stop = Arc::new(AtomicBool::new(false));
    let delivered = Arc::new(AtomicU64::new(0));
    let receivers: Vec<_> =
        flows.iter().map(|flow| flow.receiver.try_clone().expect("a socket")).collect();
    let receiving = {
        let (stop, delivered) = (Arc::clone(&stop), Arc::clone(&delivered));
        spawn_in(&namespaces.client, move || receive(&receivers, &stop, &delivered))
    };
    let before = (relay.own_time(), machine_time(relay));
    let begin = Instant::now();
    let sending = {
        let flows = Arc::clone(flows);
        spawn_in(&namespaces.client, move || send(&flows, size, rate, duration))
    };
    let sent = sending.join().expect("sender");
    let elapsed = begin.elapsed();
    thread::sleep(Duration::from_millis(50));
    let after = (relay.own_time(), machine_time(relay));
    stop.store(true, Relaxed);
    let delays = receiving.join().expect("receiver");
    let delivered = delivered.load(Relaxed);
    Figures {
        sent,
        delivered,
        per_second: delivered as f64 / elapsed.as_secs_f64(),
        own: after.0 - before.0,
        machine: after.1 - before.1,
        delays,
    }
}

/// The clock of the kernel's time stamps.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("clock");
    u64::try_from(Duration::from(time).as_nanos()).expect("before the year 2554")
}

fn send(flows: &[Flow], size: usize, rate: u64, duration: Duration) -> u64 {
    let message = |flow: &Flow| {
        let mut message = vec![0; size];
        message[0] = 4;
        message[4..8].copy_from_slice(&flow.index);
        message
    };
    let mut messages: Vec<_> = flows.iter().map(message).collect();
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < duration {
        let due = match rate {
            0 => sent + 64,
            rate => (start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64,
        };
        while sent < due {
            let index = (sent % flows.len() as u64) as usize;
            let message = &mut messages[index];
            message[8..16].copy_from_slice(&sent.to_le_bytes());
            message[16..24].copy_from_slice(&now().to_ne_bytes());
            let _ = flows[index].sender.send_to(message, (SERVER4, PORT));
            sent += 1;
        }
        if rate > 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
    sent
}

/// Looks every millisecond rather than be woken: waking receivers is their host's business, and would be
/// charged to the relay here.
fn receive(sockets: &[UdpSocket], stop: &AtomicBool, delivered: &AtomicU64) -> Histogram<u64> {
    let mut delays = Histogram::new(3).expect("three digits");
    while !stop.load(Relaxed) {
        for socket in sockets {
            while let Some(delay) = receive_one(socket) {
                delivered.fetch_add(1, Relaxed);
                delays.saturating_record(delay);
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    delays
}

/// Takes a message if there is one, and returns the nanoseconds it was under way.
fn receive_one(socket: &UdpSocket) -> Option<u64> {
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let (length, arrival) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
        let arrival = message.cmsgs().ok()?.find_map(|control| {
            let ControlMessageOwned::ScmTimestampns(time) = control else { return None };
            Some(time)
        });
        (message.bytes, arrival)
    };
    let sent = buffer[..length].get(16..24)?.try_into().ok()?;
    let arrival = u64::try_from(Duration::from(arrival?).as_nanos()).ok()?;
    Some(arrival.saturating_sub(u64::from_ne_bytes(sent)))
}

/// Pairs of peers, each with a socket of its own.
fn pairs(namespaces: &Namespaces, count: usize) -> Vec<Pair> {
    let sockets = run_in(&namespaces.client, move || {
        let socket = || {
            let socket = UdpSocket::bind((CLIENT4, 0)).expect("bind");
            setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("buffer");
            socket
        };
        (0..count).map(|_| [socket(), socket()]).collect::<Vec<_>>()
    });
    let relay = SocketAddr::new(SERVER4.parse().expect("address"), PORT);
    let pair = |(number, [a, b]): (u32, [UdpSocket; 2])| {
        let keys = [Keys::random(), Keys::random()];
        let hosts = [
            Host::new(a, relay, &keys[0], &[keys[1].public], 2 * number + 1),
            Host::new(b, relay, &keys[1], &[keys[0].public], 2 * number + 2),
        ];
        Pair { keys, hosts }
    };
    (0..).zip(sockets).map(pair).collect()
}

/// The direction of each pair's session that is measured. Without a session, as to the sink, any index will do.
fn flows(pairs: Vec<Pair>, is_established: bool) -> Arc<Vec<Flow>> {
    let flow = |pair: Pair| {
        let [mut a, b] = pair.hosts;
        let index = if is_established { a.sealed(0, &[]) } else { vec![0; 8] };
        let index = index[4..8].try_into().expect("four bytes");
        setsockopt(&b.socket, sockopt::ReceiveTimestampns, &true).expect("time stamps");
        Flow { sender: a.socket, receiver: b.socket, index }
    };
    Arc::new(pairs.into_iter().map(flow).collect())
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_relaying_wireguard() {
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => return println!("skipped: cost of relaying WireGuard: {reason}"),
    };
    // As network cards do: what arrives together is handed up together.
    let gro = Command::new("ip")
        .args(["netns", "exec", &namespaces.server, "ethtool", "-K", SERVER_INTERFACE, "gro", "on"])
        .status();
    assert!(gro.expect("ethtool").success());
    if kernel::load("cost of relaying WireGuard").is_none() {
        return;
    }
    let _statistics = enable_stats(Stats::RunTime).expect("statistics");
    let mut table = Table::default();
    for round in 0..number("DERPD_RELAY_ROUNDS", 3) {
        eprintln!("round {round}");
        for count in [1, 64] {
            measure(&namespaces, count, &mut table);
        }
    }
    print!("{table}");
}

/// Figures of each load and contestant, one of each round: see [`Table::fmt`] for what they are.
#[derive(Default)]
struct Table(BTreeMap<(usize, usize, usize), Vec<[f64; 6]>>);

fn measure(namespaces: &Namespaces, count: usize, table: &mut Table) {
    let only = env::var("DERPD_RELAY_ONLY").unwrap_or_default();
    let is_wanted = |name: &str| only.split(',').any(|word| name.contains(word));
    let rate = number("DERPD_RELAY_RATE", 50_000);
    // The sink comes first, as the others are compared with it.
    let mut outside = [0.0; SIZES.len()];
    for (place, contestant) in CONTESTANTS.iter().enumerate().rev() {
        let is_sink = contestant.name == SINK.name;
        if !is_sink && !is_wanted(contestant.name) {
            continue;
        }
        let mut pairs = pairs(namespaces, count);
        let relay = (contestant.start)(namespaces, &mut pairs);
        let flows = flows(pairs, !is_sink);
        for (size, outside) in SIZES.into_iter().zip(&mut outside) {
            let paced = run(namespaces, &flows, size, rate, &*relay);
            if is_sink {
                *outside = paced.machine as f64 / paced.sent as f64;
                continue;
            }
            let flat_out = run(namespaces, &flows, size, 0, &*relay);
            let delivered = paced.delivered.max(1) as f64;
            let all = (paced.machine as f64 - *outside * paced.sent as f64) / delivered;
            let lost = 100.0 * (1.0 - delivered / paced.sent as f64);
            let quantile = |share| paced.delays.value_at_quantile(share) as f64 / 1000.0;
            let own = paced.own as f64 / delivered;
            let figures =
                [own, all, lost, quantile(0.5), quantile(0.99), flat_out.per_second / 1000.0];
            eprintln!("{count} flows, {size} B, {}: {figures:.1?}", contestant.name);
            table.0.entry((count, size, place)).or_default().push(figures);
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "| Flows | Bytes | Relay | CPU per packet: its own, ns | everything, ns | lost, % | delay: median, µs | p99, µs | flat out, 1,000 packets/s |"
        )?;
        writeln!(f, "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for ((count, size, place), rounds) in &self.0 {
            let median = |figure: usize| {
                let mut values: Vec<_> = rounds.iter().map(|figures| figures[figure]).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let name = CONTESTANTS[*place].name;
            let [own, all, lost, middle, late, most] = [0, 1, 2, 3, 4, 5].map(median);
            writeln!(
                f,
                "| {count} | {size} | {name} | {own:.0} | {all:.0} | {lost:.2} | {middle:.0} | {late:.0} | {most:.0} |"
            )?;
        }
        Ok(())
    }
}
