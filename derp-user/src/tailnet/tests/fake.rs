//! A control server that says what a test wants, good or bad.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming as IncomingBody},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{
        Receiver, Sender, UnboundedReceiver, UnboundedSender, channel, unbounded_channel,
    },
    time::timeout,
};

use crate::{
    client::Trust,
    peer_relay::Permission,
    proto::keys::{NodePrivate, NodePublic},
    tailnet::{
        Identity, MachinePrivate, ServerNames, Status, Tailnet, TailnetHandle, TailnetOptions,
        noise::{Incoming, Sealer, VERSION, prologue},
        stream::NoiseStream,
    },
};

/// Patience with other threads on a loaded machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn machine() -> MachinePrivate {
    MachinePrivate::from_random([1; 32])
}

pub(super) fn server_key() -> MachinePrivate {
    MachinePrivate::from_random([2; 32])
}

/// Answers an initiation; returns the stream, and the client's machine key.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    initiation: &[u8],
) -> (NoiseStream<S>, [u8; 32]) {
    assert_eq!(initiation[..5], [0, 130, 1, 0, 96]);
    let pattern = "Noise_IK_25519_ChaChaPoly_BLAKE2s".parse().unwrap();
    let (secret, prologue) = (server_key().secret_bytes(), prologue(VERSION));
    let mut state = snow::Builder::new(pattern)
        .local_private_key(secret.as_slice())
        .unwrap()
        .prologue(prologue.as_bytes())
        .unwrap()
        .build_responder()
        .unwrap();
    assert_eq!(state.read_message(&initiation[5..], &mut [0; 96]).unwrap(), 0);
    let client = state.get_remote_static().unwrap().try_into().unwrap();
    let mut response = [0; 51];
    response[..3].copy_from_slice(&[2, 0, 48]);
    state.write_message(&[], &mut response[3..]).unwrap();
    stream.write_all(&response).await.unwrap();
    let (receiving, sending) = state.dangerously_get_raw_split();
    (NoiseStream::new(stream, Sealer::new(&sending), Incoming::new(&receiving)), client)
}

/// Refuses a handshake.
pub(super) async fn refuse<S: AsyncWrite + Unpin>(mut stream: S, text: &str) {
    let length = u16::try_from(text.len()).unwrap();
    let message = [&[3][..], &length.to_be_bytes(), text.as_bytes()].concat();
    stream.write_all(&message).await.unwrap();
}

/// How the server behaves.
pub(super) struct Script {
    /// What is answered to `/key`; `None` for the right answer.
    pub(super) key: Option<(StatusCode, String)>,
    /// Sent before anything in HTTP/2.
    pub(super) early: Vec<u8>,
    /// Sent in the place of the answer to the Noise handshake.
    pub(super) refusal: Option<String>,
    /// Answers to registrations, the first one first; when there is only one left, it stays.
    pub(super) register: Vec<(StatusCode, Value)>,
    /// Status of the answers to `/machine/map`.
    pub(super) map: StatusCode,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            key: None,
            early: Vec::new(),
            refusal: None,
            register: vec![(StatusCode::OK, json!({"MachineAuthorized": true}))],
            map: StatusCode::OK,
        }
    }
}

/// A request over Noise.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) body: String,
}

impl Heard {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

struct Server {
    script: Mutex<Script>,
    heard: UnboundedSender<Heard>,
    streams: UnboundedSender<MapStream>,
}

/// A stream of changes that a client has asked for. It ends when this is dropped.
pub(super) struct MapStream(Sender<Bytes>);

impl MapStream {
    pub(super) async fn send(&self, message: &Value) {
        let message = message.to_string();
        let length = u32::try_from(message.len()).unwrap();
        assert!(self.send_raw([&length.to_le_bytes()[..], message.as_bytes()].concat()).await);
    }

    /// Returns whether the client was still listening.
    pub(super) async fn send_raw(&self, bytes: Vec<u8>) -> bool {
        self.0.send(bytes.into()).await.is_ok()
    }

    /// Waits until the client no longer listens.
    pub(super) async fn closed(&self) {
        timeout(PATIENCE, self.0.closed()).await.expect("in time");
    }
}

/// A control server, until dropped.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    server: Arc<Server>,
    heard: UnboundedReceiver<Heard>,
    streams: UnboundedReceiver<MapStream>,
    _tasks: tokio::task::JoinSet<()>,
}

impl Fake {
    pub(super) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, heard_receiver) = unbounded_channel();
        let (streams, streams_receiver) = unbounded_channel();
        let server = Arc::new(Server { script: Mutex::new(script), heard, streams });
        let mut tasks = tokio::task::JoinSet::new();
        let accepting = Arc::clone(&server);
        tasks.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(Arc::clone(&accepting).serve(socket));
            }
        });
        Self { address, server, heard: heard_receiver, streams: streams_receiver, _tasks: tasks }
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.server.script.lock());
    }

    pub(super) async fn heard(&mut self) -> Heard {
        timeout(PATIENCE, self.heard.recv()).await.expect("in time").unwrap()
    }

    /// Skips to the next request for a path.
    pub(super) async fn heard_at(&mut self, path: &str) -> Value {
        loop {
            let heard = self.heard().await;
            if heard.path == path {
                return heard.json();
            }
        }
    }

    /// The next stream of changes.
    pub(super) async fn stream(&mut self) -> MapStream {
        timeout(PATIENCE, self.streams.recv()).await.expect("in time").unwrap()
    }
}

