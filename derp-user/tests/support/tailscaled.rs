//! Stands for a tailscaled that is a peer relay: its local API, and its UDP socket, which forwards.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, UdpSocket},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::netns::spawn_in;

/// One session: VNI, first bytes of the clients' keys, and where they are.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) vni: u32,
    pub(crate) keys: [[u8; 8]; 2],
    pub(crate) ends: [Option<SocketAddr>; 2],
}

/// How questions are answered.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// With the sessions there are.
    Well,
    /// With this.
    Body(String),
    /// With a status and this body.
    Status(u16, &'static str),
    /// Never.
    Silently,
}

struct State {
    port: Option<u16>,
    sessions: Vec<Session>,
    manner: Manner,
    connections: Vec<UnixStream>,
    questions: u64,
}

/// The process that is accompanied; gone when dropped.
pub(crate) struct Tailscaled {
    socket: PathBuf,
    state: Arc<Mutex<State>>,
    api: Option<Api>,
    ends: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    relay: Option<JoinHandle<()>>,
}

struct Api {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Tailscaled {
    /// Starts it in a namespace, without sessions, with its API at `socket`.
    pub(crate) fn start(namespace: &str, socket: &Path, port: u16) -> Self {
        let state = State {
            port: Some(port),
            sessions: Vec::new(),
            manner: Manner::Well,
            connections: Vec::new(),
            questions: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let (ends, received) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let relay = {
            let (state, ends, received) =
                (Arc::clone(&state), Arc::clone(&ends), Arc::clone(&received));
            let (bound, is_bound) = std::sync::mpsc::channel();
            let thread = spawn_in(namespace, move || {
                let udp = UdpSocket::bind(("0.0.0.0", port)).expect("the relay's port");
                bound.send(()).expect("the test waits");
                relay(&udp, &state, &ends, &received);
            });
            is_bound.recv().expect("the relay starts");
            thread
        };
        let mut this = Self {
            socket: socket.to_owned(),
            state,
            api: None,
            ends,
            received,
            relay: Some(relay),
        };
        this.open();
        this
    }

    /// Has the API listen.
    pub(crate) fn open(&mut self) {
        let listener = UnixListener::bind(&self.socket).expect("the API's socket");
        let (state, ends) = (Arc::clone(&self.state), Arc::<AtomicBool>::default());
        let is_over = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(SeqCst) {
                    return;
                }
                let stream = stream.expect("a connection");
                let state = Arc::clone(&state);
                thread::spawn(move || serve(&stream, &state));
            }
        });
        self.api = Some(Api { ends, thread });
    }

    /// Ends the API, as the end of the process would, with all its connections.
    pub(crate) fn close(&mut self) {
        let Some(api) = self.api.take() else { return };
        api.ends.store(true, SeqCst);
        drop(UnixStream::connect(&self.socket));
        api.thread.join().expect("the API ends");
        fs::remove_file(&self.socket).expect("the API's socket");
        for connection in self.state().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the state")
    }

    pub(crate) fn set_sessions(&self, sessions: &[Session]) {
        self.state().sessions = sessions.to_vec();
    }

    pub(crate) fn set_port(&self, port: Option<u16>) {
        self.state().port = port;
    }

    pub(crate) fn set_manner(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// How many questions have come.
    pub(crate) fn questions(&self) -> u64 {
        self.state().questions
    }

    /// How many data packets have come to the UDP socket.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(SeqCst)
    }
}

impl Drop for Tailscaled {
    fn drop(&mut self) {
        self.close();
        self.ends.store(true, SeqCst);
        if let Some(relay) = self.relay.take() {
            let _ = relay.join();
        }
    }
}

fn serve(stream: &UnixStream, state: &Mutex<State>) {
    let kept = stream.try_clone().expect("a second handle");
    state.lock().expect("the state").connections.push(kept);
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match reader.read_line(&mut head) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        assert!(
            head.starts_with("GET /localapi/v0/debug-peer-relay-sessions HTTP/1.1\r\n"),
            "{head}"
        );
        assert!(head.to_lowercase().contains("host: local-tailscaled.sock\r\n"), "{head}");
        let (status, body) = {
            let mut state = state.lock().expect("the state");
            state.questions += 1;
            match &state.manner {
                Manner::Well => (200, body(&state)),
                Manner::Body(body) => (200, body.clone()),
                Manner::Status(status, body) => (*status, (*body).to_owned()),
                Manner::Silently => continue,
            }
        };
        let answer = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut writer = stream;
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn body(state: &State) -> String {
    let client = |key: &[u8; 8], end: &Option<SocketAddr>| {
        let end = end.map(|end| end.to_string()).unwrap_or_default();
        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(r#"{{"Endpoint":"{end}","ShortDisco":"d:{key}","PacketsTx":1,"BytesTx":2}}"#)
    };
    let session = |it: &Session| {
        let [one, other] = [0, 1].map(|side| client(&it.keys[side], &it.ends[side]));
        format!(r#"{{"VNI":{},"Client1":{one},"Client2":{other}}}"#, it.vni)
    };
    let sessions: Vec<_> = state.sessions.iter().map(session).collect();
    let port = state.port.map_or("null".to_owned(), |port| port.to_string());
    format!(r#"{{"UDPPort":{port},"Sessions":[{}]}}"#, sessions.join(","))
}

/// Forwards as tailscaled does, by VNI and source.
fn relay(udp: &UdpSocket, state: &Mutex<State>, ends: &AtomicBool, received: &AtomicU64) {
    udp.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
    let mut buffer = [0; 2048];
    while !ends.load(SeqCst) {
        let Ok((length, from)) = udp.recv_from(&mut buffer) else { continue };
        let packet = &buffer[..length];
        let &[_, flags, _, _, high, middle, low, _, ..] = packet else { continue };
        if flags & 0x80 != 0 {
            continue;
        }
        received.fetch_add(1, SeqCst);
        let vni = u32::from_be_bytes([0, high, middle, low]);
        let state = state.lock().expect("the state");
        let session = state.sessions.iter().find(|it| it.vni == vni);
        let to = session.and_then(|it| match it.ends {
            [Some(one), Some(other)] if one == from => Some(other),
            [Some(one), Some(other)] if other == from => Some(one),
            _ => None,
        });
        drop(state);
        if let Some(to) = to {
            udp.send_to(packet, to).expect("send");
        }
    }
}
