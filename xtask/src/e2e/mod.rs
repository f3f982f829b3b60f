//! `cargo xtask e2e`: two real Tailscale clients copy a file through the relay.
//!
//! The clients are `tailscaled` of v1.103.0-pre without a network device of their own, told of the
//! relay by Tailscale's test coordination server. Needs root, for network namespaces, and Go.

mod lab;
mod node;

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use sha2::{Digest as _, Sha256};

use self::{
    lab::{Daemon, Host, Lab, RELAY, relay_interface, retry, say},
    node::Node,
};
use crate::{derp_map, go, namespaces, process::CommandExt as _, workspace};

const PATIENCE: Duration = Duration::from_secs(60);
const CONTROL_PORT: u16 = 8080;
const FILE_PORT: u16 = 8081;
const MEGABYTE: u64 = 1_000_000;
const DEFAULT_MEGABYTES: u64 = 50;

/// Options of `cargo xtask e2e`.
#[derive(Args)]
pub(crate) struct Options {
    /// Another relay program to run instead of derpd, such as Tailscale's derper
    #[arg(long)]
    relay: Option<PathBuf>,
    /// Attach the kernel program of derpd in this mode (such as generic) to the links of the clients
    #[arg(long)]
    xdp_mode: Option<String>,
    /// Run a third tailscaled beside the relay, which asks it about every client (-verify-clients), and
    /// check that a stranger is refused
    #[arg(long)]
    verify_clients: bool,
    /// Size of the file in millions of bytes
    #[arg(long, default_value_t = DEFAULT_MEGABYTES)]
    megabytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { relay: None, xdp_mode: None, verify_clients: false, megabytes: DEFAULT_MEGABYTES }
    }
}

/// Runs everything and prints a short report.
pub(crate) fn command(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    go::check_version()?;
    let relay = match &options.relay {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => workspace::build_derpd()?,
    };
    let programs = Programs::build()?;
    let xdp_mode = options.xdp_mode.as_deref();
    let copied = if options.verify_clients {
        let stranger = match options.relay {
            Some(_) => workspace::build_derpd()?,
            None => relay.clone(),
        };
        programs.copy_verified(&relay, xdp_mode, options.megabytes, &stranger)?
    } else {
        programs.copy(&relay, xdp_mode, options.megabytes)?
    };
    println!("{copied}");
    Ok(())
}

/// Returns why two clients cannot be run on this machine, if they cannot.
pub(crate) fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".to_owned());
    }
    go::check_modules(&workspace::interop_module()).err().map(|reason| format!("{reason:#}"))
}

/// Tailscale's programs that the test runs beside the relay.
pub(crate) struct Programs {
    control: PathBuf,
    sendfile: PathBuf,
    tailscale: PathBuf,
    tailscaled: PathBuf,
}

