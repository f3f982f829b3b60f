//! An HTTP server of a few lines, over TCP or a unix socket, that answers as a test says and keeps
//! what it was asked.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::Path,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What the server answers: status, body, further header lines, and how long it thinks before.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) headers: String,
    pub(crate) delay: Duration,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned(), headers: String::new(), delay: Duration::ZERO }
    }
}

/// One request as received: its head, line by line, and its body.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) head: Vec<String>,
    pub(crate) body: String,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.iter().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

#[derive(Default)]
struct State {
    once: VecDeque<Reply>,
    usual: Option<Reply>,
    asked: Vec<Asked>,
}

/// A running server; its thread ends with the process.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    address: Option<SocketAddr>,
}

impl Fake {
    /// Starts one on a port of its own.
    pub(crate) fn on_tcp(usual: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(Mutex::new(State { usual: Some(usual), ..State::default() }));
        let fake = Self { state: Arc::clone(&state), address: Some(address) };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || serve(stream.try_clone().expect("a socket"), stream, &state));
            }
        });
        fake
    }

    /// Starts one on a unix socket.
    pub(crate) fn on_unix(path: &Path, usual: Reply) -> Self {
        let listener = UnixListener::bind(path).expect("a new socket");
        let state = Arc::new(Mutex::new(State { usual: Some(usual), ..State::default() }));
        let fake = Self { state: Arc::clone(&state), address: None };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&state);
                thread::spawn(move || serve(stream.try_clone().expect("a socket"), stream, &state));
            }
        });
        fake
    }

    /// The address of a path on the server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address.expect("a TCP server"))
    }

    /// Answers so from now on.
    pub(crate) fn answer(&self, usual: Reply) {
        self.state.lock().expect("no panic").usual = Some(usual);
    }

    /// Answers the next request so.
    pub(crate) fn answer_once(&self, reply: Reply) {
        self.state.lock().expect("no panic").once.push_back(reply);
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.lock().expect("no panic").asked.clone()
    }
}

fn serve(read: impl Read, mut write: impl Write, state: &Mutex<State>) {
    let mut read = BufReader::new(read);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if read.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                line => head.push(line.to_owned()),
            }
        }
        let mut asked = Asked { head, body: String::new() };
        let length = asked.header("content-length").and_then(|length| length.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        if read.read_exact(&mut body).is_err() {
            return;
        }
        asked.body = String::from_utf8_lossy(&body).into_owned();
        let reply = {
            let mut state = state.lock().expect("no panic");
            state.asked.push(asked);
            state.once.pop_front().or_else(|| state.usual.clone()).expect("an answer")
        };
        thread::sleep(reply.delay);
        let Reply { status, body, headers, .. } = reply;
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} Words\r\n{headers}Content-Length: {length}\r\n\r\n{body}");
        if write.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
