//! What forwarding one UDP packet costs. Senders and receivers are in one namespace, a relay in the other, with a veth
//! pair between them.
//!
//! At a fixed rate, two figures of CPU are given per delivered packet: that of the relay's own threads, or of the kernel
//! program by the kernel's statistics; and that of everything together, softirqs included, less what it takes to send
//! the packets to a receiver in the relay's place. Delays are from just before the sender's call to the kernel's time
//! stamp at the receiver's socket. Then one thread sends as much as it can.
//!
//! `DERPD_RELAY_RATE` sets the packets per second, `DERPD_RELAY_SECONDS` the length of each run, `DERPD_RELAY_ROUNDS` how
//! often all are repeated. `DERPD_RELAY_ONLY` names the contestants that are wanted, by words in their names, separated
//! by commas.

use std::{
    collections::{BTreeMap, HashMap},
    env, fmt, fs,
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

use aya::sys::{Stats, enable_stats};
use derp_user::dataplane::{AttachedMode, Kernel};
use hdrhistogram::Histogram;
use nix::{
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt},
    time::{ClockId, clock_gettime},
};

use crate::{
    kernel,
    netns::{CLIENT_INTERFACE, CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, run_in, spawn_in},
};

/// Longer delays, in nanoseconds, count as this.
const LONGEST_DELAY: u64 = 10_000_000_000;

/// A relay at work until dropped.
pub(crate) trait AtWork {
    /// Nanoseconds of CPU that are known to be its own.
    fn own_time(&self) -> u64;

    /// The same of a process of its own; 0 if it has none.
    fn process_time(&self) -> u64 {
        0
    }
}

/// Who sends packets to whom by way of the relay.
pub(crate) struct Flow {
    pub(crate) sender: UdpSocket,
    /// Must have time stamps: see [`client_socket`].
    pub(crate) receiver: UdpSocket,
    /// What the relay looks at, at the beginning of each packet. At most 8 bytes.
    pub(crate) header: Vec<u8>,
}

/// What one run has shown.
struct Figures {
    sent: u64,
    delivered: u64,
    per_second: f64,
    /// Nanoseconds of the relay's own CPU.
    own: u64,
    /// Nanoseconds of everybody's CPU.
    machine: u64,
    /// Nanoseconds from before the sender's call to the kernel's time stamp at the receiver's socket.
    delays: Histogram<u64>,
}

impl Figures {
    /// A number of nanoseconds for each delivered packet.
    fn each(&self, nanoseconds: f64) -> f64 {
        nanoseconds / self.delivered.max(1) as f64
    }

    /// CPU of everything per delivered packet, less what `outside` spends for each one sent.
    fn everything(&self, outside: f64) -> f64 {
        self.each(self.machine as f64 - outside * self.sent as f64)
    }

    /// Of the packets sent, how many of a hundred were lost.
    fn lost(&self) -> f64 {
        100.0 * (1.0 - self.delivered as f64 / self.sent.max(1) as f64)
    }

    /// The delay, in microseconds, that this share of the packets stays below.
    fn delay(&self, share: f64) -> f64 {
        self.delays.value_at_quantile(share) as f64 / 1000.0
    }
}

/// A relay, and the flows by way of it.
pub(crate) type Started = (Box<dyn AtWork>, Vec<Flow>);

/// A relay that can be started, with so many flows by way of it.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) start: fn(&Namespaces, usize) -> Started,
}

/// What is measured: every contestant with one flow and with 64 of them, with packets of each size.
pub(crate) struct Comparison {
    /// The relay's port.
    pub(crate) port: u16,
    /// Lengths of UDP payloads, at least 24.
    pub(crate) sizes: &'static [usize],
    pub(crate) contestants: &'static [Contestant],
}

impl Comparison {
    /// Measures in rounds and prints a table of medians, or says why it cannot.
    pub(crate) fn run(&self, test: &str) {
        let Some(namespaces) = prepare(test) else { return };
        let _statistics = enable_stats(Stats::RunTime).expect("statistics");
        let mut table = Table { contestants: self.contestants, figures: BTreeMap::new() };
        for round in 0..number("DERPD_RELAY_ROUNDS", 3) {
            eprintln!("round {round}");
            for count in [1, 64] {
                self.measure(&namespaces, count, &mut table);
            }
        }
        print!("{table}");
    }

