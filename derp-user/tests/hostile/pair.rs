//! Two clients that mean well: one sends numbered packets to the other, which notes how long each took.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    peer::{Event, Peer, RECV_PACKET, send_packet},
    server::Server,
};

/// Between two packets: what a call or a remote terminal sends.
const INTERVAL: Duration = Duration::from_millis(5);
const LENGTH: usize = 200;
/// A packet that has not come after this is lost.
const LATEST: Duration = Duration::from_secs(5);

/// How two clients fared for a while.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fare {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) median: Duration,
    /// 99 % of packets took no longer.
    pub(crate) p99: Duration,
}

impl Fare {
    /// Lost packets of a hundred.
    pub(crate) fn loss(&self) -> f64 {
        self.lost as f64 * 100.0 / self.sent.max(1) as f64
    }
}

enum Received {
    Packet(Vec<u8>),
    Nothing,
    End,
}

/// The pair, at work until it is dropped.
pub(crate) struct Pair {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    sent: AtomicU64,
    received: Mutex<Vec<(u64, Duration)>>,
}

impl Pair {
    pub(crate) fn start(server: &Server) -> Self {
        Self::of(Peer::connect(server), Peer::connect(server))
    }

    /// A pair of clients that are connected already.
    pub(crate) fn of(mut sender: Peer, mut receiver: Peer) -> Self {
        let key = receiver.key();
        let send = move |packet: &[u8]| sender.wire.try_write(&send_packet(&key, packet)).is_ok();
        let receive = move |patience| match receiver.wire.event(patience) {
            Event::Frame(frame) if frame.kind == RECV_PACKET => {
                Received::Packet(frame.payload[32..].to_vec())
            }
            Event::Frame(_) | Event::Silence => Received::Nothing,
            Event::Closed => Received::End,
        };
        Self::with(send, receive)
    }

    /// The same packets by a connection without a relay: what this machine does to them at the moment.
    pub(crate) fn without_relay() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let mut sender = TcpStream::connect(address).expect("it listens");
        sender.set_nodelay(true).expect("a socket");
        let (mut receiver, _) = listener.accept().expect("it was connected to");
        let mut received = Vec::new();
        let receive = move |patience| {
            receiver.set_read_timeout(Some(patience)).expect("a non-zero timeout");
            let mut buffer = [0; LENGTH];
            if received.len() < LENGTH {
                match receiver.read(&mut buffer) {
                    Ok(0) => return Received::End,
                    Ok(count) => received.extend_from_slice(&buffer[..count]),
                    Err(_) => return Received::Nothing,
                }
            }
            if received.len() < LENGTH {
                return Received::Nothing;
            }
            Received::Packet(received.drain(..LENGTH).collect())
        };
        Self::with(move |packet: &[u8]| sender.write_all(packet).is_ok(), receive)
    }

    fn with(
        mut send: impl FnMut(&[u8]) -> bool + Send + 'static,
        mut receive: impl FnMut(Duration) -> Received + Send + 'static,
    ) -> Self {
        let (shared, begun) = (Arc::<Shared>::default(), Instant::now());
        let sends = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.ends.load(Ordering::Relaxed) {
                    let number = shared.sent.load(Ordering::Relaxed);
                    let mut packet = number.to_be_bytes().to_vec();
                    packet.extend((begun.elapsed().as_nanos() as u64).to_be_bytes());
                    packet.resize(LENGTH, 0);
                    // What could not be sent counts as lost.
                    send(&packet);
                    shared.sent.store(number + 1, Ordering::Relaxed);
                    thread::sleep(INTERVAL);
                }
            })
        };
        let receives = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.ends.load(Ordering::Relaxed) {
                    match receive(Duration::from_millis(100)) {
                        Received::Packet(packet) => {
                            let now = begun.elapsed();
                            let number = |at: usize| {
                                let bytes = packet.get(at..).and_then(<[u8]>::first_chunk);
                                u64::from_be_bytes(*bytes.expect("as sent"))
                            };
                            let delay = now.saturating_sub(Duration::from_nanos(number(8)));
                            let mut received = shared.received.lock().expect("no holder panics");
                            received.push((number(0), delay));
                        }
                        Received::Nothing => {}
                        Received::End => return,
                    }
                }
            })
        };
        Self { shared, threads: vec![sends, receives] }
    }

    /// The number of the next packet.
    pub(crate) fn now(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How the packets from number `from` to the one before `to` fared.
    pub(crate) fn fare(&self, from: u64, to: u64) -> Fare {
        let deadline = Instant::now() + LATEST;
        loop {
            let received = self.shared.received.lock().expect("no holder panics");
            let of_these = received.iter().filter(|(number, _)| (from..to).contains(number));
            let mut delays: Vec<Duration> = of_these.map(|&(_, delay)| delay).collect();
            drop(received);
            let lost = (to - from) - delays.len() as u64;
            if lost > 0 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            delays.sort_unstable();
            let at = |share: f64| {
                let index = (delays.len() as f64 * share) as usize;
                delays.get(index).or(delays.last()).copied().unwrap_or(LATEST)
            };
            return Fare { sent: to - from, lost, median: at(0.5), p99: at(0.99) };
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // That it panicked shows as loss.
            let _ = thread.join();
        }
    }
}
