//! The command line of `derpd bench`.

use std::{ffi::OsString, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, error::ErrorKind};

use super::{BenchError, frames::Size};
use crate::{
    client::{ClientError, Connector, Trust},
    config::GoDuration,
};

/// Measures a DERP server by putting load on it.
///
/// Every workload opens connections of its own, with new keys, and measures from outside; with --pid it
/// also measures the server's process on this machine. Ctrl-C ends it early and reports what there is.
///
/// Exit status 0: it was measured; 1: the server could not be reached, trusted or measured; 2: the command line is
/// wrong; 130: ended by a second Ctrl-C.
#[derive(Clone, Debug, Parser)]
#[command(name = "derpd bench", bin_name = "derpd bench", term_width = 100, disable_version_flag = true, disable_help_subcommand = true, subcommand_value_name = "WORKLOAD", subcommand_help_heading = "Workloads", next_help_heading = "Server and output", after_help = EXAMPLES)]
pub struct Arguments {
    /// The server: `host`, `host:port` or `https://host:port`; `http://host:port` for DERP without TLS
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// Name in the server's certificate [default: the host of --server]
    #[arg(long, global = true, value_name = "NAME")]
    pub server_name: Option<String>,
    /// PEM file of root certificates to trust instead of the system's
    #[arg(long, global = true, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Accept this certificate alone: `sha256-raw:` and 64 hex digits, as CertName in a DERP map
    #[arg(long, global = true, value_name = "PIN")]
    pub pin: Option<String>,
    /// Accept any certificate
    #[arg(long, global = true)]
    pub insecure: bool,
    /// Process id of the server, if it runs on this machine: measures its CPU and memory
    #[arg(long, global = true, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,
    /// Threads of the generator [default: one per processor]
    #[arg(long, global = true, value_name = "NUMBER", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,
    /// Print one JSON object instead of a summary
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress bar on the terminal
    #[arg(long, global = true)]
    pub no_progress: bool,
    /// What to do to the server.
    #[command(subcommand)]
    pub workload: Workload,
}

const EXAMPLES: &str = "\
Examples:
  derpd bench --server relay.example.com latency
  derpd bench --server 127.0.0.1:8443 --insecure --pid $(pidof derpd) throughput --rate 300
  derpd bench --server http://127.0.0.1:3340 --json idle --connections 10000";

/// What to do to the server.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Workload {
    /// Packets between pairs of clients
    Throughput {
        /// The load between the pairs
        #[command(flatten)]
        traffic: Traffic,
        /// Pairs of a sender and a receiver
        #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=MOST))]
        pairs: u32,
        /// Further connections that are silent
        #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=MOST))]
        idle_connections: u32,
    },
    /// Delay of 128-byte probes, one per millisecond, beside the traffic of pairs
    Latency {
        /// The load between the pairs
        #[command(flatten)]
        traffic: Traffic,
        /// Pairs of a sender and a receiver beside the probes
        #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=MOST))]
        pairs: u32,
    },
    /// Cost of connections that do nothing
    Idle {
        /// Connections
        #[arg(long, value_name = "NUMBER", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
        connections: u32,
        /// Clients that come and leave first: what a server needs once, for the first of them, is not
        /// what it keeps of those that follow
        #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=MOST))]
        warm_up: u32,
        /// How long to hold them all
        #[arg(long, value_name = "TIME", default_value = "3s", value_parser = any_duration)]
        hold: Duration,
        /// How long to wait after they have left, before memory is measured again
        #[arg(long, value_name = "TIME", default_value = "5s", value_parser = any_duration)]
        settle: Duration,
    },
    /// Connect, log in, leave, over and over
    Storm {
        /// Connections in all
        #[arg(long, value_name = "NUMBER", default_value_t = 3000, value_parser = clap::value_parser!(u32).range(1..=MOST))]
        connections: u32,
        /// Connections being opened at any time
        #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
        concurrency: u32,
    },
    /// A well-behaved pair, alone and then beside a client that floods another
    Flood(Contention),
    /// A well-behaved pair, alone and then beside a client that floods one that reads nothing
    Stall(Contention),
}

