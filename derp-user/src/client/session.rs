//! A logged-in connection, whole and in halves.

use std::{cell::RefCell, io, ops::Range, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rustls::{ProtocolVersion, pki_types::CertificateDer};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};

use super::{
    ClientError,
    wire::{Outgoing, Phase, Wire},
};
use crate::{
    proto::{
        client::{
            login::ServerInfo,
            read::{Found, Message, MessageReader},
            write,
        },
        frame::{HEADER_LENGTH, PING_DATA_LENGTH},
        keys::{KEY_LENGTH, NodePublic},
        message,
    },
    relay::limit::TokenBucket,
};

/// A connection on which nothing comes, or nothing can be sent, for this long has ended. Relays send
/// a KeepAlive every minute.
pub const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// Most bytes that are read from a socket at once.
pub(super) const READ_CHUNK: usize = 64 << 10;
/// More unsent bytes than this are not added to by answers to Pings.
const MAX_UNSENT: usize = 64 << 10;
/// An idle connection gives back more memory than this.
const KEPT_CAPACITY: usize = 4 << 10;

thread_local! {
    /// Where socket bytes lie while they are decrypted. It belongs to the thread, so that an idle
    /// connection needs none.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Socket and TLS state of one connection.
pub(crate) struct Link {
    socket: TcpStream,
    /// Held for one encryption or decryption and one non-blocking call.
    state: Mutex<State>,
    host: String,
}

struct State {
    wire: Wire,
    outgoing: Outgoing,
}

impl Link {
    fn io(&self, source: io::Error) -> ClientError {
        ClientError::Io { host: self.host.clone(), source }
    }

    fn tls(&self, source: rustls::Error) -> ClientError {
        ClientError::Tls { host: self.host.clone(), source }
    }

    /// Hands the socket what it takes without waiting; whether that was everything.
    fn flush(&self, state: &mut State) -> Result<bool, ClientError> {
        while !state.outgoing.is_empty() {
            match self.socket.try_write(state.outgoing.unsent()) {
                Ok(count) => state.outgoing.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(self.io(error)),
            }
        }
        Ok(true)
    }

    /// Waits until the socket has taken everything.
    async fn flushed(&self) -> Result<(), ClientError> {
        let deadline = Instant::now() + SILENCE_TIMEOUT;
        loop {
            if self.flush(&mut self.state.lock())? {
                return Ok(());
            }
            timeout_at(deadline, self.socket.writable())
                .await
                .map_err(|_| self.silent())?
                .map_err(|error| self.io(error))?;
        }
    }

    async fn write(&self, bytes: &[u8]) -> Result<(), ClientError> {
        self.flushed().await?;
        {
            let State { wire, outgoing } = &mut *self.state.lock();
            wire.send([bytes], outgoing, |_| ()).map_err(|error| self.tls(error))?;
        }
        self.flushed().await
    }

    /// Reads once without waiting, and appends the data to `received`. `None` if nothing is there.
    fn read(&self, received: &mut Vec<u8>) -> Result<Option<Phase>, ClientError> {
        SCRATCH.with_borrow_mut(|scratch| {
            let state = &mut *self.state.lock();
            let kept = state.wire.incomplete().len();
            scratch.resize(scratch.len().max(kept + READ_CHUNK), 0);
            scratch[..kept].copy_from_slice(state.wire.incomplete());
            let count = match self.socket.try_read(&mut scratch[kept..kept + READ_CHUNK]) {
                Ok(0) => return Ok(Some(Phase::Ended)),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(self.io(error)),
            };
            let mut data = |piece: &[u8]| received.extend_from_slice(piece);
            let phase =
                state.wire.receive(&mut scratch[..kept + count], &mut data, &mut state.outgoing);
            // What TLS has to say, an alert above all, is sent even if this is the end.
            let flushed = self.flush(state);
            let phase = phase.map_err(|error| self.tls(error))?;
            flushed.map(|_| Some(phase))
        })
    }

    fn silent(&self) -> ClientError {
        ClientError::Silent { host: self.host.clone(), limit: SILENCE_TIMEOUT }
    }
}

/// A connection and what has been received on it but not yet taken.
pub(super) struct Line {
    link: Link,
    received: Vec<u8>,
    ended: bool,
}

impl Line {
    pub(super) fn new(socket: TcpStream, wire: Wire, host: String) -> Self {
        let state = Mutex::new(State { wire, outgoing: Outgoing::default() });
        Self { link: Link { socket, state, host }, received: Vec::new(), ended: false }
    }

    /// Brings the TLS handshake to its end.
    pub(super) async fn handshake(&mut self) -> Result<(), ClientError> {
        let mut phase = {
            let State { wire, outgoing } = &mut *self.link.state.lock();
            wire.receive(&mut [], &mut |_| (), outgoing)
        }
        .map_err(|error| self.link.tls(error))?;
        self.link.flushed().await?;
        while phase == Phase::Handshaking {
            self.link.socket.readable().await.map_err(|error| self.link.io(error))?;
            phase = self.link.read(&mut self.received)?.unwrap_or(phase);
        }
        self.ended = phase == Phase::Ended;
        if self.ended {
            return Err(self.closed("during the TLS handshake"));
        }
        self.link.flushed().await
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.link.write(bytes).await
    }

    /// The version of TLS, if there is TLS.
    pub(super) fn tls_version(&self) -> Option<ProtocolVersion> {
        self.link.state.lock().wire.tls_version()
    }

    /// The server's certificates, its own first.
    pub(super) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        self.link.state.lock().wire.certificates()
    }

    pub(super) fn received(&self) -> &[u8] {
        &self.received
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.received.drain(..count.min(self.received.len()));
    }

    /// Waits for more data; `during` says what the end of the connection would interrupt.
    pub(super) async fn more(&mut self, during: &'static str) -> Result<(), ClientError> {
        let before = self.received.len();
        while self.received.len() == before {
            if self.ended {
                return Err(self.closed(during));
            }
            self.link.socket.readable().await.map_err(|error| self.link.io(error))?;
            self.ended = self.link.read(&mut self.received)? == Some(Phase::Ended);
        }
        Ok(())
    }

    fn closed(&self, during: &'static str) -> ClientError {
        ClientError::Closed { host: self.link.host.clone(), during }
    }
}

