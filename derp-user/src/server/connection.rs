//! One logged-in client as every worker sees it.
//!
//! The worker that read a packet writes it to its destination itself: it takes the destination's
//! lock, encrypts and writes. Only when the socket is full does the rest stay behind, for the
//! worker that owns the connection to send when there is room.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use parking_lot::Mutex;

use super::{
    VerboseDrops,
    attention::Attention,
    local::LocalInbox,
    mesh::ForwardTally,
    transport::{Outgoing, Phase, Transport, TransportError},
};
use crate::{
    metrics::{DropReason, Waits, WorkerCounters},
    proto::{
        frame::{Frames, PING_DATA_LENGTH},
        keys::NodePublic,
        message,
    },
    relay::{
        ConnectionId,
        packet::{is_forwarded, packet_of},
        queue::SendQueue,
    },
};

/// Most bytes of frames from the server itself that wait for one client.
const MAX_URGENT: usize = 4 << 20;
/// Most socket bytes that wait because the socket is full. One quantum's frames at the most; the
/// rest is for TLS, which a peer could make talk.
const MAX_UNSENT: usize = 512 << 10;
/// A link to a mesh peer carries the packets of many clients: so many times the depth of a client's
/// queues is what waits for it.
const LINK_QUEUE_FACTOR: usize = 8;
/// DERP bytes that are encrypted and written at once when a full socket has room again.
const FLUSH_BATCH: usize = 32 << 10;

/// Memory for writing, owned by a worker and used for one destination at a time.
#[derive(Debug, Default)]
pub(super) struct WriteScratch {
    gathered: Vec<u8>,
    outgoing: Outgoing,
}

/// A logged-in client, or the link to a mesh peer, where this server is the client; or a client in this process.
pub(super) struct Connection {
    /// Its name in the relay.
    pub(super) id: ConnectionId,
    /// Whose connection it is.
    pub(super) key: NodePublic,
    /// Where it came from, or leads to.
    pub(super) remote: SocketAddr,
    /// Set if it leads to a mesh peer, which wants ForwardPacket frames where clients want RecvPacket:
    /// what is handed to it is counted there.
    forwards: Option<Arc<ForwardTally>>,
    /// Non-blocking. Whether it can be read or written is for the owner to wait for.
    /// `None` for a client in this process, which has no owner either.
    stream: Option<TcpStream>,
    /// Where that client's packets go.
    local: Option<LocalInbox>,
    outbound: Mutex<Outbound>,
    /// The socket is full. Written under the lock of `outbound`.
    blocked: AtomicBool,
    /// It is the one that gets its key's packets.
    routed: AtomicBool,
    duplicate: AtomicBool,
    closing: AtomicBool,
    /// Whether the owner has something to do.
    attention: Attention,
    /// Where to tell of lost packets, if anybody wants to know.
    verbose_drops: Option<Arc<VerboseDrops>>,
}

/// Everything between "this client shall get these bytes" and its socket.
struct Outbound {
    transport: Transport,
    /// Socket bytes that the socket refused: they must go first.
    unsent: Vec<u8>,
    /// When the socket last took anything, if it is full.
    stalled_since: Option<Instant>,
    /// Frames from the server itself that wait to be sent.
    urgent: Vec<u8>,
    pong_waits: bool,
    /// It hears who comes and goes.
    watches: bool,
    /// How many of the frames in `urgent` tell a watcher that.
    news: u32,
    /// Relayed frames that wait because the socket is full.
    waiting: Option<Box<SendQueue>>,
    ended: bool,
}

impl Connection {
    /// Takes over an established non-blocking stream. `unsent` are socket bytes to be sent before anything else,
    /// by the first [`Self::flush`].
    pub(super) fn new(
        id: ConnectionId,
        key: NodePublic,
        remote: SocketAddr,
        stream: TcpStream,
        transport: Transport,
        unsent: Vec<u8>,
    ) -> Self {
        Self { stream: Some(stream), ..Self::without_socket(id, key, remote, transport, unsent) }
    }

