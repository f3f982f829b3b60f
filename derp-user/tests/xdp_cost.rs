//! What one packet costs in the kernel, by the kernel's own statistics. Not a test but a measurement:
//! `cargo test --release --test xdp_cost -- --ignored --nocapture`. With `DERPD_XDPDERPER` naming the binary of
//! Tailscale's `cmd/xdpderper`, its program is measured in turn with ours.

#[path = "support/client.rs"]
mod client;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    collections::BTreeSet,
    env,
    net::UdpSocket,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use aya::{
    programs::{ProgramInfo, loaded_programs},
    sys::{Stats, enable_stats},
};
use derp_user::dataplane::Mode;

use crate::{
    client::{ask, connect, environment, request},
    daemon::Daemon,
    netns::{CLIENT4, CLIENT6, Namespaces, SERVER_INTERFACE, SERVER4, SERVER6, run_in},
    packets::STUN_PORT,
};

const RATE: u64 = 20_000;

/// Something that answers on the server's interface until dropped.
enum Responder {
    Ours(Box<Daemon>),
    Reference(Child),
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Self::Reference(child) = self {
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
    }
}

fn program_ids() -> BTreeSet<u32> {
    loaded_programs().filter_map(Result::ok).map(|program| program.id()).collect()
}

fn info(id: u32) -> ProgramInfo {
    let mut programs = loaded_programs().filter_map(Result::ok);
    programs.find(|program| program.id() == id).expect("the program is loaded")
}

/// Nanoseconds per run of the program while `work` goes on.
fn cost(id: u32, work: impl FnOnce()) -> u128 {
    let before = info(id);
    work();
    let after = info(id);
    let runs = u128::from(after.run_count() - before.run_count());
    (after.run_time() - before.run_time()).as_nanos() / runs.max(1)
}

/// Sends requests for a second and throws the answers away. (The reference loses an IPv6 answer now and
/// then, because it sends a checksum of zero.)
fn flood(from: &str, to: &str, port: u16) {
    let socket = UdpSocket::bind((from, 0)).expect("socket");
    socket.set_nonblocking(true).expect("nonblocking");
    for tick in 0..1000 {
        for number in 0..RATE / 1000 {
            let request = request(tick * RATE + number);
            socket.send_to(&request, (to, port)).expect("send");
            while socket.recv(&mut [0; 100]).is_ok() {}
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn measure(namespaces: &Namespaces, name: &str, responder: impl FnOnce() -> Responder) {
    let before = program_ids();
    let responder = responder();
    let id = *program_ids().difference(&before).last().expect("a new program");
    run_in(&namespaces.client, || {
        ask(&connect(CLIENT4, SERVER4), 0);
        ask(&connect(CLIENT6, SERVER6), 0);
    });
    let during = |work: fn()| cost(id, || run_in(&namespaces.client, work));
    let ipv4 = during(|| flood(CLIENT4, SERVER4, STUN_PORT));
    let ipv6 = during(|| flood(CLIENT6, SERVER6, STUN_PORT));
    let passed = during(|| flood(CLIENT4, SERVER4, 9));
    println!("{name:12} IPv4 {ipv4:4} ns, IPv6 {ipv6:4} ns, unrelated {passed:4} ns");
    drop(responder);
}

fn reference(binary: &str, namespaces: &Namespaces) -> Responder {
    let before = program_ids();
    let child = Command::new("ip")
        .args(["netns", "exec", &namespaces.server, binary, "-device", SERVER_INTERFACE])
        .args(["-mode", "xdpdrv", "-http", "127.0.0.1:0", "-dst-port", &STUN_PORT.to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the reference responder");
    for _ in 0..200 {
        if program_ids() != before {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    // It is loaded before it is attached.
    thread::sleep(Duration::from_secs(1));
    Responder::Reference(child)
}

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_one_packet() {
    let Some((namespaces, _client_end)) = environment("cost of one packet") else { return };
    let _statistics = enable_stats(Stats::RunTime).expect("statistics");
    let reference_binary = env::var("DERPD_XDPDERPER").ok();
    let rounds = env::var("DERPD_COST_ROUNDS").map_or(5, |text| text.parse().expect("a number"));
    for round in 0..rounds {
        measure(&namespaces, "derpd", || {
            let daemon = Daemon::start(&namespaces, Mode::Native).expect("daemon");
            if round == 0 {
                let info = daemon.xdp.as_ref().expect("attached").program_info().expect("info");
                println!("{info:?}");
            }
            Responder::Ours(Box::new(daemon))
        });
        if let Some(binary) = &reference_binary {
            measure(&namespaces, "xdpderper", || reference(binary, &namespaces));
        }
    }
}
