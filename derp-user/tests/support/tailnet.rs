//! A tailnet of unmodified tailscaled in namespaces, with Tailscale's test coordination server.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    go,
    netns::{run, run_in},
};

/// How long a test waits for what must happen between real clients.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The relay's address that everybody reaches, where coordination and DERP are.
pub(crate) const HUB: &str = "10.78.0.1";
const CONTROL_PORT: u16 = 9090;
const FILE_PORT: u16 = 8081;

/// Tailscale's programs.
pub(crate) struct Programs {
    control: PathBuf,
    sendfile: PathBuf,
    tailscale: PathBuf,
    tailscaled: PathBuf,
}

impl Programs {
    /// Builds them, or says why the test is skipped.
    pub(crate) fn build() -> Result<Self, String> {
        let build = |name, package| go::build("interop", name, &["build"], package);
        Ok(Self {
            control: build("control", "./control")?,
            sendfile: build("sendfile", "./sendfile")?,
            tailscale: build("tailscale", "tailscale.com/cmd/tailscale")?,
            tailscaled: build("tailscaled", "tailscale.com/cmd/tailscaled")?,
        })
    }
}

/// A program that runs in a namespace until this is dropped.
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(namespace: &str, log: PathBuf, mut command: Command) -> Self {
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle"));
        command.stderr(file);
        let child = run_in(namespace, move || command.spawn().expect("the program can be run"));
        Self { child, log }
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The end of what it has logged.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the coordination server in the relay's namespace. The only DERP region is what listens at [`HUB`] on this
/// port, without TLS.
pub(crate) fn start_control(
    programs: &Programs,
    directory: &Path,
    relay: &str,
    derp_port: u16,
) -> Running {
    let map = serde_json::json!({ "OmitDefaultRegions": true, "Regions": { "900": {
        "RegionID": 900, "RegionCode": "test", "RegionName": "test",
        "Nodes": [{ "Name": "900a", "RegionID": 900, "HostName": HUB, "IPv4": HUB, "IPv6": "none",
            "DERPPort": derp_port, "STUNPort": 3478 }],
    } } });
    let file = directory.join("derpmap.json");
    fs::write(&file, map.to_string()).expect("the DERP map");
    let mut command = Command::new(&programs.control);
    command.arg(format!("-listen={HUB}:{CONTROL_PORT}")).arg("-peer-relay");
    command.arg("-derp-map").arg(&file);
    Running::start(relay, directory.join("control.log"), command)
}

/// Gives the relay an address that both clients reach, by it and by nothing else.
pub(crate) fn connect(relay: &str, clients: [(&str, &str); 2]) {
    run(&format!("ip -n {relay} addr add {HUB}/32 dev lo")).expect("ip");
    for (client, gateway) in clients {
        run(&format!("ip -n {client} route add default via {gateway}")).expect("ip");
    }
}

/// A tailscaled without a network device of its own.
pub(crate) struct Node {
    name: &'static str,
    namespace: String,
    directory: PathBuf,
    tailscale: PathBuf,
    tailscaled: PathBuf,
    environment: Vec<(&'static str, &'static str)>,
    daemon: Option<Running>,
    pub(crate) address: String,
}

impl Node {
    /// Starts it and logs it in.
    pub(crate) fn start(
        programs: &Programs,
        directory: &Path,
        namespace: &str,
        name: &'static str,
        environment: &[(&'static str, &'static str)],
    ) -> Self {
        let mut node = Self {
            name,
            namespace: namespace.to_owned(),
            directory: directory.join(name),
            tailscale: programs.tailscale.clone(),
            tailscaled: programs.tailscaled.clone(),
            environment: environment.to_vec(),
            daemon: None,
            address: String::new(),
        };
        node.run();
        let server = format!("--login-server=http://{HUB}:{CONTROL_PORT}");
        let hostname = format!("--hostname={name}");
        node.wait_for("login", || node.tailscale(&["up", "--timeout=30s", &server, &hostname]));
        node.address = node.wait_for("address", || node.tailscale(&["ip", "-4"])).trim().to_owned();
        node
    }

    /// Starts its process, which is logged in if it ever was.
    pub(crate) fn run(&mut self) {
        let mut command = Command::new(&self.tailscaled);
        command
            .arg("-tun=userspace-networking")
            .arg(format!("-statedir={}", self.directory.display()))
            .arg(format!("-socket={}", self.socket().display()))
            // It shall neither look for a gateway nor for Tailscale's own services.
            .env("TS_NO_LOGS_NO_SUPPORT", "true")
            .env("TS_DISABLE_PORTMAPPER", "1")
            .env("TS_PANIC_IF_HIT_MAIN_CONTROL", "1")
            .env("TS_DEBUG_USE_DERP_HTTP", "1")
            .envs(self.environment.iter().copied());
        let log = self.directory.with_extension("log");
        self.daemon = Some(Running::start(&self.namespace, log, command));
    }

    /// Kills its process.
    pub(crate) fn kill(&mut self) {
        self.daemon = None;
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").id()
    }

    /// Its local API.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// Runs `tailscale` for it, and returns what that says, or why it fails.
    pub(crate) fn tailscale(&self, arguments: &[&str]) -> Result<String, String> {
        let Output { status, stdout, stderr } =
            self.command(arguments).stdin(Stdio::null()).output().expect("tailscale can be run");
        let text = String::from_utf8_lossy(&stdout).into_owned();
        if status.success() {
            return Ok(text);
        }
        Err(format!("tailscale {arguments:?}: {text}{}", String::from_utf8_lossy(&stderr)))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        // Its commands go by the socket alone, in whichever namespace.
        let mut command = Command::new(&self.tailscale);
        command.arg(format!("--socket={}", self.socket().display())).args(arguments);
        command
    }

    /// Tries until there is an answer.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, String>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let error = match attempt() {
                Ok(value) => return value,
                Err(error) => error,
            };
            let words = self.daemon.as_ref().map(Running::last_words).unwrap_or_default();
            let name = self.name;
            assert!(Instant::now() < deadline, "{name}: {what}: {error}\n{words}");
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Pings another node by its peer relay; returns the relay as the answer names it.
    pub(crate) fn ping_by_relay(&self, other: &Self) -> Result<String, String> {
        let ping = ["ping", "--until-direct=false", "-c=1", "--timeout=2s", &other.address];
        let answer = self.tailscale(&ping)?;
        let relay =
            answer.split_once(" via peer-relay(").and_then(|(_, rest)| rest.split_once(')'));
        relay.map(|(relay, _)| relay.to_owned()).ok_or(answer)
    }

    /// The sessions of its peer relay: VNI, and packets from both clients.
    pub(crate) fn sessions(&self) -> Vec<(u64, u64)> {
        let ask = || -> std::io::Result<String> {
            let mut stream = UnixStream::connect(self.socket())?;
            let path = "/localapi/v0/debug-peer-relay-sessions";
            write!(stream, "GET {path} HTTP/1.0\r\nHost: local-tailscaled.sock\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = ask().expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status: Value = serde_json::from_str(body).expect("JSON");
        let sessions = status["Sessions"].as_array().cloned().unwrap_or_default();
        let packets =
            |session: &Value, client| session[client]["PacketsTx"].as_u64().expect("a number");
        let session = |it: &Value| {
            let both = packets(it, "Client1") + packets(it, "Client2");
            (it["VNI"].as_u64().expect("a VNI"), both)
        };
        sessions.iter().map(session).collect()
    }

    /// Offers a file to other nodes.
    pub(crate) fn offer(&self, programs: &Programs, file: &Path) -> Running {
        let mut command = Command::new(&programs.sendfile);
        command.arg(format!("-listen=127.0.0.1:{FILE_PORT}")).arg("-file").arg(file);
        Running::start(&self.namespace, self.directory.with_extension("sendfile"), command)
    }

    /// Begins to copy what another node offers into a file.
    pub(crate) fn fetch(&self, other: &Self, file: &Path) -> Child {
        let output = File::create(file).expect("a file");
        let port = FILE_PORT.to_string();
        let mut command = self.command(&["nc", &other.address, &port]);
        // It ends at the end of its input, which stays open with the child.
        command.stdin(Stdio::piped()).stdout(output).stderr(Stdio::null());
        command.spawn().expect("tailscale can be run")
    }
}
