//! What keys at other servers cost a real derpd, and Tailscale's derper: a mesh peer of ours announces them.
//! Not a test but a measurement: `cargo xtask scale`. derper is measured where Go 1.26 and the modules are.

use std::{
    fs,
    path::Path,
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

#[path = "support/go.rs"]
mod go;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use crypto_box::PublicKey;
use peer::{PEER_GONE, PEER_PRESENT, frame};
use region::{Authority, FakeLink, FakePeer, Site};
use server::{Server, binary, skip};

const KEYS: [u32; 3] = [10_000, 100_000, 1_000_000];
/// Frames that the peer writes at once.
const WRITTEN_AT_ONCE: u32 = 250;
/// How long a server may take for all of it.
const PATIENCE: Duration = Duration::from_secs(120);
/// A collector of garbage gets so long to do its work.
const REST: Duration = Duration::from_secs(3);

static DERPER: go::Built = OnceLock::new();

#[test]
#[ignore = "a measurement: cargo xtask scale"]
fn keys_at_a_mesh_peer() {
    let mut contestants = vec![("derpd", binary())];
    match go::go_binary(&DERPER, "derper", &["build"], "tailscale.com/cmd/derper") {
        Ok(derper) => contestants.push(("derper", derper)),
        Err(reason) => skip("derper", &reason),
    }
    println!("\nA real server that one mesh peer tells of all keys\n");
    println!(
        "| server | keys | bytes per key | at the height | after all have gone | \
         CPU per frame, µs | told in, s |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for keys in KEYS {
        for (name, binary) in &contestants {
            measure(name, binary, keys);
        }
    }
}

fn measure(name: &str, binary: &Path, keys: u32) {
    let authority = Authority::new();
    let peer = FakePeer::new(&authority, None);
    let server = Site::prepare(&authority).start_binary(binary.to_owned(), &[peer.name()]);
    let mut link = peer.accept();
    // derper counts itself, whom it sees as a client of its peer; ours tells it of nobody else.
    wait_for_remote(&server, 0);
    thread::sleep(REST);
    let (memory, worked, begun) = (resident(&server), processor_time(&server), Instant::now());
    announce(&mut link, keys, |key| {
        frame(PEER_PRESENT, &[&key[..], &[0; 10], &[255, 255, 192, 0, 2, 1, 4, 0, 1]].concat())
    });
    wait_for_remote(&server, keys);
    let told_in = begun.elapsed();
    let worked = processor_time(&server) - worked;
    thread::sleep(REST);
    let grown = |now: u64| (now as f64 - memory as f64) / f64::from(keys);
    let settled = grown(resident(&server));
    let height = grown(status(&server, "VmHWM:"));
    announce(&mut link, keys, |key| frame(PEER_GONE, &[&key[..], &[0]].concat()));
    wait_for_remote(&server, 0);
    thread::sleep(REST);
    let left = grown(resident(&server));
    println!(
        "| {name} | {keys} | {settled:.0} | {height:.0} | {left:.0} | {:.2} | {:.2} |",
        worked.as_secs_f64() * 1e6 / f64::from(keys),
        told_in.as_secs_f64(),
    );
}

/// Says something of every key.
fn announce(link: &mut FakeLink, keys: u32, what: impl Fn([u8; 32]) -> Vec<u8>) {
    for from in (0..keys).step_by(WRITTEN_AT_ONCE as usize) {
        let frames = (from..keys.min(from + WRITTEN_AT_ONCE)).map(|number| what(key(number)));
        link.write(&frames.collect::<Vec<_>>().concat());
    }
}

/// A key that could be a client's.
fn key(number: u32) -> [u8; 32] {
    let spread = (u64::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0xd5; 32];
    bytes[..8].copy_from_slice(&spread.to_be_bytes());
    bytes[8..12].copy_from_slice(&number.to_be_bytes());
    *PublicKey::from(bytes).as_bytes()
}

fn wait_for_remote(server: &Server, wanted: u32) {
    let deadline = Instant::now() + PATIENCE;
    while server.metric("derp_clients_remote") != f64::from(wanted) {
        assert!(Instant::now() < deadline, "{}", server.log());
        thread::sleep(Duration::from_millis(20));
    }
}

fn resident(server: &Server) -> u64 {
    status(server, "VmRSS:")
}

/// Bytes that the kernel tells of a process.
fn status(server: &Server, what: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it runs");
    let line = text.lines().find_map(|line| line.strip_prefix(what)).expect("as documented");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
}

/// Processor time of all threads of a process.
fn processor_time(server: &Server) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", server.id())).expect("it runs");
    let nanoseconds = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}
