//! `cargo xtask e2e`: two real Tailscale clients copy a file through the relay.
//!
//! The clients are `tailscaled` of v1.103.0-pre without a network device of their own, told of the
//! relay by Tailscale's test coordination server. Needs root, for network namespaces, and Go.

pub(crate) mod cost;
mod evidence;
mod lab;
mod node;
mod peer_relay;
mod relay;
mod traffic;
mod translation;

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
    lab::{CONTROL, Host, Lab, retry, say},
    node::{Device, Node},
    peer_relay::Join,
    relay::{Relays, check_refusal},
};
use crate::{ebpf, go, namespaces, process::CommandExt as _, workspace};

const PATIENCE: Duration = Duration::from_secs(60);
const CONTROL_PORT: u16 = 8080;
const FILE_PORT: u16 = 8081;
const MEGABYTE: u64 = 1_000_000;
/// Most bytes of a file in one packet between the clients, whose MTU is 1280.
const MOST_BYTES: u64 = 1280;
const DEFAULT_MEGABYTES: u64 = 50;

/// Options of `cargo xtask e2e`.
#[derive(Args)]
pub(crate) struct Options {
    /// Another relay program to run instead of derpd, such as Tailscale's derper
    #[arg(long)]
    relay: Option<PathBuf>,
    /// Run two derpds as the servers of one region, of which each client reaches another one
    #[arg(long, conflicts_with = "xdp_mode")]
    mesh: bool,
    /// Attach the kernel program of derpd in this mode (such as generic) to the links of the clients
    #[arg(long)]
    xdp_mode: Option<String>,
    /// Run a third tailscaled beside the relay, which asks it about every client (-verify-clients), and
    /// check that a stranger is refused
    #[arg(long)]
    verify_clients: bool,
    /// Have derpd admit only the keys of the two clients (-allow-keys), and check that a stranger is refused
    #[arg(long, conflicts_with = "verify_clients")]
    allow_list: bool,
    /// Have derpd be a peer relay, too, and check that the clients use it, and what they do when it is killed and when
    /// the address translation of one of them changes
    #[arg(long, conflicts_with_all = ["mesh", "verify_clients", "allow_list"])]
    peer_relay: bool,
    /// Have clients come to know of the peer relay only in this way, instead of both in turn
    #[arg(long, requires = "peer_relay", value_enum)]
    join: Option<Join>,
    /// Size of the file in millions of bytes
    #[arg(long, default_value_t = DEFAULT_MEGABYTES)]
    megabytes: u64,
}

impl Options {
    /// What CI runs first: one relay, open to everybody.
    pub(crate) fn plain() -> Self {
        Self {
            relay: None,
            mesh: false,
            xdp_mode: None,
            verify_clients: false,
            allow_list: false,
            peer_relay: false,
            join: None,
            megabytes: DEFAULT_MEGABYTES,
        }
    }

    /// What CI runs then: a region of two relays that admit only their clients.
    pub(crate) fn region() -> Self {
        Self { mesh: true, allow_list: true, ..Self::plain() }
    }

    /// And last: a peer relay, forwarding in the kernel if that can be, known to clients in one way and then the other.
    pub(crate) fn peer_relay(with_kernel: bool) -> Self {
        let xdp_mode = with_kernel.then(|| "native".to_owned());
        Self { peer_relay: true, xdp_mode, ..Self::plain() }
    }

    fn admission(&self) -> Admission {
        match (self.verify_clients, self.allow_list) {
            (true, _) => Admission::Tailscaled,
            (false, true) => Admission::AllowList,
            (false, false) => Admission::Open,
        }
    }
}

/// Who may use the relays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Admission {
    Open,
    /// Whom the tailscaled beside the relay knows.
    Tailscaled,
    /// The keys of the two clients, in a file.
    AllowList,
}

/// What is started, and how much is copied.
struct Setup<'a> {
    relay: &'a Path,
    mesh: bool,
    xdp_mode: Option<&'a str>,
    admission: Admission,
    /// derpd's load generator, which must be refused where not everybody is admitted.
    stranger: &'a Path,
    megabytes: u64,
}

