//! What relaying WireGuard costs, over a veth pair. Not a test but a measurement, `cargo xtask bench --wireguard`:
//! `cargo test --release --test wireguard_cost -- --ignored --nocapture`. What is measured, and which variables of the
//! environment change it, is said in `support/cost.rs`.
//!
//! Handshakes are real, and go by way of the relay; the data that is then measured only has their indices, as a relay
//! cannot tell.

#[path = "support/cost.rs"]
mod cost;
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
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use aya::programs::loaded_programs;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use derp_user::dataplane::{AttachedMode, Kernel};
use tempfile::TempDir;

use crate::{
    cost::{
        AtWork, Comparison, Contestant, Flow, Started, accept_native_xdp, address, client_socket,
        task_time,
    },
    lab::Daemon,
    netns::{Namespaces, SERVER_INTERFACE, SERVER4, run_in},
    party::{Host, Keys, shake_hands},
};

const PORT: u16 = 51_820;
/// Bytes of a WireGuard data message around the packet in it.
const OVERHEAD: usize = 32;

/// A small packet, and what fills tunnels with MTUs of 1280 and 1420.
const COMPARISON: Comparison = Comparison {
    port: PORT,
    sizes: &[128, 1280 + OVERHEAD, 1420 + OVERHEAD],
    contestants: &[
        Contestant { name: "recvfrom/sendto", start: plain },
        Contestant { name: "userspace", start: userspace },
        Contestant { name: "kernel, generic", start: kernel_generic },
        Contestant { name: "kernel, native", start: kernel_native },
    ],
};

/// Two peers of each other that reach each other by way of the relay.
struct Pair {
    keys: [Keys; 2],
    hosts: [Host; 2],
}

fn plain(namespaces: &Namespaces, count: usize) -> Started {
    let pairs = pairs(namespaces, count);
    let ends = |pair: &Pair| pair.hosts.each_ref().map(|host| address(&host.socket));
    let relay = cost::plain(namespaces, PORT, pairs.iter().map(ends));
    (Box::new(relay), establish(pairs))
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

fn userspace(namespaces: &Namespaces, count: usize) -> Started {
    derpd(namespaces, count, None)
}

fn kernel_generic(namespaces: &Namespaces, count: usize) -> Started {
    derpd(namespaces, count, Some(AttachedMode::Generic))
}

fn kernel_native(namespaces: &Namespaces, count: usize) -> Started {
    derpd(namespaces, count, Some(AttachedMode::Native))
}

fn derpd(namespaces: &Namespaces, count: usize, mode: Option<AttachedMode>) -> Started {
    let is_native = mode == Some(AttachedMode::Native);
    let client_end = is_native.then(|| accept_native_xdp(namespaces));
    let directory = TempDir::new().expect("a directory");
    let interface = format!("-xdp-interface={SERVER_INTERFACE}");
    let flags: &[&str] = match mode {
        None => &["-xdp-mode=off"],
        Some(AttachedMode::Generic) => &[&interface, "-xdp-mode=generic"],
        Some(AttachedMode::Native) => &[&interface, "-xdp-mode=native"],
    };
    let before = program_ids();
    let pairs = pairs(namespaces, count);
    let configuration = configuration(&pairs, directory.path());
    let daemon = Daemon::start(&namespaces.server, directory.path(), &configuration, flags);
    let flows = establish(pairs);
    let programs = program_ids().difference(&before).copied().collect();
    let relay = Derpd { daemon, programs, _client_end: client_end, _directory: directory };
    (Box::new(relay), flows)
}

/// One network of so many pairs, whose addresses are configured: so many strangers at one address would be slowed down.
fn configuration(pairs: &[Pair], directory: &Path) -> String {
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

/// Gives each pair a session; returns the direction of each that is measured.
fn establish(pairs: Vec<Pair>) -> Vec<Flow> {
    let flow = |pair: Pair| {
        let [mut a, mut b] = pair.hosts;
        shake_hands((&mut a, 0), (&mut b, 0));
        let header = a.sealed(0, &[])[..8].to_vec();
        Flow { sender: a.socket, receiver: b.socket, header }
    };
    pairs.into_iter().map(flow).collect()
}

/// Pairs of peers, each with a socket of its own.
fn pairs(namespaces: &Namespaces, count: usize) -> Vec<Pair> {
    let sockets = run_in(&namespaces.client, move || {
        (0..count).map(|_| [client_socket(), client_socket()]).collect::<Vec<_>>()
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

#[test]
#[ignore = "a measurement, for a quiet machine"]
fn cost_of_relaying_wireguard() {
    COMPARISON.run("cost of relaying WireGuard");
}
