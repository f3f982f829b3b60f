//! Three network namespaces: two clients that can reach the relay between them, and only it.
//!
//! Nothing forwards between the two links, and the addresses of relays are on neither of them, so what
//! passes from one client to the other has passed through a relay.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::{self, CommandExt as _};

/// Addresses of the relays, on the loopback interface of their host.
pub(super) const RELAYS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// Address of the coordination server, beside them.
pub(super) const CONTROL: &str = "10.77.0.3";

/// Ends what runs in the namespaces, by process id, and removes them and the files. It waits for
/// the end of its input, which comes when the lab is dropped and also when this program is killed.
const JANITOR: &str = r#"
    trap '' INT TERM HUP
    read -r _
    directory="$1"; shift
    for namespace; do
        for id in $(ip netns pids "$namespace" 2>/dev/null); do kill -TERM "$id"; done
    done
    sleep 0.5
    for namespace; do
        for id in $(ip netns pids "$namespace" 2>/dev/null); do kill -KILL "$id"; done
        ip netns delete "$namespace" 2>/dev/null
    done
    rm -rf -- "$directory"
"#;

/// One of the namespaces.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Host {
    Relay,
    Left,
    Right,
}

impl Host {
    pub(super) const ALL: [Self; 3] = [Self::Relay, Self::Left, Self::Right];

    /// Returns the host's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Relay => "relay",
            Self::Left => "left",
            Self::Right => "right",
        }
    }

    fn namespace(self) -> String {
        format!("derpd-e2e-{}-{}", std::process::id(), self.name())
    }
}

/// The namespaces and a directory for files; gone when dropped.
pub(super) struct Lab {
    directory: PathBuf,
    janitor: Child,
    /// Closing it sets the janitor to work.
    signal: Option<ChildStdin>,
}

impl Lab {
    /// Builds the network. Needs root.
    pub(super) fn build() -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("derpd-e2e-{}", std::process::id()));
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let mut janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&directory)
            .args(Host::ALL.map(Host::namespace))
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .context("starting the shell that cleans up")?;
        let signal = janitor.stdin.take();
        let lab = Self { directory, janitor, signal };
        for host in Host::ALL {
            ip(&["netns", "add", &host.namespace()])?;
            lab.ip_in(host, &["link", "set", "lo", "up"])?;
        }
        for address in RELAYS.into_iter().chain([CONTROL]) {
            lab.ip_in(Host::Relay, &["address", "add", &format!("{address}/32"), "dev", "lo"])?;
        }
        lab.link(Host::Left)?;
        lab.link(Host::Right)?;
        Ok(lab)
    }

    /// Connects a client to the relay by a pair of interfaces.
    fn link(&self, client: Host) -> Result<()> {
        let relay_end = relay_interface(client);
        let peer = client.namespace();
        self.ip_in(
            Host::Relay,
            &["link", "add", &relay_end, "type", "veth", "peer", "name", "eth0", "netns", &peer],
        )?;
        let network = network(client);
        let (gateway, own) = (format!("{network}.1"), format!("{}/24", client_address(client)));
        self.ip_in(Host::Relay, &["address", "add", &format!("{gateway}/24"), "dev", &relay_end])?;
        self.ip_in(Host::Relay, &["link", "set", &relay_end, "up"])?;
        self.ip_in(client, &["address", "add", &own, "dev", "eth0"])?;
        self.ip_in(client, &["link", "set", "eth0", "up"])?;
        self.ip_in(client, &["route", "add", "default", "via", &gateway])
    }

    /// Makes the clients send whole checksums, which the kernel program insists on and which a
    /// pair of virtual interfaces otherwise leaves out.
    pub(super) fn send_checksums(&self) -> Result<()> {
        for client in [Host::Left, Host::Right] {
            self.set_feature(client, "eth0", "tx", false)?;
        }
        Ok(())
    }

    /// Has the clients' ends take in what native XDP sends to them, by a program that lets everything pass.
    pub(super) fn accept_native_xdp(&self, pass: &Path) -> Result<()> {
        let object = pass.to_str().context("the path of the XDP program is not UTF-8")?;
        for client in [Host::Left, Host::Right] {
            let link = ["link", "set", "eth0", "xdpdrv", "obj", object, "sec", "xdp"];
            self.ip_in(client, &link)?;
        }
        Ok(())
    }

    /// Makes an interface of a host have or not have a feature, by its name for `ethtool`.
    pub(super) fn set_feature(
        &self,
        host: Host,
        interface: &str,
        feature: &str,
        on: bool,
    ) -> Result<()> {
        let value = if on { "on" } else { "off" };
        self.command(host, Path::new("ethtool"))
            .args(["-K", interface, feature, value])
            .read()
            .context("the program `ethtool` is needed for this")
            .map(drop)
    }

    /// Keeps a client from reaching an address.
    pub(super) fn block(&self, client: Host, address: &str) -> Result<()> {
        self.ip_in(client, &["route", "add", "unreachable", address])
    }

    /// Starts a thread that works on a host.
    pub(super) fn work<T: Send + 'static>(
        &self,
        host: Host,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Work<T>> {
        let path = Path::new("/run/netns").join(host.namespace());
        let namespace = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(Work(std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
            work()
        })))
    }

    fn ip_in(&self, host: Host, arguments: &[&str]) -> Result<()> {
        ip(&[&["-n", &host.namespace()], arguments].concat())
    }

    /// Returns the directory for files of this run.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns a command that runs `program` on a host.
    pub(super) fn command(&self, host: Host, program: &Path) -> Command {
        let mut command = process::command("ip");
        command.args(["netns", "exec", &host.namespace()]).arg(program);
        command
    }

    /// Starts a program that runs until the end, with its log in a file named after it, behind that of an earlier one.
    pub(super) fn start(&self, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = self.directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("duplicating a file handle")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting `{}`", command.describe()))?;
        Ok(Daemon { name: name.to_owned(), log, child })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.signal.take());
        if let Err(error) = self.janitor.wait() {
            eprintln!("cleaning up: {error}");
        }
    }
}

