//! `derpd top`: how a relay is doing, in a terminal.

mod draw;
mod source;
mod terminal;
mod text;
mod view;

use std::{ffi::OsString, io, path::PathBuf};

use clap::Parser;

use self::source::Source;
use super::{Invocation, ToolError, parse_arguments, runtime};
use crate::status::{ClientOrder, MOST_ROWS};

/// Shows how a relay is doing: what the page at /debug/ shows, in a terminal. The relay must let this machine see its
/// debug pages.
///
/// Exit status 0: ended as asked; 1: the relay could not be reached (with --once), or the terminal fails; 2: the command
/// line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd top",
    bin_name = "derpd top",
    term_width = 100,
    disable_version_flag = true,
    after_help = EXAMPLES
)]
pub struct Arguments {
    /// Address of the relay: `https://host:port`, `http://host:port`, or `host:port` for HTTPS. Without one, the relay
    /// of this machine on port 80, 443 or 3340
    #[arg(value_name = "URL")]
    pub url: Option<String>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=60))]
    pub interval: u32,
    /// By what clients are sorted: rate, received, sent, rtt or senders
    #[arg(long, value_name = "ORDER", default_value = "rate")]
    pub sort: ClientOrder,
    /// Most clients, and most flows, that are asked for
    #[arg(long, value_name = "N", default_value_t = MOST_ROWS)]
    pub rows: usize,
    /// Look once and print it
    #[arg(long)]
    pub once: bool,
    /// With --once: print the document of /debug/status.json as it came
    #[arg(long, requires = "once")]
    pub json: bool,
    /// PEM file of root certificates to trust instead of the system's
    #[arg(long, value_name = "FILE", conflicts_with = "insecure", requires = "url")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate
    #[arg(long)]
    pub insecure: bool,
    /// File with the key that opens the debug pages, as the relay's TS_DEBUG_KEY_PATH names it
    #[arg(long, value_name = "FILE", requires = "url")]
    pub key_file: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  derpd top
  derpd top https://relay.example.com --key-file debug.key
  derpd top --once --json | jq '.values.connections'

Keys:
  1 to 5, Tab   overview, clients, mesh, flows, certificates
  s             next order of clients
  Up, Down      scroll, also with PageUp, PageDown, Home
  p             pause
  q, Esc        end";

/// Why nothing could be shown.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// The command line is wrong, or this machine gives no runtime.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The address means nothing.
    #[error("{url:?} is no address of a relay: {reason}")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file that the command line names cannot be used.
    #[error("{flag} {}: {reason}", path.display())]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// No good answer came.
    #[error("{0}")]
    Answer(String),
    /// Nothing can be drawn there.
    #[error("standard output is no terminal; --once prints one look")]
    NoTerminal,
    /// The terminal fails.
    #[error("the terminal: {0}")]
    Terminal(io::Error),
}

impl TopError {
    /// Exit status of the program.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Tool(error) => error.exit_status(),
            Self::Address { .. } | Self::NoTerminal => 2,
            Self::File { .. } | Self::Answer(_) | Self::Terminal(_) => 1,
        }
    }
}

/// Parses the arguments after `top`.
///
/// # Errors
///
/// [`TopError::Tool`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, TopError> {
    Ok(parse_arguments("derpd top", arguments)?)
}

/// Shows the relay until the user ends it. With `--once`, returns what is to be printed instead.
///
/// # Errors
///
/// If the relay cannot be asked, or nothing can be drawn.
pub fn run(arguments: &Arguments) -> Result<Option<String>, TopError> {
    let source = Source::new(arguments)?;
    let runtime = runtime()?;
    if !arguments.once {
        return runtime.block_on(terminal::show(&source, arguments)).map(|()| None);
    }
    let answer = runtime.block_on(source.ask(None)).map_err(TopError::Answer)?;
    if arguments.json {
        return Ok(Some(answer));
    }
    let status = source::read(&answer).map_err(TopError::Answer)?;
    Ok(Some(text::of(&status, arguments.sort)))
}

#[cfg(test)]
mod tests;
