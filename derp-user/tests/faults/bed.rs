//! A relay with a flow that the kernel forwards, traffic on it, and what the daemon needs before and after a fault.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    lab::{Daemon, End, Lab, RELAY_A, RELAY_B, acquaint, converse, exchange, geneve},
    vitals::Vitals,
};

pub(crate) const PORT: u16 = 40_000;
pub(crate) const VNI: u32 = 7;
const A: &str = "10.78.1.2:41641";
const B: &str = "10.78.2.2:51820";
/// Descriptors that come and go by themselves, such as that of a page that is read.
const SPARE_DESCRIPTORS: usize = 1;
/// Memory that a fault may leave behind.
const MORE_MEMORY: u64 = 4 << 20;
/// Packets of both ends that are sent together, and how often.
const BATCH: u64 = 20;
const PAUSE: Duration = Duration::from_millis(2);
/// How long the service may take to be itself again.
const PATIENCE: Duration = Duration::from_secs(30);

/// The flow between both clients.
pub(crate) fn flow() -> String {
    format!("[[flow]]\nname = \"test\"\nvni = {VNI}\na = \"{A}\"\nb = \"{B}\"\n")
}

/// Flags that attach the program natively to both interfaces of the relay.
pub(crate) fn attached() -> [String; 3] {
    [
        format!("-xdp-interface={RELAY_A}"),
        format!("-xdp-interface={RELAY_B}"),
        "-xdp-mode=native".to_owned(),
    ]
}

/// Starts the daemon with this in its configuration file beside the flow.
pub(crate) fn start(lab: &Lab, lines: &str) -> Daemon {
    let flags = attached();
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    lab.start(&format!("[relay]\nport = {PORT}\n{lines}\n{}", flow()), &flags)
}

fn relay(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), PORT)
}

/// Both ends of the flow.
pub(crate) struct Ends {
    sockets: [UdpSocket; 2],
    relays: [SocketAddr; 2],
}

impl Ends {
    pub(crate) fn new(lab: &Lab) -> Self {
        Self::by(lab, "10.78.2.1")
    }

    /// The second end knows the relay by this address.
    pub(crate) fn by(lab: &Lab, relay_b: &str) -> Self {
        let sockets = [lab.socket(&lab.a, A), lab.socket(&lab.b, B)];
        Self { sockets, relays: [relay("10.78.1.1"), relay(relay_b)] }
    }

    fn ends(&self) -> [End<'_>; 2] {
        [0, 1].map(|it: usize| End { socket: &self.sockets[it], relay: self.relays[it] })
    }

    /// Sends until both hear each other, and then a thousand packets each way, none of which may be lost.
    pub(crate) fn converse(&self) {
        acquaint(&self.ends(), &geneve(VNI, u64::MAX, 100));
        converse(&self.ends(), 0, 1000, |number| geneve(VNI, number, 200));
    }
}

/// Waits until the kernel forwards both ways.
pub(crate) fn wait_for_kernel(daemon: &Daemon) {
    daemon.wait_until("the kernel to forward the flow", || {
        daemon.flows().iter().filter(|flow| flow["name"] == "test").any(|flow| {
            let ends = flow["ends"].as_array();
            ends.is_some_and(|ends| ends.iter().all(|end| end["forwarder"] == "kernel"))
        })
    });
    // What is decided is written within the update protocol's grace.
    thread::sleep(Duration::from_millis(50));
}

/// The kernel forwards what is said now, but for what it passes because of its checksum.
pub(crate) fn converses_in_the_kernel(lab: &Lab, daemon: &Daemon, relay_b: &str) {
    Ends::by(lab, relay_b).converse();
    wait_for_kernel(daemon);
    let before = daemon.kernel_packets();
    Ends::by(lab, relay_b).converse();
    let forwarded = daemon.kernel_packets() - before;
    assert!(forwarded >= 1990.0, "{forwarded}\n{}\n{}", daemon.kernel_counts(), daemon.log());
}

/// Packets of the flow, until stopped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, usize)>,
}

impl Traffic {
    pub(crate) fn start(lab: &Lab) -> Self {
        let ends = Ends::new(lab);
        for socket in &ends.sockets {
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("timeout");
        }
        let stop = Arc::<AtomicBool>::default();
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let (mut number, mut lost) = (0, 0);
                while !stop.load(Relaxed) {
                    let packet = |number| geneve(VNI, number, 200);
                    lost += exchange(&ends.ends(), number, BATCH, packet).len();
                    number += BATCH;
                    thread::sleep(PAUSE);
                }
                (number, lost)
            }
        });
        Self { stop, thread }
    }

    /// Packets sent each way, and how many have not arrived.
    pub(crate) fn stop(self) -> (u64, usize) {
        self.stop.store(true, Relaxed);
        self.thread.join().expect("traffic")
    }
}

/// What the daemon needed, and had logged, before a fault.
pub(crate) struct Before {
    vitals: Vitals,
    lines: usize,
}

impl Before {
    pub(crate) fn look(daemon: &Daemon) -> Self {
        Self { vitals: Vitals::of(daemon.id()), lines: daemon.log().lines().count() }
    }

    /// Lines logged since.
    pub(crate) fn news(&self, daemon: &Daemon) -> Vec<String> {
        daemon.log().lines().skip(self.lines).map(str::to_owned).collect()
    }

    /// The daemon needs what it needed, has logged `lines` lines at most, and does not contradict itself.
    pub(crate) fn compare(&self, daemon: &Daemon, lines: usize) {
        let deadline = Instant::now() + PATIENCE;
        let after = loop {
            let after = Vitals::of(daemon.id());
            if after.descriptors <= self.vitals.descriptors + SPARE_DESCRIPTORS {
                break after;
            }
            assert!(
                Instant::now() < deadline,
                "{} descriptors before, {} after",
                self.vitals.descriptors,
                after.descriptors
            );
            thread::sleep(Duration::from_millis(50));
        };
        let allowed = self.vitals.memory + MORE_MEMORY;
        assert!(after.memory <= allowed, "{} before, {} after", self.vitals.memory, after.memory);
        let news = self.news(daemon);
        assert!(news.len() <= lines, "{news:#?}");
        assert!(daemon.get("/debug/check").is_some(), "{}", daemon.log());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
}

/// Lines that contain a text.
pub(crate) fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}
