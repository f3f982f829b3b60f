//! Puts a [`Site`] on connections, with hyper.

use std::{
    cell::RefCell,
    convert::Infallible,
    future::{Future, pending, poll_fn, ready},
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::future::Either;
use hyper::{
    Request, Response,
    body::Incoming,
    header::{DATE, HeaderValue},
    http::request::Parts,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{Body, Entry, Listener, Origin, Site};
use crate::{proxy_protocol::TrustedProxies, quiet::Quiet};

/// A client gets this long to send a request head, also between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// After this, the request at hand is the connection's last.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(300);
/// What is left of a connection after its lifetime, for the last response.
const LAST_RESPONSE: Duration = Duration::from_secs(30);
/// Longest request head.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// Connections on port 80 at one time; more wait in the kernel's queue.
const PORT80_CONNECTIONS: usize = 1024;
/// Pause after accepting failed, for instance for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a connection of the main listener ended.
pub enum Outcome<IO> {
    /// It is closed, or must be.
    Done,
    /// A client asked for DERP after other requests: the connection goes on as DERP.
    Derp {
        /// The connection, with every earlier response written.
        io: IO,
        /// Bytes that arrived after the request head.
        unread: Bytes,
        /// The head of the request.
        request: Box<Parts>,
        /// What it asks for.
        entry: Entry,
    },
}

/// Serves plain HTTP on a connection until it closes or asks for DERP.
///
/// Errors of the connection are the client's business: they end it and go to the debug log.
pub async fn serve_connection<IO>(io: IO, origin: Origin, site: Arc<Site>) -> Outcome<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let derp_request = Rc::new(RefCell::new(None));
    let service = service_fn(|request: Request<Incoming>| {
        let (request, _body) = request.into_parts();
        if let Some(entry) = site.entry(&request) {
            *derp_request.borrow_mut() = Some((Box::new(request), entry));
            // hyper must not answer: with fast start there is no HTTP response at all.
            return Either::Left(pending());
        }
        Either::Right(ready(Ok::<_, Infallible>(dated(site.respond(&request, &origin)))))
    });
    let mut connection = builder().serve_connection(TokioIo::new(io), service);
    let finished = limit_lifetime(&mut connection, |connection, context| {
        let state = connection.poll_without_shutdown(context);
        if derp_request.borrow().is_some() { Poll::Ready(Ok(())) } else { state }
    })
    .await;
    let request = derp_request.take();
    match (finished, request) {
        (true, Some((request, entry))) => {
            let parts = connection.into_parts();
            Outcome::Derp { io: parts.io.into_inner(), unread: parts.read_buf, request, entry }
        }
        _ => Outcome::Done,
    }
}

/// Serves the port-80 listener until `shutdown` completes. Connections still open then are dropped.
pub async fn serve_port80(
    listener: TcpListener,
    site: Arc<Site>,
    proxies: Arc<TrustedProxies>,
    shutdown: impl Future<Output = ()>,
) {
    let faults = Quiet::lasting();
    let permits = Arc::new(Semaphore::new(PORT80_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = connections.join_next() => continue,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, remote)) => {
                let (site, proxies) = (Arc::clone(&site), Arc::clone(&proxies));
                connections.spawn(async move {
                    let _permit = permit;
                    serve_stream(stream, remote, site, &proxies).await;
                });
            }
            Err(error) => {
                if let Some(suffix) = faults.suffix(Instant::now()) {
                    tracing::warn!("port 80: accept: {error}{suffix}");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_stream(
    mut stream: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    proxies: &TrustedProxies,
) {
    let Some(remote) = proxies.origin(&mut stream, peer).await else { return };
    let origin = Origin { remote, listener: Listener::Port80 };
    let service = service_fn(move |request: Request<Incoming>| {
        let (request, _body) = request.into_parts();
        ready(Ok::<_, Infallible>(dated(site.respond(&request, &origin))))
    });
    let mut connection = builder().serve_connection(TokioIo::new(stream), service);
    limit_lifetime(&mut connection, |connection, context| Pin::new(connection).poll(context)).await;
}

/// Dates a response. hyper would, but with a date that it keeps until the clock has passed it: after the clock has been
/// set back, that is as long as the clock was ahead.
fn dated(mut response: Response<Body>) -> Response<Body> {
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now())) {
        response.headers_mut().insert(DATE, date);
    }
    response
}

fn builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_header_size(MAX_HEAD_BYTES)
        .max_buf_size(2 * MAX_HEAD_BYTES);
    builder
}

/// Drives a connection to its end, which is at the latest a little after [`CONNECTION_LIFETIME`]. Returns whether
/// it ended by itself and without error.
async fn limit_lifetime<IO, S>(
    connection: &mut http1::Connection<IO, S>,
    mut poll: impl FnMut(&mut http1::Connection<IO, S>, &mut Context<'_>) -> Poll<hyper::Result<()>>,
) -> bool
where
    IO: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Body> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::Future: Unpin,
{
    for limit in [CONNECTION_LIFETIME, LAST_RESPONSE] {
        match timeout(limit, poll_fn(|context| poll(connection, context))).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => {
                tracing::debug!("http: {error}");
                return false;
            }
            Err(_elapsed) => Pin::new(&mut *connection).graceful_shutdown(),
        }
    }
    false
}
