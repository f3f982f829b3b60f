//! A standing link to a mesh peer: hears who is connected there, and sends what the workers left
//! behind when its socket was full. The packets themselves are written by the workers that read them.

use std::{
    io,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time::sleep_until;

use super::{Region, Restart};
use crate::{
    client::SILENCE_TIMEOUT,
    proto::client::read::{Found, FrameTooLong, Message, MessageReader},
    relay::{Heard, MOST_KEYS},
    server::{
        connection::{Connection, WriteScratch},
        session::QUANTUM,
        transport::{Phase, TransportError},
        wait::{Event, arm, poll_event, watch},
    },
};

/// How long a peer may refuse every byte: as derper.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of clients behind a new link is logged when no more have been announced for this long ...
const ANNOUNCED_AFTER: Duration = Duration::from_millis(200);
/// ... or after this long, if none is.
const NONE_ANNOUNCED_AFTER: Duration = Duration::from_secs(2);

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the peer closed the link")]
    Closed,
    #[error("a write failed")]
    Write,
    #[error("it took nothing for {WRITE_TIMEOUT:?}")]
    Stalled,
    #[error("it has been silent for {SILENCE_TIMEOUT:?}")]
    Silent,
    #[error("it sends {0}")]
    Frame(#[from] FrameTooLong),
    #[error("{0}")]
    Transport(#[from] TransportError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Memory that the links use in turn.
#[derive(Default)]
pub(super) struct Scratch {
    received: Vec<u8>,
    plain: Vec<u8>,
    heard: Vec<Heard>,
    pub(super) write: WriteScratch,
}

/// The reading half of a link.
struct Link<'a> {
    region: &'a Region,
    /// The peer, as configured.
    name: &'a str,
    connection: Arc<Connection>,
    reader: MessageReader,
    /// Plaintext of an incomplete frame.
    partial: Vec<u8>,
    last_byte: Instant,
    /// When to log how many clients the peer has.
    report_at: Option<Instant>,
    /// Whether the peer has announced more keys than it may, and that has been logged.
    is_full: bool,
    /// What the peer has said about its restart.
    restart: Option<Restart>,
}

/// Serves a link until it ends. `unread` came behind the login. Returns what the peer has said about its restart, too.
pub(super) async fn serve(
    region: &Region,
    name: &str,
    connection: Arc<Connection>,
    unread: Vec<u8>,
) -> (End, Option<Restart>) {
    let now = Instant::now();
    let mut link = Link {
        region,
        name,
        connection,
        reader: MessageReader::default(),
        partial: unread,
        last_byte: now,
        report_at: Some(now + NONE_ANNOUNCED_AFTER),
        is_full: false,
        restart: None,
    };
    match link.run().await {
        Ok(never) => match never {},
        Err(end) => (end, link.restart),
    }
}

impl Link<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, End> {
        let connection = Arc::clone(&self.connection);
        let socket = watch(Arc::clone(&connection))?;
        let mut timer = pin!(sleep_until((self.last_byte + SILENCE_TIMEOUT).into()));
        self.flush();
        self.hear(false)?;
        loop {
            let stalled_at = connection.stalled_since().map(|since| since + WRITE_TIMEOUT);
            let silent_at = self.last_byte + SILENCE_TIMEOUT;
            let deadlines = [Some(silent_at), stalled_at, self.report_at];
            arm(timer.as_mut(), deadlines.into_iter().flatten().min().unwrap_or(silent_at));
            let event = std::future::poll_fn(|context| {
                poll_event(&connection, &socket, timer.as_mut(), true, context)
            });
            let event = event.await?;
            if connection.is_closing() {
                return Err(End::Write);
            }
            match event {
                Event::Readable(mut ready) => {
                    if self.read()? {
                        tokio::task::yield_now().await;
                    } else {
                        ready.clear_ready();
                    }
                }
                Event::Writable(mut ready) => {
                    self.flush();
                    if connection.is_blocked() {
                        ready.clear_ready();
                    }
                }
                Event::Attention => self.flush(),
                Event::Time => self.check_time()?,
            }
        }
    }

    fn check_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if self.connection.stalled_since().is_some_and(|since| now >= since + WRITE_TIMEOUT) {
            self.region.counters.write_timeouts.increment();
            return Err(End::Stalled);
        }
        if now >= self.last_byte + SILENCE_TIMEOUT {
            return Err(End::Silent);
        }
        if self.report_at.is_some_and(|at| now >= at) {
            self.report_at = None;
            let peers = self.region.hub.link_keys(self.connection.id);
            tracing::info!("mesh({:?}): connected; {peers} peers", self.name);
        }
        Ok(())
    }

    fn flush(&self) {
        self.connection.flush(&mut self.region.scratch().write, &self.region.counters);
    }

    /// Reads once and passes on what the peer says; whether there may be more.
    fn read(&mut self) -> Result<bool, End> {
        let scratch = &mut *self.region.scratch();
        let kept = self.connection.incomplete_length();
        if scratch.received.len() < kept + QUANTUM {
            scratch.received.resize(kept + QUANTUM, 0);
        }
        let count = match self.connection.read(&mut scratch.received[kept..kept + QUANTUM])? {
            None => return Ok(false),
            Some(0) => return Err(End::Closed),
            Some(count) => count,
        };
        self.last_byte = Instant::now();
        let phase = self.connection.decrypt(
            &mut scratch.received[..kept + count],
            &mut self.partial,
            &mut scratch.write,
        )?;
        self.hear_with(scratch, phase == Phase::Ended)?;
        Ok(count == QUANTUM)
    }

    fn hear(&mut self, ended: bool) -> Result<(), End> {
        let region = self.region;
        self.hear_with(&mut region.scratch(), ended)
    }

    /// Passes on the frames in `partial`, and keeps the incomplete one.
    fn hear_with(&mut self, scratch: &mut Scratch, ended: bool) -> Result<(), End> {
        let Region { hub, counters, .. } = self.region;
        scratch.heard.clear();
        std::mem::swap(&mut scratch.plain, &mut self.partial);
        let result = self.find_frames(scratch);
        if scratch.heard.iter().any(|heard| matches!(heard, Heard::Present(_)))
            && self.report_at.is_some()
        {
            self.report_at = Some(self.last_byte + ANNOUNCED_AFTER);
        }
        if !scratch.heard.is_empty()
            && hub.link_heard(self.connection.id, scratch.heard.drain(..), counters)
            && !self.is_full
        {
            self.is_full = true;
            tracing::warn!(
                "mesh({:?}): announces more than {MOST_KEYS} keys; the others cannot be reached by way of it",
                self.name
            );
        }
        let consumed = result?;
        self.partial = match scratch.plain.get(consumed..) {
            None | Some([]) => Vec::new(),
            Some(incomplete) => incomplete.to_vec(),
        };
        scratch.plain.clear();
        if ended { Err(End::Closed) } else { Ok(()) }
    }

    /// Collects what the frames in `scratch.plain` say; how many bytes are done with.
    fn find_frames(&mut self, scratch: &mut Scratch) -> Result<usize, End> {
        let mut at = 0;
        loop {
            let range = match self.reader.next(&scratch.plain, at)? {
                Found::Frame(range) => range,
                Found::Unwanted(resume) => {
                    at = resume;
                    continue;
                }
                Found::Incomplete(from) => return Ok(from),
            };
            at = range.end;
            match Message::parse(&scratch.plain[range]) {
                Some(Message::PeerPresent { key, .. }) => scratch.heard.push(Heard::Present(key)),
                Some(Message::PeerGone { key, .. }) => scratch.heard.push(Heard::Gone(key)),
                Some(Message::Ping(data)) => {
                    if self.connection.post_pong(&data) {
                        let counters = &self.region.counters;
                        self.connection.flush(&mut scratch.write, counters);
                    }
                }
                Some(Message::Restarting { reconnect_in, try_for }) => {
                    self.restart = Some(Restart { reconnect_in, try_for });
                }
                // Nothing that concerns a mesh: packets for this server's own key among it.
                Some(
                    Message::Packet { .. }
                    | Message::KeepAlive
                    | Message::Pong(_)
                    | Message::Health(_),
                )
                | None => {}
            }
        }
    }
}
