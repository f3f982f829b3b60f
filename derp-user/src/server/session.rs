//! A DERP session, and with it the whole journey of a packet from socket to socket.
//!
//! A session runs on the worker that accepted it, in small quanta that run to completion: read at
//! most [`QUANTUM`] bytes, decrypt, find the frames, turn each SendPacket into the RecvPacket its
//! destination gets (in place: both are equally long), and then encrypt and write every destination
//! that was touched, once, before anything else is read. Work never piles up between reader and
//! writer, and no other task takes part.

use std::{
    collections::HashSet,
    future::poll_fn,
    io,
    ops::Range,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyGuard},
    time::{Sleep, sleep_until},
};

use super::{
    connection::Connection,
    hub::Hub,
    throttle::Throttle,
    transport::{Phase, TransportError},
    worker::{Message, Scratch, Worker},
};
use crate::{
    http::TlsRequest,
    metrics::{DropReason, PacketKind, WorkerCounters},
    proto::{
        frame::{
            self, Expected, Found, FrameReader, Frames, HEADER_LENGTH, PING_DATA_LENGTH, Violation,
            parse_header,
        },
        keys::{KEY_LENGTH, NodePublic},
        message::{self, GoneReason},
    },
    relay::{ConnectionId, limit::TokenBucket, packet::packet_of},
};

/// Most socket bytes read from one connection before their packets are written: 32 KiB measured
/// best; more only makes the quanta of other connections wait.
pub(super) const QUANTUM: usize = 32 << 10;

/// Every client gets a KeepAlive this often, and up to [`KEEP_ALIVE_JITTER`] later, so that the
/// clients of one moment do not stay in step.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(5);

/// How often a client is told that a destination of its disco packets is not here.
const NOT_HERE_PER_SECOND: f64 = 1.0;
const NOT_HERE_BURST: f64 = 3.0;