    /// A client in this process.
    pub(super) fn local(
        id: ConnectionId,
        key: NodePublic,
        remote: SocketAddr,
        inbox: LocalInbox,
    ) -> Self {
        let transport = Transport::plain();
        Self { local: Some(inbox), ..Self::without_socket(id, key, remote, transport, Vec::new()) }
    }

    fn without_socket(
        id: ConnectionId,
        key: NodePublic,
        remote: SocketAddr,
        transport: Transport,
        unsent: Vec<u8>,
    ) -> Self {
        let blocked = !unsent.is_empty();
        Self {
            id,
            key,
            remote,
            forwards: None,
            stream: None,
            local: None,
            outbound: Mutex::new(Outbound {
                transport,
                unsent,
                stalled_since: blocked.then(Instant::now),
                urgent: Vec::new(),
                pong_waits: false,
                watches: false,
                news: 0,
                waiting: None,
                ended: false,
            }),
            blocked: AtomicBool::new(blocked),
            routed: AtomicBool::new(false),
            duplicate: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            attention: Attention::default(),
            verbose_drops: None,
        }
    }

    /// The same connection, leading to a mesh peer.
    pub(super) fn into_link(self, forwards: Arc<ForwardTally>) -> Self {
        Self { forwards: Some(forwards), ..self }
    }

    /// Whether it leads to a mesh peer.
    pub(super) fn is_link(&self) -> bool {
        self.forwards.is_some()
    }

    /// Where what is handed to it is counted, if it leads to a mesh peer.
    pub(super) fn forwards(&self) -> Option<&ForwardTally> {
        self.forwards.as_deref()
    }

    /// Tells `drops` of packets for this client that get lost, if it wants to know.
    pub(super) fn tell(mut self, drops: Option<&Arc<VerboseDrops>>) -> Self {
        self.verbose_drops = drops.filter(|drops| drops.want(&self.key)).cloned();
        self
    }

    /// Waits until another task leaves something to do: [`Self::is_closing`], or frames to flush.
    /// Only the owner may call this.
    pub(super) fn poll_attention(&self, context: &mut Context<'_>) -> Poll<()> {
        self.attention.poll(context)
    }