impl Programs {
    /// Builds them, and installs what the network namespaces need.
    pub(crate) fn build() -> Result<Self> {
        namespaces::ensure_programs()?;
        let directory = workspace::target_dir()?.join("e2e");
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        go::command()
            .current_dir(workspace::interop_module())
            .env("GOTOOLCHAIN", "local")
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&directory)
            .args(["./control", "./sendfile"])
            .args(["tailscale.com/cmd/tailscale", "tailscale.com/cmd/tailscaled"])
            .run()?;
        Ok(Self {
            control: directory.join("control"),
            sendfile: directory.join("sendfile"),
            tailscale: directory.join("tailscale"),
            tailscaled: directory.join("tailscaled"),
        })
    }

    /// Starts `relay` and two clients, and copies a file of so many million bytes through it.
    ///
    /// # Errors
    ///
    /// With the end of the relay's log, if a client does not see the relay or the file does not
    /// arrive as it was sent.
    pub(crate) fn copy(
        &self,
        relay: &Path,
        xdp_mode: Option<&str>,
        megabytes: u64,
    ) -> Result<Copied> {
        self.run(relay, xdp_mode, megabytes, None)
    }

    /// The same with a relay that asks a tailscaled beside it about every client, and with derpd's
    /// load generator, the program `stranger`, as a client that it must refuse.
    pub(crate) fn copy_verified(
        &self,
        relay: &Path,
        xdp_mode: Option<&str>,
        megabytes: u64,
        stranger: &Path,
    ) -> Result<Copied> {
        self.run(relay, xdp_mode, megabytes, Some(stranger))
    }

    fn run(
        &self,
        relay: &Path,
        xdp_mode: Option<&str>,
        megabytes: u64,
        stranger: Option<&Path>,
    ) -> Result<Copied> {
        let lab = Lab::build().context("building the network")?;
        let (mut relay, map) = start_relay(&lab, relay, xdp_mode, stranger.is_some())?;
        let map_file = lab.directory().join("derpmap.json");
        fs::write(&map_file, map).context("writing the DERP map")?;
        let mut control = lab.start(
            "control",
            lab.command(Host::Relay, &self.control)
                .arg(format!("-listen={RELAY}:{CONTROL_PORT}"))
                .arg("-derp-map")
                .arg(&map_file),
        )?;
        let beside = match stranger {
            Some(_) => Some(Node::start(&lab, Host::Relay, self)?),
            None => None,
        };
        say("logging two clients in");
        let left = Node::start(&lab, Host::Left, self)?;
        let right = Node::start(&lab, Host::Right, self)?;
        let result = measure(&lab, &left, &right, relay.id(), megabytes, self);
        if let Some(stranger) = stranger {
            check_refusal(&lab, stranger, &relay)?;
        }
        drop(beside);
        relay.check()?;
        control.check()?;
        let mut copied =
            result.with_context(|| format!("the relay's log ends:\n{}", relay.last_words()))?;
        let log = relay.log();
        let about_xdp = log.lines().filter(|line| line.to_lowercase().contains("xdp"));
        copied.xdp_log = about_xdp.map(str::to_owned).collect();
        Ok(copied)
    }
}

/// A file that went through the relay, and what that took.
pub(crate) struct Copied {
    /// Of the relay, as `tailscale netcheck` sees it.
    latency: Duration,
    /// The answer to a ping over the relay.
    pong: String,
    megabytes: u64,
    elapsed: Duration,
    /// SHA-256 in hex, equal on both sides.
    digest: String,
    /// What the relay spent on it.
    cpu: Duration,
    /// What the relay said of its kernel program.
    xdp_log: Vec<String>,
}

impl Copied {
    /// Returns the relay's processor time in milliseconds for each million bytes.
    pub(crate) fn cpu_ms_per_megabyte(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e3 / self.megabytes as f64
    }
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { latency, pong, megabytes, elapsed, digest, cpu: _, xdp_log } = self;
        let elapsed = elapsed.as_secs_f64();
        let rate = *megabytes as f64 * 8.0 / elapsed;
        writeln!(f, "netcheck:    UDP true, latency {:.2} ms", latency.as_secs_f64() * 1e3)?;
        writeln!(f, "ping:        {pong}")?;
        writeln!(
            f,
            "copy:        {megabytes} MB in {elapsed:.2} s, {rate:.0} Mbit/s, SHA-256 {digest}"
        )?;
        write!(f, "relay CPU:   {:.2} ms per MB", self.cpu_ms_per_megabyte())?;
        xdp_log.iter().try_for_each(|line| write!(f, "\nrelay log:   {line}"))
    }
}