/// A mesh peer's writes may take this long: it is a server, and its loss concerns many.
const MESH_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most introductions remembered; when exceeded, they start anew. The relay knows them all anyway.
const MAX_INTRODUCED: usize = 4096;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the client closed the connection")]
    Closed,
    #[error("closed by a mesh peer or after a failed write")]
    Asked,
    #[error("write timeout")]
    WriteTimeout,
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("{0}")]
    Transport(#[from] TransportError),
    #[error("read: {0}")]
    Read(#[from] io::Error),
}

/// How a session leaves its worker.
enum Exit {
    Ended(End),
    /// It goes on with another worker.
    Moves(usize),
}

/// What the owner of a connection waits for.
pub(super) enum Event<'a> {
    /// A deadline may have passed.
    Time,
    /// Another task left something to do.
    Attention,
    /// The socket may take bytes that it refused before.
    Writable(Ready<'a>),
    /// The socket may have bytes, or its end.
    Readable(Ready<'a>),
}

pub(super) type Socket = AsyncFd<Arc<Connection>>;
pub(super) type Ready<'a> = AsyncFdReadyGuard<'a, Arc<Connection>>;

/// What is left to read after a quantum.
#[derive(Debug, Eq, PartialEq)]
enum Rest {
    Empty,
    More,
}

/// Consecutive frames in the plaintext that go to one destination.
pub(super) struct Run {
    source: NodePublic,
    destination: NodePublic,
    /// The destination's connection, or the link to the mesh peer that has it.
    receiver: Arc<Connection>,
    range: Range<usize>,
}

/// Where the last packet went, so that the next one for the same client needs no search.
struct Route {
    source: NodePublic,
    destination: NodePublic,
    receiver: Weak<Connection>,
    /// The hub's [`Hub::forwarding_epoch`] from before the search.
    epoch: u64,
}

impl Route {
    /// Where a packet goes, if it goes this way.
    fn lead(
        &self,
        source: &NodePublic,
        destination: &NodePublic,
        hub: &Hub,
    ) -> Option<Arc<Connection>> {
        if self.source != *source || self.destination != *destination {
            return None;
        }
        self.receiver.upgrade().filter(|receiver| {
            if receiver.is_link {
                self.epoch == hub.forwarding_epoch()
            } else {
                receiver.is_routed()
            }
        })
    }
}

/// The reading half of a client, known to its owner alone.
pub(super) struct Session {
    connection: Arc<Connection>,
    trusted: bool,
    keep_alive_period: Duration,
    keep_alive_at: Instant,
    reader: FrameReader,
    /// Plaintext of an incomplete frame.
    partial: Vec<u8>,
    not_here: TokenBucket,
    /// Who has been introduced to whom: sender and receiving connection.
    introduced: HashSet<(NodePublic, ConnectionId)>,
    last_route: Option<Route>,
    /// A watcher that has yet to hear of some who are here.
    tells_more: bool,
    /// The client's byte rate limit, where clients have one.
    throttle: Option<Box<Throttle>>,
    /// Its every frame is logged.
    verbose: bool,
    /// The request that began the session, for as long as it lasts.
    _tls_request: Option<TlsRequest>,
}

impl Session {
    /// A session whose client has already sent `early` bytes behind its login. `jitter`, from 0 to 1,
    /// sets its keepalives apart from those of others.
    pub(super) fn new(
        connection: Arc<Connection>,
        trusted: bool,
        early: Vec<u8>,
        jitter: f64,
        throttle: Option<Throttle>,
    ) -> Self {
        let keep_alive_period = KEEP_ALIVE + KEEP_ALIVE_JITTER.mul_f64(jitter);
        Self {
            connection,
            trusted,
            keep_alive_period,
            keep_alive_at: Instant::now() + keep_alive_period,
            reader: FrameReader::new(trusted),
            partial: early,
            not_here: TokenBucket::new(NOT_HERE_PER_SECOND, NOT_HERE_BURST, Instant::now()),
            introduced: HashSet::new(),
            last_route: None,
            tells_more: false,
            throttle: throttle.map(Box::new),
            verbose: false,
            _tls_request: None,
        }
    }

    /// The same session, as what serves this request, and with its frames logged if so wanted.
    pub(super) fn serving(self, tls_request: Option<TlsRequest>, verbose: bool) -> Self {
        Self { _tls_request: tls_request, verbose, ..self }
    }

    /// Until when nothing may be read because the client has sent too much.
    fn throttled_until(&self) -> Option<Instant> {
        self.throttle.as_ref()?.waits_until(Instant::now())
    }
}

/// Runs a registered session until it ends or moves to another worker. If this is dropped, even before
/// it has begun, the session has ended.
pub(super) fn run(mut session: Session, worker: Rc<Worker>) -> impl Future<Output = ()> {
    let departure = Departure {
        connection: Arc::clone(&session.connection),
        worker: Rc::clone(&worker),
        moved: false,
    };
    async move {
        // As a whole: the block would take just the flag along.
        let mut departure = departure;
        match serve(&mut session, &worker).await {
            Exit::Ended(end) => {
                if matches!(end, End::WriteTimeout) {
                    worker.counters().write_timeouts.increment();
                }
                let Connection { remote, key, .. } = &*session.connection;
                tracing::debug!("derp client {remote}{}: {end}", key.short());
            }
            // A worker that has stopped takes nobody in; then this server stops, and the session ends.
            Exit::Moves(place) => {
                departure.moved = worker.send(place, Message::Session(Box::new(session)));
            }
        }
    }
}

/// Takes a session that nobody runs out of the relay.
pub(super) fn abandon(session: Session, worker: Rc<Worker>) {
    drop(Departure { connection: session.connection, worker, moved: false });
}

/// Takes a connection out of the relay when its session ends, however it ends: also when the server
/// stops, or when a bug makes the session panic.
struct Departure {
    connection: Arc<Connection>,
    worker: Rc<Worker>,
    moved: bool,
}

impl Drop for Departure {
    fn drop(&mut self) {
        let Self { connection, worker, moved } = self;
        if !*moved {
            worker.hub().unregister(connection.id, worker.counters());
            connection.end(&mut worker.scratch().write, worker.counters());
        }
    }
}

async fn serve(session: &mut Session, worker: &Worker) -> Exit {
    let connection = Arc::clone(&session.connection);
    let socket = match watch(Arc::clone(&connection)) {
        Ok(socket) => socket,
        Err(error) => return Exit::Ended(error.into()),
    };
    let write_timeout =
        if session.trusted { Some(MESH_WRITE_TIMEOUT) } else { worker.settings().write_timeout };
    let mut timer = pin!(sleep_until(session.keep_alive_at.into()));

    connection.flush(&mut worker.scratch().write, worker.counters());
    if let Err(end) = session.handle_early(worker) {
        return Exit::Ended(end);
    }
    loop {
        let deadline = connection.stalled_since().and_then(|since| Some(since + write_timeout?));
        let keep_alive_at = session.keep_alive_at;
        let throttled_until = session.throttled_until();
        let times = [deadline, throttled_until].into_iter().flatten();
        arm(timer.as_mut(), times.fold(keep_alive_at, Instant::min));
        let reads = throttled_until.is_none();
        let event =
            poll_fn(|context| poll_event(&connection, &socket, timer.as_mut(), reads, context));
        let event = match event.await {
            Ok(event) => event,
            Err(error) => return Exit::Ended(error.into()),
        };
        if connection.is_closing() {
            return Exit::Ended(End::Asked);
        }
        match event {
            Event::Readable(mut ready) => {
                if let Some(place) = worker.other_home(connection.id) {
                    return Exit::Moves(place);
                }
                match session.read_quantum(worker) {
                    // A read that does not fill the quantum has emptied the socket: to find that out
                    // by another one would cost a system call.
                    Ok(Rest::Empty) => ready.clear_ready(),
                    // To the back of the worker's queue: everybody else has a turn first.
                    Ok(Rest::More) => tokio::task::yield_now().await,
                    Err(end) => return Exit::Ended(end),
                }
            }
            Event::Writable(mut ready) => {
                connection.flush(&mut worker.scratch().write, worker.counters());
                if connection.is_blocked() {
                    ready.clear_ready();
                } else if session.tells_more {
                    session.tells_more = worker.hub().watch_more(connection.id, worker.counters());
                }
            }
            Event::Attention => {
                connection.flush(&mut worker.scratch().write, worker.counters());
                if session.tells_more && !connection.is_blocked() {
                    session.tells_more = worker.hub().watch_more(connection.id, worker.counters());
                    tokio::task::yield_now().await;
                }
            }
            Event::Time => {
                let now = Instant::now();
                let stalled_since = connection.stalled_since();
                let overdue = stalled_since.zip(write_timeout);
                if overdue.is_some_and(|(since, allowed)| now >= since + allowed) {
                    return Exit::Ended(End::WriteTimeout);
                }
                if now >= session.keep_alive_at {
                    session.keep_alive_at += session.keep_alive_period;
                    connection.post(message::keep_alive);
                }
                if throttled_until.is_some()
                    && let Err(end) = session.resume(worker)
                {
                    return Exit::Ended(end);
                }
            }
        }
    }
}

/// Has this worker's runtime watch a connection's socket, until the result is dropped.
#[expect(unsafe_code, reason = "tokio has no safe call for a socket that is shared with writers")]
pub(super) fn watch(connection: Arc<Connection>) -> io::Result<Socket> {
    // SAFETY: a Connection owns one open socket from its creation to its end and never replaces it, and
    // the AsyncFd holds the Connection.
    unsafe { AsyncFd::register(connection) }.map_err(io::Error::from)
}

/// Waits for the next event; fails only when the runtime is going down.
pub(super) fn poll_event<'a>(
    connection: &Connection,
    socket: &'a Socket,
    timer: Pin<&mut Sleep>,
    reads: bool,
    context: &mut Context<'_>,
) -> Poll<io::Result<Event<'a>>> {
    // The timer first: a client that never stops sending must not keep its deadlines away.
    if timer.poll(context).is_ready() {
        return Poll::Ready(Ok(Event::Time));
    }
    if connection.poll_attention(context).is_ready() {
        return Poll::Ready(Ok(Event::Attention));
    }
    if connection.is_blocked()
        && let Poll::Ready(ready) = socket.poll_write_ready(context)
    {
        return Poll::Ready(ready.map(Event::Writable));
    }
    if !reads {
        return Poll::Pending;
    }
    socket.poll_read_ready(context).map(|ready| ready.map(Event::Readable))
}