/// Load between pairs.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Traffic {
    /// Bytes of a packet, or `mixed` for a blend of 64 to 16384
    #[arg(long, value_name = "BYTES", default_value = "1400")]
    pub size: Size,
    /// Offered load of all pairs together, in Mbit/s of packets [default: as much as the server takes]
    #[arg(long, value_name = "MBIT/S", allow_negative_numbers = true, value_parser = rate)]
    pub rate: Option<f64>,
    /// How long to send
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub duration: Duration,
}

/// A well-behaved pair and its trouble.
#[derive(Clone, Copy, Debug, PartialEq, clap::Args)]
pub struct Contention {
    /// What the pair sends, in Mbit/s of 1400-byte packets
    #[arg(long, value_name = "MBIT/S", default_value = "10", allow_negative_numbers = true, value_parser = rate)]
    pub rate: f64,
    /// How long to send, first alone and then again beside the flood
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub duration: Duration,
}

/// Most pairs or connections. A client address has fewer ports.
const MOST: i64 = 1_000_000;
const MOST_THREADS: usize = 256;
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// A rate that no machine can offer.
const HIGHEST_RATE: f64 = 1e6;

fn threads(text: &str) -> Result<NonZeroUsize, String> {
    text.parse::<NonZeroUsize>()
        .ok()
        .filter(|threads| threads.get() <= MOST_THREADS)
        .ok_or_else(|| format!("it must be a number from 1 to {MOST_THREADS}"))
}

fn any_duration(text: &str) -> Result<Duration, String> {
    let duration = text.parse::<GoDuration>().map_err(|error| error.to_string())?;
    duration
        .to_duration()
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| "it must be from 0 to 24h".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    any_duration(text).and_then(|duration| {
        if duration.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(duration) }
    })
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= HIGHEST_RATE => Ok(rate),
        Ok(_) | Err(_) => Err(format!("it must be a number above 0, at most {HIGHEST_RATE}")),
    }
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run a workload.
    Run(Box<Arguments>),
    /// Print this help text.
    Help(String),
}

/// Parses the arguments after `derpd bench`.
///
/// # Errors
///
/// What is wrong with the command line, in one sentence.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, BenchError> {
    let arguments = std::iter::once(OsString::from("derpd bench")).chain(arguments);
    match Arguments::try_parse_from(arguments) {
        Ok(arguments) => {
            arguments.check()?;
            Ok(Invocation::Run(Box::new(arguments)))
        }
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Ok(Invocation::Help(error.to_string()))
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            ) =>
        {
            Err(BenchError::Usage("a workload is missing, such as throughput".to_owned()))
        }
        Err(error) => Err(BenchError::Usage(one_sentence(&error.to_string()))),
    }
}

