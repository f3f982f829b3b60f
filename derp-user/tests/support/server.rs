//! One relay process per test, on a loopback address of its own.
//!
//! `DERPD_TEST_SERVER` names another derper-compatible binary to run the same tests against; with
//! Tailscale's derper there, the tests check themselves against the original.

use std::{
    env, fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// How long a test waits for something that should happen at once, on a machine that may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Whose behaviour to expect where derpd differs on purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Derpd,
    Derper,
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    env::var_os("DERPD_TEST_SERVER")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_derpd")), PathBuf::from)
}

/// A file of this name in a relay's directory holds the authorities that it trusts as if they were
/// the system's.
pub(crate) const AUTHORITY_FILE: &str = "authority.pem";

/// A file of this name there holds the secret that opens the debug pages.
pub(crate) const DEBUG_KEY_FILE: &str = "debug.key";

/// Which implementation [`binary`] is.
pub(crate) fn kind() -> Kind {
    kind_of(&binary())
}

/// Which implementation a binary is, judged by its name.
fn kind_of(binary: &Path) -> Kind {
    match binary.file_stem().and_then(|name| name.to_str()) {
        Some("derper") => Kind::Derper,
        Some(_) | None => Kind::Derpd,
    }
}

/// Flags by which connections of one test belong to different workers.
fn work_shared_between_two(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Derpd => &["-workers=2", "-min-workers=2"],
        Kind::Derper => &[],
    }
}

/// Whether a test chooses the number of workers itself.
fn overridden(flags: &[&str]) -> bool {
    flags.iter().any(|flag| flag.contains("workers"))
}

/// A running relay; killed when dropped.
pub(crate) struct Server {
    process: Child,
    place: Place,
    directory: Arc<TempDir>,
    log: Arc<Mutex<String>>,
}

impl Server {
    /// Starts a relay with a new key, a new self-signed certificate, STUN and the plain HTTP port.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a relay with further flags; a repeated flag overrides the usual one.
    pub(crate) fn start_with(flags: &[&str]) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        Self::start_in(Arc::new(directory), flags)
    }

    /// Starts a relay on the files an earlier one left in `directory`.
    pub(crate) fn start_in(directory: Arc<TempDir>, flags: &[&str]) -> Self {
        Self::start_at(Place::own_address, directory, flags)
    }

    /// Starts a relay at a place that `choose` finds; it is asked again if that place is taken.
    pub(crate) fn start_at(
        choose: impl Fn() -> Place,
        directory: Arc<TempDir>,
        flags: &[&str],
    ) -> Self {
        Self::start_binary(&binary(), choose, directory, flags)
    }

    /// The same, with another binary than the one under test.
    pub(crate) fn start_binary(
        binary: &Path,
        choose: impl Fn() -> Place,
        directory: Arc<TempDir>,
        flags: &[&str],
    ) -> Self {
        for _ in 0..5 {
            let mut server = Self::spawn(binary, choose(), Arc::clone(&directory), flags);
            match server.wait_until_ready() {
                Ok(()) => return server,
                Err(reason) if reason.to_lowercase().contains("address already in use") => {}
                Err(reason) => panic!("the relay did not start: {reason}"),
            }
        }
        panic!("five places in a row are taken");
    }

    fn spawn(binary: &Path, place: Place, directory: Arc<TempDir>, flags: &[&str]) -> Self {
        let path = directory.path();
        let authorities = path.join(AUTHORITY_FILE);
        let debug_key = path.join(DEBUG_KEY_FILE);
        let mut process = Command::new(binary)
            .envs(authorities.exists().then_some(("SSL_CERT_FILE", authorities)))
            .envs(debug_key.exists().then_some(("TS_DEBUG_KEY_PATH", debug_key)))
            .arg(format!("-a={}:{}", place.address, place.tls_port))
            .arg(format!("-http-port={}", place.http_port))
            .arg(format!("-stun-port={}", place.stun_port))
            .arg(format!("-hostname={}", place.address))
            .arg("-certmode=manual")
            .arg(format!("-certdir={}", path.join("certs").display()))
            .arg(format!("-c={}", path.join("derper.key").display()))
            .args(work_shared_between_two(kind_of(binary)).iter().filter(|_| !overridden(flags)))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the relay binary can be run");
        let log = Arc::new(Mutex::new(String::new()));
        let stderr = process.stderr.take().expect("stderr is piped");
        thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let mut log = log.lock().expect("no holder of the log panics");
                    log.push_str(&String::from_utf8_lossy(&line));
                    log.push('\n');
                }
            }
        });
        Self { process, place, directory, log }
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.exit_status() {
                thread::sleep(Duration::from_millis(100));
                return Err(format!("{status}\n{}", self.log()));
            }
            if TcpStream::connect(self.http_address()).is_ok()
                && TcpStream::connect(self.tls_address()).is_ok()
            {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err(format!("not listening after {PATIENCE:?}\n{}", self.log()))
    }

    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.place.tls_address()
    }

    pub(crate) fn http_address(&self) -> SocketAddr {
        self.place.http_address()
    }

    /// Id of the relay's process.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn stun_address(&self) -> SocketAddr {
        self.place.stun_address()
    }

    /// The address the certificate is made out to.
    pub(crate) fn ip(&self) -> IpAddr {
        self.place.address.into()
    }

    pub(crate) fn directory(&self) -> &Arc<TempDir> {
        &self.directory
    }

    pub(crate) fn key_file(&self) -> PathBuf {
        self.directory.path().join("derper.key")
    }

    /// The certificate file the relay made for itself.
    pub(crate) fn certificate_file(&self) -> PathBuf {
        self.directory.path().join("certs").join(format!("{}.crt", self.place.address))
    }

    /// Everything logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("no holder of the log panics").clone()
    }

    /// Waits for a log line that contains `text` and returns it.
    pub(crate) fn wait_for_log(&self, text: &str) -> String {
        let mut found = None;
        wait_until(&format!("a log line with {text:?}"), || {
            found = self.log().lines().find(|line| line.contains(text)).map(str::to_owned);
            found.is_some()
        });
        found.expect("the wait ended with a line")
    }

    /// Some while the process has ended.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("the relay is a child of this process")
    }

    /// Asks the relay to reload, and waits until it has, well or not.
    pub(crate) fn reload(&self) {
        let count = || {
            ["ok", "failed"]
                .map(|result| self.metric(&format!("derpd_reloads_total{{result=\"{result}\"}}")))
                .iter()
                .sum::<f64>()
        };
        let before = count();
        let id = i32::try_from(self.process.id()).expect("process ids are positive i32");
        kill(Pid::from_raw(id), Signal::SIGHUP).expect("the relay runs");
        wait_until("the reload", || count() > before);
    }

    /// Asks the relay to end, as a service manager does, and waits until it has.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let id = i32::try_from(self.process.id()).expect("process ids are positive i32");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("the relay runs");
        self.process.wait().expect("the relay is a child of this process")
    }

    /// The value of one sample on `/debug/varz`, name and labels as printed there; 0 when absent.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.get("/debug/varz");
        page.body
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    /// Waits until a sample has the value `wanted`.
    pub(crate) fn wait_for_metric(&self, name: &str, wanted: f64) {
        let mut last = f64::NAN;
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            last = self.metric(name);
            if last == wanted {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} is {last}, expected {wanted}\n{}", self.log());
    }

    /// Fetches a page over the plain HTTP port.
    pub(crate) fn get(&self, path: &str) -> Response {
        self.http(&format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"))
    }

    /// Sends a whole request to the plain HTTP port and reads until the server closes.
    pub(crate) fn http(&self, request: &str) -> Response {
        let mut stream = TcpStream::connect(self.http_address()).expect("the HTTP port is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
        stream.write_all(request.as_bytes()).expect("the request is small");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer ends");
        Response::parse(&answer)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if thread::panicking() {
            eprintln!("log of the relay:\n{}", self.log());
        }
    }
}

/// An HTTP answer, read to the end of the connection.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Response {
    pub(crate) fn parse(answer: &[u8]) -> Self {
        let text = String::from_utf8_lossy(answer);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Self { status, head: head.to_owned(), body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Removes the chunked transfer coding (RFC 9112 section 7.1).
fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size @ 1..) = usize::from_str_radix(size, 16) else { break };
        let Some((chunk, rest)) = rest.split_at_checked(size) else { break };
        whole.push_str(chunk);
        body = rest.strip_prefix("\r\n").unwrap_or(rest);
    }
    whole
}

