//! A worker: one thread, one current-thread runtime, the connections it accepted, and the memory
//! that they use in turn.

use std::{
    cell::{Cell, RefCell, RefMut},
    convert::Infallible,
    io,
    net::SocketAddr,
    ops::Range,
    rc::Rc,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_executor::LocalExecutor;
use parking_lot::Mutex;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{LocalSet, coop, spawn_local, yield_now},
    time::MissedTickBehavior,
};

use super::{
    Phase, Settings, arrival,
    connection::WriteScratch,
    crowd::Ticket,
    hub::Hub,
    life,
    placement::{self, Staffing},
    processor_time::{Meter, ThreadClock},
    reclaim::{self, Reclaim, Step},
    session::{Run, Session},
};
use crate::{
    metrics::WorkerCounters,
    relay::{ConnectionId, limit::TokenBucket},
};

/// How long accepting rests when the system has no descriptor or memory for another connection.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// How many connections are accepted before sessions have a turn again.
const ACCEPTED_AT_ONCE: u64 = 4;

/// How long all connections that arrive may compute together before the sockets of sessions are looked at again: a little more
/// than the longest step of a login.
const ARRIVALS_TURN: Duration = Duration::from_micros(200);

/// How often the load and the number of connections are looked at.
const HOUSEKEEPING_PERIOD: Duration = Duration::from_millis(250);

/// What all workers share.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) hub: Arc<Hub>,
    pub(super) accept_bucket: Option<Mutex<TokenBucket>>,
    pub(super) phase: watch::Receiver<Phase>,
    /// How many workers are in use: the first so many.
    pub(super) active: Arc<AtomicUsize>,
    /// One per worker.
    pub(super) desks: Box<[Desk]>,
}

/// Where others find a worker.
pub(super) struct Desk {
    pub(super) inbox: mpsc::UnboundedSender<Message>,
    pub(super) clock: OnceLock<ThreadClock>,
}

/// What one worker has for another. Each connection is in one inbox at the most.
pub(super) enum Message {
    /// A connection that has only been accepted.
    Stranger(Stranger<std::net::TcpStream>),
    /// A connection whose client has logged in.
    Session(Box<Session>),
    /// A wish, once after a crowd has left: [`reclaim::empty_cache`].
    EmptyCache,
}

/// An accepted connection of which nothing is known yet.
pub(super) struct Stranger<S> {
    pub(super) id: ConnectionId,
    pub(super) remote: SocketAddr,
    pub(super) stream: S,
    pub(super) ticket: Ticket,
}

/// One worker's view of the server.
pub(super) struct Worker {
    shared: Arc<Shared>,
    counters: Arc<[WorkerCounters]>,
    index: usize,
    scratch: RefCell<Scratch>,
    random: Cell<u64>,
}