/// The first paragraph of clap's message in one line.
fn one_sentence(message: &str) -> String {
    let first = message.trim_start_matches("error: ").split("\n\n").next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Arguments {
    fn check(&self) -> Result<(), BenchError> {
        let Some(server) = &self.server else {
            return Err(BenchError::Usage("--server is missing".to_owned()));
        };
        let target = server.parse::<crate::client::Target>()?;
        let trusts = [
            ("--ca", self.ca.is_some()),
            ("--pin", self.pin.is_some()),
            ("--insecure", self.insecure),
        ];
        let given: Vec<_> =
            trusts.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
        match given.as_slice() {
            [first, second, ..] => {
                return Err(BenchError::Usage(format!("{first} and {second} exclude each other")));
            }
            [flag] if !target.tls => {
                return Err(BenchError::Usage(format!("{flag} needs TLS, but {server} has none")));
            }
            [] | [_] => {}
        }
        self.trust().map(drop).map_err(BenchError::from)
    }

    fn trust(&self) -> Result<Trust, ClientError> {
        Ok(match (&self.ca, &self.pin, self.insecure) {
            (Some(path), _, _) => Trust::Roots(path.clone()),
            (None, Some(pin), _) => Trust::Pinned(pin.parse()?),
            (None, None, true) => Trust::Anything,
            (None, None, false) => Trust::System,
        })
    }

    /// A connector to the server, with the trust that the flags ask for.
    pub(super) fn connector(&self) -> Result<Connector, BenchError> {
        let target = self.server.as_deref().unwrap_or_default().parse()?;
        let connector = Connector::new(target, &self.trust()?)?;
        Ok(match &self.server_name {
            Some(name) => connector.with_server_name(name)?,
            None => connector,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Arguments, String> {
        match parse(line.split_whitespace().map(OsString::from)) {
            Ok(Invocation::Run(arguments)) => Ok(*arguments),
            Ok(Invocation::Help(text)) => Err(text),
            Err(error) => {
                assert_eq!(error.exit_status(), 2, "{error}");
                Err(error.to_string())
            }
        }
    }

    #[test]
    fn target_flags_stand_before_or_behind_the_workload() {
        for line in [
            "--server h --insecure --json --threads 3 throughput --pairs 2 --rate 7.5 --size mixed",
            "throughput --pairs 2 --rate 7.5 --size mixed --server h --insecure --json --threads 3",
        ] {
            let arguments = parsed(line).unwrap();
            assert_eq!(arguments.server.as_deref(), Some("h"));
            assert!(arguments.insecure && arguments.json);
            assert_eq!(arguments.threads, NonZeroUsize::new(3));
            let traffic =
                Traffic { size: Size::Mixed, rate: Some(7.5), duration: Duration::from_secs(5) };
            assert_eq!(
                arguments.workload,
                Workload::Throughput { traffic, pairs: 2, idle_connections: 0 }
            );
        }
    }

    #[test]
    fn defaults_are_those_of_the_documentation() {
        let workload = |line: &str| parsed(&format!("--server h {line}")).unwrap().workload;
        let traffic =
            Traffic { size: Size::Fixed(1400), rate: None, duration: Duration::from_secs(5) };
        assert_eq!(
            workload("throughput"),
            Workload::Throughput { traffic, pairs: 10, idle_connections: 0 }
        );
        assert_eq!(workload("latency"), Workload::Latency { traffic, pairs: 0 });
        let (hold, settle) = (Duration::from_secs(3), Duration::from_secs(5));
        assert_eq!(
            workload("idle"),
            Workload::Idle { connections: 1000, warm_up: 10, hold, settle }
        );
        assert_eq!(workload("storm"), Workload::Storm { connections: 3000, concurrency: 16 });
        let contention = Contention { rate: 10.0, duration: Duration::from_secs(5) };
        assert_eq!(workload("flood"), Workload::Flood(contention));
        assert_eq!(
            workload("stall --duration 1500ms --rate 3"),
            Workload::Stall(Contention { rate: 3.0, duration: Duration::from_millis(1500) })
        );
    }

    #[test]
    fn faults_are_one_sentence_that_names_them() {
        for (line, parts) in [
            ("", &["workload"][..]),
            ("throughput", &["--server"]),
            ("--server h", &["workload"]),
            ("--server h sprint", &["sprint"]),
            ("--server ftp://h idle", &["ftp://h", "https"]),
            ("--server h idle --connections 0", &["--connections", "0"]),
            ("--server h throughput --size 70000", &["--size", "70000"]),
            ("--server h throughput --size big", &["--size", "mixed"]),
            ("--server h throughput --rate -1", &["--rate"]),
            ("--server h throughput --rate nan", &["--rate"]),
            ("--server h throughput --duration 0s", &["--duration"]),
            ("--server h throughput --duration 5", &["--duration", "unit"]),
            ("--server h --threads 0 idle", &["--threads"]),
            ("--server h --pid 0 idle", &["--pid"]),
            ("--server h --pin 12 idle", &["12", "sha256-raw"]),
            ("--server h --ca f --insecure idle", &["--ca", "--insecure"]),
            ("--server http://h --insecure idle", &["--insecure", "TLS"]),
            ("--server h --fast idle", &["--fast"]),
        ] {
            let error = parsed(line).unwrap_err();
            assert!(!error.contains('\n'), "{error:?}");
            for part in parts {
                assert!(error.contains(part), "{part:?} is missing from {error:?}");
            }
        }
    }

    #[test]
    fn help_is_no_fault() {
        assert!(parsed("--help").unwrap_err().contains("--server-name"));
        assert!(parsed("idle --help").unwrap_err().contains("--settle"));
    }
}
