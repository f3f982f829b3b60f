//! Who makes the load and says what came of it.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{
    case::{Load, Number},
    server::{Program, Server},
};
use crate::{
    e2e,
    process::{self, CommandExt as _},
};

/// Figure of [`Load::Tunnel`]: the relay's milliseconds of CPU for each million bytes.
pub(super) const TUNNEL_CPU: &str = "relay_cpu_ms_per_mb";

/// What derpload answers, as far as a case asks for it.
const DERPLOAD_KEYS: [&str; 8] = [
    "loss_pct",
    "p50_us",
    "p99_us",
    "p999_us",
    "recv_mbps",
    "rss_before_kib",
    "rss_kib_per_conn",
    "server_us_per_pkt",
];

/// How long a silent connection is held, and how long memory has to settle after it left.
const HOLD: Duration = Duration::from_secs(3);
const SETTLE: Duration = Duration::from_secs(5);
/// Connections that a storm opens at the same time.
const STORM_CONCURRENCY: u32 = 16;

/// An independent way to measure the cases, or some of them.
pub(super) enum Witness {
    /// `derpd bench`.
    Own(PathBuf),
    /// A program with the command line of derpload.
    Derpload(PathBuf),
    /// Two real clients and a file.
    Tailscaled(e2e::Programs),
}

impl Witness {
    /// Returns what its table is headed with.
    pub(super) fn title(&self) -> &'static str {
        match self {
            Self::Own(_) => "Load from `derpd bench`",
            Self::Derpload(_) => "Load from derpload, on Tailscale's Go client",
            Self::Tailscaled(_) => "Two real `tailscaled`",
        }
    }

    /// Whether it can make this load.
    pub(super) fn makes(&self, load: Load) -> bool {
        match (self, load) {
            (Self::Tailscaled(_), load) => matches!(load, Load::Tunnel { .. }),
            (_, Load::Tunnel { .. }) => false,
            (Self::Own(_), _) => true,
            (Self::Derpload(_), Load::Throughput { idle_connections, .. }) => idle_connections == 0,
            (Self::Derpload(_), Load::Latency { .. } | Load::Idle { .. }) => true,
            (Self::Derpload(_), Load::Storm { .. } | Load::Flood { .. } | Load::Stall { .. }) => {
                false
            }
        }
    }

    /// Whether its answers have this number.
    pub(super) fn reports(&self, number: Number) -> bool {
        match self {
            Self::Own(_) | Self::Tailscaled(_) => true,
            Self::Derpload(_) => number.keys().all(|key| DERPLOAD_KEYS.contains(&key)),
        }
    }

    /// Puts the loads on one process of `program`, one after the other; their answers.
    ///
    /// # Errors
    ///
    /// If the server or the generator fails, or takes far longer than it should.
    pub(super) fn measure(
        &self,
        program: &Program,
        workers: Option<u32>,
        loads: &[Load],
        seconds: u64,
    ) -> Result<Vec<Value>> {
        if let Self::Tailscaled(programs) = self {
            return loads.iter().map(|&load| tunnel(programs, program, load)).collect();
        }
        let server = program.start(workers)?;
        let generate = |&load: &Load| {
            let mut command = self.command(&server, load, seconds)?;
            let limit = duration(load, seconds) * 3 + Duration::from_secs(60);
            let answer = program.directory().join("answer.json");
            let text = read_within(&mut command, limit, &answer)?;
            serde_json::from_str(&text)
                .with_context(|| format!("`{}` printed {text:?}", command.describe()))
        };
        loads.iter().map(generate).collect()
    }

    fn command(&self, server: &Server, load: Load, seconds: u64) -> Result<Command> {
        let (address, id) = (server.address(), server.id());
        let (program, arguments) = match self {
            Self::Own(program) => (program, own_arguments(address, id, load, seconds)),
            Self::Derpload(program) => (program, derpload_arguments(address, id, load, seconds)),
            Self::Tailscaled(_) => bail!("tailscaled generates no load on a given server"),
        };
        let arguments = arguments.with_context(|| format!("it cannot make {load:?}"))?;
        let mut command = process::command(program);
        command.args(arguments.split(' '));
        Ok(command)
    }
}

