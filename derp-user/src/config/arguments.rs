//! Turns a command line in Go's flag syntax, the configuration file and the environment into [`Options`].
//!
//! Go allows one dash or two, `-flag value` or `-flag=value`, and boolean flags only with `=`. This module does
//! that part; clap then checks and converts the values and renders the help.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use clap::{Arg, Command, CommandFactory, FromArgMatches, error::ContextKind, error::ContextValue};

use super::{
    Options, UsageError,
    file::ConfigFile,
    layers::{Given, Layers, Origin},
    unsupported::Foreign,
    variables,
};
use crate::files;

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run the relay.
    Run(Box<Options>),
    /// Print this help text.
    Help(String),
}

/// Flags whose values no message may repeat.
pub(super) const SECRETS: [&str; 1] = ["acme-eab-key"];

/// How similar an unknown flag must be to a known one to be suggested.
const SIMILAR: f64 = 0.6;

/// What a command line is read with; given, so that tests need no real environment.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// Reads a configuration file.
    pub read: &'a dyn Fn(&Path) -> io::Result<Vec<u8>>,
}

impl Surroundings<'_> {
    /// No variables and no files.
    #[must_use]
    pub const fn nothing() -> Self {
        Self { variable: &|_| None, read: &|_| Err(io::Error::from_raw_os_error(libc::ENOENT)) }
    }
}

/// The configuration file that is read if it exists and none is named.
pub const DEFAULT_FILE: &str = "/etc/derpd/derpd.toml";

/// Reads a configuration file that is not larger than such files are.
///
/// # Errors
///
/// What the system says.
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    files::read_bounded(path)
}

/// Parses the arguments after the program's name. What they leave open is as the configuration file says; what that
/// leaves open, as the environment says.
///
/// # Errors
///
/// The first thing that is wrong with the command line, else with the file, else with the variables.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings<'_>,
) -> Result<Invocation, UsageError> {
    let command = Options::command();
    let Some(flags) = normalise(&command, arguments)? else {
        return Ok(Invocation::Help(help()));
    };
    let alone = options(&command, &flags)?;
    if alone.version {
        return Ok(Invocation::Run(Box::new(alone)));
    }
    let file = find_file(&alone, &flags, surroundings)?;
    let on_command_line = given_flags(&command, &flags);
    let mut in_file = match &file {
        Some(file) => file.flags(&command)?,
        None => Vec::new(),
    };
    check(&command, &in_file, file.as_ref())?;
    let has = |given: &[Given], flag: &str| given.iter().any(|it| it.flag == flag);
    let is_decided = |flag: &str| has(&on_command_line, flag) || has(&in_file, flag);
    let in_variables = variables::read(&command, is_decided, surroundings.variable)?;
    check(&command, &in_variables, None)?;
    in_file.retain(|it| !has(&on_command_line, &it.flag));
    let lower: Vec<_> = in_variables.into_iter().chain(in_file).collect();
    let lower_flags = lower.iter().flat_map(Given::to_flags).collect::<Vec<_>>();
    let mut options = options(&command, &[lower_flags, flags].concat())?;
    options.layers = Layers::new(lower.into_iter().chain(on_command_line), file);
    Ok(Invocation::Run(Box::new(options)))
}

/// Reads the configuration file: the one that is named, else the default one if it is there.
fn find_file(
    alone: &Options,
    flags: &[String],
    surroundings: &Surroundings<'_>,
) -> Result<Option<ConfigFile>, UsageError> {
    let variable = |flag| {
        let mut names = variables::names(flag);
        names.find_map(|name| (surroundings.variable)(&name).filter(|value| !value.is_empty()))
    };
    let is_flag = |flag: &String| split_flag(flag).is_some_and(|(name, _)| name == "dev");
    let is_dev = if flags.iter().any(is_flag) {
        alone.dev
    } else {
        variable("dev").is_some_and(|value| super::options::parse_boolean(&value) == Ok(true))
    };
    let named = alone.config.clone().or_else(|| variable("config"));
    let (path, is_named) = match named.as_deref() {
        Some("") => return Ok(None),
        Some(path) => (PathBuf::from(path), true),
        None if is_dev => return Ok(None),
        None => (PathBuf::from(DEFAULT_FILE), false),
    };
    match (surroundings.read)(&path) {
        Ok(bytes) => ConfigFile::new(path, bytes).map(Some),
        Err(error) if !is_named && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(UsageError::FileRead { path, source }),
    }
}

/// The flags of a command line in the form `--flag=value`, each with its values.
fn given_flags(command: &Command, flags: &[String]) -> Vec<Given> {
    let of = |flag: &Arg| {
        let name = flag.get_id().as_str();
        let of_flag =
            flags.iter().filter_map(|flag| split_flag(flag)).filter(|(it, _)| *it == name);
        let mut values: Vec<_> =
            of_flag.map(|(_, value)| value.unwrap_or_default().to_owned()).collect();
        if !matches!(flag.get_action(), clap::ArgAction::Append) {
            values.drain(..values.len().saturating_sub(1));
        }
        (!values.is_empty()).then(|| Given { flag: name.to_owned(), values, origin: Origin::Flag })
    };
    command.get_arguments().filter_map(of).collect()
}

