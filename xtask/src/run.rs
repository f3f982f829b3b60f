//! `cargo xtask run`: a development relay on this machine.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    derp_map, ebpf,
    process::{self, CommandExt as _},
    workspace,
};

const TLS_PORT: u16 = 8443;
const STUN_PORT: u16 = 3478;
/// How often the daemon is asked whether it still runs and whether its certificate is there.
const POLL: Duration = Duration::from_millis(100);
/// The map is shown this long after the certificate is there: the daemon's own words come first.
const MAP_AFTER_POLLS: u32 = 5;

/// Builds and runs a development relay; `given` are further flags of derpd, which win over ours.
pub(crate) fn command(given: &[String]) -> Result<()> {
    let kernel = ebpf::build_if_possible()?;
    if let Err(reason) = &kernel {
        println!("userspace data plane only: {reason}");
    }
    let program = workspace::build_derpd()?;

    let target = workspace::target_dir()?;
    let directory = target.join("dev-relay");
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let wanted = !given.iter().any(|flag| name_of(flag) == "stun" && flag.ends_with("=false"));
    let stun = wanted && (is_given(given, "stun-port") || stun_port_is_free());
    if wanted && !stun {
        println!("no STUN: UDP port {STUN_PORT} is in use; `-- -stun-port=3479` takes another");
    }
    let relay = Relay {
        address: own_address(),
        directory,
        stun,
        // The kernel program answers STUN only.
        interface: default_interface().filter(|_| kernel.is_ok() && stun),
    };
    let mut daemon = process::command(program);
    daemon.args(relay.flags(given)).args(given);
    relay.run(&mut daemon, given)
}

/// The development relay: where its files are and how it is reached.
struct Relay {
    address: IpAddr,
    directory: PathBuf,
    stun: bool,
    /// Where to attach the kernel program.
    interface: Option<String>,
}

impl Relay {
    /// Returns the flags of a development relay, without those that `given` sets itself.
    fn flags(&self, given: &[String]) -> Vec<String> {
        let mut flags = vec![
            format!("-a=:{TLS_PORT}"),
            // Port 80 needs privileges; only captive portal checks of browsers would use it.
            "-http-port=-1".to_owned(),
            "-certmode=manual".to_owned(),
            format!("-hostname={}", self.address),
            format!("-certdir={}", self.directory.join("certs").display()),
            format!("-c={}", self.directory.join("derper.key").display()),
            format!("-stun={}", self.stun),
            // Nothing stays attached when it ends, and what a relay in service has pinned is left alone.
            "-xdp-pin=off".to_owned(),
        ];
        match &self.interface {
            Some(interface) => {
                flags.push(format!("-xdp-interface={interface}"));
                flags.push("-xdp-mode=auto".to_owned());
            }
            None => flags.push("-xdp-mode=off".to_owned()),
        }
        flags.retain(|flag| !is_given(given, name_of(flag)));
        flags
    }

    /// Runs the daemon until it ends or this program is asked to stop.
    fn run(&self, daemon: &mut Command, given: &[String]) -> Result<()> {
        let (stop, stopped) = mpsc::channel();
        // The receiver lives as long as the daemon; afterwards there is nobody to tell.
        ctrlc::set_handler(move || stop.send(()).unwrap_or_default())
            .context("catching the signals that end a program")?;
        // In a process group of its own it hears of Ctrl-C only from here, once.
        std::os::unix::process::CommandExt::process_group(daemon, 0);
        eprintln!("+ {}", daemon.describe());
        let mut child =
            daemon.spawn().with_context(|| format!("starting {}", daemon.describe()))?;
        // A map for other ports or files than ours would mislead.
        let ours = !["a", "certdir", "certmode", "hostname", "stun", "stun-port"]
            .iter()
            .any(|name| is_given(given, name));
        let mut polls_until_map = ours.then_some(MAP_AFTER_POLLS);
        loop {
            if let Some(status) = child.try_wait().context("waiting for derpd")? {
                if status.success() {
                    return Ok(());
                }
                bail!("derpd ended: {status}");
            }
            if polls_until_map == Some(0) {
                self.show_map()?;
                polls_until_map = None;
            } else if self.certificate().exists() {
                polls_until_map = polls_until_map.map(|polls| polls - 1);
            }
            if stopped.recv_timeout(POLL).is_ok() {
                ask_to_stop(&child)?;
            }
        }
    }