    /// Reads what the socket has, at most `buffer` full; `None` if it has nothing now. Zero bytes
    /// are the end of the stream.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut stream = self.stream()?;
        loop {
            match stream.read(buffer) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Decrypts `buffer`, which holds what was read behind room for the bytes that
    /// [`Self::incomplete_length`] announced, and appends the DERP bytes to `plain`.
    pub(super) fn decrypt(
        &self,
        buffer: &mut [u8],
        plain: &mut Vec<u8>,
        scratch: &mut WriteScratch,
    ) -> Result<Phase, TransportError> {
        let mut outbound = self.outbound.lock();
        let kept = outbound.transport.incomplete().len();
        buffer[..kept].copy_from_slice(outbound.transport.incomplete());
        scratch.outgoing.clear();
        let result = outbound.transport.receive(buffer, plain, &mut scratch.outgoing);
        if !scratch.outgoing.unsent().is_empty() {
            self.transmit(&mut outbound, &scratch.outgoing);
        }
        result
    }

    /// Socket bytes kept from earlier reads: the next read goes behind them. Only the owner's reads
    /// change this.
    pub(super) fn incomplete_length(&self) -> usize {
        self.outbound.lock().transport.incomplete().len()
    }

    /// Relays whole frames, the `runs` of `plain`, to this client: written at once, or queued if its
    /// socket is full. Never waits. They are RecvPacket frames, or ForwardPacket ones for a link.
    pub(super) fn deliver(
        &self,
        plain: &[u8],
        runs: &[Range<usize>],
        scratch: &mut WriteScratch,
        counters: &WorkerCounters,
        queue_depth: usize,
    ) {
        let frames = || runs.iter().flat_map(|run| Frames::of(&plain[run.clone()]));
        if let Some(inbox) = &self.local {
            for frame in frames() {
                if inbox.take(frame) {
                    self.count_sent(counters, 0, std::iter::once(frame));
                } else {
                    self.lose(counters, DropReason::QueueTail, frame);
                }
            }
            return;
        }
        let mut outbound = self.outbound.lock();
        if outbound.ended {
            return frames().for_each(|frame| {
                self.lose(counters, DropReason::GoneDisconnected, frame);
            });
        }
        if !outbound.unsent.is_empty() {
            let depth = if self.is_link() { LINK_QUEUE_FACTOR * queue_depth } else { queue_depth };
            let queue = outbound.waiting.get_or_insert_with(|| Box::new(SendQueue::new(depth)));
            let (now, mut waits) = (Instant::now(), Waits::default());
            for frame in frames() {
                queue.push(frame, now, |oldest| {
                    waits.add(now.saturating_duration_since(oldest.since));
                    self.lose(counters, DropReason::QueueHead, &oldest.frame);
                });
            }
            self.count_waits(counters, &waits, false);
            return;
        }
        let WriteScratch { gathered, outgoing } = scratch;
        let own_frames = Frames::of(&outbound.urgent).count();
        let bytes = match (outbound.urgent.is_empty(), runs) {
            (true, [only]) => &plain[only.clone()],
            _ => {
                gathered.clear();
                gathered.append(&mut outbound.urgent);
                outbound.pong_waits = false;
                if outbound.count_news(counters) {
                    counters.mesh_update_loop_count.record(1);
                }
                runs.iter().for_each(|run| gathered.extend_from_slice(&plain[run.clone()]));
                &gathered[..]
            }
        };
        if self.encrypt_and_transmit(&mut outbound, bytes, outgoing) {
            self.count_sent(counters, own_frames, frames());
        } else {
            frames().for_each(|frame| self.lose(counters, DropReason::WriteError, frame));
        }
    }

    /// Its socket, unless the client is in this process.
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.stream.as_ref().map(AsFd::as_fd)
    }

    /// Leaves frames of the server's own for the owner to send.
    pub(super) fn post(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.leave(|outbound| write(&mut outbound.urgent));
    }

    /// Leaves the frame that tells a watcher who is here.
    pub(super) fn post_presence(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.leave(|outbound| {
            write(&mut outbound.urgent);
            outbound.watches = true;
            outbound.news += 1;
        });
    }

    /// Leaves the frame that tells a watcher, or somebody who has heard from the key, that it is gone.
    pub(super) fn post_departure(&self, write: impl FnOnce(&mut Vec<u8>)) {
        self.leave(|outbound| {
            write(&mut outbound.urgent);
            outbound.news += u32::from(outbound.watches);
        });
    }

    fn leave(&self, write: impl FnOnce(&mut Outbound)) {
        if self.local.is_some() {
            return;
        }
        let mut outbound = self.outbound.lock();
        if outbound.ended {
            return;
        }
        write(&mut outbound);
        if outbound.urgent.len() > MAX_URGENT {
            outbound.urgent = Vec::new();
            self.closing.store(true, Ordering::Release);
        }
        drop(outbound);
        self.attention.call();
    }

    /// Leaves a Pong to be sent by the next [`Self::flush`], unless one already waits behind a full
    /// socket. Returns whether it did.
    pub(super) fn post_pong(&self, data: &[u8; PING_DATA_LENGTH]) -> bool {
        let mut outbound = self.outbound.lock();
        let blocked = !outbound.unsent.is_empty();
        if blocked && outbound.pong_waits {
            return false;
        }
        outbound.pong_waits = true;
        message::pong(&mut outbound.urgent, data);
        true
    }

    /// Sends what waits, as far as the socket takes it.
    pub(super) fn flush(&self, scratch: &mut WriteScratch, counters: &WorkerCounters) {
        let mut outbound = self.outbound.lock();
        let mut batches = 0;
        self.flush_outbound(&mut outbound, scratch, counters, &mut batches);
        if batches > 0 {
            counters.mesh_update_loop_count.record(batches);
        }
    }

