//! Two clients that exchange a packet every 10 ms, in threads of their own, and how long each takes.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustls_pki_types::ServerName;

use crate::{
    netns::spawn_in,
    peer::{Event, Peer, RECV_PACKET, Wire, random_secret, send_packet},
    relay::Relay,
};

const INTERVAL: Duration = Duration::from_millis(10);
const LENGTH: usize = 200;
const INFO: &str = r#"{"version":2,"CanAckPings":true}"#;

/// Logs a client in, as often as it takes: connections also fail when many come at once.
pub(crate) fn log_in() -> Peer {
    let address = Relay::tls_address();
    let name = ServerName::IpAddress(address.ip().into());
    let wire = Wire::connect_to(address, name, None).expect("the relay listens");
    Peer::log_in(wire, random_secret(), INFO)
}

/// The pair, at work until it is dropped.
pub(crate) struct Probe {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    rests: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    delays: Mutex<Vec<Duration>>,
}

impl Probe {
    /// How many connections it has.
    pub(crate) const CONNECTIONS: usize = 2;

    /// Connects both from a namespace.
    pub(crate) fn start(namespace: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let begun = Instant::now();
        let mut receiver = spawn_in(namespace, log_in).join().expect("logged in");
        let mut sender = spawn_in(namespace, log_in).join().expect("logged in");
        let key = receiver.key();
        let sends = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.ends.load(Relaxed) {
                    thread::sleep(INTERVAL);
                    if shared.rests.load(Relaxed) {
                        continue;
                    }
                    let mut packet = (begun.elapsed().as_nanos() as u64).to_be_bytes().to_vec();
                    packet.resize(LENGTH, 0);
                    sender.wire.write(&send_packet(&key, &packet));
                    shared.sent.fetch_add(1, Relaxed);
                }
            })
        };
        let receives = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                while !shared.ends.load(Relaxed) {
                    match receiver.wire.event(Duration::from_millis(100)) {
                        Event::Frame(frame) if frame.kind == RECV_PACKET => {
                            let sent = frame.payload[32..].first_chunk().expect("as it was sent");
                            let sent = Duration::from_nanos(u64::from_be_bytes(*sent));
                            shared.received.fetch_add(1, Relaxed);
                            shared.delays().push(begun.elapsed().saturating_sub(sent));
                        }
                        Event::Frame(_) | Event::Silence => {}
                        Event::Closed => {
                            panic!("the relay has closed the steady pair's connection")
                        }
                    }
                }
            })
        };
        Self { shared, threads: vec![sends, receives] }
    }

    /// Sends nothing, or goes on.
    pub(crate) fn rest(&self, rests: bool) {
        self.shared.rests.store(rests, Relaxed);
    }

    /// Packets sent and received.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.sent.load(Relaxed), self.shared.received.load(Relaxed))
    }

    /// Half and 99 % of the packets since the last call took no longer than this. `None` if there were none.
    pub(crate) fn delays(&self) -> Option<(Duration, Duration)> {
        let mut delays = std::mem::take(&mut *self.shared.delays());
        delays.sort_unstable();
        let at = |percent: usize| delays.get(delays.len() * percent / 100).copied();
        Some((at(50)?, at(99)?))
    }
}

impl Shared {
    fn delays(&self) -> std::sync::MutexGuard<'_, Vec<Duration>> {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // That it panicked shows in the counts, too.
            let _ = thread.join();
        }
    }
}
