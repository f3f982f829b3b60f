//! The command line of `derpd derpmap`: its own flags among those of the relay.

use std::{
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr},
};

use clap::{Parser, ValueEnum};

use super::DerpmapError;
use crate::{
    config::{self, Options, Surroundings},
    tools::{Invocation, ToolError, parse_arguments, take_own},
};

/// How the map is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
#[value(rename_all = "lowercase")]
pub enum Format {
    /// For a Tailscale policy file: an object with the field `derpMap`.
    Tailscale,
    /// For a file that Headscale has in `derp.paths`.
    Headscale,
    /// The map alone, as clients are given it.
    Json,
}

/// Prints the DERP map entry of the relay that runs with these flags.
///
/// Give the relay's own flags, exactly as it runs with them, and those below. Its mesh peers become further
/// nodes of the region. Nothing is started or changed.
///
/// Exit status 0: here it is; 1: the certificate is missing or cannot be used; 2: the command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd derpmap",
    bin_name = "derpd derpmap",
    override_usage = "derpd derpmap [flags of this tool] [flags of the relay]",
    term_width = 100,
    disable_version_flag = true,
    after_help = EXAMPLES
)]
pub struct Own {
    /// Number of the region; 900 to 999 are for relays of one's own
    #[arg(long, value_name = "NUMBER", default_value_t = 900, value_parser = clap::value_parser!(u32).range(1..))]
    pub region_id: u32,
    /// Short name of the region
    #[arg(long, value_name = "CODE", default_value = "custom", value_parser = not_empty)]
    pub region_code: String,
    /// Long name of the region [default: the relay's -hostname]
    #[arg(long, value_name = "NAME")]
    pub region_name: Option<String>,
    /// `tailscale` for a policy file, `headscale` for a file in `derp.paths`, `json` for the map alone
    #[arg(long, value_name = "FORMAT", default_value = "tailscale", hide_possible_values = true)]
    pub format: Format,
    /// Leave out Tailscale's own relays
    #[arg(long)]
    pub omit_default_regions: bool,
    /// TCP port that clients connect to, if a proxy or NAT makes it another one than that of -a
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub derp_port: Option<u16>,
    /// Address that clients use instead of looking up the name
    #[arg(long, value_name = "ADDRESS")]
    pub ipv4: Option<Ipv4Addr>,
    /// Address that clients use instead of looking up the name
    #[arg(long, value_name = "ADDRESS")]
    pub ipv6: Option<Ipv6Addr>,
}

const EXAMPLES: &str = "\
Examples:
  derpd derpmap -a :8443 -certmode manual -hostname 192.0.2.1
  derpd derpmap --format headscale -certmode manual -hostname relay.example.com > derp.yaml";

/// What a command line says.
#[derive(Clone, Debug)]
pub struct Arguments {
    /// Of the map.
    pub own: Own,
    /// Of the relay.
    pub relay: Options,
}

fn not_empty(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("it must not be empty") } else { Ok(text.to_owned()) }
}

/// Parses the arguments after `derpmap`; `surroundings` are the relay's.
///
/// # Errors
///
/// The first thing that is wrong with them.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings<'_>,
) -> Result<Invocation<Arguments>, DerpmapError> {
    let (own, relay) = take_own::<Own>(arguments);
    let own = match parse_arguments::<Own>("derpd derpmap", own) {
        Ok(Invocation::Run(own)) => own,
        Ok(Invocation::Help(text)) => return Ok(Invocation::Help(text)),
        Err(ToolError::Usage(text)) => return Err(DerpmapError::Usage(text)),
        Err(error) => return Err(DerpmapError::Usage(error.to_string())),
    };
    match config::parse(relay, surroundings)? {
        config::Invocation::Run(relay) => Ok(Invocation::Run(Arguments { own, relay: *relay })),
        config::Invocation::Help(text) => Ok(Invocation::Help(text)),
    }
}
