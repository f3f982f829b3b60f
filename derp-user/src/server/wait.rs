//! What the owner of a connection waits for: its socket, its deadlines, and what other tasks left to do.

use std::{
    future::Future as _,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use tokio::{
    io::unix::{AsyncFd, AsyncFdReadyGuard},
    time::Sleep,
};

use super::connection::Connection;

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

/// Has this worker's runtime watch a connection's socket, until the result is dropped.
#[expect(unsafe_code, reason = "tokio has no safe call for a socket that is shared with writers")]
pub(super) fn watch(connection: Arc<Connection>) -> io::Result<Socket> {
    connection.stream()?;
    // SAFETY: this Connection has a socket, which it owns from its creation to its end and never replaces, and
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
