//! The HTTP API of a tailscaled on this host, on its Unix socket.

use std::{
    future::{Future as _, pending, poll_fn},
    path::PathBuf,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request, StatusCode,
    client::conn::http1::{self, Connection, SendRequest},
    header::HOST,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::admit::web::{in_words, read_body};

/// Where tailscaled listens on Linux.
pub(crate) const DEFAULT_SOCKET: &str = "/var/run/tailscale/tailscaled.sock";

/// The capability version of the derper that asks the same questions; tailscaled may look at it.
const CAPABILITY: &str = "145";

/// Asks one tailscaled, by a connection that is kept for the next question.
pub(crate) struct LocalApi {
    socket: PathBuf,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Empty<Bytes>>,
    connection: Pin<Box<Connection<TokioIo<UnixStream>, Empty<Bytes>>>>,
}

impl LocalApi {
    /// Asks at this socket. Nothing is opened before the first question.
    pub(crate) const fn new(socket: PathBuf) -> Self {
        Self { socket, open: None }
    }

    /// Asks a question, and returns status and body of the answer. The caller limits the time; if it gives up, the
    /// connection is closed.
    ///
    /// # Errors
    ///
    /// In words, if there is no answer, or its body is longer than `longest` bytes.
    pub(crate) async fn get(
        &mut self,
        path: &str,
        longest: usize,
    ) -> Result<(StatusCode, Vec<u8>), String> {
        // Kept again only when all of the answer has been read.
        if let Some(mut kept) = self.open.take()
            && let Ok((answer, is_open)) = kept.ask(path, longest).await
        {
            self.open = is_open.then_some(kept);
            return Ok(answer);
        }
        // The one that was kept may have been closed meanwhile.
        let mut open = self.connect().await?;
        let (answer, is_open) = open.ask(path, longest).await?;
        self.open = is_open.then_some(open);
        Ok(answer)
    }

    /// Waits until tailscaled closes the connection; for ever if there is none.
    pub(crate) async fn closed(&mut self) {
        let Some(open) = &mut self.open else { return pending().await };
        let _ = poll_fn(|context| open.connection.as_mut().poll(context)).await;
        self.open = None;
    }

    async fn connect(&self) -> Result<Open, String> {
        let named = |error: std::io::Error| format!("{}: {error}", self.socket.display());
        let stream = UnixStream::connect(&self.socket).await.map_err(named)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| in_words(&error))?;
        Ok(Open { sender, connection: Box::pin(connection) })
    }
}

impl Open {
    /// Returns the answer, and whether the connection can be used again.
    async fn ask(
        &mut self,
        path: &str,
        longest: usize,
    ) -> Result<((StatusCode, Vec<u8>), bool), String> {
        let request = Request::get(path)
            .header(HOST, "local-tailscaled.sock")
            .header("Tailscale-Cap", CAPABILITY)
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let Self { sender, connection } = self;
        let answer = async {
            let answer = sender.send_request(request).await;
            let mut answer = answer.map_err(|error| in_words(&error))?;
            match read_body(answer.body_mut(), longest).await? {
                (body, true) => Ok((answer.status(), body)),
                (_, false) => Err(format!("an answer of more than {longest} bytes")),
            }
        };
        // The connection must be driven for the answer to come; its own end is no news.
        let is_over = AtomicBool::new(false);
        let driven = async {
            let _ = connection.as_mut().await;
            is_over.store(true, Relaxed);
            pending().await
        };
        let answer: Result<_, String> = tokio::select! {
            answer = answer => answer,
            never = driven => never,
        };
        Ok((answer?, !is_over.load(Relaxed)))
    }
}