/// Sets the timer, unless it stands right already.
pub(super) fn arm(timer: Pin<&mut Sleep>, at: Instant) {
    if timer.deadline().into_std() != at {
        timer.reset(at.into());
    }
}

impl Session {
    /// Handles what had to wait for the client's rate limit, if the time has come.
    fn resume(&mut self, worker: &Worker) -> Result<(), End> {
        let Some(throttle) = &mut self.throttle else { return Ok(()) };
        if throttle.resume(Instant::now()) { self.handle_early(worker) } else { Ok(()) }
    }

    /// Handles what the client sent in one breath with its login, or what has waited since.
    fn handle_early(&mut self, worker: &Worker) -> Result<(), End> {
        let scratch = &mut *worker.scratch();
        scratch.plain.clear();
        scratch.plain.append(&mut self.partial);
        self.relay(worker, scratch)
    }

    /// Reads once and delivers everything that came.
    fn read_quantum(&mut self, worker: &Worker) -> Result<Rest, End> {
        let scratch = &mut *worker.scratch();
        let kept = self.connection.incomplete_length();
        let buffer = scratch.received(kept + QUANTUM);
        let count = match self.connection.read(&mut buffer[kept..])? {
            None => return Ok(Rest::Empty),
            Some(0) => return Err(End::Closed),
            Some(count) => count,
        };
        let rest = if count == QUANTUM { Rest::More } else { Rest::Empty };
        scratch.plain.clear();
        scratch.plain.append(&mut self.partial);
        let phase = self.connection.decrypt(
            &mut scratch.received[..kept + count],
            &mut scratch.plain,
            &mut scratch.write,
        );
        // What came before a failure was sent in good faith and is relayed.
        self.relay(worker, scratch)?;
        match phase? {
            Phase::Ended => Err(End::Closed),
            Phase::Handshaking | Phase::Established => Ok(rest),
        }
    }

