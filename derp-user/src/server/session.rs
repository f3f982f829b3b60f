//! The whole journey of a packet from socket to socket. It begins when [`life`](super::life) says so.
//!
//! A session runs on the worker that accepted it, in small quanta that run to completion: read at
//! most [`QUANTUM`] bytes, decrypt, find the frames, turn each SendPacket into the RecvPacket its
//! destination gets (in place: both are equally long), and then encrypt and write every destination
//! that was touched, once, before anything else is read. Work never piles up between reader and
//! writer, and no other task takes part.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use super::{
    connection::Connection,
    crowd::Ticket,
    hub::Hub,
    mesh::ForwardTally,
    throttle::Throttle,
    transport::{Phase, TransportError},
    worker::{Scratch, Worker},
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

/// Less is read at once, but no less than [`LEAST_QUANTUM`], from a connection whose packets go to more receivers than this:
/// each is a write of its own, some 8 µs, for all of which the quanta of others wait.
const MOST_RECEIVERS: usize = 64;
const LEAST_QUANTUM: usize = 4 << 10;

/// Every client gets a KeepAlive this often, and up to [`KEEP_ALIVE_JITTER`] later, so that the
/// clients of one moment do not stay in step.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_JITTER: Duration = Duration::from_secs(5);

/// How often a client is told that a destination of its disco packets is not here.
const NOT_HERE_PER_SECOND: f64 = 1.0;
const NOT_HERE_BURST: f64 = 3.0;

/// How often a watcher may ask anew who is here: each time costs as much as there are clients.
const QUESTIONS_PER_SECOND: f64 = 1.0;
const QUESTIONS_AT_ONCE: f64 = 3.0;

/// Most introductions remembered; when exceeded, they start anew. The relay knows them all anyway.
const MAX_INTRODUCED: usize = 4096;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
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

/// What is left to read after a quantum.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Rest {
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
            if receiver.is_link() {
                self.epoch == hub.forwarding_epoch()
            } else {
                receiver.is_routed()
            }
        })
    }
}