impl Server {
    async fn serve(self: Arc<Self>, socket: TcpStream) {
        let service = service_fn(move |request| Arc::clone(&self).answer(request));
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(socket), service).with_upgrades();
        let _ = connection.await;
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<IncomingBody>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        if request.uri().path() == "/key" {
            assert_eq!(request.uri().query(), Some("v=130"));
            let answer = self.script.lock().key.clone();
            let (status, body) = answer.unwrap_or_else(|| {
                let public_key = server_key().public().to_string();
                (
                    StatusCode::OK,
                    json!({"legacyPublicKey": "", "publicKey": public_key}).to_string(),
                )
            });
            let mut response = Response::new(Full::new(body.into()));
            *response.status_mut() = status;
            return Ok(response);
        }
        assert_eq!((request.method().as_str(), request.uri().path()), ("POST", "/ts2021"));
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(header("upgrade"), "tailscale-control-protocol");
        let initiation = BASE64_STANDARD.decode(header("x-tailscale-handshake")).unwrap();
        let upgrade = hyper::upgrade::on(request);
        tokio::spawn(async move {
            let stream = TokioIo::new(upgrade.await.unwrap());
            let refusal = self.script.lock().refusal.clone();
            if let Some(text) = refusal {
                return refuse(stream, &text).await;
            }
            let (mut stream, client) = accept(stream, &initiation).await;
            assert_eq!(client, *machine().public().as_bytes());
            let early = self.script.lock().early.clone();
            stream.write_all(&early).await.unwrap();
            stream.flush().await.unwrap();
            let service = service_fn(move |request| Arc::clone(&self).serve_machine(request));
            let builder = http2::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("upgrade", "tailscale-control-protocol".parse().unwrap());
        response.headers_mut().insert("connection", "upgrade".parse().unwrap());
        Ok(response)
    }

    async fn serve_machine(
        self: Arc<Self>,
        request: Request<IncomingBody>,
    ) -> Result<Response<Either<Full<Bytes>, Channel>>, hyper::Error> {
        let (method, path) =
            (request.method().to_string(), request.uri().path_and_query().unwrap().to_string());
        let body = request.into_body().collect().await?.to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let is_stream = path == "/machine/map" && body.contains("\"Stream\":true");
        let (status, answer) = {
            let mut script = self.script.lock();
            match path.as_str() {
                "/machine/register" if script.register.len() > 1 => script.register.remove(0),
                "/machine/register" => script.register[0].clone(),
                "/machine/map" => (script.map, Value::Null),
                _ => (StatusCode::NO_CONTENT, Value::Null),
            }
        };
        self.heard.send(Heard { method, path, body }).unwrap();
        let body = if is_stream && status == StatusCode::OK {
            let (sender, receiver) = channel(64);
            self.streams.send(MapStream(sender)).unwrap();
            Either::Right(Channel(receiver))
        } else {
            let text = answer.as_str().map_or_else(|| answer.to_string(), str::to_owned);
            Either::Left(Full::new(text.into()))
        };
        let mut response = Response::new(body);
        *response.status_mut() = status;
        Ok(response)
    }
}

struct Channel(Receiver<Bytes>);

impl Body for Channel {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A node that joins a tailnet.
pub(super) struct Node {
    pub(super) handle: TailnetHandle,
    saved: Arc<Mutex<Identity>>,
    _tailnet: Tailnet,
    _directory: tempfile::TempDir,
}

pub(super) fn identity() -> Identity {
    Identity {
        machine: machine(),
        node: NodePrivate::from_random([5; 32]),
        next_node: None,
        registered_with: None,
    }
}

impl Node {
    pub(super) fn start(fake: &Fake, identity: &Identity) -> Self {
        Self::start_with(fake, identity, None)
    }

    /// With another patience for a silent server.
    pub(super) fn start_with(fake: &Fake, identity: &Identity, silence: Option<Duration>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let auth_key_file = directory.path().join("auth");
        std::fs::write(&auth_key_file, "tskey-auth-1\n").unwrap();
        let saved = Arc::new(Mutex::new(identity.clone()));
        let keeping = Arc::clone(&saved);
        let names = ServerNames {
            host: "derp.example".to_owned(),
            port: 443,
            addresses: vec!["192.0.2.7".parse().unwrap()],
        };
        let options = TailnetOptions {
            control: format!("http://{}", fake.address).parse().unwrap(),
            trust: Trust::Roots(auth_key_file.with_file_name("none")),
            auth_key_file,
            hostname: "relay".to_owned(),
            home_region: None,
            identity: identity.clone(),
            disco: super::netmap::disco_key(99),
            server: Box::new(move || names.clone()),
            save: Box::new(move |identity| {
                *keeping.lock() = identity.clone();
                Ok(())
            }),
        };
        let tailnet =
            Tailnet::start_with(options, silence.unwrap_or(crate::tailnet::SILENCE)).unwrap();
        Self { handle: tailnet.handle(), saved, _tailnet: tailnet, _directory: directory }
    }

    pub(super) fn saved(&self) -> Identity {
        self.saved.lock().clone()
    }

    /// Waits until the status is as it should be.
    pub(super) async fn until(&self, is_good: impl Fn(&Status) -> bool) -> Status {
        let begun = std::time::Instant::now();
        loop {
            let status = self.handle.status();
            if is_good(&status) {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{status:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until a node's permission is this one.
    pub(super) async fn until_permitted(&self, node: &NodePublic, permission: Permission) {
        self.until(|_| self.handle.permission(node) == permission).await;
    }

    /// Waits until the last error contains this.
    pub(super) async fn until_error(&self, text: &str) {
        let has = |status: &Status| {
            status.last_error.as_ref().is_some_and(|error| error.text.contains(text))
        };
        self.until(has).await;
    }
}
