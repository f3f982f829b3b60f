//! A connection before it is a DERP session: TLS handshake, HTTP, WebSocket, login. An ordinary asynchronous
//! byte stream; it may be slow, the packet path does not come here.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::transport::{Outgoing, Phase, Transport, TransportError};
use crate::http::TlsVersion;

/// Bytes read from the socket at once.
const READ_LENGTH: usize = 4 << 10;
/// Most bytes encrypted before the socket has taken them.
const WRITE_LENGTH: usize = 16 << 10;

/// A stream over TCP, with or without TLS.
pub(super) struct Link {
    stream: TcpStream,
    transport: Transport,
    phase: Phase,
    /// Decrypted bytes that nobody has read yet.
    plain: Vec<u8>,
    outgoing: Outgoing,
    /// How much of `outgoing` the socket has taken.
    written: usize,
    /// The first bytes the peer ever sent: they tell a browser that forgot the "s" from an attacker.
    first_bytes: [u8; 5],
}

/// What was read from a link's socket, behind what is incomplete.
pub(super) struct Received {
    bytes: Vec<u8>,
    is_end: bool,
}

/// What is left of a link when a session begins.
pub(super) struct Parts {
    pub(super) stream: TcpStream,
    pub(super) transport: Transport,
    /// DERP bytes that nobody has read.
    pub(super) unread: Vec<u8>,
    /// Socket bytes that have not been sent.
    pub(super) unsent: Vec<u8>,
}

impl Link {
    /// A stream that carries DERP or HTTP as it is.
    pub(super) fn plain(stream: TcpStream) -> Self {
        Self::new(stream, Transport::plain(), Phase::Established)
    }

    /// A stream whose peer must begin a TLS handshake.
    pub(super) fn tls(
        stream: TcpStream,
        config: Arc<ServerConfig>,
    ) -> Result<Self, TransportError> {
        Ok(Self::new(stream, Transport::tls(config)?, Phase::Handshaking))
    }

    fn new(stream: TcpStream, transport: Transport, phase: Phase) -> Self {
        Self {
            stream,
            transport,
            phase,
            plain: Vec::new(),
            outgoing: Outgoing::default(),
            written: 0,
            first_bytes: [0; 5],
        }
    }

    /// The version of TLS, now that the handshake is complete; `None` without TLS.
    pub(super) fn tls_version(&self) -> Option<TlsVersion> {
        self.transport.tls_version()
    }

    /// See [`Transport::is_validation`].
    pub(super) fn is_validation(&self) -> bool {
        self.transport.is_validation()
    }

    /// Whether the TLS handshake has yet to be completed.
    pub(super) fn is_handshaking(&self) -> bool {
        self.phase == Phase::Handshaking
    }

    /// Waits until everything has been sent and there may be something to [`Self::read`].
    ///
    /// # Errors
    ///
    /// If the connection is broken.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        std::future::poll_fn(|context| self.poll_readable(context)).await
    }

    /// From now on the peer speaks WebSocket. It has already sent `early`, which nobody has interpreted.
    ///
    /// # Errors
    ///
    /// If that is no WebSocket; a Close frame is on its way then.
    pub(super) fn begin_websocket(&mut self, mut early: Vec<u8>) -> Result<(), TransportError> {
        early.append(&mut self.plain);
        self.transport.begin_websocket(early);
        let mut received = self.transport.incomplete().to_vec();
        let received = self.transport.receive(&mut received, &mut self.plain, &mut self.outgoing);
        self.phase = *received.as_ref().unwrap_or(&Phase::Ended);
        received.map(drop)
    }

    /// Turns the link into what a session consists of. `first` goes to the peer before anything else.
    ///
    /// # Errors
    ///
    /// If the connection cannot carry data.
    pub(super) fn into_session(mut self, first: &[u8]) -> Result<Parts, TransportError> {
        self.transport.send(first, &mut self.outgoing)?;
        Ok(Parts {
            stream: self.stream,
            transport: self.transport.establish()?,
            unread: self.plain,
            unsent: self.outgoing.unsent().get(self.written..).unwrap_or_default().to_vec(),
        })
    }

    fn poll_readable(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_transmit(context))?;
        self.stream.poll_read_ready(context)
    }

    /// Reads from the socket once, and decrypts.
    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_readable(context))?;
            let Some(received) = self.read()? else { continue };
            let taken = self.take(received);
            if taken.is_err() {
                // The reason matters more than whether the socket takes the farewell.
                let _ = self.poll_transmit(context);
            }
            return Poll::Ready(taken);
        }
    }

    /// Reads from the socket once, for [`Self::take`]; `None` if there was nothing. Never waits.
    ///
    /// # Errors
    ///
    /// If the connection is broken, or the peer hangs up in its handshake.
    pub(super) fn read(&mut self) -> io::Result<Option<Received>> {
        let kept = self.transport.incomplete().len();
        let mut received = vec![0; kept + READ_LENGTH];
        let count = match self.stream.try_read(&mut received[kept..]) {
            Ok(0) if self.phase == Phase::Handshaking => {
                self.phase = Phase::Ended;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        received[..kept].copy_from_slice(self.transport.incomplete());
        received.truncate(kept + count);
        // It may wait for its turn, as one of many.
        received.shrink_to_fit();
        Ok(Some(Received { bytes: received, is_end: count == 0 }))
    }

    /// Decrypts what was read.
    ///
    /// # Errors
    ///
    /// If the peer breaks TLS; an alert, or an answer to plain HTTP, is then to be sent.
    pub(super) fn take(&mut self, received: Received) -> io::Result<()> {
        let Received { bytes: mut received, is_end } = received;
        if is_end {
            self.phase = Phase::Ended;
            return Ok(());
        }
        if self.first_bytes == [0; 5]
            && let Some(first) = received.first_chunk()
        {
            self.first_bytes = *first;
        }
        match self.transport.receive(&mut received, &mut self.plain, &mut self.outgoing) {
            Ok(phase) => {
                self.phase = phase;
                Ok(())
            }
            Err(error) => {
                if self.phase == Phase::Handshaking && looks_like_http(&self.first_bytes) {
                    self.outgoing.clear();
                    self.outgoing.extend(PLAIN_HTTP_ANSWER);
                    self.written = 0;
                }
                self.phase = Phase::Ended;
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    /// Writes what is encrypted.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.outgoing.unsent().len() {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_write(&self.outgoing.unsent()[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.outgoing = Outgoing::default();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

const PLAIN_HTTP_ANSWER: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nThis port speaks HTTPS; the request was plain HTTP.\n";

fn looks_like_http(first_bytes: &[u8; 5]) -> bool {
    [b"GET /", b"HEAD ", b"POST ", b"PUT /", b"OPTIO"].contains(&first_bytes)
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.plain.is_empty() && self.phase != Phase::Ended {
            ready!(self.poll_fill(context))?;
        }
        let count = self.plain.len().min(buffer.remaining());
        buffer.put_slice(&self.plain[..count]);
        self.plain.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_transmit(context))?;
        let count = bytes.len().min(WRITE_LENGTH);
        let Self { transport, outgoing, .. } = &mut *self;
        transport
            .send(&bytes[..count], outgoing)
            .map_err(|error| io::Error::new(io::ErrorKind::BrokenPipe, error))?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_transmit(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.phase == Phase::Established {
            self.phase = Phase::Ended;
            let Self { transport, outgoing, .. } = &mut *self;
            transport.close(outgoing);
        }
        ready!(self.poll_transmit(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