/// About how long a load takes, its server's start included.
pub(super) fn duration(load: Load, seconds: u64) -> Duration {
    const CONNECT: Duration = Duration::from_micros(900);
    const START: Duration = Duration::from_millis(1200);
    let connects = CONNECT * load.connections();
    let timed = Duration::from_secs(seconds);
    START
        + match load {
            Load::Throughput { .. } | Load::Latency { .. } => connects + timed,
            Load::Idle { .. } => connects + HOLD + SETTLE,
            Load::Storm { .. } => connects,
            Load::Flood { .. } | Load::Stall { .. } => connects + 2 * timed,
            Load::Tunnel { megabytes } => {
                Duration::from_secs(12) + Duration::from_millis(60) * megabytes
            }
        }
}

/// The command line of `derpd bench`, or `None` for what it does not do.
fn own_arguments(address: SocketAddr, id: u32, load: Load, seconds: u64) -> Option<String> {
    let rate = |rate: Option<u32>| rate.map(|rate| format!(" --rate {rate}")).unwrap_or_default();
    let workload = match load {
        Load::Throughput { pairs, bytes, rate: offered, idle_connections } => {
            let idle = match idle_connections {
                0 => String::new(),
                count => format!(" --idle-connections {count}"),
            };
            let rate = rate(offered);
            format!("throughput --pairs {pairs} --size {bytes}{rate}{idle} --duration {seconds}s")
        }
        Load::Latency { pairs, rate: offered } => {
            format!("latency --pairs {pairs}{} --duration {seconds}s", rate(offered))
        }
        Load::Idle { connections } => {
            let (hold, settle) = (HOLD.as_secs(), SETTLE.as_secs());
            format!("idle --connections {connections} --hold {hold}s --settle {settle}s")
        }
        Load::Storm { connections } => {
            format!("storm --connections {connections} --concurrency {STORM_CONCURRENCY}")
        }
        Load::Flood { rate } => format!("flood --rate {rate} --duration {seconds}s"),
        Load::Stall { rate } => format!("stall --rate {rate} --duration {seconds}s"),
        Load::Tunnel { .. } => return None,
    };
    Some(format!(
        "bench --server https://{address} --insecure --pid {id} --json --no-progress {workload}"
    ))
}

/// The command line of derpload, or `None` for what it does not do.
fn derpload_arguments(address: SocketAddr, id: u32, load: Load, seconds: u64) -> Option<String> {
    let rate = |rate: Option<u32>| rate.map(|rate| format!(" -mbps {rate}")).unwrap_or_default();
    let mode = match load {
        Load::Throughput { pairs, bytes, rate: offered, idle_connections: 0 } => {
            let rate = rate(offered);
            format!("throughput -pairs {pairs} -size {bytes}{rate} -dur {seconds}s")
        }
        Load::Latency { pairs, rate: offered } => {
            format!("latency -pairs {pairs}{} -dur {seconds}s", rate(offered))
        }
        Load::Idle { connections } => {
            format!("idle -conns {connections} -hold {}s", HOLD.as_secs())
        }
        Load::Throughput { .. }
        | Load::Storm { .. }
        | Load::Flood { .. }
        | Load::Stall { .. }
        | Load::Tunnel { .. } => return None,
    };
    Some(format!("-addr {address} -name {} -pid {id} {mode}", address.ip()))
}

fn tunnel(programs: &e2e::Programs, relay: &Program, load: Load) -> Result<Value> {
    let Load::Tunnel { megabytes } = load else {
        bail!("tailscaled cannot make {load:?}");
    };
    let copied = programs.copy(relay.binary(), None, megabytes.into())?;
    Ok(json!({ TUNNEL_CPU: copied.cpu_ms_per_megabyte() }))
}