/// A connection that is logged in.
pub struct Client {
    line: Line,
    server_key: NodePublic,
    server_info: ServerInfo,
}

impl Client {
    pub(super) fn new(line: Line, server_key: NodePublic, server_info: ServerInfo) -> Self {
        Self { line, server_key, server_info }
    }

    /// The relay's public key.
    pub fn server_key(&self) -> NodePublic {
        self.server_key
    }

    /// What the relay said of itself.
    pub fn server_info(&self) -> ServerInfo {
        self.server_info
    }

    /// Host and port of the relay.
    pub fn host(&self) -> &str {
        &self.line.link.host
    }

    /// Separates sending from receiving. The connection closes when both halves are dropped.
    pub fn split(self) -> (Sender, Receiver) {
        let limit = Limit::of(&self.server_info);
        let Line { link, received, ended } = self.line;
        let link = Arc::new(link);
        let sender = Sender { link: Arc::clone(&link), frame: Vec::new(), limit, held_back: 0 };
        let receiver = Receiver {
            link,
            received,
            at: 0,
            reader: MessageReader::default(),
            last_byte: Instant::now(),
            ended,
        };
        (sender, receiver)
    }

    /// Takes the connection apart: a non-blocking socket, its TLS state, and the bytes that have
    /// been received after the login.
    pub(crate) fn into_parts(self) -> io::Result<(std::net::TcpStream, Wire, Vec<u8>)> {
        let Line { link, received, .. } = self.line;
        Ok((link.socket.into_std()?, link.state.into_inner().wire, received))
    }

    /// Says farewell and closes.
    pub async fn close(self) {
        // The relay notices either way.
        let _ = self.split().0.close().await;
    }
}

/// How much the relay has asked its client to send at most.
struct Limit(Option<TokenBucket>);

impl Limit {
    fn of(info: &ServerInfo) -> Self {
        let ServerInfo { bytes_per_second, bytes_burst, .. } = *info;
        Self((bytes_per_second > 0).then(|| {
            TokenBucket::new(bytes_per_second as f64, bytes_burst as f64, Instant::now().into())
        }))
    }

    /// Whether a packet of this length may be sent now.
    fn allows(&mut self, packet: usize) -> bool {
        let length = HEADER_LENGTH + KEY_LENGTH + packet;
        let bucket = self.0.as_mut();
        bucket.is_none_or(|bucket| bucket.take_many(length as f64, Instant::now().into()))
    }
}

/// The sending half.
pub struct Sender {
    link: Arc<Link>,
    frame: Vec<u8>,
    limit: Limit,
    held_back: u64,
}

impl Sender {
    /// Sends `packet` to the client with the key `destination`, and waits until the socket has taken
    /// it. Relays lose packets rather than wait; nobody says whether it arrives.
    ///
    /// A packet beyond the rate that the relay has asked its clients to keep to
    /// ([`Client::server_info`]) is not sent, but counted ([`Self::held_back`]).
    ///
    /// # Errors
    ///
    /// If the packet has more than 64 KiB, or the connection has ended.
    pub async fn send(
        &mut self,
        destination: &NodePublic,
        packet: &[u8],
    ) -> Result<(), ClientError> {
        self.frame.clear();
        write::send_packet(&mut self.frame, destination, packet)?;
        if !self.limit.allows(packet.len()) {
            self.held_back += 1;
            return Ok(());
        }
        self.link.write(&self.frame).await
    }

    /// Packets that were not sent because the relay wants no more per second.
    #[must_use]
    pub const fn held_back(&self) -> u64 {
        self.held_back
    }

