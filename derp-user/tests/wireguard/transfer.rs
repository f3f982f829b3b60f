//! What goes through the tunnels: numbered bytes by TCP, and single packets.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{PATIENCE, netns::spawn_in, peer::Peer};

/// Where peers listen, in the tunnel: these plus the number of the other one.
const TCP_PORT: u16 = 7000;
const UDP_PORT: u16 = 8000;
/// Bytes written and compared at a time.
const PIECE: usize = 64 << 10;

/// A peer, however it was set up.
pub(crate) trait End {
    /// From 1 on. It makes its address in the tunnel.
    fn number(&self) -> usize;
    fn namespace(&self) -> &str;
}

/// Two streams between two peers, one each way, of contents that each end knows.
pub(crate) struct Transfer {
    bytes: u64,
    /// Bytes that have arrived and been compared, at both ends together.
    received: Arc<AtomicU64>,
    ends: Vec<JoinHandle<()>>,
}

impl Transfer {
    /// Starts sending so many bytes each way.
    pub(crate) fn start(from: &Peer, to: &Peer, ipv6: bool, bytes: u64) -> Self {
        let received = Arc::new(AtomicU64::new(0));
        let address = SocketAddr::new(address(to.number, ipv6), port(TCP_PORT, from));
        let deadline = Instant::now() + PATIENCE;
        let accepting = {
            let received = Arc::clone(&received);
            spawn_in(&to.namespace, move || {
                let listener = TcpListener::bind(address).expect("a listener in the tunnel");
                listener.set_nonblocking(true).expect("nonblocking");
                let stream = until(deadline, || match listener.accept() {
                    Ok((stream, _)) => Some(stream),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                    Err(error) => panic!("{error}"),
                });
                stream.set_nonblocking(false).expect("blocking");
                talk(&stream, [2, 1], bytes, &received);
            })
        };
        let connecting = {
            let received = Arc::clone(&received);
            spawn_in(&from.namespace, move || {
                let timeout = Duration::from_secs(5);
                let stream = until(deadline, || TcpStream::connect_timeout(&address, timeout).ok());
                talk(&stream, [1, 2], bytes, &received);
            })
        };
        Self { bytes, received, ends: vec![accepting, connecting] }
    }

    /// Waits until this share of everything, in percent, has arrived.
    pub(crate) fn wait_for(&self, percent: u64) {
        let deadline = Instant::now() + PATIENCE;
        let wanted = 2 * self.bytes * percent / 100;
        while self.received.load(Relaxed) < wanted {
            let left = self.ends.iter().filter(|end| !end.is_finished()).count();
            assert!(left > 0, "the streams have ended early");
            assert!(Instant::now() < deadline, "{} bytes", self.received.load(Relaxed));
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until everything has arrived as it was sent.
    pub(crate) fn finish(self) {
        for end in self.ends {
            if let Err(panic) = end.join() {
                std::panic::resume_unwind(panic);
            }
        }
        assert_eq!(self.received.load(Relaxed), 2 * self.bytes);
    }
}

/// Sends one stream and receives the other; `seeds` are those of what is sent and what is expected.
fn talk(stream: &TcpStream, [sent, expected]: [u64; 2], bytes: u64, received: &AtomicU64) {
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
    thread::scope(|scope| {
        scope.spawn(|| send(stream, sent, bytes));
        receive(stream, expected, bytes, received);
    });
}

fn send(mut stream: &TcpStream, seed: u64, bytes: u64) {
    let mut contents = Contents::new(seed);
    let mut left = usize::try_from(bytes).expect("it fits");
    while left > 0 {
        let piece = contents.next(left.min(PIECE));
        stream.write_all(piece).expect("the tunnel takes what is sent");
        left -= piece.len();
    }
}

fn receive(mut stream: &TcpStream, seed: u64, bytes: u64, received: &AtomicU64) {
    let mut contents = Contents::new(seed);
    let mut left = usize::try_from(bytes).expect("it fits");
    let mut buffer = vec![0; PIECE];
    while left > 0 {
        let length = left.min(PIECE);
        let piece = &mut buffer[..length];
        stream.read_exact(piece).expect("everything arrives");
        assert!(*piece == *contents.next(length), "{left} bytes before the end, it has changed");
        left -= length;
        received.fetch_add(length as u64, Relaxed);
    }
}

/// Bytes that follow from a seed (xorshift64), a piece at a time.
struct Contents {
    state: u64,
    piece: Vec<u8>,
}

impl Contents {
    fn new(seed: u64) -> Self {
        Self { state: seed, piece: vec![0; PIECE] }
    }

    fn next(&mut self, length: usize) -> &[u8] {
        for word in self.piece.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        &self.piece[..length]
    }
}

/// A port for each sender, as many of them may have the same receiver.
fn port(first: u16, from: &impl End) -> u16 {
    first + u16::try_from(from.number()).expect("few peers")
}

/// The address of the peer with this number in its tunnel.
fn address(number: usize, ipv6: bool) -> IpAddr {
    let text = if ipv6 { format!("fd99::{number}") } else { format!("10.99.0.{number}") };
    text.parse().expect("an address")
}

fn until<T>(deadline: Instant, mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "no way through the tunnel");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Sends datagrams that make packets of exactly `mtu` bytes in the tunnel, and checks that one comes back as it was.
pub(crate) fn echo(from: &impl End, to: &impl End, ipv6: bool, mtu: u16) {
    let headers = if ipv6 { 48 } else { 28 };
    let size = usize::from(mtu) - headers;
    let bind = |ip: IpAddr, port| {
        let socket = UdpSocket::bind((ip, port)).expect("a socket in the tunnel");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        socket
    };
    let (here, there) = (address(from.number(), ipv6), address(to.number(), ipv6));
    let deadline = Instant::now() + PATIENCE;
    let port = port(UDP_PORT, from);
    let done = Arc::new(AtomicBool::new(false));
    let echoing = {
        let done = Arc::clone(&done);
        spawn_in(to.namespace(), move || {
            let socket = bind(there, port);
            let mut buffer = [0; 2048];
            while !done.load(Relaxed) && Instant::now() < deadline {
                if let Ok((length, source)) = socket.recv_from(&mut buffer) {
                    // The way back may not be there yet.
                    let _ = socket.send_to(&buffer[..length], source);
                }
            }
        })
    };
    let names = format!("from peer {} to {}, IPv6 {ipv6}, {mtu} bytes", from.number(), to.number());
    let asking = spawn_in(from.namespace(), move || {
        let socket = bind(here, 0);
        let packet: Vec<u8> = (0..size).map(|index| (index % 251) as u8).collect();
        let mut buffer = [0; 2048];
        loop {
            // Refused as long as the tunnel has no session, or nobody listens.
            let _ = socket.send_to(&packet, (there, port));
            if let Ok(length) = socket.recv(&mut buffer) {
                assert!(buffer[..length] == *packet, "it has changed");
                return;
            }
            assert!(Instant::now() < deadline, "nothing comes back {names}");
            thread::sleep(Duration::from_millis(20));
        }
    });
    let asked = asking.join();
    done.store(true, Relaxed);
    echoing.join().expect("the echo");
    if let Err(panic) = asked {
        std::panic::resume_unwind(panic);
    }
}