/// Checks values that are not of the command line, and names whoever gives them.
fn check(command: &Command, given: &[Given], file: Option<&ConfigFile>) -> Result<(), UsageError> {
    let flags: Vec<_> = given.iter().flat_map(Given::to_flags).collect();
    let Err(error) = options(command, &flags) else { return Ok(()) };
    let UsageError::InvalidValue { name, value, reason } = error else { return Err(error) };
    let origin = given.iter().find(|given| given.flag == name).map(|given| &given.origin);
    Err(match (origin, file) {
        (Some(Origin::Variable(variable)), _) => {
            UsageError::InvalidVariable { variable: variable.clone(), value, reason }
        }
        (Some(Origin::File { line, place }), Some(file)) => UsageError::File {
            path: file.path.clone(),
            reason: format!("line {line}: {place}: {reason}"),
        },
        (_, _) => UsageError::InvalidValue { name, value, reason },
    })
}

/// Checks and converts flags in the form `--flag=value`.
fn options(command: &Command, flags: &[String]) -> Result<Options, UsageError> {
    let words = std::iter::once(command.get_name()).chain(flags.iter().map(String::as_str));
    command
        .clone()
        .try_get_matches_from(words)
        .and_then(|matches| Options::from_arg_matches(&matches))
        .map_err(|error| describe(&error))
}

/// The help text, with flags as operators know them from derper: with one dash.
fn help() -> String {
    Options::command().render_help().to_string().replace("      --", "       -")
}

/// The arguments in the one form `--flag=value`; `None` if help is asked for.
fn normalise(
    command: &Command,
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Option<Vec<String>>, UsageError> {
    let mut normalised = Vec::new();
    let mut arguments = arguments.into_iter();
    let mut last_boolean = None;
    while let Some(argument) = next_text(&mut arguments)? {
        let Some((name, value)) = split_flag(&argument) else {
            return Err(UsageError::UnexpectedArgument { argument, after_boolean: last_boolean });
        };
        last_boolean = None;
        if matches!(name, "h" | "help") {
            return Ok(None);
        }
        let known = command.get_arguments().find(|flag| flag.get_id() == name);
        let foreign = Foreign::find(name);
        let is_switch = match (known, foreign) {
            (Some(flag), _) => is_boolean(flag),
            (None, Some(flag)) => flag.is_switch(),
            (None, None) => {
                let nearest = nearest(command, name);
                return Err(UsageError::UnknownFlag { name: name.to_owned(), nearest });
            }
        };
        let value = match value {
            Some(value) => value.to_owned(),
            None if is_switch => {
                last_boolean = Some(name.to_owned());
                "true".to_owned()
            }
            None => next_text(&mut arguments)?
                .ok_or_else(|| UsageError::MissingValue(name.to_owned()))?,
        };
        match foreign {
            Some(flag) => flag.check(&value)?,
            None => normalised.push(format!("--{name}={value}")),
        }
    }
    Ok(Some(normalised))
}

fn next_text(arguments: &mut impl Iterator<Item = OsString>) -> Result<Option<String>, UsageError> {
    let text = |argument: OsString| {
        argument
            .into_string()
            .map_err(|argument| UsageError::Encoding(argument.to_string_lossy().into_owned()))
    };
    arguments.next().map(text).transpose()
}

/// Splits `-name`, `--name`, `-name=value` or `--name=value`.
fn split_flag(argument: &str) -> Option<(&str, Option<&str>)> {
    let flag = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    if flag.is_empty() || flag.starts_with(['-', '=']) {
        return None;
    }
    Some(match flag.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (flag, None),
    })
}

fn is_boolean(flag: &Arg) -> bool {
    // The boolean flags are those that may stand without a value.
    flag.get_num_args().is_some_and(|number| number.min_values() == 0)
}

fn nearest(command: &Command, name: &str) -> Option<String> {
    command
        .get_arguments()
        .map(|flag| flag.get_id().as_str())
        .map(|candidate| (strsim::normalized_damerau_levenshtein(candidate, name), candidate))
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(left, _), (right, _)| left.total_cmp(right))
        .map(|(_, candidate)| candidate.to_owned())
}

/// Puts clap's several lines into one sentence.
fn describe(error: &clap::Error) -> UsageError {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (Some(flag), Some(value)) =
        (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue))
    else {
        return UsageError::Other(error.kind().to_string());
    };
    let name = flag.trim_start_matches('-').split([' ', '[', '=']).next().unwrap_or_default();
    let value = if SECRETS.contains(&name) { "...".to_owned() } else { value };
    let reason = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => match error.get(ContextKind::ValidValue) {
            Some(ContextValue::Strings(valid)) => format!("must be one of {}", valid.join(", ")),
            _ => error.kind().to_string(),
        },
    };
    UsageError::InvalidValue { name: name.to_owned(), value, reason }
}