/// Runs everything and prints a short report.
pub(crate) fn command(options: &Options) -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root: run it with sudo");
    go::check_version()?;
    if options.xdp_mode.is_some() {
        ebpf::build(&ebpf::Toolchain::find_or_install()?)?;
    }
    let relay = match &options.relay {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display()))?,
        None => workspace::build_derpd()?,
    };
    let programs = Programs::build()?;
    let stranger = match options.relay {
        Some(_) if options.verify_clients => workspace::build_derpd()?,
        Some(_) | None => relay.clone(),
    };
    if options.peer_relay {
        let mode = options.xdp_mode.as_deref();
        for join in Join::chosen(options.join) {
            say(&format!("a peer relay, known by {}", join.name()));
            println!("{}", programs.use_peer_relay(&relay, mode, join, options.megabytes)?);
        }
        return Ok(());
    }
    let copied = programs.run(&Setup {
        relay: &relay,
        mesh: options.mesh,
        xdp_mode: options.xdp_mode.as_deref(),
        admission: options.admission(),
        stranger: &stranger,
        megabytes: options.megabytes,
    })?;
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
    /// With the place where the logs are kept, if a client does not see the relay or the file does
    /// not arrive as it was sent.
    pub(crate) fn copy(
        &self,
        relay: &Path,
        xdp_mode: Option<&str>,
        megabytes: u64,
    ) -> Result<Copied> {
        self.run(&Setup {
            relay,
            mesh: false,
            xdp_mode,
            admission: Admission::Open,
            stranger: relay,
            megabytes,
        })
    }

    fn run(&self, setup: &Setup<'_>) -> Result<Copied> {
        let lab = Lab::build().context("building the network")?;
        self.run_in(&lab, setup).map_err(|error| evidence::keep(&lab, self, "derp", error))
    }

    fn run_in(&self, lab: &Lab, setup: &Setup<'_>) -> Result<Copied> {
        let mut relays = Relays::start(lab, setup)?;
        let map_file = lab.directory().join("derpmap.json");
        fs::write(&map_file, &relays.map).context("writing the DERP map")?;
        let mut control = lab.start(
            "control",
            lab.command(Host::Relay, &self.control)
                .arg(format!("-listen={CONTROL}:{CONTROL_PORT}"))
                .arg("-derp-map")
                .arg(&map_file),
        )?;
        let beside = match setup.admission {
            Admission::Tailscaled => Some(Node::start(lab, Host::Relay, Device::None, self)?),
            Admission::Open | Admission::AllowList => None,
        };
        say("logging two clients in");
        let left = Node::start(lab, Host::Left, Device::None, self)?;
        let right = Node::start(lab, Host::Right, Device::None, self)?;
        if setup.admission == Admission::AllowList {
            relays.admit_only(lab, &[left.key()?, right.key()?])?;
        }
        let mut copied = measure(lab, &left, &right, &relays.ids(), setup.megabytes, self)?;
        check_refusal(lab, setup.stranger, &relays, setup.admission)?;
        drop(beside);
        relays.check()?;
        control.check()?;
        if setup.mesh {
            copied.forwarded = relays.metric(lab, "derp_packets_forwarded_out")?;
            // The relay of whoever sent the file handed all of it to the other one.
            let least = setup.megabytes * MEGABYTE / MOST_BYTES;
            let most = copied.forwarded.iter().max().copied().unwrap_or_default();
            ensure!(most >= least, "the relays forwarded {:?} packets", copied.forwarded);
            ensure!(copied.forwarded.iter().all(|&count| count > 0), "one forwarded nothing");
        }
        let log = relays.log();
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
    /// Packets that each relay of a region handed to the other one.
    forwarded: Vec<u64>,
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
        let Self { latency, pong, megabytes, elapsed, digest, cpu: _, forwarded, xdp_log } = self;
        let elapsed = elapsed.as_secs_f64();
        let rate = *megabytes as f64 * 8.0 / elapsed;
        writeln!(f, "netcheck:    UDP true, latency {:.2} ms", latency.as_secs_f64() * 1e3)?;
        writeln!(f, "ping:        {pong}")?;
        writeln!(
            f,
            "copy:        {megabytes} MB in {elapsed:.2} s, {rate:.0} Mbit/s, SHA-256 {digest}"
        )?;
        write!(f, "relay CPU:   {:.2} ms per MB", self.cpu_ms_per_megabyte())?;
        if !forwarded.is_empty() {
            write!(f, "\nforwarded:   {forwarded:?} packets to the other relay")?;
        }
        xdp_log.iter().try_for_each(|line| write!(f, "\nrelay log:   {line}"))
    }
}

/// Checks what the clients see of the relay, and copies the file.
fn measure(
    lab: &Lab,
    left: &Node,
    right: &Node,
    relays: &[u32],
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
    let (start, before) = (Instant::now(), cpu_times(relays)?);
    let fetched = left.fetch(right, FILE_PORT, &copy);
    let (elapsed, cpu) = (start.elapsed(), cpu_times(relays)?.saturating_sub(before));
    server.check()?;
    fetched?;
    let received = digest(&copy)?;
    ensure!(received == sent, "sent a file with SHA-256 {sent}, received one with {received}");
    retry("a ping after the copy", PATIENCE, || left.ping(right))?;
    Ok(Copied {
        latency,
        pong,
        megabytes,
        elapsed,
        digest: sent,
        cpu,
        forwarded: Vec::new(),
        xdp_log: Vec::new(),
    })
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

/// Returns the time that these processes have spent on a processor.
fn cpu_times(ids: &[u32]) -> Result<Duration> {
    ids.iter().map(|&id| cpu_time(id)).sum()
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