    /// Handles the frames in `scratch.plain`, keeps the incomplete one, writes to every destination.
    fn relay(&mut self, worker: &Worker, scratch: &mut Scratch) -> Result<(), End> {
        let mut quantum = Quantum {
            session: self,
            worker,
            runs: &mut scratch.runs,
            answered: false,
            spoken: false,
        };
        let handled = quantum.handle_frames(&mut scratch.plain);
        let answered = quantum.answered;
        scratch.deliver(worker);
        if answered {
            self.connection.flush(&mut scratch.write, worker.counters());
        }
        let consumed = handled?;
        self.partial = match scratch.plain.get(consumed..) {
            None | Some([]) => Vec::new(),
            Some(incomplete) => incomplete.to_vec(),
        };
        Ok(())
    }
}

/// The handling of one quantum's frames.
struct Quantum<'a> {
    session: &'a mut Session,
    worker: &'a Worker,
    runs: &'a mut Vec<Run>,
    /// Frames for the client itself wait to be flushed.
    answered: bool,
    /// The relay knows that this connection speaks.
    spoken: bool,
}

impl Quantum<'_> {
    /// Handles every whole frame; how many bytes they and the skipped ones take.
    fn handle_frames(&mut self, plain: &mut [u8]) -> Result<usize, Violation> {
        let mut at = 0;
        loop {
            match self.session.reader.next(plain, at)? {
                Found::Frame(expected, range) => {
                    if let Some(throttle) = &mut self.session.throttle
                        && !throttle.pass(range.len() - HEADER_LENGTH, Instant::now())
                    {
                        self.counters().rate_limit_waits.increment();
                        return Ok(range.start);
                    }
                    self.note_activity(plain, range.start);
                    at = range.end;
                    self.handle(expected, plain, range);
                }
                Found::Unwanted(resume) => {
                    self.note_activity(plain, resume - HEADER_LENGTH);
                    self.counters().unknown_frames.increment();
                    at = resume;
                    if let Some(throttle) = &mut self.session.throttle
                        && let Some((_, length)) = parse_header(&plain[resume - HEADER_LENGTH..])
                        && !throttle.pass_unwanted(length as usize, Instant::now())
                    {
                        self.counters().rate_limit_waits.increment();
                        return Ok(resume);
                    }
                }
                Found::Incomplete(from) => return Ok(from),
            }
        }
    }

    /// Any frame, here the one whose header begins at `start`, makes its connection the active one of its key.
    fn note_activity(&mut self, plain: &[u8], start: usize) {
        if !self.spoken {
            self.note_first_activity(plain, start);
        }
    }

    fn note_first_activity(&mut self, plain: &[u8], start: usize) {
        let connection = &self.session.connection;
        if connection.is_duplicate() {
            self.worker.hub().spoke(connection.id, self.counters());
        }
        // As long as nothing has been said, each frame comes here.
        self.spoken = !self.session.verbose;
        if self.session.verbose
            && let Some((kind, length)) = plain.get(start..).and_then(parse_header)
        {
            let Connection { remote, key, .. } = &**connection;
            let key = key.short();
            tracing::info!("derp client {remote}{key}: read frame type {kind} len {length}");
        }
    }

    fn handle(&mut self, expected: Expected, plain: &mut [u8], range: Range<usize>) {
        let bytes = &mut plain[range.clone()];
        let payload = HEADER_LENGTH..;
        let connection = &self.session.connection;
        match expected {
            Expected::SendPacket => {
                let source = connection.key;
                if let Some(destination) = frame::send_to_recv(bytes, &source) {
                    let (kind, packet) = packet_of(bytes);
                    self.counters().packet_received(kind, packet.len() as u64);
                    self.route(source, destination, bytes, range, DropReason::UnknownDestination);
                }
            }
            Expected::ForwardPacket => {
                if let Some(forwarded) = frame::forward_to_recv(bytes) {
                    self.counters().packets_forwarded_in.increment();
                    let frame::Forwarded { source, destination, start } = forwarded;
                    let range = range.start + start..range.end;
                    let reason = DropReason::UnknownDestinationOnForward;
                    self.route(source, destination, &plain[range.clone()], range, reason);
                }
            }
            Expected::NotePreferred => {
                let home = bytes[payload].first().is_some_and(|&flag| flag != 0);
                self.worker.hub().note_preferred(connection.id, home, self.counters());
            }
            Expected::WatchConns => {
                let more = self.worker.hub().watch(connection.id, self.counters());
                self.session.tells_more = more;
            }
            Expected::ClosePeer => {
                if let Some(&key) = bytes[payload].first_chunk::<KEY_LENGTH>() {
                    let key = NodePublic::from_bytes(key);
                    self.worker.hub().close_peer(&key, self.counters());
                }
            }
            Expected::Ping => {
                self.counters().got_ping.increment();
                let data = bytes[payload].first_chunk::<PING_DATA_LENGTH>();
                if data.is_some_and(|data| connection.post_pong(data)) {
                    self.counters().sent_pong.increment();
                    self.answered = true;
                }
            }
        }
    }

    /// Notes where a RecvPacket frame goes, next to its predecessor if that goes there too.
    fn route(
        &mut self,
        source: NodePublic,
        destination: NodePublic,
        bytes: &[u8],
        range: Range<usize>,
        unknown: DropReason,
    ) {
        if let Some(last) = self.runs.last_mut()
            && last.source == source
            && last.destination == destination
            && last.range.end == range.start
        {
            last.range.end = range.end;
            return;
        }
        let hub = self.worker.hub();
        let last_route = self.session.last_route.as_ref();
        let known = last_route.and_then(|route| route.lead(&source, &destination, hub));
        let receiver = known.or_else(|| self.search(source, destination));
        match receiver {
            // What came from one mesh peer never goes to another.
            Some(receiver)
                if !(receiver.is_link && unknown == DropReason::UnknownDestinationOnForward) =>
            {
                self.runs.push(Run { source, destination, receiver, range });
            }
            Some(_) | None => self.lose(destination, bytes, unknown),
        }
    }

    /// Finds where packets for `destination` go, and tells the relay of the first one from `source`.
    fn search(&mut self, source: NodePublic, destination: NodePublic) -> Option<Arc<Connection>> {
        let hub = self.worker.hub();
        let epoch = hub.forwarding_epoch();
        let receiver = hub.active_connection(&destination)?;
        if !receiver.is_link {
            let introduced = &mut self.session.introduced;
            if introduced.len() >= MAX_INTRODUCED {
                introduced.clear();
            }
            if introduced.insert((source, receiver.id)) {
                hub.first_packet(source, receiver.id);
            }
        }
        let route = Route { source, destination, receiver: Arc::downgrade(&receiver), epoch };
        self.session.last_route = Some(route);
        Some(receiver)
    }

    /// Counts a packet that has nowhere to go, and says so to a sender that looks for a path.
    fn lose(&mut self, destination: NodePublic, bytes: &[u8], reason: DropReason) {
        let (kind, packet) = packet_of(bytes);
        self.counters().packet_dropped(reason, kind, packet.len() as u64);
        if let Some(drops) = &self.worker.settings().verbose_drops
            && drops.want(&destination)
        {
            drops.note(bytes, &destination, reason);
        }
        if kind == PacketKind::Disco && self.session.not_here.take(Instant::now()) {
            if self.session.trusted {
                let connection = &self.session.connection;
                return self.worker.hub().tell_not_here(connection, destination, self.counters());
            }
            self.counters().peer_gone_not_here_frames.increment();
            self.session.connection.post(|bytes| {
                message::peer_gone(bytes, &destination, GoneReason::NotHere);
            });
            self.answered = true;
        }
    }

    fn counters(&self) -> &WorkerCounters {
        self.worker.counters()
    }
}

