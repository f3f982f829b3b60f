//! A worker: one thread, one current-thread runtime, the connections it accepted, and the memory
//! that they use in turn.

use std::{
    cell::{Cell, RefCell, RefMut},
    io,
    net::SocketAddr,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::LocalSet,
};

use super::{Settings, arrival, connection::WriteScratch, hub::Hub, session::Run};
use crate::{metrics::WorkerCounters, relay::limit::TokenBucket};

/// How long accepting rests when the system has no descriptor or memory for another connection.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// What all workers share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) hub: Arc<Hub>,
    pub(super) accept_bucket: Option<Mutex<TokenBucket>>,
    pub(super) stop: watch::Receiver<bool>,
}

/// One worker's view of the server.
pub(super) struct Worker {
    shared: Arc<Shared>,
    counters: Arc<[WorkerCounters]>,
    index: usize,
    scratch: RefCell<Scratch>,
    random: Cell<u64>,
}

/// Memory that every quantum of the worker uses anew.
#[derive(Default)]
pub(super) struct Scratch {
    /// Socket bytes as read.
    pub(super) received: Vec<u8>,
    /// The DERP bytes in them.
    pub(super) plain: Vec<u8>,
    /// Where they go.
    pub(super) runs: Vec<Run>,
    /// The ranges that go to one destination.
    pub(super) ranges: Vec<Range<usize>>,
    /// For writing to one destination.
    pub(super) write: WriteScratch,
}

impl Scratch {
    /// At least `length` bytes to read into.
    pub(super) fn received(&mut self, length: usize) -> &mut [u8] {
        if self.received.len() < length {
            self.received.resize(length, 0);
        }
        &mut self.received[..length]
    }
}

impl Worker {
    pub(super) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.shared.hub
    }

    /// This worker's counters; no other thread writes them.
    pub(super) fn counters(&self) -> &WorkerCounters {
        &self.counters[self.index]
    }

    /// The memory of the quantum that is running. Never held across an await.
    pub(super) fn scratch(&self) -> RefMut<'_, Scratch> {
        self.scratch.borrow_mut()
    }

    /// A number in [0, 1) to spread timers with (xorshift64).
    pub(super) fn random_fraction(&self) -> f64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Runs worker `index` on the calling thread until the server stops.
///
/// # Errors
///
/// If the runtime cannot be built or the listener not be registered with it.
pub(super) fn run(
    shared: Arc<Shared>,
    counters: Arc<[WorkerCounters]>,
    index: usize,
    listener: std::net::TcpListener,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut stop = shared.stop.clone();
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    let worker = Rc::new(Worker {
        shared,
        counters,
        index,
        scratch: RefCell::default(),
        random: Cell::new(u64::from_ne_bytes(seed) | 1),
    });
    LocalSet::new().block_on(&runtime, async move {
        let listener = TcpListener::from_std(listener)?;
        tokio::select! {
            _ = stop.wait_for(|&stop| stop) => Ok(()),
            () = accept_all(&worker, &listener) => Ok(()),
        }
    })
}

async fn accept_all(worker: &Rc<Worker>, listener: &TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => accept(worker, stream, remote),
            // The client gave up while it waited to be accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::warn!("accept: {error}");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

fn accept(worker: &Rc<Worker>, stream: TcpStream, remote: SocketAddr) {
    let allowed = worker
        .shared
        .accept_bucket
        .as_ref()
        .is_none_or(|bucket| bucket.lock().take(std::time::Instant::now()));
    if !allowed {
        worker.counters().tls_rejected.increment();
        return;
    }
    worker.counters().tls_accepted.increment();
    // Only a hint; a connection without it works.
    let _ = stream.set_nodelay(true);
    tokio::task::spawn_local(arrival::serve(Rc::clone(worker), stream, remote));
}