    /// Adds the batches of news for a watcher to `batches`.
    fn flush_outbound(
        &self,
        outbound: &mut Outbound,
        scratch: &mut WriteScratch,
        counters: &WorkerCounters,
        batches: &mut u64,
    ) {
        let WriteScratch { gathered, outgoing } = scratch;
        loop {
            if outbound.ended || !self.transmit_unsent(outbound) {
                return;
            }
            gathered.clear();
            gathered.append(&mut outbound.urgent);
            outbound.urgent = Vec::new();
            outbound.pong_waits = false;
            *batches += u64::from(outbound.count_news(counters));
            let relayed_from = gathered.len();
            let own_frames = Frames::of(gathered).count();
            let mut waits = Waits::default();
            if let Some(queue) = &mut outbound.waiting {
                let now = Instant::now();
                while gathered.len() < FLUSH_BATCH
                    && let Some(waiting) = queue.pop()
                {
                    waits.add(now.saturating_duration_since(waiting.since));
                    gathered.extend_from_slice(&waiting.frame);
                }
            }
            if gathered.is_empty() {
                outbound.waiting = None;
                return;
            }
            let relayed = || Frames::of(&gathered[relayed_from..]);
            if self.encrypt_and_transmit(outbound, gathered, outgoing) {
                self.count_sent(counters, own_frames, relayed());
                self.count_waits(counters, &waits, true);
            } else {
                relayed().for_each(|frame| self.lose(counters, DropReason::WriteError, frame));
                return;
            }
        }
    }