    fn certificate(&self) -> PathBuf {
        derp_map::certificate_file(&self.directory.join("certs"), self.address)
    }

    fn show_map(&self) -> Result<()> {
        let stun_port = self.stun.then_some(STUN_PORT);
        let map = derp_map::of_one_node(self.address, &self.certificate(), TLS_PORT, stun_port)?;
        let file = self.directory.join("derpmap.json");
        write(&file, &map)?;
        println!(
            "\nDERP map for clients of this relay (also in {}):\n{map}\nCtrl-C stops it.",
            file.display()
        );
        Ok(())
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn ask_to_stop(child: &Child) -> Result<()> {
    let id = i32::try_from(child.id()).context("process ids are positive i32")?;
    kill(Pid::from_raw(id), Signal::SIGTERM).context("stopping derpd")
}

/// Returns `name` of `-name=value`, `--name=value`, `-name` or `--name`.
fn name_of(flag: &str) -> &str {
    let name = flag.trim_start_matches('-');
    name.split_once('=').map_or(name, |(name, _)| name)
}

fn is_given(given: &[String], name: &str) -> bool {
    given.iter().any(|flag| flag.starts_with('-') && name_of(flag) == name)
}

/// Returns the address that other machines reach this one by, as far as routing knows.
fn own_address() -> IpAddr {
    // Connecting a UDP socket sends nothing; it only asks for the route. The address is one that
    // RFC 5737 keeps for documentation, so that no route but the default one covers it.
    let routed = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
        socket.local_addr().ok().map(|address: SocketAddr| address.ip())
    };
    routed().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn stun_port_is_free() -> bool {
    let free = |address: IpAddr| UdpSocket::bind((address, STUN_PORT)).is_ok();
    // The second answers where IPv6 is switched off.
    free(Ipv6Addr::UNSPECIFIED.into()) || free(Ipv4Addr::UNSPECIFIED.into())
}

/// Returns the interface of the IPv4 default route.
fn default_interface() -> Option<String> {
    default_route(&fs::read_to_string("/proc/net/route").ok()?)
}

/// Reads the kernel's table: interface, destination and further columns, addresses in hex.
fn default_route(table: &str) -> Option<String> {
    const DESTINATION: usize = 1;
    const MASK: usize = 7;
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let is_zero = |index: usize| columns.get(index).is_some_and(|text| *text == "00000000");
        let default = is_zero(DESTINATION) && is_zero(MASK);
        default.then(|| columns.first().map(|name| (*name).to_owned()))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_flags_win() {
        let relay = Relay {
            address: Ipv4Addr::LOCALHOST.into(),
            directory: "d".into(),
            stun: true,
            interface: Some("eth0".to_owned()),
        };
        let given = ["--a", ":9", "-stun-port=1", "-xdp-mode=native"].map(str::to_owned);
        let flags = relay.flags(&given);
        let names: Vec<_> = flags.iter().map(|flag| name_of(flag)).collect();
        assert_eq!(
            names,
            [
                "http-port",
                "certmode",
                "hostname",
                "certdir",
                "c",
                "stun",
                "xdp-pin",
                "xdp-interface"
            ]
        );
    }

    #[test]
    fn finds_the_default_route() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
                     eth1\t00A8C0\t0\t1\t0\t0\t0\t00FFFFFF\n\
                     eth0\t00000000\t0102A8C0\t3\t0\t0\t0\t00000000\n";
        assert_eq!(default_route(table).as_deref(), Some("eth0"));
        assert_eq!(default_route("Iface\tDestination\n"), None);
    }
}
