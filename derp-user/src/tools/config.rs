//! `derpd config show`: what a relay's flags, file and environment come to.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use super::{Invocation, ToolError, parse_arguments, take_own};
use crate::config::{self, Config, ConfigError, Options, Surroundings, UsageError};

/// Shows the configuration of the relay that runs with these flags.
///
/// Give the relay's own flags, exactly as it runs with them, and its environment. Nothing is started or changed.
///
/// Exit status 0: shown; 1: the file or a variable is at fault; 2: the command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd config",
    bin_name = "derpd config",
    override_usage = "derpd config show [--json] [flags of the relay]",
    term_width = 100,
    disable_version_flag = true
)]
pub struct Arguments {
    /// What to do
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// Prints every value that is in force and who says it, as a configuration file that could be given to -config;
    /// secrets are left out
    Show,
}

/// The flags of `derpd config show`.
#[derive(Clone, Debug, Parser)]
#[command(name = "derpd config show", disable_help_flag = true, disable_version_flag = true)]
struct Own {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// The command line is wrong.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The relay's flags, file or variables are wrong.
    #[error(transparent)]
    Flags(#[from] UsageError),
    /// The relay could not run with them.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl ShowError {
    /// Exit status of the program: 2 for the command line, 1 for everything else.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Tool(error) => error.exit_status(),
            Self::Flags(error) => error.exit_status(),
            Self::Config(error) => error.exit_status(),
        }
    }
}

/// What is to be shown, and how.
#[derive(Clone, Debug)]
pub struct Show {
    /// As JSON.
    pub json: bool,
    /// The relay's options.
    pub relay: Box<Options>,
}

/// Parses the arguments after `config`.
///
/// # Errors
///
/// The first thing that is wrong with them, or with the relay's file or variables.
pub fn parse(
    arguments: Vec<OsString>,
    surroundings: &Surroundings<'_>,
) -> Result<Invocation<Show>, ShowError> {
    let is_help = |it: &OsString| matches!(it.to_str(), Some("-h" | "-help" | "--help"));
    let first = if arguments.iter().any(is_help) {
        Some("--help".into())
    } else {
        arguments.first().cloned()
    };
    if let Invocation::Help(text) = parse_arguments::<Arguments>("derpd config", first)? {
        return Ok(Invocation::Help(text));
    }
    let (own, relay) = take_own::<Own>(arguments.into_iter().skip(1));
    let Invocation::Run(Own { json }) = parse_arguments("derpd config show", own)? else {
        return Ok(Invocation::Help(String::new()));
    };
    Ok(match config::parse(relay, surroundings)? {
        config::Invocation::Run(relay) => Invocation::Run(Show { json, relay }),
        config::Invocation::Help(text) => Invocation::Help(text),
    })
}

/// Returns what is to be printed.
///
/// # Errors
///
/// If the file cannot be used.
pub fn run(
    json: bool,
    config: &Config,
    surroundings: &Surroundings<'_>,
) -> Result<String, ConfigError> {
    let settings = config::Settings::new(config, surroundings.variable)?;
    Ok(if json { format!("{}\n", settings.to_json()) } else { settings.to_string() })
}
