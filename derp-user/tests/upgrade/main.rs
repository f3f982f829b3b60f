//! A relay that is replaced by another build under load: clients of Tailscale's own library, flows in the kernel, STUN
//! requests, and strangers that connect all the time.
//!
//! Once with the start and stop sequence of the systemd unit, played by [`Bare`]; once with the Debian package in a
//! Debian of its own under a real systemd, [`Machine`], for which `cargo xtask package trial` has what is needed.

mod bare;
#[path = "../support/client.rs"]
mod client;
mod crowd;
mod fleet;
mod flows;
#[path = "../support/go.rs"]
mod go;
#[path = "../support/kernel.rs"]
mod kernel;
#[path = "../support/lab.rs"]
mod lab;
mod machine;
#[path = "../support/netns.rs"]
mod netns;
mod package;
#[path = "../support/packets.rs"]
mod packets;
mod program;

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    bare::Bare,
    crowd::{Crowd, RELAY},
    fleet::{Fleet, Report},
    flows::Flows,
    lab::{Lab, RELAY_A, RELAY_B},
    machine::Machine,
    netns::{run_in, spawn_in},
};

/// How long a test waits for what must happen, on a machine that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const CLIENTS: u32 = 200;
/// The builds that follow each other. They differ in the kernel program.
const BUILDS: [u8; 3] = [1, 2, 0];

/// Who runs derpd as a service.
pub(crate) trait Host {
    /// Writes `/etc/default/derpd` and `/etc/derpd/derpd.toml`.
    fn configure(&self, variables: &str, file: &str);
    /// Opens the sockets of `derpd.socket`, and starts `derpd.service` on them.
    fn start(&mut self);
    /// Puts another build of derpd into the place of the one there, and restarts the service.
    fn upgrade(&mut self, build: u8);
    /// Stops the service and closes its sockets.
    fn stop(&mut self);
    /// The certificate that derpd has made for itself.
    fn certificate(&self) -> PathBuf;
    /// What derpd has logged.
    fn log(&self) -> String;
}

fn variables() -> String {
    format!(
        "DERP_DOMAIN={RELAY}\nDERP_CERT_MODE=manual\nDERP_XDP_INTERFACE={RELAY_A},{RELAY_B}\nDERP_XDP_MODE=native\n"
    )
}

