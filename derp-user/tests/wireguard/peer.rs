//! A WireGuard peer: a real implementation on a site's host, set up by its socket.

use std::{
    fmt::{self, Display, Formatter, Write as _},
    fs::{self, File},
    io::{Read, Write},
    net::SocketAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use x25519_dalek::PublicKey;

use crate::{
    PATIENCE,
    internet::{Internet, Site},
    netns::{run, run_in},
    party::Keys,
    programs::Implementation,
    transfer::End,
};

/// Where the implementations put their sockets.
const SOCKETS: &str = "/var/run/wireguard";
/// Seconds between the packets that keep a router's mapping alive. Short, because tests wait for their effect.
const KEEPALIVE: u16 = 5;

/// A key as `wg` writes it.
pub(crate) fn base64(key: &[u8; 32]) -> String {
    BASE64_STANDARD.encode(key)
}

/// What others have to know of a peer.
#[derive(Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) number: usize,
    pub(crate) public: PublicKey,
}

/// A running peer; ended when dropped.
pub(crate) struct Peer {
    /// From 1 on; of the site too.
    pub(crate) number: usize,
    pub(crate) keys: Keys,
    pub(crate) namespace: String,
    pub(crate) interface: String,
    implementation: Implementation,
    process: Child,
    log: PathBuf,
    /// What it was last told of its peers.
    setup: String,
}

impl Peer {
    /// Starts one on the host of a site, with a key of its own, and no peers yet.
    pub(crate) fn start(internet: &Internet, site: &Site, implementation: Implementation) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // Sockets have the interface's name, and are in one directory for all namespaces.
        let unique = NUMBER.fetch_add(1, Ordering::Relaxed);
        let interface = format!("wg{:x}n{unique:x}", std::process::id());
        let log = internet.directory().join(format!("peer{}.log", site.number));
        let process = launch(internet, &site.host, implementation, &interface, &log);
        let mut peer = Self {
            number: site.number,
            keys: Keys::random(),
            namespace: site.host.clone(),
            interface,
            implementation,
            process,
            log,
            setup: String::new(),
        };
        peer.bring_up();
        peer
    }

    /// Ends the process, its interface and sessions with it, and starts it again with the setup it had.
    pub(crate) fn restart(&mut self, internet: &Internet) {
        self.process.kill().expect("it runs");
        self.process.wait().expect("wait");
        let _ = fs::remove_file(socket(&self.interface));
        self.process =
            launch(internet, &self.namespace, self.implementation, &self.interface, &self.log);
        self.bring_up();
        self.set(&self.setup);
    }

    /// Gives the interface its key and addresses.
    fn bring_up(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(socket(&self.interface)).is_err() {
            let ended = self.process.try_wait().expect("wait");
            assert!(ended.is_none(), "{self} ended, {ended:?}: {}", self.log());
            assert!(Instant::now() < deadline, "{self} is not there: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        self.set(&format!("private_key={}\n", hex(self.keys.private.as_bytes())));
        let Self { namespace, interface, number, .. } = &*self;
        for command in [
            format!("ip -n {namespace} addr add 10.99.0.{number}/24 dev {interface}"),
            format!("ip -n {namespace} addr add fd99::{number}/64 dev {interface} nodad"),
            format!("ip -n {namespace} link set {interface} mtu 1420 up"),
        ] {
            run(&command).expect("ip");
        }
    }

    /// Adds a peer that is reached by way of `endpoint`. `others` are those behind it: their packets go there too.
    pub(crate) fn connect(&mut self, peer: Identity, endpoint: SocketAddr, others: &[Identity]) {
        let mut text = format!(
            "public_key={}\nendpoint={endpoint}\npersistent_keepalive_interval={KEEPALIVE}\n",
            hex(peer.public.as_bytes())
        );
        for Identity { number, .. } in others.iter().chain([&peer]) {
            write!(text, "allowed_ip=10.99.0.{number}/32\nallowed_ip=fd99::{number}/128\n")
                .expect("a string");
        }
        self.set(&text);
        self.setup.push_str(&text);
    }

    /// What others have to know of it.
    pub(crate) fn identity(&self) -> Identity {
        Identity { number: self.number, public: self.keys.public }
    }

    /// Sets the MTU of the tunnel.
    pub(crate) fn set_mtu(&self, mtu: u16) {
        let Self { namespace, interface, .. } = self;
        run(&format!("ip -n {namespace} link set {interface} mtu {mtu}")).expect("ip");
    }

    /// Sends from another port from now on.
    pub(crate) fn set_port(&self, port: u16) {
        self.set(&format!("listen_port={port}\n"));
    }

    fn set(&self, settings: &str) {
        let answer = ask(&self.interface, &format!("set=1\n{settings}\n"));
        assert_eq!(answer.trim(), "errno=0", "{self}: {settings}: {}", self.log());
    }

    /// The end of what the process has said.
    pub(crate) fn log(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Display for Peer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "peer {} ({:?})", self.number, self.implementation)
    }
}

impl End for Peer {
    fn number(&self) -> usize {
        self.number
    }

    fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(socket(&self.interface));
    }
}

/// Makes every peer one of every other, with the relay's address that `endpoint` has for it.
pub(crate) fn mesh(peers: &mut [Peer], endpoint: impl Fn(&Peer) -> SocketAddr) {
    let all: Vec<_> = peers.iter().map(Peer::identity).collect();
    for peer in peers {
        let (endpoint, number) = (endpoint(peer), peer.number);
        for &other in all.iter().filter(|other| other.number != number) {
            peer.connect(other, endpoint, &[]);
        }
    }
}

fn launch(
    internet: &Internet,
    namespace: &str,
    implementation: Implementation,
    interface: &str,
    log: &Path,
) -> Child {
    let output = File::options().create(true).append(true).open(log).expect("a log file");
    let mut command = internet.programs.command(implementation, interface);
    command.stdin(Stdio::null()).stdout(output.try_clone().expect("a log file")).stderr(output);
    run_in(namespace, move || command.spawn().expect("the program can be run"))
}

fn socket(interface: &str) -> PathBuf {
    Path::new(SOCKETS).join(format!("{interface}.sock"))
}

/// Sends a request by the protocol that all implementations share, and returns the answer.
fn ask(interface: &str, request: &str) -> String {
    let mut stream = UnixStream::connect(socket(interface)).expect("the peer's socket");
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    stream.write_all(request.as_bytes()).expect("the peer's socket");
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\n\n") && stream.read(&mut byte).expect("an answer") == 1 {
        answer.push(byte[0]);
    }
    String::from_utf8(answer).expect("text")
}

fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string");
        text
    })
}