    /// Tells the relay whether it is this client's home.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn note_preferred(&mut self, preferred: bool) -> Result<(), ClientError> {
        self.frame.clear();
        write::note_preferred(&mut self.frame, preferred);
        self.link.write(&self.frame).await
    }

    /// Asks the relay to return `data` in a [`Message::Pong`].
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn ping(&mut self, data: [u8; PING_DATA_LENGTH]) -> Result<(), ClientError> {
        self.frame.clear();
        write::ping(&mut self.frame, &data);
        self.link.write(&self.frame).await
    }

    /// Asks the relay to say who is connected, with one [`Message::PeerPresent`] each, and from then on who
    /// comes and goes. Only for clients that log in with the mesh key; the relay disconnects others.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn watch(&mut self) -> Result<(), ClientError> {
        self.frame.clear();
        write::watch_conns(&mut self.frame);
        self.link.write(&self.frame).await
    }

    /// Sends a packet on behalf of `source`, as a mesh peer does that has that client. The relay hands it to
    /// `destination` only if that is connected to it; if not, and the packet looks like path discovery,
    /// it may say so with a [`Message::PeerGone`]. Only for clients that log in with the mesh key.
    ///
    /// # Errors
    ///
    /// If the packet has more than 64 KiB, or the connection has ended.
    pub async fn forward(
        &mut self,
        source: &NodePublic,
        destination: &NodePublic,
        packet: &[u8],
    ) -> Result<(), ClientError> {
        self.frame.clear();
        write::forward_packet(&mut self.frame, source, destination, packet)?;
        self.link.write(&self.frame).await
    }

    /// Asks the relay to disconnect every connection of the client with this key. There is no answer.
    /// Only for clients that log in with the mesh key.
    ///
    /// # Errors
    ///
    /// If the connection has ended.
    pub async fn close_peer(&mut self, key: &NodePublic) -> Result<(), ClientError> {
        self.frame.clear();
        write::close_peer(&mut self.frame, key);
        self.link.write(&self.frame).await
    }

    /// Tells the relay that nothing more will be sent.
    ///
    /// # Errors
    ///
    /// If the connection has ended already.
    pub async fn close(self) -> Result<(), ClientError> {
        {
            let State { wire, outgoing } = &mut *self.link.state.lock();
            wire.close(outgoing);
        }
        self.link.flushed().await
    }
}

/// The receiving half.
pub struct Receiver {
    link: Arc<Link>,
    received: Vec<u8>,
    at: usize,
    reader: MessageReader,
    last_byte: Instant,
    ended: bool,
}

impl Receiver {
    /// Waits for what the relay says next. Pings are answered before they are returned.
    ///
    /// # Errors
    ///
    /// If the connection has ended, by the relay, by a fault, or by [`SILENCE_TIMEOUT`].
    pub async fn recv(&mut self) -> Result<Message<'_>, ClientError> {
        let frame = self.next_frame().await?;
        Ok(self.message(frame))
    }

    /// What the frame at this place says.
    pub(super) fn message(&self, frame: Range<usize>) -> Message<'_> {
        Message::parse(&self.received[frame])
            .expect("the reader finds only frames that can be understood")
    }

    /// Waits for a frame, whose place stays good until this is called again, and answers it if it is a Ping.
    pub(super) async fn next_frame(&mut self) -> Result<Range<usize>, ClientError> {
        let frame = loop {
            let found = self
                .reader
                .next(&self.received, self.at)
                .map_err(|source| ClientError::Frame { host: self.link.host.clone(), source })?;
            match found {
                Found::Frame(range) => {
                    self.at = range.end;
                    break range;
                }
                Found::Unwanted(resume) => self.at = resume,
                Found::Incomplete(from) => {
                    self.received.drain(..from);
                    self.at = 0;
                    if self.received.is_empty() {
                        self.received.shrink_to(KEPT_CAPACITY);
                    }
                    self.fill().await?;
                }
            }
        };
        if let Message::Ping(data) = self.message(frame.clone()) {
            self.link.answer(&data)?;
        }
        Ok(frame)
    }

    /// Waits until there are more bytes than before.
    async fn fill(&mut self) -> Result<(), ClientError> {
        let before = self.received.len();
        while self.received.len() == before {
            if self.ended {
                let host = self.link.host.clone();
                return Err(ClientError::Closed { host, during: "after the login" });
            }
            timeout_at(self.last_byte + SILENCE_TIMEOUT, self.link.socket.readable())
                .await
                .map_err(|_| self.link.silent())?
                .map_err(|error| self.link.io(error))?;
            if let Some(phase) = self.link.read(&mut self.received)? {
                self.ended = phase == Phase::Ended;
                self.last_byte = Instant::now();
            }
        }
        Ok(())
    }
}

impl Link {
    /// Answers a Ping, unless the relay takes so little that the answer would be of no use.
    fn answer(&self, data: &[u8; PING_DATA_LENGTH]) -> Result<(), ClientError> {
        let state = &mut *self.state.lock();
        if state.outgoing.unsent().len() > MAX_UNSENT {
            return Ok(());
        }
        let mut frame = Vec::new();
        message::pong(&mut frame, data);
        let State { wire, outgoing } = state;
        wire.send([&frame[..]], outgoing, |_| ()).map_err(|error| self.tls(error))?;
        self.flush(state).map(drop)
    }
}