/// A page that the relay shows to its own host.
fn page(lab: &Lab, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    run_in(&lab.relay, move || {
        let mut stream = TcpStream::connect("127.0.0.1:80").expect("the relay listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body.to_owned()
    })
}

/// The sum of a metric over its labels.
fn metric(varz: &str, name: &str) -> f64 {
    let lines = varz
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// Something that goes on on a thread of its own until it is stopped.
struct Background<T> {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<T>,
}

impl<T: Send + 'static> Background<T> {
    fn start(namespace: &str, work: impl FnOnce(&AtomicBool) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = spawn_in(namespace, {
            let stop = Arc::clone(&stop);
            move || work(&stop)
        });
        Self { stop, thread }
    }

    fn finish(self) -> T {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// Asks by STUN over both families, one request after the other. Returns how many were answered, all of them rightly,
/// and the longest wait for an answer.
fn ask(stop: &AtomicBool) -> (u64, Duration) {
    let sockets = [("10.78.1.2", "10.78.1.1"), ("fd78:1::2", "fd78:1::1")]
        .map(|(from, to)| client::connect(from, to));
    let (mut number, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        for socket in &sockets {
            let asked = Instant::now();
            client::ask(socket, number);
            longest = longest.max(asked.elapsed());
            number += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    (number, longest)
}

/// Connects and leaves, again and again; whoever is refused ends the test. Returns how many there were.
fn knock(stop: &AtomicBool) -> u64 {
    let address = SocketAddr::new(RELAY.parse().expect("an address"), 443);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        TcpStream::connect_timeout(&address, PATIENCE).expect("not refused");
        count += 1;
        thread::sleep(Duration::from_millis(2));
    }
    count
}

/// Has `host` upgrade derpd again and again under load, and checks that nothing is lost but the sessions, which are made
/// again at once.
fn nothing_is_lost(lab: &Lab, host: &mut dyn Host, what: &str) {
    let fleet = match fleet::build() {
        Ok(fleet) => fleet,
        Err(reason) => return kernel::skip(what, &reason),
    };
    let crowd = match Crowd::settle(lab) {
        Ok(crowd) => crowd,
        Err(reason) => return kernel::skip(what, &reason),
    };
    // Real time is asserted only where somebody measures.
    let limit = env::var("DERPD_RECONNECT_SECONDS").ok();
    let limit =
        limit.map_or(PATIENCE, |text| Duration::from_secs_f64(text.parse().expect("seconds")));
    host.configure(&variables(), &flows::configuration(1024));
    host.start();
    let mut fleet = Fleet::start(
        &fleet,
        &crowd.namespace,
        &format!("{RELAY}:443"),
        &host.certificate(),
        CLIENTS,
    );
    fleet.settle();
    let mut flows = Flows::new(lab);
    flows.acquaint(lab);
    fleet.report();

    let flows = Background::start(&lab.a, move |stop| flows.run(stop));
    let stun = Background::start(&lab.a, ask);
    let strangers = Background::start(&crowd.namespace, knock);
    // Another program with the same maps; one with other maps; back to the first program and its maps.
    for (build, slots) in [(1, 1024), (2, 2048), (0, 1024), (1, 1024)] {
        host.configure(&variables(), &flows::configuration(slots));
        let begun = Instant::now();
        host.upgrade(build);
        let restarted = begun.elapsed();
        fleet.settle();
        let Report { reconnected, slowest, refused, failed, packets } = fleet.report();
        println!(
            "{what}, build {build}, {slots} slots: restarted in {restarted:?}; {reconnected} clients connected again, \
             the slowest after {slowest:?}, {failed} attempts failed; {packets} packets between them"
        );
        assert_eq!((reconnected, refused), (CLIENTS, 0), "{}", host.log());
        assert!(slowest <= limit, "{slowest:?}");
        let varz = page(lab, "/debug/varz");
        assert_eq!(metric(&varz, "stun_requests"), 0.0, "STUN is the kernel's\n{}", host.log());
        let in_userspace = metric(&varz, "derpd_udp_forwarded_packets_total");
        assert_eq!(in_userspace, 0.0, "flows are the kernel's\n{}", host.log());
    }
    let tally = flows.finish();
    let (requests, longest) = stun.finish();
    println!(
        "{what}: {} packets each way over {} flows, lost: {:?}, longest round {:?}; {requests} STUN requests, the \
         longest answer after {longest:?}; {} strangers, none refused",
        tally.rounds,
        flows::COUNT,
        tally.lost,
        tally.longest,
        strangers.finish(),
    );
    assert!(tally.lost.is_empty(), "{}\n{}", flows::losses(lab), host.log());
    assert!(tally.rounds > 100 && requests > 100);
    host.stop();
}

#[test]
fn nothing_is_lost_in_upgrades_by_the_units_own_sequence() {
    const WHAT: &str = "upgrades under load";
    let Some(lab) = Lab::create(WHAT) else { return };
    let mut host = match Bare::new(&lab) {
        Ok(host) => host,
        Err(reason) => return kernel::skip(WHAT, &reason),
    };
    nothing_is_lost(&lab, &mut host, WHAT);
}

#[test]
fn nothing_is_lost_in_upgrades_of_the_package_under_systemd() {
    const WHAT: &str = "upgrades of the package under load";
    let Some(lab) = Lab::create(WHAT) else { return };
    let mut host = match Machine::boot(Some(&lab)) {
        Ok(host) => host,
        Err(reason) => return println!("skipped: {WHAT}: {reason}"),
    };
    for build in BUILDS {
        host.install_build(build);
    }
    host.allow_kernel();
    nothing_is_lost(&lab, &mut host, WHAT);
}
