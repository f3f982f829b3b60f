//! The relays of the lab: one, or two that are the servers of one region.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    Admission, PATIENCE, Setup,
    lab::{Daemon, Host, Lab, RELAYS, relay_interface, retry, say},
    node,
};
use crate::{derp_map, ebpf};

/// Of the relay's plain HTTP port, where its metrics are.
const HTTP_PORT: u16 = 80;
/// Anything will do: the region has one.
const MESH_KEY: &str = "5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2e7c0ffee5ec2";

/// The running relays, at least one.
pub(super) struct Relays {
    daemons: Vec<Daemon>,
    /// The DERP map that leads to them.
    pub(super) map: String,
}

impl Relays {
    /// Starts them. With a mesh, the left client reaches only the first, the right one only the second.
    pub(super) fn start(lab: &Lab, setup: &Setup<'_>) -> Result<Self> {
        let addresses = if setup.mesh { &RELAYS[..] } else { &RELAYS[..1] };
        if setup.admission == Admission::AllowList {
            fs::write(allow_list(lab), "").context("writing the list of keys")?;
        }
        let mut pins = Vec::new();
        if setup.mesh {
            fs::write(mesh_key(lab), MESH_KEY).context("writing the mesh key")?;
            // Each must know the certificate of the other, and makes its own at the first start.
            for address in addresses {
                let mut first = start_one(lab, setup, address, &[])?;
                let certificate = certificate(lab, address)?;
                pins.push(retry("a certificate", PATIENCE, || {
                    first.check()?;
                    derp_map::pin(&certificate)
                })?);
                first.stop()?;
            }
            lab.block(Host::Left, RELAYS[1])?;
            lab.block(Host::Right, RELAYS[0])?;
        }
        if setup.xdp_mode.is_some() {
            prepare_links(lab)?;
        }
        say(&format!("starting {}", setup.relay.display()));
        let mut daemons = addresses
            .iter()
            .map(|address| start_one(lab, setup, address, &pins))
            .collect::<Result<Vec<_>>>()?;
        let nodes = addresses
            .iter()
            .map(|address| Ok((address.parse()?, certificate(lab, address)?)))
            .collect::<Result<Vec<_>>>()?;
        let deadline = Instant::now() + PATIENCE;
        let map = loop {
            daemons.iter_mut().try_for_each(Daemon::check)?;
            // The file may be there, but not yet whole.
            match derp_map::of_nodes(&nodes, 443, Some(3478)) {
                Ok(map) => break map,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let mut relays = Self { daemons, map };
        if setup.mesh {
            say("waiting for the relays to find each other");
            retry("both links of the mesh", PATIENCE, || {
                relays.check()?;
                ensure!(relays.metric(lab, "derpd_mesh_links")? == [1, 1], "not yet");
                Ok(())
            })?;
        }
        Ok(relays)
    }

    /// Has the relays admit these keys and no others from now on.
    pub(super) fn admit_only(&self, lab: &Lab, keys: &[String]) -> Result<()> {
        fs::write(allow_list(lab), keys.join("\n")).context("writing the list of keys")?;
        for daemon in &self.daemons {
            let id = i32::try_from(daemon.id()).context("a process id")?;
            kill(Pid::from_raw(id), Signal::SIGHUP).context("asking a relay to reload")?;
        }
        retry("the relays to read their list", PATIENCE, || {
            let read = self.metric(lab, "derpd_allowed_keys{source=\"allow_keys\"}")?;
            ensure!(read.iter().all(|&count| count == keys.len() as u64), "{read:?}");
            Ok(())
        })
    }

    /// The value of a sample at each relay; 0 where it is missing.
    pub(super) fn metric(&self, lab: &Lab, name: &str) -> Result<Vec<u64>> {
        RELAYS[..self.daemons.len()].iter().map(|address| sample(lab, address, name)).collect()
    }

    /// Fails if one has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        self.daemons.iter_mut().try_for_each(Daemon::check)
    }

    pub(super) fn ids(&self) -> Vec<u32> {
        self.daemons.iter().map(Daemon::id).collect()
    }

    /// What they have logged.
    pub(super) fn log(&self) -> String {
        self.daemons.iter().map(Daemon::log).collect()
    }

    /// The last lines of their logs.
    pub(super) fn last_words(&self) -> String {
        self.daemons.iter().map(Daemon::last_words).collect::<Vec<_>>().join("\n\n")
    }
}

/// Starts the relay at an address; meshed with all of them if there are pins of their certificates.
fn start_one(lab: &Lab, setup: &Setup<'_>, address: &str, pins: &[String]) -> Result<Daemon> {
    let mut command = relay_command(lab, setup.relay, address);
    if let Some(mode) = setup.xdp_mode {
        attach(&mut command, mode);
    }
    match setup.admission {
        Admission::Open => {}
        Admission::Tailscaled => {
            let socket = node::socket(lab, Host::Relay);
            command.args(["-verify-clients", &format!("-socket={}", socket.display())]);
        }
        Admission::AllowList => {
            command.arg(format!("-allow-keys={}", allow_list(lab).display()));
        }
    }
    if !pins.is_empty() {
        command
            .arg(format!("-mesh-psk-file={}", mesh_key(lab).display()))
            .arg(format!("-mesh-with={}", RELAYS.join(",")))
            .arg(format!("-mesh-pin={}", pins.join(",")));
    }
    lab.start(&format!("relay-{address}"), &mut command)
}

/// Returns the command that starts a relay at an address.
pub(super) fn relay_command(lab: &Lab, program: &Path, address: &str) -> Command {
    let mut command = lab.command(Host::Relay, program);
    command
        .args([&format!("-a={address}:443"), &format!("-hostname={address}"), "-certmode=manual"])
        .arg(format!("-certdir={}", certificates(lab).display()))
        .arg(format!("-c={}", lab.directory().join(format!("{address}.key")).display()))
        .arg(format!("-http-port={HTTP_PORT}"))
        .env("TS_DEBUG_TRUSTED_CIDRS", format!("{address}/32"));
    command
}

/// Has derpd attach the kernel program to the links of the clients.
pub(super) fn attach(command: &mut Command, mode: &str) {
    command.arg(format!("-xdp-mode={mode}")).arg("-xdp-pin=off");
    for client in [Host::Left, Host::Right] {
        command.arg(format!("-xdp-interface={}", relay_interface(client)));
    }
}

/// Makes the links fit for the kernel program, in any mode: it redirects only to interfaces that take that.
pub(super) fn prepare_links(lab: &Lab) -> Result<()> {
    lab.send_checksums()?;
    lab.accept_native_xdp(&ebpf::pass_program()?)
}

fn certificates(lab: &Lab) -> PathBuf {
    lab.directory().join("certs")
}

pub(super) fn certificate(lab: &Lab, address: &str) -> Result<PathBuf> {
    let address = address.parse().context("parsing our own address")?;
    Ok(derp_map::certificate_file(&certificates(lab), address))
}

fn mesh_key(lab: &Lab) -> PathBuf {
    lab.directory().join("mesh.key")
}

fn allow_list(lab: &Lab) -> PathBuf {
    lab.directory().join("allowed-keys")
}

/// Returns the value of a sample at the relay with an address; 0 where it is missing.
pub(super) fn sample(lab: &Lab, address: &str, name: &str) -> Result<u64> {
    let page = page(lab, address.parse()?, "/debug/varz")?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(Ok(0), |value| value.trim().parse().context("reading a metric"))
}

/// Fetches a page of a relay from its plain HTTP port.
pub(super) fn page(lab: &Lab, address: Ipv4Addr, path: &'static str) -> Result<String> {
    let fetch = move || -> Result<String> {
        let mut stream = TcpStream::connect((address, HTTP_PORT)).context("the HTTP port")?;
        stream.set_read_timeout(Some(PATIENCE)).context("setting a timeout")?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: relay\r\n\r\n");
        stream.write_all(request.as_bytes()).context("asking")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("reading {path}"))?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
            Some(_) | None => bail!("no {path}: {answer:?}"),
        }
    };
    lab.work(Host::Relay, fetch)?.finish()
}

/// Checks that a client with a key that nobody knows is refused, for the reason of `admission`.
pub(super) fn check_refusal(
    lab: &Lab,
    stranger: &Path,
    relays: &Relays,
    admission: Admission,
) -> Result<()> {
    use crate::process::CommandExt as _;

    let reason = match admission {
        Admission::Open => return Ok(()),
        Admission::Tailscaled => "not authorized (not found in local tailscaled)",
        Admission::AllowList => "is on no allow list",
    };
    say("trying to get in without being a node");
    let mut command = lab.command(Host::Left, stranger);
    command.args(["bench", "--server", RELAYS[0], "--insecure", "--no-progress", "latency"]);
    command.args(["--duration", "1s"]);
    ensure!(command.read().is_err(), "`{}` was served", command.describe());
    let log = relays.log();
    ensure!(log.contains(reason), "the relay's log says nothing of it: {}", relays.last_words());
    Ok(())
}
