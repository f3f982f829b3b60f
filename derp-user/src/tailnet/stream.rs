//! A Noise connection as a stream of bytes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::noise::{
    Answer, Early, HEADER_LENGTH, Handshake, Incoming, MAX_REFUSAL, NoiseError, RESPONSE_LENGTH,
    Sealer, answer,
};

/// A stream in which HTTP/2 is spoken, over one that carries Noise records.
pub(super) struct NoiseStream<S> {
    inner: S,
    incoming: Incoming,
    early: Early,
    /// What was opened, from `read` on still to be read.
    opened: Vec<u8>,
    read: usize,
    sealer: Sealer,
    /// What was sealed, from `written` on still to be written.
    sealed: Vec<u8>,
    written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> NoiseStream<S> {
    /// Waits for the answer to `handshake`, whose first message was sent with the request for this stream. The caller
    /// limits the time.
    pub(super) async fn finish(mut inner: S, handshake: Handshake) -> io::Result<Self> {
        let mut header = [0; HEADER_LENGTH];
        inner.read_exact(&mut header).await?;
        match answer(header).map_err(fault)? {
            Answer::Response => {
                let mut response = [0; RESPONSE_LENGTH];
                inner.read_exact(&mut response).await?;
                let (sealer, incoming) = handshake.finish(&response).map_err(fault)?;
                Ok(Self::new(inner, sealer, incoming))
            }
            Answer::Refusal(length) => {
                let mut text = vec![0; length.min(MAX_REFUSAL)];
                inner.read_exact(&mut text).await?;
                let text = String::from_utf8_lossy(&text).into_owned();
                Err(fault(NoiseError::Refused(text)))
            }
        }
    }

    pub(super) fn new(inner: S, sealer: Sealer, incoming: Incoming) -> Self {
        let (opened, sealed) = (Vec::new(), Vec::new());
        let early = Early::default();
        Self { inner, incoming, early, opened, read: 0, sealer, sealed, written: 0 }
    }

    /// Writes what was sealed.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.sealed.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
        }
        self.sealed.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

fn fault(error: NoiseError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for NoiseStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read >= this.opened.len() {
            let mut space = ReadBuf::new(this.incoming.space());
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                let is_whole = this.incoming.is_idle();
                let end = if is_whole { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
                return Poll::Ready(end);
            }
            if let Some(content) = this.incoming.advance(count).map_err(fault)? {
                this.opened.clear();
                this.read = 0;
                this.early.strip(content, &mut this.opened).map_err(fault)?;
            }
        }
        let rest = this.opened.get(this.read..).unwrap_or_default();
        let count = rest.len().min(target.remaining());
        target.put_slice(rest.get(..count).unwrap_or_default());
        this.read += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NoiseStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        if content.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let count = this.sealer.seal(content, &mut this.sealed).map_err(fault)?;
        // What the socket does not take now goes out with the next write or flush.
        let _ = this.poll_drain(context)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(context))?;
        Pin::new(&mut this.inner).poll_shutdown(context)
    }
}
