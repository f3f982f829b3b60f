//! The connection to a control server: its key, the upgrade to Noise, HTTP/2 inside.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    client::conn::{http1, http2},
    header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE, USER_AGENT},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{task::JoinSet, time::timeout};

use super::{
    MachinePrivate, TailnetError,
    error::shown,
    keys::MachinePublic,
    noise::{Handshake, VERSION},
    response::ServerKeys,
    stream::NoiseStream,
};
use crate::{
    admit::{
        in_words,
        web::{read_body, retry_after},
    },
    client::{Connector, Target, Trust},
    proto::keys::NodePublic,
};

/// Time for all that comes before the first request over Noise.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Time for a request and its answer; of a stream, for the head of the answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// How often an HTTP/2 ping is sent, and how long its answer may take.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest head of an HTTP answer.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEAD_HTTP2: u32 = 16 << 10;
/// Most bytes of an answer that is no stream.
const MAX_ANSWER: usize = 1 << 20;
/// How much of the body of a refusal is shown.
const SHOWN_BODY: usize = 200;
/// Bytes of a stream that may be on their way.
const WINDOW: u32 = 1 << 20;

const UPGRADE_PROTOCOL: &str = "tailscale-control-protocol";
const HANDSHAKE_HEADER: &str = "x-tailscale-handshake";
/// Names the node, for a load balancer that cannot look into the request.
const NODE_HEADER: &str = "ts-lb";
const AGENT: &str = concat!("derpd/", env!("CARGO_PKG_VERSION"));

const KEY: &str = "/key";
const TS2021: &str = "/ts2021";
pub(super) const REGISTER: &str = "/machine/register";
pub(super) const MAP: &str = "/machine/map";

/// A control server.
pub(super) struct ControlServer {
    connector: Connector,
    authority: String,
}

impl ControlServer {
    /// The server at `target`, whose certificate must be as `trust` says.
    pub(super) fn new(target: &Target, trust: &Trust) -> Result<Self, TailnetError> {
        let connector = Connector::new(target.clone(), trust)?;
        Ok(Self { connector, authority: target.authority() })
    }

    /// Connects as the owner of a machine key.
    pub(super) async fn connect(
        &self,
        machine: &MachinePrivate,
    ) -> Result<Connection, TailnetError> {
        limited("connecting to the control server", CONNECT_LIMIT, async {
            let key = self.fetch_key().await?;
            self.upgrade(machine, &key).await
        })
        .await
    }

    /// Asks for the server's key. Whoever can change the answer can pose as the server.
    async fn fetch_key(&self) -> Result<MachinePublic, TailnetError> {
        let stream = self.connector.open_stream().await?;
        let fault = |error: hyper::Error| http_fault(KEY, &error);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut requests, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(fault)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request = Request::get(format!("{KEY}?v={VERSION}"))
            .header(HOST, &self.authority)
            .header(USER_AGENT, AGENT)
            .body(Empty::<Bytes>::new())
            .map_err(|error| http_fault(KEY, &error))?;
        let response = requests.send_request(request).await.map_err(fault)?;
        let keys: ServerKeys = json(KEY, &whole(KEY, response).await?)?;
        keys.public_key.0.ok_or_else(|| {
            let reason = "there is no \"publicKey\" like mkey: and 64 digits".to_owned();
            TailnetError::Answer { request: KEY, reason }
        })
    }

    async fn upgrade(
        &self,
        machine: &MachinePrivate,
        key: &MachinePublic,
    ) -> Result<Connection, TailnetError> {
        let stream = self.connector.open_stream().await?;
        let fault = |error: hyper::Error| http_fault(TS2021, &error);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(MAX_HEAD);
        let (mut requests, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(fault)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection.with_upgrades());
        let (handshake, initiation) = Handshake::begin(machine, key)
            .map_err(|error| TailnetError::Noise(error.to_string()))?;
        let request = Request::post(TS2021)
            .header(HOST, &self.authority)
            .header(USER_AGENT, AGENT)
            .header(CONNECTION, "upgrade")
            .header(UPGRADE, UPGRADE_PROTOCOL)
            .header(HANDSHAKE_HEADER, BASE64_STANDARD.encode(initiation))
            .body(Empty::<Bytes>::new())
            .map_err(|error| http_fault(TS2021, &error))?;
        let response = requests.send_request(request).await.map_err(fault)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(TS2021, response).await);
        }
        let upgraded = hyper::upgrade::on(response).await.map_err(fault)?;
        let noise = NoiseStream::finish(TokioIo::new(upgraded), handshake).await;
        let noise = noise.map_err(|error| TailnetError::Noise(in_words(&error)))?;
        let (requests, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(MAX_HEAD_HTTP2)
            .handshake(TokioIo::new(noise))
            .await
            .map_err(fault)?;
        tasks.spawn(connection);
        let requests = Requests { requests, authority: self.authority.clone() };
        Ok(Connection { requests, _tasks: tasks })
    }
}