    fn measure(&self, namespaces: &Namespaces, count: usize, table: &mut Table) {
        let rate = number("DERPD_RELAY_RATE", 50_000);
        let duration = Duration::from_secs(number("DERPD_RELAY_SECONDS", 2));
        let load = |size, rate| Load { port: self.port, size, rate, duration };
        // What it takes to send the packets to a receiver in the relay's place.
        let outside: Vec<_> = {
            let sink = sink(namespaces, self.port);
            let flow =
                || Flow { sender: client_socket(), receiver: client_socket(), header: vec![] };
            let flows = run_in(&namespaces.client, move || (0..count).map(|_| flow()).collect());
            let flows = Arc::new(flows);
            let cost = |size: &usize| {
                let figures = run(namespaces, &flows, load(*size, rate), &sink);
                figures.machine as f64 / figures.sent as f64
            };
            self.sizes.iter().map(cost).collect()
        };
        for (place, contestant) in self.contestants.iter().enumerate() {
            if !is_wanted(contestant) {
                continue;
            }
            let (relay, flows) = (contestant.start)(namespaces, count);
            let flows = Arc::new(flows);
            for (&size, outside) in self.sizes.iter().zip(&outside) {
                let paced = run(namespaces, &flows, load(size, rate), &*relay);
                let flat_out = run(namespaces, &flows, load(size, 0), &*relay);
                let figures = [
                    paced.each(paced.own as f64),
                    paced.everything(*outside),
                    paced.lost(),
                    paced.delay(0.5),
                    paced.delay(0.99),
                    flat_out.per_second / 1000.0,
                ];
                eprintln!("{count} flows, {size} B, {}: {figures:.1?}", contestant.name);
                table.figures.entry((count, size, place)).or_default().push(figures);
            }
        }
    }
}

/// Figures of each number of flows, size and contestant, one of each round: see [`Table::fmt`] for what they are.
struct Table {
    contestants: &'static [Contestant],
    figures: BTreeMap<(usize, usize, usize), Vec<[f64; 6]>>,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| Flows | Bytes | Relay | CPU per packet: its own, ns | everything, ns | lost, % | delay: median, µs | p99, µs | flat out, 1,000 packets/s |"
        )?;
        writeln!(f, "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")?;
        for ((count, size, place), rounds) in &self.figures {
            let median = |figure: usize| {
                let mut values: Vec<_> = rounds.iter().map(|figures| figures[figure]).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            let name = self.contestants[*place].name;
            let [own, all, lost, middle, late, most] = [0, 1, 2, 3, 4, 5].map(median);
            writeln!(
                f,
                "| {count} | {size} | {name} | {own:.0} | {all:.0} | {lost:.2} | {middle:.0} | {late:.0} | {most:.0} |"
            )?;
        }
        Ok(())
    }
}

/// Makes the namespaces, or skips the measurement and says why.
fn prepare(test: &str) -> Option<Namespaces> {
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            println!("skipped: {test}: {reason}");
            return None;
        }
    };
    // As network cards do: what arrives together is handed up together.
    let gro = Command::new("ip")
        .args(["netns", "exec", &namespaces.server, "ethtool", "-K", SERVER_INTERFACE, "gro", "on"])
        .status();
    assert!(gro.expect("ethtool").success());
    kernel::load(test)?;
    Some(namespaces)
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

fn is_wanted(contestant: &Contestant) -> bool {
    let only = env::var("DERPD_RELAY_ONLY").unwrap_or_default();
    only.split(',').any(|word| contestant.name.contains(word))
}

/// A socket of a client, with time stamps for what arrives.
pub(crate) fn client_socket() -> UdpSocket {
    let socket = UdpSocket::bind((CLIENT4, 0)).expect("bind");
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20)).expect("buffer");
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("time stamps");
    socket
}

pub(crate) fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

/// The forwarder anybody would write first: a packet goes to the partner of its source.
pub(crate) fn plain(
    namespaces: &Namespaces,
    port: u16,
    pairs: impl Iterator<Item = [SocketAddr; 2]>,
) -> Thread {
    let ways: HashMap<_, _> = pairs.flat_map(|[a, b]| [(a, b), (b, a)]).collect();
    let socket = relay_socket(namespaces, port);
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    Thread::start("plain-relay", move |stop| {
        let mut buffer = [0; 2048];
        while !stop.load(Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer)
                && let Some(to) = ways.get(&from)
            {
                let _ = socket.send_to(&buffer[..length], to);
            }
        }
    })
}

/// Receives as the receivers do, and sends nothing on.
fn sink(namespaces: &Namespaces, port: u16) -> Thread {
    let socket = relay_socket(namespaces, port);
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).expect("time stamps");
    Thread::start("sink", move |stop| {
        receive(&[socket], stop, &AtomicU64::new(0));
    })
}