impl Scratch {
    /// Writes every run of the quantum to its destination: each destination once, its runs in order.
    fn deliver(&mut self, worker: &Worker) {
        let Self { plain, runs, ranges, forwarded, write, .. } = self;
        runs.sort_by_key(|run| run.receiver.id);
        for group in runs.chunk_by(|a, b| a.receiver.id == b.receiver.id) {
            let Some(Run { receiver, .. }) = group.first() else { continue };
            let depth = worker.settings().queue_depth;
            ranges.clear();
            if receiver.is_link {
                forward(group, plain, forwarded, worker.counters());
                ranges.push(0..forwarded.len());
                receiver.deliver(forwarded, ranges, write, worker.counters(), depth);
            } else {
                ranges.extend(group.iter().map(|run| run.range.clone()));
                receiver.deliver(plain, ranges, write, worker.counters(), depth);
            }
        }
        runs.clear();
    }
}

/// Fills `forwarded` with the ForwardPacket frames of some runs.
fn forward(runs: &[Run], plain: &[u8], forwarded: &mut Vec<u8>, counters: &WorkerCounters) {
    forwarded.clear();
    for run in runs {
        for frame in Frames::of(&plain[run.range.clone()]) {
            frame::recv_to_forward(forwarded, frame, &run.destination);
            counters.packets_forwarded_out.increment();
        }
    }
}