/// The reading half of a client, known to its owner alone.
pub(super) struct Session {
    pub(super) connection: Arc<Connection>,
    pub(super) trusted: bool,
    pub(super) keep_alive_period: Duration,
    pub(super) keep_alive_at: Instant,
    reader: FrameReader,
    /// Most bytes to read at once.
    quantum: usize,
    /// Plaintext of an incomplete frame.
    partial: Vec<u8>,
    not_here: TokenBucket,
    /// Who has been introduced to whom: sender and receiving connection.
    introduced: HashSet<(NodePublic, ConnectionId)>,
    last_route: Option<Route>,
    /// A watcher that has yet to hear of some who are here.
    pub(super) tells_more: bool,
    /// What a watcher may still ask; few clients are watchers.
    questions: Option<Box<TokenBucket>>,
    /// The client's byte rate limit, where clients have one.
    throttle: Option<Box<Throttle>>,
    /// Its every frame is logged.
    verbose: bool,
    /// The request that began the session, for as long as it lasts.
    _tls_request: Option<TlsRequest>,
    /// Its place among all connections, likewise.
    _ticket: Option<Ticket>,
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
            quantum: QUANTUM,
            partial: early,
            not_here: TokenBucket::new(NOT_HERE_PER_SECOND, NOT_HERE_BURST, Instant::now()),
            introduced: HashSet::new(),
            last_route: None,
            tells_more: false,
            questions: None,
            throttle: throttle.map(Box::new),
            verbose: false,
            _tls_request: None,
            _ticket: None,
        }
    }

    /// The same session, with its place among all connections.
    pub(super) fn holding(self, ticket: Ticket) -> Self {
        Self { _ticket: Some(ticket), ..self }
    }

    /// The same session, as what serves this request, and with its frames logged if so wanted.
    pub(super) fn serving(self, tls_request: Option<TlsRequest>, verbose: bool) -> Self {
        Self { _tls_request: tls_request, verbose, ..self }
    }

    /// Until when nothing may be read because the client has sent too much.
    pub(super) fn throttled_until(&self) -> Option<Instant> {
        self.throttle.as_ref()?.waits_until(Instant::now())
    }

    /// Handles what had to wait for the client's rate limit, if the time has come.
    pub(super) fn resume(&mut self, worker: &Worker) -> Result<(), End> {
        let Some(throttle) = &mut self.throttle else { return Ok(()) };
        if throttle.resume(Instant::now()) { self.handle_early(worker) } else { Ok(()) }
    }

    /// Handles what the client sent in one breath with its login, or what has waited since.
    pub(super) fn handle_early(&mut self, worker: &Worker) -> Result<(), End> {
        let scratch = &mut *worker.scratch();
        scratch.plain.clear();
        scratch.plain.append(&mut self.partial);
        self.relay(worker, scratch)
    }

    /// Reads once and delivers everything that came.
    pub(super) fn read_quantum(&mut self, worker: &Worker) -> Result<Rest, End> {
        let scratch = &mut *worker.scratch();
        let kept = self.connection.incomplete_length();
        let quantum = self.quantum;
        let buffer = scratch.received(kept + quantum);
        let count = match self.connection.read(&mut buffer[kept..])? {
            None => return Ok(Rest::Empty),
            Some(0) => return Err(End::Closed),
            Some(count) => count,
        };
        let rest = if count == quantum { Rest::More } else { Rest::Empty };
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
        let receivers = scratch.deliver(worker);
        self.quantum = next_quantum(self.quantum, receivers);
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
                let now = Instant::now();
                let full =
                    || Box::new(TokenBucket::new(QUESTIONS_PER_SECOND, QUESTIONS_AT_ONCE, now));
                if self.session.questions.get_or_insert_with(full).take(now) {
                    let id = self.session.connection.id;
                    let more = self.worker.hub().watch(id, self.counters());
                    self.session.tells_more = more;
                }
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
                if !(receiver.is_link() && unknown == DropReason::UnknownDestinationOnForward) =>
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
        if !receiver.is_link() {
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
    /// Writes every run of the quantum to its destination: each destination once, its runs in order. Returns how many
    /// destinations there were.
    fn deliver(&mut self, worker: &Worker) -> usize {
        let Self { plain, runs, ranges, forwarded, write, .. } = self;
        runs.sort_by_key(|run| run.receiver.id);
        let mut receivers = 0;
        for group in runs.chunk_by(|a, b| a.receiver.id == b.receiver.id) {
            let Some(Run { receiver, .. }) = group.first() else { continue };
            receivers += 1;
            let depth = worker.settings().queue_depth;
            ranges.clear();
            if let Some(tally) = receiver.forwards() {
                forward(group, plain, forwarded, tally, worker.counters());
                ranges.push(0..forwarded.len());
                receiver.deliver(forwarded, ranges, write, worker.counters(), depth);
            } else {
                ranges.extend(group.iter().map(|run| run.range.clone()));
                receiver.deliver(plain, ranges, write, worker.counters(), depth);
            }
        }
        runs.clear();
        receivers
    }
}

/// How much to read at once after `quantum` bytes that went to so many receivers.
fn next_quantum(quantum: usize, receivers: usize) -> usize {
    if receivers > MOST_RECEIVERS {
        (quantum / 2).max(LEAST_QUANTUM)
    } else if receivers < MOST_RECEIVERS / 4 {
        (quantum * 2).min(QUANTUM)
    } else {
        quantum
    }
}

/// Fills `forwarded` with the ForwardPacket frames of some runs.
fn forward(
    runs: &[Run],
    plain: &[u8],
    forwarded: &mut Vec<u8>,
    tally: &ForwardTally,
    counters: &WorkerCounters,
) {
    forwarded.clear();
    let (mut packets, mut bytes) = (0, 0);
    for run in runs {
        for frame in Frames::of(&plain[run.range.clone()]) {
            frame::recv_to_forward(forwarded, frame, &run.destination);
            packets += 1;
            bytes += packet_of(frame).1.len() as u64;
        }
    }
    counters.packets_forwarded_out.add(packets);
    tally.handed_over(packets, bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quanta_shrink_while_there_are_many_receivers() {
        let mut quantum = QUANTUM;
        for expected in [QUANTUM / 2, QUANTUM / 4, QUANTUM / 8, LEAST_QUANTUM, LEAST_QUANTUM] {
            quantum = next_quantum(quantum, MOST_RECEIVERS + 1);
            assert_eq!(quantum, expected);
        }
        assert_eq!(next_quantum(quantum, MOST_RECEIVERS), quantum, "as it should be");
        for expected in [QUANTUM / 4, QUANTUM / 2, QUANTUM, QUANTUM] {
            quantum = next_quantum(quantum, 1);
            assert_eq!(quantum, expected);
        }
    }
}