/// Runs a program that writes little, and returns what it printed; `file` is where it writes it to.
fn read_within(command: &mut Command, limit: Duration, file: &Path) -> Result<String> {
    let output = File::create(file).with_context(|| format!("creating {}", file.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output)
        .spawn()
        .with_context(|| format!("cannot start `{}`", command.describe()))?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for the load generator")? {
            break status;
        }
        if Instant::now() > deadline {
            // Only fails when the process has just ended by itself.
            child.kill().unwrap_or_default();
            child.wait().context("waiting for the load generator")?;
            bail!("`{}` had not ended after {} s", command.describe(), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("`{}` failed: {status}", command.describe());
    }
    fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: ([u8; 4], u16) = ([127, 0, 0, 1], 9000);

    fn both(load: Load) -> (Option<String>, Option<String>) {
        let address = ADDRESS.into();
        let without = |text: String, start: &str| {
            text.strip_prefix(start).map_or_else(|| format!("not {start}: {text}"), str::to_owned)
        };
        (
            own_arguments(address, 7, load, 5).map(|text| {
                without(text, "bench --server https://127.0.0.1:9000 --insecure --pid 7 --json --no-progress ")
            }),
            derpload_arguments(address, 7, load, 5)
                .map(|text| without(text, "-addr 127.0.0.1:9000 -name 127.0.0.1 -pid 7 ")),
        )
    }

    fn words(own: &str, derpload: &str) -> (Option<String>, Option<String>) {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        (some(own), some(derpload))
    }

    #[test]
    fn each_generator_gets_its_own_words() {
        let throughput = |rate, idle_connections| {
            both(Load::Throughput { pairs: 10, bytes: 1400, rate, idle_connections })
        };
        assert_eq!(
            throughput(None, 0),
            words(
                "throughput --pairs 10 --size 1400 --duration 5s",
                "throughput -pairs 10 -size 1400 -dur 5s"
            )
        );
        assert_eq!(
            throughput(Some(300), 0),
            words(
                "throughput --pairs 10 --size 1400 --rate 300 --duration 5s",
                "throughput -pairs 10 -size 1400 -mbps 300 -dur 5s"
            )
        );
        assert_eq!(
            throughput(Some(1), 9900),
            words(
                "throughput --pairs 10 --size 1400 --rate 1 --idle-connections 9900 --duration 5s",
                ""
            )
        );
        assert_eq!(
            both(Load::Latency { pairs: 0, rate: None }),
            words("latency --pairs 0 --duration 5s", "latency -pairs 0 -dur 5s")
        );
        assert_eq!(
            both(Load::Idle { connections: 1000 }),
            words("idle --connections 1000 --hold 3s --settle 5s", "idle -conns 1000 -hold 3s")
        );
        assert_eq!(
            both(Load::Storm { connections: 9 }),
            words("storm --connections 9 --concurrency 16", "")
        );
        assert_eq!(both(Load::Flood { rate: 10 }), words("flood --rate 10 --duration 5s", ""));
        assert_eq!(both(Load::Stall { rate: 10 }), words("stall --rate 10 --duration 5s", ""));
        assert_eq!(both(Load::Tunnel { megabytes: 1 }), (None, None));
    }

    #[test]
    fn derpload_knows_what_it_has_words_for() {
        let witness = Witness::Derpload(PathBuf::new());
        let loads = super::super::cases::cases().into_iter().flat_map(|case| case.runs);
        for load in loads.flat_map(|run| run.loads) {
            let arguments = derpload_arguments(ADDRESS.into(), 1, load, 1);
            assert_eq!(witness.makes(load), arguments.is_some(), "{load:?}");
        }
        assert!(witness.reports(Number::Of("p99_us")));
        assert!(!witness.reports(Number::Growth("rss_before_kib", "rss_peak_kib")));
    }

    #[test]
    fn a_generator_that_hangs_or_fails_is_an_error() {
        let file = std::env::temp_dir().join(format!("derpd-bench-{}", std::process::id()));
        let run = |script: &str| {
            read_within(Command::new("sh").args(["-c", script]), Duration::from_millis(300), &file)
        };
        assert_eq!(run("echo '{}'").unwrap(), "{}\n");
        assert!(run("exit 2").unwrap_err().to_string().contains("failed"));
        assert!(run("exec sleep 60").unwrap_err().to_string().contains("had not ended"));
        fs::remove_file(file).unwrap();
    }
}
