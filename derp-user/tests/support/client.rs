//! STUN clients on real sockets, and the two namespaces they and the server live in.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use derp_user::dataplane::{AttachedMode, Kernel};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use crate::{
    kernel,
    netns::{CLIENT_INTERFACE, CLIENT4, CLIENT6, Namespaces, SERVER4, SERVER6, run_in},
    packets::{STUN_PORT, attribute, message, success, with_fingerprint},
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Client and server address of each family.
pub(crate) const BOTH: [(&str, &str); 2] = [(CLIENT4, SERVER4), (CLIENT6, SERVER6)];

/// Two joined namespaces with a program on the client's end, which native XDP on veth needs to have its
/// frames received. A program that nobody has configured passes everything.
pub(crate) fn environment(test: &str) -> Option<(Namespaces, Kernel)> {
    let mut client_end = kernel::load(test)?;
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            kernel::skip(test, &reason);
            return None;
        }
    };
    let client_end = run_in(&namespaces.client, move || {
        client_end.attach(CLIENT_INTERFACE, AttachedMode::Native).expect("client's end");
        client_end
    });
    Some((namespaces, client_end))
}

/// A client's socket, connected to the server.
pub(crate) fn connect(from: &str, to: &str) -> UdpSocket {
    let address = |ip: &str, port| SocketAddr::new(ip.parse::<IpAddr>().expect("address"), port);
    let socket = UdpSocket::bind(address(from, 0)).expect("client socket");
    socket.connect(address(to, STUN_PORT)).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

fn transaction(number: u64) -> [u8; 12] {
    let mut transaction = [0x5a; 12];
    transaction[..8].copy_from_slice(&number.to_be_bytes());
    transaction
}

/// The request of a Tailscale client with this transaction. (A bare one has to grow by 12 bytes, for
/// which veth's frames often have no room; userspace then answers it.)
pub(crate) fn request(number: u64) -> Vec<u8> {
    let mut bare = message(0x0001, &[attribute(0x8022, b"tailnode")]);
    bare[8..20].copy_from_slice(&transaction(number));
    with_fingerprint(bare)
}

/// Sends one request and checks its answer.
pub(crate) fn ask(socket: &UdpSocket, number: u64) {
    socket.send(&request(number)).expect("send");
    let mut buffer = [0; 100];
    let length = socket.recv(&mut buffer).expect("an answer");
    check(socket, &buffer[..length], number);
}

fn check(socket: &UdpSocket, answer: &[u8], number: u64) {
    let local = socket.local_addr().expect("local address");
    assert_eq!(answer, success(&transaction(number), local.ip(), local.port()));
}

/// Sends at a rate, from each pair of addresses in turn, and checks that every request is answered, in
/// order. Returns how many there were.
pub(crate) fn load(rate: u64, duration: Duration, pairs: &[(&str, &str)]) -> u64 {
    // More would overflow the 256 places of a veth queue when the machine is busy elsewhere.
    const IN_FLIGHT: u64 = 128;
    let sockets: Vec<_> = pairs.iter().map(|(from, to)| connect(from, to)).collect();
    let pairs = pairs.len() as u64;
    for socket in &sockets {
        socket.set_nonblocking(true).expect("nonblocking");
        setsockopt(socket, RcvBufForce, &(8 << 20)).expect("receive buffer");
    }
    let total = rate * duration.as_secs();
    let start = Instant::now();
    let (mut sent, mut last_answer) = (0, Instant::now());
    let mut answered = vec![0; sockets.len()];
    let mut buffer = [0; 100];
    while answered.iter().sum::<u64>() < total {
        let due = (start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000) as u64;
        let received: u64 = answered.iter().sum();
        while sent < due.min(total) && sent - received < IN_FLIGHT {
            sockets[(sent % pairs) as usize].send(&request(sent)).expect("send");
            sent += 1;
        }
        for (index, socket) in sockets.iter().enumerate() {
            loop {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        check(socket, &buffer[..length], answered[index] * pairs + index as u64);
                        answered[index] += 1;
                        last_answer = Instant::now();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("receive: {error}"),
                }
            }
        }
        assert!(
            last_answer.elapsed() < PATIENCE,
            "{sent} requests sent, {answered:?} answered, then nothing"
        );
        if sent >= due {
            thread::sleep(Duration::from_micros(200));
        }
    }
    println!("{total} requests in {:?}", start.elapsed());
    total
}
