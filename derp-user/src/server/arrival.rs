//! From an accepted TCP connection to a registered DERP session: TLS, the HTTP request, WebSocket if it
//! asks for that, the login.

use std::{
    io, mem,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_local,
    time::timeout,
};
use tungstenite::protocol::frame::coding::CloseCode;

use super::{
    connection::Connection,
    life,
    link::{Link, Parts},
    session::Session,
    throttle::Throttle,
    transport::{TransportError, close_frame},
    upgrade::{self, Options},
    worker::{Stranger, Worker},
};
use crate::{
    admit::{Applicant, Refusal},
    http::{self, Entry, Handshake, Listener, Origin, Outcome},
    proto::{
        frame::HEADER_LENGTH,
        keys::NodePublic,
        login::{self, LoggedIn, LoginError, NONCE_LENGTH, Progress},
        message::ClientTraits,
    },
    relay::{ConnectionId, Presence},
};

/// Time for the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the socket of a client that must go to take the farewell.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Time to take the ServerKey frame, and then again to send ClientInfo.
const LOGIN_STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection ended before it became a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrivalError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Transport(#[from] TransportError),
    #[error("receive client key: {0}")]
    Login(#[from] LoginError),
    #[error("client {0} rejected: {1}")]
    Refused(NodePublic, Refusal),
    #[error("a WebSocket client without the derp subprotocol")]
    Subprotocol,
    #[error("no {0} within the time allowed")]
    TimedOut(&'static str),
    #[error("had to make room for others")]
    Evicted,
    #[error("the system's random number generator failed: {0}")]
    Random(getrandom::Error),
}

/// Serves one accepted connection until it ends, or is a session, which has a task of its own: so it does
/// not carry the memory of its arrival for the rest of its life.
pub(super) async fn serve(worker: Rc<Worker>, mut stranger: Stranger<TcpStream>) {
    let proxies = &worker.settings().proxies;
    if proxies.exist() {
        let peer = stranger.remote;
        let origin = proxies.origin(&mut stranger.stream, peer).await;
        let Some(origin) = origin else { return };
        if origin != peer {
            stranger.remote = origin;
            // From now on it counts as one of its source, not of the proxy.
            let Some(ticket) = worker.let_in(stranger.id, origin) else { return };
            stranger.ticket = ticket;
        }
    }
    let Stranger { id, remote, stream, mut ticket } = stranger;
    let arrived = tokio::select! {
        // First: what has arrived stays.
        biased;
        arrived = arrive(&worker, id, remote, stream) => arrived,
        () = ticket.evicted() => Err(ArrivalError::Evicted),
    };
    match arrived {
        Ok(Some(session)) if ticket.log_in() => {
            spawn_local(life::run(session.holding(ticket), worker));
        }
        // Another worker was quicker, and has evicted it.
        Ok(Some(session)) => life::abandon(session, worker),
        Ok(None) => {}
        Err(error @ (ArrivalError::Login(_) | ArrivalError::Refused(..))) => {
            if let Some(suffix) = worker.hub().refusals.suffix(Instant::now()) {
                tracing::info!("derp: {remote}: {error}{suffix}");
            }
        }
        Err(error) => tracing::debug!("derp: {remote}: {error}"),
    }
}

/// `None` if the connection was served as ordinary HTTP.
async fn arrive(
    worker: &Worker,
    id: ConnectionId,
    remote: SocketAddr,
    stream: TcpStream,
) -> Result<Option<Session>, ArrivalError> {
    let mut link = match worker.settings().tls.clone() {
        Some(acceptor) => {
            let config = acceptor.config(|| Ok(stream.local_addr()?.ip()))?;
            Link::tls(stream, config)?
        }
        None => Link::plain(stream),
    };
    if let Err(error) = timeout(HANDSHAKE_TIMEOUT, shake_hands(&mut link))
        .await
        .map_err(|_| ArrivalError::TimedOut("complete TLS handshake"))
        .and_then(|result| result.map_err(ArrivalError::from))
    {
        worker.counters().tls_handshake_failures.increment();
        return Err(error);
    }
    if link.is_validation() {
        let _ = timeout(FAREWELL_TIMEOUT, link.shutdown()).await;
        return Ok(None);
    }
    let origin = Origin { remote, listener: Listener::Main { tls: link.tls_version() } };
    let site = Arc::clone(&worker.settings().site);
    let served = http::serve_connection(link, origin, Arc::clone(&site)).await;
    let (mut link, unread, request, entry) = match served {
        Outcome::Derp { io, unread, request, entry } => (io, unread, request, entry),
        Outcome::Done => return Ok(None),
    };
    let tls_request = site.begin(&origin);
    let options = Options::of(&entry, &request.headers);
    let entered = match greet(worker, &mut link, &entry, options, unread.into()).await {
        Ok(unread) => log_in(worker, &mut link, remote, unread).await,
        Err(error) => Err(error),
    };
    match entered {
        Ok((logged_in, trusted, early)) => {
            let traits = ClientTraits {
                mesh_peer: trusted,
                prober: logged_in.info.is_prober,
                not_ideal: options.not_ideal,
            };
            let verbose = worker.settings().verbose_clients.include(traits);
            // Nothing may wait from here on: the session would be left behind in the relay if it did not come back.
            let session = enter(worker, link, (id, remote), logged_in, traits, early)?;
            Ok(Some(session.serving(tls_request, verbose)))
        }
        Err(error) => {
            // As well as the socket takes it: the client is told nothing else.
            let _ = timeout(FAREWELL_TIMEOUT, link.shutdown()).await;
            Err(error)
        }
    }
}

/// Completes the TLS handshake.
async fn shake_hands(link: &mut Link) -> io::Result<()> {
    while link.is_handshaking() {
        link.readable().await?;
        let Some(received) = link.read()? else { continue };
        if let Err(error) = link.take(received) {
            // The reason matters more than whether the socket takes the farewell.
            let _ = timeout(FAREWELL_TIMEOUT, link.flush()).await;
            return Err(error);
        }
    }
    link.flush().await
}

/// Answers the request for DERP; the client's bytes behind it, of which `unread` are known.
async fn greet(
    worker: &Worker,
    link: &mut Link,
    entry: &Entry,
    options: Options,
    mut unread: Vec<u8>,
) -> Result<Vec<u8>, ArrivalError> {
    let own_key = worker.settings().private_key.public();
    let mut greeting = Vec::new();
    match entry {
        Entry::Derp if options.fast_start => {}
        Entry::Derp => greeting = upgrade::response(&own_key),
        Entry::WebSocket(handshake) => {
            begin_websocket(link, handshake, mem::take(&mut unread)).await?;
            worker.counters().websocket_accepts.increment();
        }
    }
    worker.counters().accepts.increment();
    greeting.extend(login::server_key(&own_key));
    say(link, &greeting, "room for the ServerKey frame").await?;
    Ok(unread)
}

async fn begin_websocket(
    link: &mut Link,
    handshake: &Handshake,
    early: Vec<u8>,
) -> Result<(), ArrivalError> {
    const ROOM: &str = "room for the WebSocket handshake";
    let mut response = handshake.response();
    if handshake.speaks_derp() {
        say(link, &response, ROOM).await?;
        return Ok(link.begin_websocket(early)?);
    }
    close_frame(&mut response, CloseCode::Policy, "client must speak the derp subprotocol");
    say(link, &response, ROOM).await?;
    Err(ArrivalError::Subprotocol)
}

/// Sends `bytes`, for which there should be `what`.
async fn say(link: &mut Link, bytes: &[u8], what: &'static str) -> Result<(), ArrivalError> {
    let written = async {
        link.write_all(bytes).await?;
        link.flush().await
    };
    let written = timeout(LOGIN_STEP_TIMEOUT, written).await;
    Ok(written.map_err(|_| ArrivalError::TimedOut(what))??)
}

/// Has a client prove its key, and asks whether it may use the relay. Returns who it is, whether it is
/// a mesh peer, and what it has sent behind its login.
async fn log_in(
    worker: &Worker,
    link: &mut Link,
    remote: SocketAddr,
    mut bytes: Vec<u8>,
) -> Result<(LoggedIn, bool, Vec<u8>), ArrivalError> {
    let frame_length = timeout(LOGIN_STEP_TIMEOUT, read_client_info(link, &mut bytes))
        .await
        .map_err(|_| ArrivalError::TimedOut("ClientInfo frame"))??;
    let early = bytes.split_off(frame_length);
    let payload = bytes.get(HEADER_LENGTH..).unwrap_or_default();
    let settings = worker.settings();
    let logged_in = login::open_client_info(&settings.private_key, payload)?;
    let trusted = settings.mesh_secret.is_shown_by(logged_in.info.mesh_key.as_ref());
    let applicant = Applicant { key: logged_in.key, address: remote.ip(), trusted };
    match settings.admission.decide(&applicant).await {
        Ok(_) => Ok((logged_in, trusted, early)),
        Err(refusal) => Err(ArrivalError::Refused(applicant.key, refusal)),
    }
}

/// Registers a client that has proven its key. It is visible to others before it is told.
fn enter(
    worker: &Worker,
    link: Link,
    (id, remote): (ConnectionId, SocketAddr),
    logged_in: LoggedIn,
    traits: ClientTraits,
    mut early: Vec<u8>,
) -> Result<Session, ArrivalError> {
    let mut nonce = [0; NONCE_LENGTH];
    getrandom::fill(&mut nonce).map_err(ArrivalError::Random)?;
    let trusted = traits.mesh_peer;
    let rates = worker.settings().rates.as_ref().filter(|_| !trusted);
    let announced = rates
        .and_then(|rates| rates.limit())
        .filter(|limit| limit.announced)
        .map(|limit| (limit.bytes_per_second, limit.burst));
    let throttle = rates.map(|rates| Throttle::new(Arc::clone(rates), Instant::now()));
    let presence = Presence { key: logged_in.key, address: remote, traits };
    let Parts { stream, transport, unread, unsent } =
        link.into_session(&logged_in.server_info(nonce, announced))?;
    early.extend(unread);
    // ServerInfo is on its way before anybody can send to this client, so it is the second frame.
    let stream = stream.into_std()?;
    let connection = Connection::new(id, logged_in.key, remote, stream, transport, unsent)
        .tell(worker.settings().verbose_drops.as_ref());
    let connection = Arc::new(connection);
    worker.hub().register(&connection, presence, worker.counters());
    Ok(Session::new(connection, trusted, early, worker.random_fraction(), throttle))
}

/// Reads until `bytes` begin with a whole ClientInfo frame; its length, header included.
async fn read_client_info(link: &mut Link, bytes: &mut Vec<u8>) -> Result<usize, ArrivalError> {
    loop {
        if let Progress::Complete(length) = login::client_info_progress(bytes)? {
            return Ok(length);
        }
        if link.read_buf(bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}
