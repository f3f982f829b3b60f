//! The companion beside the real thing: an unmodified tailscaled that is a peer relay, between two others that reach
//! nothing but it. Case 41 of the relay's test plan, with 44 and 49 on the way.

#[path = "support/go.rs"]
mod go;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/tailnet.rs"]
mod tailnet;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Child,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    lab::{Daemon, Lab},
    tailnet::{Node, PATIENCE, Programs, Running},
};

const MEGABYTE: usize = 1_000_000;
/// Of the packets that carry a file, between nodes whose MTU is 1280.
const MOST_BYTES: usize = 1280;
const RELAY_PORT: &str = "40000";
/// Clients that reach each other by relays only.
const CLIENT: [(&str, &str); 1] = [("TS_DEBUG_NEVER_DIRECT_UDP", "1")];

/// Two clients with a relay between them, and what they copy.
struct Tailnet {
    a: Node,
    b: Node,
    relay: Node,
    sent: PathBuf,
    received: PathBuf,
    // Ended after the nodes.
    _offer: Running,
    _control: Running,
}

/// The daemon, which is the tailnet's DERP server too.
fn start(lab: &Lab, companion: bool) -> Daemon {
    let configuration = format!(
        "[dataplane]\npin = false\n[companion]\nenabled = {companion}\nsample = \"1s\"\nsocket = \"{}\"\n",
        lab.directory().join("relay/socket").display()
    );
    lab.start_native(&configuration)
}

impl Tailnet {
    fn start(lab: &Lab, programs: &Programs, megabytes: usize) -> Self {
        let directory = lab.directory();
        tailnet::connect(&lab.relay, [(&lab.a, "10.78.1.1"), (&lab.b, "10.78.2.1")]);
        let control = tailnet::start_control(programs, directory, &lab.relay, 8080);
        let relay = Node::start(programs, directory, &lab.relay, "relay", &[]);
        let set = ["set", &format!("--relay-server-port={RELAY_PORT}")];
        relay.wait_for("a relay", || relay.tailscale(&set));
        let a = Node::start(programs, directory, &lab.a, "a", &CLIENT);
        let b = Node::start(programs, directory, &lab.b, "b", &CLIENT);
        let sent = directory.join("sent");
        let number = |at: usize| ((at * at) >> 7) as u8;
        let content: Vec<u8> = (0..megabytes * MEGABYTE).map(number).collect();
        fs::write(&sent, content).expect("a file");
        let offer = b.offer(programs, &sent);
        let received = directory.join("received");
        Self { a, b, relay, sent, received, _offer: offer, _control: control }
    }

    /// Waits until the clients reach each other by the relay; returns how they name it.
    fn wait_for_relay(&self) -> String {
        self.a.wait_for("no ping by the relay", || self.a.ping_by_relay(&self.b))
    }

    fn begin_copy(&self) -> Copy<'_> {
        Copy { child: self.a.fetch(&self.b, &self.received), tailnet: self }
    }

    /// Packets that tailscaled has relayed.
    fn relayed(&self) -> u64 {
        self.relay.sessions().iter().map(|(_, packets)| packets).sum()
    }
}

struct Copy<'a> {
    child: Child,
    tailnet: &'a Tailnet,
}

