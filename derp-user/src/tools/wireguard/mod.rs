//! `derpd wireguard`: checks what a configuration file says of WireGuard, and shows a relay at work.

mod status;
mod summary;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Parser, Subcommand};

pub use self::status::{Status, StatusArguments, status};
use super::{Invocation, ToolError, parse_arguments};
use crate::{
    config::{self, ConfigError, WireGuardSettings},
    wireguard::snippets,
};

/// Checks what a configuration file says of WireGuard, and shows a relay at work.
///
/// Exit status 0: the file is good, the relay has answered; 1: the file is at fault, or the relay cannot be asked; 2:
/// the command line is wrong.
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
    /// Print the peers and who may talk to whom as JSON
    #[arg(long)]
    pub json: bool,
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

/// Checks the file, and returns what peers write into theirs, or JSON.
///
/// # Errors
///
/// The first thing that is wrong with the file.
pub fn check(arguments: &CheckArguments) -> Result<String, WireGuardError> {
    let stun_port = u16::try_from(arguments.stun_port).ok();
    let file = config::load_file(&arguments.config, stun_port)?;
    let Some(settings) = file.wireguard else {
        return Err(WireGuardError::NotConfigured(arguments.config.clone()));
    };
    let WireGuardSettings { port, endpoint, state_file, networks } = settings;
    if arguments.json {
        return Ok(summary::json(port, endpoint.as_deref(), &networks));
    }
    let mut text = summary::line(&arguments.config, port, &networks);
    if endpoint.is_none() {
        text.push_str("# It has no endpoint, so here is a placeholder.\n");
    }
    if let Some(directory) = state_file.as_deref().and_then(Path::parent)
        && !directory.is_dir()
    {
        let directory = directory.display();
        text.push_str(&format!(
            "# {directory}, for its state_file, is not there on this machine.\n"
        ));
    }
    let endpoint = endpoint.unwrap_or_else(|| format!("RELAY:{port}"));
    Ok(format!("{text}\n{}", snippets(&networks, &endpoint)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wireguard::WireGuardView;

    /// The blocks of the guide in this language.
    fn blocks(language: &str) -> Vec<&'static str> {
        let guide = include_str!("../../../../docs/WIREGUARD.md");
        let begins = format!("```{language}\n");
        let blocks = guide.split(&begins).skip(1).filter_map(|rest| rest.split("```").next());
        blocks.collect()
    }

    #[test]
    fn the_guide_shows_what_is_printed() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("derpd.toml");
        std::fs::write(&config, blocks("toml")[0]).unwrap();
        let printed = |json| {
            let arguments = CheckArguments { config: config.clone(), stun_port: 3478, json };
            check(&arguments).unwrap()
        };
        let (line, sections) = blocks("ini")[0].split_once("\n\n").unwrap();
        let text = printed(false);
        let (_, line) = line.split_once(" is right").unwrap();
        assert!(text.contains(line) && text.contains(sections), "{text}");
        assert!(!text.contains("placeholder"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&printed(true)).unwrap();
        assert_eq!(json["networks"][0]["peers"][0]["partners"][0], "bob");
    }

    #[test]
    fn the_guide_shows_what_status_prints() {
        let amount = |packets, bytes| serde_json::json!({"packets": packets, "bytes": bytes});
        let (more, less) = (amount(12, 1500), amount(9, 1100));
        let peer = |label: &str, address: &str, heard: u64, sent, received| {
            serde_json::json!({
                "network": "phones", "label": label, "public_key": "KEY=", "address": address,
                "is_pinned": false, "candidates": [], "partners": 1, "sessions": 1, "initiations": 1,
                "handshakes": 1, "handshake_seconds": 12, "heard_seconds": heard, "sent": sent,
                "received": received,
            })
        };
        let view = serde_json::json!({
            "port": 51820, "sessions": 1, "pending": 0,
            "messages": {
                "initiations": 1, "held": 0, "copies": 0, "responses": 1, "cookie_replies": 0, "roamed": 0,
                "dropped": [],
            },
            "peers": [
                peer("ann", "198.51.100.7:41822", 3, &more, &less),
                peer("bob", "192.0.2.81:6044", 8, &less, &more),
            ],
            "pairs": [{
                "peers": ["ann", "bob"],
                "sessions": [{
                    "initiator": "bob", "addresses": ["192.0.2.81:6044", "198.51.100.7:41822"],
                    "age_seconds": 12, "idle_seconds": 3, "is_confirmed": true, "slot": 0,
                }],
            }],
            "strangers": [],
        });
        let view: WireGuardView = serde_json::from_value(view).unwrap();
        let (_, shown) = blocks("text")[0].split_once('\n').unwrap();
        assert_eq!(Status::of(view).to_string(), shown);
    }
}