/// The connections of a worker that are not sessions yet, one task each. They run in turn with the sessions, not among them.
type Arrivals = LocalExecutor<'static>;

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
    /// The frames that go to one mesh peer.
    pub(super) forwarded: Vec<u8>,
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

    /// Another worker that connection `id` belongs to, now that so many are in use.
    pub(super) fn other_home(&self, id: ConnectionId) -> Option<usize> {
        let home = placement::home(id, self.shared.active.load(Ordering::Relaxed));
        (home != self.index).then_some(home)
    }

    /// Lets a connection in, if there may be another one; what comes of it is counted and logged.
    pub(super) fn let_in(&self, id: ConnectionId, remote: SocketAddr) -> Option<Ticket> {
        let (complaint, ticket) = match self.hub().door.enter(id, remote.ip()) {
            Ok((ticket, false)) => return Some(ticket),
            Ok((ticket, true)) => {
                self.counters().arrivals_evicted.increment();
                let complaint = "too many connections that do not log in (-arrival-limit): the oldest are closed";
                (complaint.to_owned(), Some(ticket))
            }
            Err(crowded) => {
                self.counters().connections_refused.increment();
                (format!("{crowded}: no more from {}", remote.ip()), None)
            }
        };
        if let Some(suffix) = self.hub().crowding.suffix(Instant::now()) {
            tracing::warn!("derp: {complaint}{suffix}");
        }
        ticket
    }

    /// Leaves a message for worker `place`; whether that worker is still there to take it.
    pub(super) fn send(&self, place: usize, message: Message) -> bool {
        self.shared.desks[place].inbox.send(message).is_ok()
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

/// Runs worker `index` on the calling thread until the server stops. The first worker accepts the
/// connections of all.
///
/// # Errors
///
/// If the runtime cannot be built or the listener not be registered with it.
pub(super) fn run(
    shared: Arc<Shared>,
    counters: Arc<[WorkerCounters]>,
    index: usize,
    mut inbox: mpsc::UnboundedReceiver<Message>,
    listener: Option<std::net::TcpListener>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut phase = shared.phase.clone();
    let mut seed = [0; 8];
    getrandom::fill(&mut seed).map_err(io::Error::other)?;
    shared.desks[index].clock.get_or_init(ThreadClock::of_this_thread);
    let worker = Rc::new(Worker {
        shared,
        counters,
        index,
        scratch: RefCell::default(),
        random: Cell::new(u64::from_ne_bytes(seed) | 1),
    });
    let tasks = LocalSet::new();
    let result = tasks.block_on(&runtime, async {
        let listener = listener.map(TcpListener::from_std).transpose()?;
        let arrivals = Arrivals::new();
        let first = async {
            if let Some(listener) = listener {
                tokio::join!(
                    accept_until_drained(&worker, &arrivals, listener),
                    keep_house(&worker)
                );
            }
        };
        tokio::select! {
            _ = phase.wait_for(|&phase| phase == Phase::Stopping) => {}
            _ = async { tokio::join!(take_in(&worker, &arrivals, &mut inbox), first) } => {}
            never = attend(&arrivals) => match never {},
        }
        Ok(())
    });
    drop(tasks);
    inbox.close();
    // Waits for those that are just being sent.
    while let Some(message) = inbox.blocking_recv() {
        if let Message::Session(session) = message {
            life::abandon(*session, Rc::clone(&worker));
        }
    }
    result
}

/// Runs what arrives. However many do, sessions wait for no more than [`ARRIVALS_TURN`], and the one step that is then
/// being done, until their sockets are looked at.
async fn attend(arrivals: &Arrivals) -> Infallible {
    loop {
        arrivals.tick().await;
        let begun = Instant::now();
        while begun.elapsed() < ARRIVALS_TURN && coop::has_budget_remaining() && arrivals.try_tick()
        {
        }
        // Comes back when the sockets have been looked at.
        yield_now().await;
    }
}

/// Accepts connections for as long as the server does, and closes the listener then.
async fn accept_until_drained(worker: &Rc<Worker>, arrivals: &Arrivals, listener: TcpListener) {
    let mut phase = worker.shared.phase.clone();
    tokio::select! {
        () = accept_all(worker, arrivals, &listener) => {}
        _ = phase.wait_for(|&phase| phase >= Phase::Draining) => {}
    }
}

async fn accept_all(worker: &Rc<Worker>, arrivals: &Arrivals, listener: &TcpListener) {
    for count in 1_u64.. {
        if count.is_multiple_of(ACCEPTED_AT_ONCE) {
            // Sessions have a turn, also when more come without pause.
            yield_now().await;
        }
        match listener.accept().await {
            Ok((stream, remote)) => {
                // A listener for both families shows IPv4 addresses as IPv6 ones.
                let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
                accept(worker, arrivals, stream, remote);
            }
            // The client gave up while it waited to be accepted.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                worker.counters().accept_failures.increment();
                if let Some(suffix) = worker.hub().accept_faults.suffix(Instant::now()) {
                    tracing::warn!("accept: {error}{suffix}");
                }
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

fn accept(worker: &Rc<Worker>, arrivals: &Arrivals, stream: TcpStream, remote: SocketAddr) {
    let allowed = worker
        .shared
        .accept_bucket
        .as_ref()
        .is_none_or(|bucket| bucket.lock().take(Instant::now()));
    if !allowed {
        worker.counters().tls_rejected.increment();
        return;
    }
    let id = worker.hub().next_id();
    let Some(ticket) = worker.let_in(id, remote) else { return };
    worker.counters().tls_accepted.increment();
    // Only a hint; a connection without it works.
    let _ = stream.set_nodelay(true);
    let Some(place) = worker.other_home(id) else {
        let stranger = Stranger { id, remote, stream, ticket };
        arrivals.spawn(arrival::serve(Rc::clone(worker), stranger)).detach();
        return;
    };
    match stream.into_std() {
        Ok(stream) => {
            // Refused only when the server stops.
            worker.send(place, Message::Stranger(Stranger { id, remote, stream, ticket }));
        }
        Err(error) => tracing::debug!("derp: {remote}: {error}"),
    }
}

/// Serves the connections that other workers hand over, and does what they ask for.
async fn take_in(
    worker: &Rc<Worker>,
    arrivals: &Arrivals,
    inbox: &mut mpsc::UnboundedReceiver<Message>,
) {
    while let Some(message) = inbox.recv().await {
        match message {
            Message::EmptyCache => reclaim::empty_cache(),
            Message::Session(session) => {
                spawn_local(life::run(*session, Rc::clone(worker)));
            }
            Message::Stranger(Stranger { id, remote, stream, ticket }) => {
                match TcpStream::from_std(stream) {
                    Ok(stream) => {
                        let stranger = Stranger { id, remote, stream, ticket };
                        arrivals.spawn(arrival::serve(Rc::clone(worker), stranger)).detach();
                    }
                    Err(error) => tracing::debug!("derp: {remote}: {error}"),
                }
            }
        }
    }
}

/// Looks after what all workers share: uses more of them or fewer, as the load wants it, and returns
/// memory when many connections, or very many keys at other servers, have left.
async fn keep_house(worker: &Worker) {
    let Shared { settings, hub, desks, active, .. } = &*worker.shared;
    let mut staffing = Staffing::new(settings.min_workers.get().min(desks.len()), desks.len());
    let mut meters: Vec<Meter> = Vec::with_capacity(desks.len());
    let mut reclaim = Reclaim::default();
    let mut ticks = tokio::time::interval(HOUSEKEEPING_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await.into_std();
        if desks.len() > settings.min_workers.get() {
            let busy: Vec<f64> = meters.iter_mut().map(|meter| meter.share(now)).collect();
            active.store(staffing.judge(&busy), Ordering::Relaxed);
            // A worker that starts late is not missed before.
            let begun = desks[meters.len()..].iter().map_while(|desk| desk.clock.get());
            meters.extend(begun.map(|&clock| Meter::new(clock, now)));
        }
        match reclaim.next(hub.occupancy()) {
            Some(Step::Trim) => drop(tokio::task::spawn_blocking(reclaim::trim)),
            Some(Step::EmptyCaches) => {
                for desk in desks {
                    // Refused only when the server stops.
                    let _ = desk.inbox.send(Message::EmptyCache);
                }
            }
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn regression_arrivals_do_not_come_before_all_sessions() {
        const ARRIVALS: usize = 50;
        let (done, arrivals) = (Rc::new(Cell::new(0)), Arrivals::new());
        for _ in 0..ARRIVALS {
            let done = Rc::clone(&done);
            let arrival = async move {
                let begun = Instant::now();
                while begun.elapsed() <= ARRIVALS_TURN {}
                done.set(done.get() + 1);
            };
            arrivals.spawn(arrival).detach();
        }
        let session = async {
            let mut seen = 0;
            while seen < ARRIVALS {
                yield_now().await;
                let more = done.get() - seen;
                assert!(more <= 2, "{more} arrivals had a turn before the session");
                seen += more;
            }
        };
        tokio::select! {
            // One and then the other, as the runtime does with tasks of their own.
            biased;
            () = session => {}
            never = attend(&arrivals) => match never {},
        }
    }
}