impl Copy<'_> {
    /// Waits until this much has arrived.
    fn wait_for(&mut self, bytes: u64) {
        let deadline = Instant::now() + PATIENCE;
        while size(&self.tailnet.received) < bytes {
            assert!(self.child.try_wait().expect("wait").is_none(), "the copy has ended");
            assert!(Instant::now() < deadline, "the copy hangs");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end, and checks what has arrived.
    fn finish(mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("wait").is_none() {
            assert!(
                Instant::now() < deadline,
                "the copy hangs at {}",
                size(&self.tailnet.received)
            );
            thread::sleep(Duration::from_millis(5));
        }
        let [sent, received] = [&self.tailnet.sent, &self.tailnet.received]
            .map(|path| fs::read(path).expect("a file"));
        assert!(sent == received, "{} bytes arrived of {}", received.len(), sent.len());
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// Prepares everything, or skips the test.
fn prepare(test: &str) -> Option<(Lab, Programs)> {
    let lab = Lab::create(test)?;
    match Programs::build() {
        Ok(programs) => Some((lab, programs)),
        Err(reason) => {
            println!("skipped: {test}: {reason}");
            None
        }
    }
}

/// Waits until the kernel forwards the session between the clients.
fn wait_for_kernel(daemon: &Daemon) {
    daemon.wait_until("the kernel forwards no session", || {
        daemon.flows().iter().any(|flow| {
            let ends = flow["ends"].as_array().expect("ends");
            flow["source"] == "companion" && ends.iter().all(|end| end["forwarder"] == "kernel")
        })
    });
}

#[test]
fn case_41_the_kernel_carries_what_an_unmodified_tailscaled_relays() {
    let test = "a companion of a real tailscaled";
    let Some((lab, programs)) = prepare(test) else { return };
    let daemon = start(&lab, true);
    let mut tailnet = Tailnet::start(&lab, &programs, 20);
    let relay = tailnet.wait_for_relay();
    assert!(relay.contains(&format!(":{RELAY_PORT}:vni:")), "{relay}");
    wait_for_kernel(&daemon);

    let packets = (20 * MEGABYTE / MOST_BYTES) as f64;
    let before = (daemon.kernel_packets(), tailnet.relayed());
    tailnet.begin_copy().finish();
    let by_kernel = daemon.kernel_packets() - before.0;
    let by_tailscaled = (tailnet.relayed() - before.1) as f64;
    println!("by {relay}: {by_kernel} packets in the kernel, {by_tailscaled} by tailscaled");
    assert!(by_kernel > 0.9 * packets, "{by_kernel}\n{}", daemon.kernel_counts());
    assert!(by_tailscaled < 0.1 * packets, "{by_tailscaled}\n{}", daemon.kernel_counts());
    assert_eq!(tailnet.a.ping_by_relay(&tailnet.b).as_deref(), Ok(&*relay));

    // Case 44: what tailscaled forgets, the kernel forgets.
    let flushes = daemon.metric("derpd_companion_flushes_total", &[]);
    tailnet.relay.kill();
    daemon.wait_until("not flushed", || daemon.flows().is_empty());
    assert_eq!(daemon.metric("derpd_companion_flushes_total", &[]), flushes + 1.0);
    let flushed = daemon.kernel_packets();
    tailnet.relay.run();
    let again = tailnet.wait_for_relay();
    println!("after a restart: {again}");
    wait_for_kernel(&daemon);
    tailnet.begin_copy().finish();
    assert!(daemon.kernel_packets() - flushed > 0.5 * packets, "{}", daemon.kernel_counts());

    // Case 49: killed in the middle of a copy, which goes on.
    let mut copy = tailnet.begin_copy();
    copy.wait_for(MEGABYTE as u64);
    let before = tailnet.relayed();
    daemon.end(Signal::SIGKILL);
    copy.finish();
    let by_tailscaled = tailnet.relayed() - before;
    println!("after the daemon: {by_tailscaled} packets by tailscaled");
    assert!(by_tailscaled > 1000, "{by_tailscaled}");
}

/// Takes seven minutes: tailscaled forgets a session that it has seen nothing of for five, and looks every half minute.
#[test]
#[ignore = "takes seven minutes: cargo test --test companion_tailscaled -- --ignored --nocapture case_41"]
fn case_41_a_session_outlives_tailscaleds_collection() {
    let Some((lab, programs)) = prepare("a session of seven minutes") else { return };
    let daemon = start(&lab, true);
    let tailnet = Tailnet::start(&lab, &programs, 1);
    let relay = tailnet.wait_for_relay();
    wait_for_kernel(&daemon);
    let (before, seen) = (daemon.kernel_packets(), tailnet.relayed());
    let (start, mut pings, mut elsewhere) = (Instant::now(), 0, 0);
    while start.elapsed() < Duration::from_secs(420) {
        tailnet.begin_copy().finish();
        thread::sleep(Duration::from_secs(1));
        pings += 1;
        // Another session would have another VNI. A client whose netcheck finds no time to send ("last netcheck reported
        // send error. Rebinding." in its log), as on a busy machine, forgets its ways and goes by DERP for half a minute.
        match tailnet.a.ping_by_relay(&tailnet.b) {
            Ok(names) => assert_eq!(names, relay, "after {:?}", start.elapsed()),
            Err(answer) => {
                elsewhere += 1;
                println!("after {:?}: {answer}{:#?}", start.elapsed(), daemon.flows());
            }
        }
    }
    assert_eq!(tailnet.wait_for_relay(), relay);
    let (by_kernel, by_tailscaled) = (daemon.kernel_packets() - before, tailnet.relayed() - seen);
    let suspicions = daemon.metric("derpd_companion_suspicions_total", &[]);
    println!(
        "{by_kernel} packets in the kernel, {by_tailscaled} by tailscaled, {suspicions} suspicions; \
         {elsewhere} of {pings} pings by DERP"
    );
    assert!(by_kernel > 10.0 * by_tailscaled as f64);
    assert!(elsewhere * 3 < pings, "the relay is not there: {elsewhere} of {pings}");
}

/// Run it alone on the machine, with `--ignored --nocapture --release`.
#[test]
#[ignore = "a measurement: cargo test --test companion_tailscaled -- --ignored --nocapture what_a_copy"]
fn what_a_copy_costs_with_and_without_the_companion() {
    const MEGABYTES: usize = 100;
    const ROUNDS: usize = 4;
    let Some((lab, programs)) = prepare("a measurement") else { return };
    let mut daemon = start(&lab, false);
    let tailnet = Tailnet::start(&lab, &programs, MEGABYTES);
    tailnet.wait_for_relay();
    println!("per MB: relay's tailscaled, derpd, all of the machine; Mbit/s; share in the kernel");
    for round in 0..ROUNDS {
        for companion in [false, true] {
            daemon.end(Signal::SIGTERM);
            daemon = start(&lab, companion);
            tailnet.wait_for_relay();
            if companion {
                wait_for_kernel(&daemon);
            }
            let counts = |daemon: &Daemon| (daemon.kernel_packets(), tailnet.relayed() as f64);
            let before = (cpu(tailnet.relay.id()), daemon.cpu_seconds(), busy(), counts(&daemon));
            let start = Instant::now();
            tailnet.begin_copy().finish();
            let elapsed = start.elapsed().as_secs_f64();
            let after = (cpu(tailnet.relay.id()), daemon.cpu_seconds(), busy(), counts(&daemon));
            let per_megabyte = |seconds: f64| seconds * 1e3 / MEGABYTES as f64;
            let (kernel, relayed) = (after.3.0 - before.3.0, after.3.1 - before.3.1);
            println!(
                "{round} {}: {:.2} ms, {:.2} ms, {:.2} ms; {:.0}; {:.1} %",
                if companion { "with   " } else { "without" },
                per_megabyte(after.0 - before.0),
                per_megabyte(after.1 - before.1),
                per_megabyte(after.2 - before.2),
                MEGABYTES as f64 * 8.0 / elapsed,
                100.0 * kernel / (kernel + relayed),
            );
        }
    }
}

/// Seconds that the threads of a process have spent on a processor.
fn cpu(id: u32) -> f64 {
    let threads = fs::read_dir(format!("/proc/{id}/task")).expect("threads");
    let of_thread = |thread: fs::DirEntry| {
        // It may have ended.
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default()
    };
    threads.map(|thread| of_thread(thread.expect("a thread"))).sum::<f64>() / 1e9
}

/// Seconds that the machine's processors were busy, in processes and in interrupts.
fn busy() -> f64 {
    let text = fs::read_to_string("/proc/stat").expect("times");
    let first = text.lines().next().expect("a line");
    let times: Vec<f64> =
        first.split_whitespace().skip(1).map(|it| it.parse().expect("a number")).collect();
    // All but idle (3) and waiting for disks (4); guests are counted twice.
    times
        .iter()
        .take(8)
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4))
        .map(|(_, it)| it)
        .sum::<f64>()
        / 100.0
}