/// Waits, patiently, until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Says that a test did nothing, past the harness, which hides what a passing test prints.
pub(crate) fn skip(what: &str, reason: &str) {
    // In one piece, so that other lines do not get in between.
    let line = format!("skipped: {what}: {}\n", reason.trim());
    io::stderr().write_all(line.as_bytes()).ok();
}

/// Writes a file the relay under test reads and returns its path as a flag value.
pub(crate) fn write_file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    fs::write(&path, text).expect("the test's directory is writable");
    path.display().to_string()
}

/// Where a relay listens.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    address: Ipv4Addr,
    tls_port: u16,
    http_port: u16,
    stun_port: u16,
}

impl Place {
    /// A loopback address nobody else uses, made of this process's id and a counter: with it fixed
    /// ports can be used, without a race between finding free ones and binding them.
    pub(crate) fn own_address() -> Self {
        static COUNTER: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = Ipv4Addr::new(127, high | 0x80, low, COUNTER.fetch_add(1, Ordering::Relaxed));
        Self::with_ports_from(address, 20_000)
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(crate) fn tls_address(&self) -> SocketAddr {
        (self.address, self.tls_port).into()
    }

    pub(crate) fn http_address(&self) -> SocketAddr {
        (self.address, self.http_port).into()
    }

    pub(crate) fn stun_address(&self) -> SocketAddr {
        (self.address, self.stun_port).into()
    }

    pub(crate) fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The address that the name `localhost` stands for, with ports by chance.
    pub(crate) fn localhost() -> Self {
        let mut bytes = [0; 2];
        getrandom::fill(&mut bytes).expect("the system has randomness");
        Self::with_ports_from(Ipv4Addr::LOCALHOST, 10_000 + u16::from_ne_bytes(bytes) % 20_000)
    }

    /// Ports stay below the range the kernel takes client ports from.
    fn with_ports_from(address: Ipv4Addr, first: u16) -> Self {
        Self { address, tls_port: first, http_port: first + 1, stun_port: first + 2 }
    }
}