    /// Whether the socket is full.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Acquire)
    }

    /// Since when the socket has refused every byte; `None` if nothing waits for it.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
        if !self.is_blocked() {
            return None;
        }
        self.outbound.lock().stalled_since
    }

    /// Ends the session: what waits is counted as lost, the peer is told if its socket has room.
    pub(super) fn end(&self, scratch: &mut WriteScratch, counters: &WorkerCounters) {
        let mut outbound = self.outbound.lock();
        outbound.ended = true;
        if let Some(mut queue) = outbound.waiting.take() {
            while let Some(waiting) = queue.pop() {
                self.lose(counters, DropReason::GoneDisconnected, &waiting.frame);
            }
        }
        if outbound.unsent.is_empty() {
            scratch.outgoing.clear();
            outbound.transport.close(&mut scratch.outgoing);
            self.transmit(&mut outbound, &scratch.outgoing);
        }
        // The session's keys and buffers go now, however long others still hold this connection.
        outbound.transport = Transport::plain();
        outbound.unsent = Vec::new();
        outbound.urgent = Vec::new();
        drop(outbound);
        // Fails only if the peer has already gone, which is as good.
        let _ = self.stream().and_then(|stream| stream.shutdown(Shutdown::Both));
    }

    /// Asks the owner to end the session.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.attention.call();
    }

    /// Whether somebody asked for the end of the session, or a write failed.
    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether this connection is the one that gets its key's packets.
    pub(super) fn is_routed(&self) -> bool {
        self.routed.load(Ordering::Acquire)
    }

    /// Notes whether this connection gets its key's packets.
    pub(super) fn set_routed(&self, routed: bool) {
        self.routed.store(routed, Ordering::Release);
    }

    /// Whether other connections share the key, so that the relay must hear when this one speaks.
    pub(super) fn is_duplicate(&self) -> bool {
        self.duplicate.load(Ordering::Acquire)
    }

    /// Notes whether other connections share the key.
    pub(super) fn set_duplicate(&self, duplicate: bool) {
        self.duplicate.store(duplicate, Ordering::Release);
    }

    /// Its socket; only a client in this process has none.
    pub(super) fn stream(&self) -> io::Result<&TcpStream> {
        self.stream.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Counts a relayed frame that will not go this way.
    fn lose(&self, counters: &WorkerCounters, reason: DropReason, frame: &[u8]) {
        count_drop(counters, reason, frame);
        if let Some(forwards) = &self.forwards {
            forwards.dropped();
        }
        if let Some(drops) = &self.verbose_drops {
            drops.note(frame, &self.key, reason);
        }
    }

    /// Encrypts and writes. Whether the bytes are now on their way; if not, the connection closes.
    fn encrypt_and_transmit(
        &self,
        outbound: &mut Outbound,
        bytes: &[u8],
        outgoing: &mut Outgoing,
    ) -> bool {
        outgoing.clear();
        if outbound.transport.send(bytes, outgoing).is_err() {
            self.close();
            return false;
        }
        self.transmit(outbound, outgoing)
    }

    /// Writes `outgoing` behind what already waits; keeps what the socket refuses.
    fn transmit(&self, outbound: &mut Outbound, outgoing: &Outgoing) -> bool {
        let mut rest = outgoing.unsent();
        if outbound.unsent.is_empty() {
            match self.write_some(rest) {
                Ok(written) => rest = &rest[written..],
                Err(_) => {
                    self.close();
                    return false;
                }
            }
            if rest.is_empty() {
                return true;
            }
            outbound.stalled_since = Some(Instant::now());
            self.blocked.store(true, Ordering::Release);
            self.attention.call();
        }
        outbound.unsent.extend_from_slice(rest);
        if outbound.unsent.len() > MAX_UNSENT {
            self.close();
        }
        true
    }

    /// Writes what the socket refused earlier. Whether all of it went.
    fn transmit_unsent(&self, outbound: &mut Outbound) -> bool {
        if outbound.unsent.is_empty() {
            return true;
        }
        match self.write_some(&outbound.unsent) {
            Ok(0) => return false,
            Ok(written) => {
                outbound.unsent.drain(..written);
            }
            Err(_) => {
                self.close();
                return false;
            }
        }
        if !outbound.unsent.is_empty() {
            outbound.stalled_since = Some(Instant::now());
            return false;
        }
        outbound.unsent = Vec::new();
        outbound.stalled_since = None;
        self.blocked.store(false, Ordering::Release);
        true
    }

    /// Counts packets that have waited for a client. What waits for a mesh peer is no client's business.
    fn count_waits(&self, counters: &WorkerCounters, waits: &Waits, were_sent: bool) {
        if !self.is_link() {
            counters.packets_waited(waits, were_sent);
        }
    }

    /// Counts one write to a client: the server's own frames and the relayed ones in it. What goes to
    /// a mesh peer was counted when it was handed over.
    fn count_sent<'a>(
        &self,
        counters: &WorkerCounters,
        own_frames: usize,
        relayed: impl Iterator<Item = &'a [u8]>,
    ) {
        if self.is_link() {
            return;
        }
        let (mut count, mut bytes) = (0, 0);
        for frame in relayed {
            count += 1;
            bytes += packet_of(frame).1.len() as u64;
        }
        counters.packets_sent.add(count);
        counters.bytes_sent.add(bytes);
        counters.buffered_write_frames.record(count + own_frames as u64);
    }

    /// Writes until everything went or the socket is full; how many bytes went.
    fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream()?;
        let mut written = 0;
        while written < bytes.len() {
            match stream.write(&bytes[written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }
}

impl Outbound {
    /// Counts the news for a watcher that have just been taken to be sent; whether there are any.
    fn count_news(&mut self, counters: &WorkerCounters) -> bool {
        let news = std::mem::take(&mut self.news);
        if news > 0 {
            counters.mesh_update_batch_size.record(news.into());
        }
        news > 0
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        // Not a descriptor; `watch` does not come so far.
        self.stream.as_ref().map_or(-1, AsRawFd::as_raw_fd)
    }
}

/// Counts a relayed frame that will not reach its destination.
fn count_drop(counters: &WorkerCounters, reason: DropReason, frame: &[u8]) {
    if is_forwarded(frame) {
        counters.forwards_dropped.increment();
    }
    let (kind, packet) = packet_of(frame);
    counters.packet_dropped(reason, kind, packet.len() as u64);
}
