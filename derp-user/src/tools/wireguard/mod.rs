//! `derpd wireguard`: checks what a configuration file says of WireGuard, and shows a relay at work.

mod status;

use std::{ffi::OsString, path::PathBuf};

use clap::{Parser, Subcommand};

pub use self::status::{Status, StatusArguments, status};
use super::{Invocation, ToolError, parse_arguments};
use crate::{
    config::{self, ConfigError, WireGuardSettings},
    wireguard::snippets,
};

/// Checks what a configuration file says of WireGuard, and shows a relay at work.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd wireguard",
    bin_name = "derpd wireguard",
    term_width = 100,
    disable_version_flag = true,
    disable_help_subcommand = true
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check the file, and print what each peer writes into its wg-quick file
    Check(CheckArguments),
    /// Show the peers and sessions of the relay that runs on this machine
    Status(StatusArguments),
}

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub struct CheckArguments {
    /// The configuration file of derpd
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// UDP port of STUN of that relay, which its ports are checked against; -1 for none
    #[arg(long, value_name = "PORT", default_value = "3478", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1..=65535))]
    pub stun_port: i32,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum WireGuardError {
    /// The command line is wrong, or this machine gives no runtime.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The file is at fault.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file says nothing of WireGuard.
    #[error("{}: there is no [wireguard]", .0.display())]
    NotConfigured(PathBuf),
    /// The relay cannot be asked.
    #[error("cannot ask {url}: {reason}")]
    Ask {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
}

impl WireGuardError {
    /// Returns the exit status of a program that ends with this error.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Tool(error) => error.exit_status(),
            Self::Config(_) | Self::NotConfigured(_) | Self::Ask { .. } => 1,
        }
    }
}

/// Parses the arguments after `wireguard`. Long flags may have one dash, as those of derpd have.
///
/// # Errors
///
/// [`ToolError::Usage`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, ToolError> {
    let dashes = |argument: OsString| match argument.to_str() {
        Some(text) if text.len() > 2 && text.starts_with('-') && !text.starts_with("--") => {
            let is_number = text[1..].bytes().all(|byte| byte.is_ascii_digit());
            if is_number { argument } else { format!("-{text}").into() }
        }
        _ => argument,
    };
    parse_arguments("derpd wireguard", arguments.into_iter().map(dashes))
}

/// Checks the file, and returns what peers write into theirs.
///
/// # Errors
///
/// The first thing that is wrong with the file.
pub fn check(arguments: &CheckArguments) -> Result<String, WireGuardError> {
    let stun_port = u16::try_from(arguments.stun_port).ok();
    let file = config::load_file(&arguments.config, stun_port)?;
    let Some(WireGuardSettings { port, endpoint, networks, .. }) = file.wireguard else {
        return Err(WireGuardError::NotConfigured(arguments.config.clone()));
    };
    let note = match &endpoint {
        Some(_) => String::new(),
        None => "# The file has no endpoint, so here is a placeholder.\n".to_owned(),
    };
    let endpoint = endpoint.unwrap_or_else(|| format!("RELAY:{port}"));
    Ok(format!("{note}{}", snippets(&networks, &endpoint)))
}
