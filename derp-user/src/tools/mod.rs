//! Tools for whoever runs a relay. Each is a subcommand of `derpd`.

mod addresses;
pub mod bench;
pub mod check;
pub mod config;
pub mod derpmap;
pub mod detach;
pub mod healthcheck;
pub mod manual;
mod monitor;
pub mod netcheck;
pub mod probe;
mod progress;
mod relays;
mod stun;
pub mod top;
pub mod wireguard;

use std::{ffi::OsString, io, path::PathBuf};

use clap::{Args, CommandFactory, Parser, error::ErrorKind};

use self::monitor::{in_lanes, runtime};
pub use self::{
    monitor::{MonitorError, Severity},
    relays::{Relays, RelaysError},
};
use crate::dataplane::{DEFAULT_DIRECTORY, PinError};

/// Where the tools look for pins.
#[derive(Args, Clone, Debug)]
pub struct PinPlace {
    /// Directory where links and maps are pinned, as given to -xdp-pin
    #[arg(long = "pin", value_name = "DIRECTORY", default_value = DEFAULT_DIRECTORY, value_parser = absolute)]
    pub directory: PathBuf,
}

fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path") }
}

/// What a subcommand's command line asks for.
#[derive(Clone, Debug)]
pub enum Invocation<A> {
    /// Run it.
    Run(A),
    /// Print this help text.
    Help(String),
}

/// Why a subcommand could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The command line is wrong; what clap says about it.
    #[error("{0}")]
    Usage(String),
    /// What is pinned cannot be used.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The system refused something that ought to work.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

impl ToolError {
    /// Returns the exit status of a program that ends with this error.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Pin(_) | Self::System { .. } => 1,
        }
    }
}

/// Parses what follows a subcommand's name.
fn parse_arguments<A: Parser>(
    name: &str,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<A>, ToolError> {
    let arguments = std::iter::once(OsString::from(name)).chain(arguments);
    match A::try_parse_from(arguments) {
        Ok(arguments) => Ok(Invocation::Run(arguments)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Ok(Invocation::Help(error.render().to_string()))
        }
        Err(error) => {
            let text = error.render().to_string();
            Err(ToolError::Usage(text.trim_start_matches("error: ").trim_end().to_owned()))
        }
    }
}

/// Takes apart the flags of a tool, with one dash or two, and those of the relay.
fn take_own<A: CommandFactory>(
    arguments: impl IntoIterator<Item = OsString>,
) -> (Vec<OsString>, Vec<OsString>) {
    let command = A::command();
    let (mut own, mut relay) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let flag = argument.to_str().and_then(|text| {
            let text = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
            Some(text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value))))
        });
        let Some((name, value)) = flag else {
            relay.push(argument);
            continue;
        };
        if matches!(name, "h" | "help") {
            own.push("--help".into());
            continue;
        }
        let known = command.get_arguments().find(|known| known.get_long() == Some(name));
        match (known.map(|known| known.get_action().takes_values()), value) {
            (None, _) => relay.push(argument),
            (Some(_), Some(value)) => own.push(format!("--{name}={value}").into()),
            (Some(false), None) => own.push(format!("--{name}").into()),
            (Some(true), None) => {
                own.push(format!("--{name}").into());
                own.extend(arguments.next());
            }
        }
    }
    (own, relay)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Surroundings;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn both_tools_have_help_and_refuse_what_they_do_not_know() {
        let help = |invocation| match invocation {
            Invocation::Help(text) => text,
            Invocation::Run(arguments) => panic!("{arguments}"),
        };
        let check = check::parse(words("--help"), &Surroundings::nothing()).expect("help");
        let check = help(map(check, |it| format!("{it:?}")));
        assert!(check.contains("--json") && check.contains("derpd check"), "{check}");
        let detach = detach::parse(words("-h")).expect("help");
        let detach = help(map(detach, |it| format!("{it:?}")));
        assert!(detach.contains("--force") && detach.contains("/sys/fs/bpf/derpd"), "{detach}");
        let error = check::parse(words("--jsn"), &Surroundings::nothing()).expect_err("unknown");
        assert!(error.to_string().contains("-jsn"), "{error}");
        assert_eq!(error.exit_status(), 2);
    }

    fn map<A, B>(invocation: Invocation<A>, with: impl FnOnce(A) -> B) -> Invocation<B> {
        match invocation {
            Invocation::Run(arguments) => Invocation::Run(with(arguments)),
            Invocation::Help(text) => Invocation::Help(text),
        }
    }
}
