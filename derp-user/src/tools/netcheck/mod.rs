//! `derpd netcheck`: how this machine's network reaches the relays of a DERP map.

mod measure;
mod report;
#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::Parser;

pub(super) use self::measure::LATENCY_CHECK;
pub use self::report::{RegionReport, Report};
use super::{
    Invocation, MonitorError, parse_arguments,
    progress::Progress,
    relays::{Patience, Relays},
    runtime,
};
use crate::client::UsualJudge;

/// Shows how this machine's network reaches the relays of a DERP map: whether UDP gets through, by which
/// addresses relays see it, how far away each region is, by STUN and by HTTPS, and which is the nearest.
///
/// Exit status 0: every region answers over UDP; 1: some only answer over HTTPS, or not at all; 2: none answers;
/// 3: there is nothing to ask, because the command line or the map is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd netcheck",
    bin_name = "derpd netcheck",
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
    /// Print one JSON object, with the field names of `tailscale netcheck --format=json`
    #[arg(long)]
    pub json: bool,
}

const EXAMPLES: &str = "\
Examples:
  derpd netcheck --derp-map https://login.tailscale.com/derpmap/default
  derpd netcheck --derp-map policy.hujson --region fra
  derpd netcheck --server relay.example.com";

/// Parses the arguments after `netcheck`.
///
/// # Errors
///
/// [`MonitorError::Tool`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, MonitorError> {
    Ok(parse_arguments("derpd netcheck", arguments)?)
}

/// Asks every relay.
///
/// # Errors
///
/// If there is nothing to ask, or this machine cannot ask.
pub fn run(arguments: &Arguments) -> Result<Report, MonitorError> {
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        let map = arguments.relays.load().await?;
        let trust = arguments.relays.trust();
        let usual = UsualJudge::new(&trust);
        usual.prepare()?;
        let progress = Progress::new(true);
        let report = measure::measure(&map, &usual, arguments.patience, &progress).await;
        progress.clear();
        Ok(report)
    });
    // A resolver that hangs does not hold up the end.
    runtime.shutdown_background();
    report
}