/// Starts the relay and returns it with the DERP map that leads to it.
fn start_relay(
    lab: &Lab,
    program: &Path,
    xdp_mode: Option<&str>,
    verify_clients: bool,
) -> Result<(Daemon, String)> {
    let certificates = lab.directory().join("certs");
    let mut command = lab.command(Host::Relay, program);
    command
        .args([&format!("-a={RELAY}:443"), &format!("-hostname={RELAY}"), "-certmode=manual"])
        .arg(format!("-certdir={}", certificates.display()))
        .arg(format!("-c={}", lab.directory().join("derper.key").display()));
    if let Some(mode) = xdp_mode {
        lab.send_checksums()?;
        command.arg(format!("-xdp-mode={mode}")).arg("-xdp-pin=off");
        for client in [Host::Left, Host::Right] {
            command.arg(format!("-xdp-interface={}", relay_interface(client)));
        }
    }
    if verify_clients {
        let socket = node::socket(lab, Host::Relay);
        command.args(["-verify-clients", &format!("-socket={}", socket.display())]);
    }
    say(&format!("starting {}", program.display()));
    let mut relay = lab.start("relay", &mut command)?;
    let address = RELAY.parse().context("parsing our own address")?;
    let certificate = derp_map::certificate_file(&certificates, address);
    let deadline = Instant::now() + PATIENCE;
    loop {
        relay.check()?;
        // The file may be there, but not yet whole.
        match derp_map::of_one_node(address, &certificate, 443, Some(3478)) {
            Ok(map) => return Ok((relay, map)),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Checks that a client with a key of no tailnet is refused, because tailscaled does not know it.
fn check_refusal(lab: &Lab, stranger: &Path, relay: &Daemon) -> Result<()> {
    const REASON: &str = "not authorized (not found in local tailscaled)";
    say("trying to get in without being a node");
    let mut command = lab.command(Host::Left, stranger);
    command.args(["bench", "--server", RELAY, "--insecure", "--no-progress", "latency"]);
    command.args(["--duration", "1s"]);
    ensure!(command.read().is_err(), "`{}` was served", command.describe());
    let log = relay.log();
    ensure!(log.contains(REASON), "the relay's log says nothing of it: {}", relay.last_words());
    Ok(())
}

/// Checks what the clients see of the relay, and copies the file.
fn measure(
    lab: &Lab,
    left: &Node,
    right: &Node,
    relay_id: u32,
    megabytes: u64,
    programs: &Programs,
) -> Result<Copied> {
    let latency = retry("a netcheck that sees the relay", PATIENCE, || left.netcheck())?;
    let pong = retry("a ping over the relay", PATIENCE, || left.ping(right))?;
    say(&format!("copying {megabytes} MB"));
    let source = lab.directory().join("sent");
    let sent = write_random_file(&source, megabytes * MEGABYTE)?;
    let mut server = lab.start(
        "sendfile",
        lab.command(Host::Right, &programs.sendfile)
            .arg(format!("-listen=127.0.0.1:{FILE_PORT}"))
            .arg("-file")
            .arg(&source),
    )?;
    let copy = lab.directory().join("received");
    let (start, before) = (Instant::now(), cpu_time(relay_id)?);
    let fetched = left.fetch(right, FILE_PORT, &copy);
    let (elapsed, cpu) = (start.elapsed(), cpu_time(relay_id)?.saturating_sub(before));
    server.check()?;
    fetched?;
    let received = digest(&copy)?;
    ensure!(received == sent, "sent a file with SHA-256 {sent}, received one with {received}");
    retry("a ping after the copy", PATIENCE, || left.ping(right))?;
    Ok(Copied { latency, pong, megabytes, elapsed, digest: sent, cpu, xdp_log: Vec::new() })
}

fn write_random_file(path: &Path, size: u64) -> Result<String> {
    let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?.take(size);
    let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    std::io::copy(&mut random, &mut file).with_context(|| format!("writing {}", path.display()))?;
    digest(path)
}

fn digest(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).with_context(|| format!("reading {}", path.display()))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Returns the time that the threads of a process have spent on a processor.
fn cpu_time(id: u32) -> Result<Duration> {
    let threads = format!("/proc/{id}/task");
    let mut nanoseconds = 0;
    for thread in fs::read_dir(&threads).with_context(|| format!("reading {threads}"))? {
        let file = thread.context("reading a directory")?.path().join("schedstat");
        // A thread may end between the two looks.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let Some(time) = text.split(' ').next().and_then(|time| time.parse::<u64>().ok()) else {
            bail!("{} does not start with a number: {text:?}", file.display());
        };
        nanoseconds += time;
    }
    Ok(Duration::from_nanos(nanoseconds))
}