/// A connection that is being kept, until dropped.
pub(super) struct Connection {
    pub(super) requests: Requests,
    _tasks: JoinSet<Result<(), hyper::Error>>,
}

/// Sends requests over a connection.
#[derive(Clone)]
pub(super) struct Requests {
    requests: http2::SendRequest<Full<Bytes>>,
    authority: String,
}

impl Requests {
    /// Posts `body` and reads the answer.
    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        request: &'static str,
        node: &NodePublic,
        body: &impl Serialize,
    ) -> Result<T, TailnetError> {
        limited(request, REQUEST_LIMIT, async {
            let response = self.post(request, node, body).await?;
            json(request, &whole(request, response).await?)
        })
        .await
    }

    /// Posts `body` and waits for the status; what else the answer may hold is of no interest.
    pub(super) async fn tell(
        &self,
        request: &'static str,
        node: &NodePublic,
        body: &impl Serialize,
    ) -> Result<(), TailnetError> {
        limited(request, REQUEST_LIMIT, async {
            let mut response = self.post(request, node, body).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(request, response).await);
            }
            // A server may stop in the middle of its work when the answer is no longer wanted.
            let _ = read_body(response.body_mut(), MAX_ANSWER).await;
            Ok(())
        })
        .await
    }

    /// Posts `body` and returns the answer, whose body has no end.
    pub(super) async fn follow(
        &self,
        request: &'static str,
        node: &NodePublic,
        body: &impl Serialize,
    ) -> Result<Incoming, TailnetError> {
        limited(request, REQUEST_LIMIT, async {
            let response = self.post(request, node, body).await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(request, response).await);
            }
            Ok(response.into_body())
        })
        .await
    }

    async fn post(
        &self,
        request: &'static str,
        node: &NodePublic,
        body: &impl Serialize,
    ) -> Result<Response<Incoming>, TailnetError> {
        let body = serde_json::to_vec(body)
            .map_err(|error| TailnetError::Answer { request, reason: error.to_string() })?;
        let head = Request::post(format!("https://{}{request}", self.authority))
            .header(NODE_HEADER, node.to_string())
            .header(CONTENT_TYPE, "application/json");
        let message =
            head.body(Full::new(body.into())).map_err(|error| http_fault(request, &error))?;
        self.send(message).await.map_err(|error| http_fault(request, &error))
    }

    /// Sends a request to a path, for the answer's status. The caller limits the time.
    pub(super) async fn send_to(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<StatusCode, String> {
        let message = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.authority))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        self.send(message).await.map(|it| it.status()).map_err(|error| in_words(&error))
    }

    async fn send(
        &self,
        message: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        let mut requests = self.requests.clone();
        requests.ready().await?;
        requests.send_request(message).await
    }
}

/// Gives up after a while.
async fn limited<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, TailnetError>>,
) -> Result<T, TailnetError> {
    timeout(limit, work).await.unwrap_or(Err(TailnetError::Late { what, limit }))
}

fn http_fault(request: &'static str, error: &dyn std::error::Error) -> TailnetError {
    TailnetError::Http { request, reason: in_words(error) }
}

/// The body of a good answer.
async fn whole(request: &'static str, response: Response<Incoming>) -> Result<Bytes, TailnetError> {
    if response.status() != StatusCode::OK {
        return Err(refusal(request, response).await);
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    Ok(body.map_err(|error| http_fault(request, &*error))?.to_bytes())
}

/// What another answer says.
async fn refusal(request: &'static str, mut response: Response<Incoming>) -> TailnetError {
    let now = SystemTime::now();
    let retry_after =
        retry_after(response.headers(), now).map(|at| at.duration_since(now).unwrap_or_default());
    // The reason is worth waiting for, but not for long, and its lack is no other error.
    let read = timeout(Duration::from_secs(1), read_body(response.body_mut(), SHOWN_BODY)).await;
    let body = read.ok().and_then(Result::ok).map(|(bytes, _)| bytes).unwrap_or_default();
    let body = String::from_utf8_lossy(&body).trim().to_owned();
    TailnetError::Status { request, status: response.status().as_u16(), body, retry_after }
}

/// Reads an answer. What is wrong with it is told without much of its contents.
pub(super) fn json<T: DeserializeOwned>(
    request: &'static str,
    bytes: &[u8],
) -> Result<T, TailnetError> {
    serde_json::from_slice(bytes)
        .map_err(|error| TailnetError::Answer { request, reason: shown(&error.to_string()) })
}
