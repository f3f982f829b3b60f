//! A client that reads too slowly for what it is sent, so that packets wait for it and the oldest are dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::SockRef;

use crate::{
    netns::spawn_in,
    peer::{Event, Peer, RECV_PACKET},
    probe::log_in,
};

/// What it is sent at once: more than its socket and its queue take.
const BURST: u64 = 1000;
const LENGTH: usize = 1400;
/// Of its socket. With less than a cable's longest frame the system would give the connection up.
const BUFFER: usize = 64 << 10;
/// Between two bursts, and how long it does not read after each.
const PAUSE: Duration = Duration::from_millis(700);
const SLEEP: Duration = Duration::from_millis(200);
/// After this without a packet it goes on.
const SILENCE: Duration = Duration::from_millis(300);

/// The client and the one that sends to it, at work until dropped.
pub(crate) struct Laggard {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    rests: AtomicBool,
    is_resting: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Laggard {
    /// How many connections it has.
    pub(crate) const CONNECTIONS: usize = 2;

    /// Connects both from a namespace.
    pub(crate) fn start(namespace: &str) -> Self {
        let shared = Arc::<Shared>::default();
        let receiver = spawn_in(namespace, log_in).join().expect("logged in");
        SockRef::from(receiver.wire.socket()).set_recv_buffer_size(BUFFER).expect("a legal size");
        let sender = spawn_in(namespace, log_in).join().expect("logged in");
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || lag(&shared, sender, receiver)
        });
        Self { shared, thread: Some(thread) }
    }

    /// Sends nothing, or goes on.
    pub(crate) fn rest(&self, rests: bool) {
        self.shared.rests.store(rests, Relaxed);
    }

    pub(crate) fn is_resting(&self) -> bool {
        self.shared.is_resting.load(Relaxed)
    }

    /// Packets sent and received.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.shared.sent.load(Relaxed), self.shared.received.load(Relaxed))
    }

    /// Whether it has come to an untimely end.
    pub(crate) fn has_failed(&self) -> bool {
        self.thread.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

fn lag(shared: &Shared, mut sender: Peer, mut receiver: Peer) {
    let to = receiver.key();
    let (mut next, mut expected) = (0_u64, 0);
    while !shared.ends.load(Relaxed) {
        let rests = shared.rests.load(Relaxed);
        shared.is_resting.store(rests, Relaxed);
        if !rests {
            for _ in 0..BURST {
                let mut packet = next.to_be_bytes().to_vec();
                packet.resize(LENGTH, 0);
                sender.send(&to, &packet);
                shared.sent.fetch_add(1, Relaxed);
                next += 1;
            }
            // The relay has taken all of them then.
            sender.round_trip();
            thread::sleep(SLEEP);
        }
        // At rest as well: what the system has to send again comes later and later.
        loop {
            let frame = match receiver.wire.event(SILENCE) {
                Event::Frame(frame) => frame,
                Event::Silence => break,
                Event::Closed => panic!("the relay has closed the laggard's connection"),
            };
            if frame.kind == RECV_PACKET {
                let number = frame.payload[32..].first_chunk().expect("as it was sent");
                let number = u64::from_be_bytes(*number);
                assert!(number >= expected, "packet {number} comes late");
                expected = number + 1;
                shared.received.fetch_add(1, Relaxed);
            }
        }
        thread::sleep(PAUSE);
    }
}

impl Drop for Laggard {
    fn drop(&mut self) {
        self.shared.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "the laggard has panicked");
        }
    }
}