/// A thread that works on a host.
pub(super) struct Work<T>(JoinHandle<Result<T>>);

impl<T> Work<T> {
    /// Waits for what comes of it.
    pub(super) fn finish(self) -> Result<T> {
        match self.0.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread has panicked"),
        }
    }
}

/// Returns the name of the relay's interface towards a client.
pub(super) fn relay_interface(client: Host) -> String {
    format!("to-{}", client.name())
}

/// Returns the address of a client outside of the tunnel.
pub(super) fn client_address(client: Host) -> String {
    format!("{}.2", network(client))
}

/// Returns what all addresses of the link to a client begin with.
fn network(client: Host) -> &'static str {
    match client {
        Host::Relay => "10.77.0",
        Host::Left => "10.77.1",
        Host::Right => "10.77.2",
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::command("ip").args(arguments).read().map(drop)
}

/// A program that runs until the end of the lab.
pub(super) struct Daemon {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Daemon {
    /// Returns its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it.
    pub(super) fn stop(mut self) -> Result<()> {
        self.kill()
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("ending {}", self.name))?;
        self.child.wait().context("waiting for a child")?;
        Ok(())
    }

    /// Returns what it has logged.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Fails if it has ended by itself, with the end of its log.
    pub(super) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("waiting for a child")? {
            bail!("{} ended: {status}\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Returns the last lines of its log.
    pub(super) fn last_words(&self) -> String {
        last_lines(&self.log())
    }
}

/// Returns the last lines of a log.
pub(super) fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}

/// Asks again and again until there is an answer; the last refusal is the error.
pub(super) fn retry<T>(
    what: &str,
    limit: Duration,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Writes one line of progress.
pub(super) fn say(text: &str) {
    let mut stderr = std::io::stderr();
    // Nobody to tell is no reason to fail.
    writeln!(stderr, "e2e: {text}").unwrap_or_default();
}