fn relay_socket(namespaces: &Namespaces, port: u16) -> UdpSocket {
    let socket =
        run_in(&namespaces.server, move || UdpSocket::bind((SERVER4, port)).expect("bind"));
    setsockopt(&socket, sockopt::RcvBufForce, &(7 << 20)).expect("buffer");
    socket
}

/// A thread of this process.
pub(crate) struct Thread {
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

/// Has the client's end of the pair take in what native XDP sends to it, which needs a program there.
pub(crate) fn accept_native_xdp(namespaces: &Namespaces) -> Kernel {
    run_in(&namespaces.client, || {
        let mut kernel = Kernel::load().expect("load");
        kernel.attach(CLIENT_INTERFACE, AttachedMode::Native).expect("client's end");
        kernel
    })
}

/// Nanoseconds of CPU that the threads in a directory of `/proc` have used, those whose name is wanted.
pub(crate) fn task_time(directory: &str, is_wanted: impl Fn(&str) -> bool) -> u64 {
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

/// Packets that are sent to the relay.
#[derive(Clone, Copy)]
struct Load {
    /// The relay's port.
    port: u16,
    /// Bytes of each packet, at least 24.
    size: usize,
    /// Packets per second; 0 for as many as one thread can send.
    rate: u64,
    duration: Duration,
}

/// Sends packets of all flows in turn for a while, and counts what arrives.
fn run(namespaces: &Namespaces, flows: &Arc<Vec<Flow>>, load: Load, relay: &dyn AtWork) -> Figures {
    let stop = Arc::new(AtomicBool::new(false));
    let delivered = Arc::new(AtomicU64::new(0));
    let receivers: Vec<_> =
        flows.iter().map(|flow| flow.receiver.try_clone().expect("a socket")).collect();
    // What an earlier run has left on the way.
    while receivers.iter().any(|socket| receive_one(socket).is_some()) {
        thread::sleep(Duration::from_millis(200));
        receivers.iter().for_each(|socket| while receive_one(socket).is_some() {});
        thread::sleep(Duration::from_millis(100));
    }
    let receiving = {
        let (stop, delivered) = (Arc::clone(&stop), Arc::clone(&delivered));
        spawn_in(&namespaces.client, move || receive(&receivers, &stop, &delivered))
    };
    let before = (relay.own_time(), machine_time(relay));
    let begin = Instant::now();
    let sending = {
        let flows = Arc::clone(flows);
        spawn_in(&namespaces.client, move || send(&flows, load))
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

fn send(flows: &[Flow], load: Load) -> u64 {
    let packet = |flow: &Flow| {
        let mut packet = vec![0; load.size];
        packet[..flow.header.len()].copy_from_slice(&flow.header);
        packet
    };
    let mut packets: Vec<_> = flows.iter().map(packet).collect();
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < load.duration {
        let due = match load.rate {
            0 => sent + 64,
            rate => (start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64,
        };
        while sent < due {
            let index = (sent % flows.len() as u64) as usize;
            let packet = &mut packets[index];
            packet[8..16].copy_from_slice(&sent.to_le_bytes());
            packet[16..24].copy_from_slice(&now().to_ne_bytes());
            let _ = flows[index].sender.send_to(packet, (SERVER4, load.port));
            sent += 1;
        }
        if load.rate > 0 {
            thread::sleep(Duration::from_micros(50));
        }
    }
    sent
}

/// Looks every millisecond rather than be woken: waking receivers is their host's business, and would be
/// charged to the relay here.
fn receive(sockets: &[UdpSocket], stop: &AtomicBool, delivered: &AtomicU64) -> Histogram<u64> {
    let mut delays = Histogram::new_with_max(LONGEST_DELAY, 3).expect("three digits");
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

/// Takes a packet if there is one, and returns the nanoseconds it was under way.
fn receive_one(socket: &UdpSocket) -> Option<u64> {
    let mut buffer = [0; 2048];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let (length, arrival) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_DONTWAIT;
        let message =
            recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags).ok()?;
        let arrival = message.cmsgs().ok()?.find_map(|control| {
            if let ControlMessageOwned::ScmTimestampns(time) = control { Some(time) } else { None }
        });
        (message.bytes, arrival)
    };
    let sent = buffer[..length].get(16..24)?.try_into().ok()?;
    let arrival = u64::try_from(Duration::from(arrival?).as_nanos()).ok()?;
    Some(arrival.saturating_sub(u64::from_ne_bytes(sent)))
}
