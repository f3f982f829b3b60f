//! `derpd probe`: whether the relays of a DERP map do all that clients need.
//!
//! The probes, and their names, are those of Tailscale's derpprobe, and one of ours, `http`. What each has
//! found is judged without I/O, in `judge`.

mod judge;
mod plan;
mod report;
mod run;
#[cfg(test)]
mod tests;
mod traffic;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::Parser;

pub use self::report::{Outcome, Report};
use super::{
    Invocation, MonitorError, parse_arguments,
    relays::{Patience, Relays, some_time},
    runtime,
};
use crate::{
    client::map::DerpMap,
    config::{self, MeshKeySource},
    proto::keys::MeshKey,
};

/// Checks the relays of a DERP map as monitoring does: for each the certificate, HTTP and STUN, for each pair of a
/// region's relays whether packets get from one to the other, and if asked for, how fast and how evenly.
///
/// Prints a summary, then one line per probe.
///
/// Exit status 0: all is well; 1: something deserves a look; 2: something does not work; 3: there is nothing to check,
/// because the command line or the map is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd probe",
    bin_name = "derpd probe",
    term_width = 100,
    disable_version_flag = true,
    after_help = EXAMPLES
)]
pub struct Arguments {
    /// Where the relays are.
    #[command(flatten)]
    pub relays: Relays,
    /// How they are asked.
    #[command(flatten)]
    pub patience: Patience,
    /// Days before the end of a certificate from which on to warn
    #[arg(long, value_name = "DAYS", default_value_t = 14)]
    pub expiry_warning: u32,
    /// Days before the end of a certificate from which on it is critical
    #[arg(long, value_name = "DAYS", default_value_t = 7)]
    pub expiry_critical: u32,
    /// Bytes to send between each pair of relays, as fast as they go; 0 for none
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MOST_BYTES))]
    pub bandwidth_size: u64,
    /// Small packets per second to send between each pair of relays, to measure their delay; 0 for none
    #[arg(long, value_name = "NUMBER", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub delay_packets: u32,
    /// How long to send them
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = some_time)]
    pub delay_duration: Duration,
    /// Share of them, in per cent, whose loss is a warning; ten times as many are critical
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = percent)]
    pub loss_warning: f64,
    /// Probes at any time
    #[arg(long, value_name = "NUMBER", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// File with the mesh key: relays that admit only some clients admit whoever has it. It is told to every relay of
    /// the map
    #[arg(long, value_name = "FILE")]
    pub mesh_psk_file: Option<PathBuf>,
    /// Check again and again, each time so long after the last one began
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub interval: Option<Duration>,
    /// End after so many checks
    #[arg(long, value_name = "NUMBER", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Print one JSON object per check
    #[arg(long)]
    pub json: bool,
}

/// Most bytes that one pair is sent: a gigabyte.
const MOST_BYTES: u64 = 1 << 30;

const EXAMPLES: &str = "\
Examples:
  derpd probe --derp-map https://headscale.example.com/derp.json
  derpd probe --derp-map policy.hujson --region fra --bandwidth-size 10000000 --delay-packets 10
  derpd probe --server relay.example.com --interval 1m --json";

fn percent(text: &str) -> Result<f64, &'static str> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        Ok(_) | Err(_) => Err("must be 0 to 100"),
    }
}

/// Parses the arguments after `probe`.
///
/// # Errors
///
/// [`MonitorError::Tool`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, MonitorError> {
    Ok(parse_arguments("derpd probe", arguments)?)
}

/// Probes the relays, as often as the arguments say, and shows each report to `each`; the last one.
///
/// # Errors
///
/// If there is nothing to probe, or this machine cannot.
pub fn run(arguments: &Arguments, each: impl Fn(&Report)) -> Result<Report, MonitorError> {
    let mesh_key = match &arguments.mesh_psk_file {
        Some(path) => config::load_mesh_key(&MeshKeySource::File(path.clone()))?,
        None => None,
    };
    let runtime = runtime()?;
    let report = runtime.block_on(rounds(arguments, mesh_key, each));
    // A resolver that hangs does not hold up the end.
    runtime.shutdown_background();
    report
}

async fn rounds(
    arguments: &Arguments,
    mesh_key: Option<MeshKey>,
    each: impl Fn(&Report),
) -> Result<Report, MonitorError> {
    let mut done = 0;
    let mut last_map: Option<DerpMap> = None;
    loop {
        let begun = tokio::time::Instant::now();
        let loaded = arguments.relays.load().await;
        // A map that cannot be had for once is no fault of the relays.
        let (map, fault) = match (loaded, last_map.take()) {
            (Ok(map), _) => (map, None),
            (Err(error), Some(map)) => (map, Some(error.to_string())),
            (Err(error), None) => return Err(error.into()),
        };
        let report = run::probe(&map, arguments, mesh_key.as_ref(), fault).await?;
        last_map = Some(map);
        each(&report);
        done += 1;
        match arguments.interval {
            Some(interval) if arguments.count.is_none_or(|count| done < count) => {
                tokio::time::sleep_until(begun + interval).await;
            }
            Some(_) | None => return Ok(report),
        }
    }
}
