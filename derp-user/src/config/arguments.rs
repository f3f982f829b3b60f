//! Turns a command line in Go's flag syntax into [`Options`].
//!
//! Go allows one dash or two, `-flag value` or `-flag=value`, and boolean flags only with `=`. This module does
//! that part; clap then checks and converts the values and renders the help.

use std::ffi::OsString;

use clap::{Arg, Command, CommandFactory, FromArgMatches, error::ContextKind, error::ContextValue};

use super::{
    Options, UsageError,
    unsupported::Foreign,
    variables::{self, Given, Variables},
};

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

/// Parses the arguments after the program's name. What they leave open is as the environment says, which `variable`
/// looks up.
///
/// # Errors
///
/// The first thing that is wrong with the command line, else with the variables.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Invocation, UsageError> {
    let command = Options::command();
    let Some(flags) = normalise(&command, arguments)? else {
        return Ok(Invocation::Help(help()));
    };
    options(&command, &flags)?;
    let is_given = |name: &str| {
        let is = |flag: &String| split_flag(flag).is_some_and(|(given, _)| given == name);
        flags.iter().any(is)
    };
    let given = variables::read(&command, is_given, variable)?;
    let from_variables: Vec<_> = given.iter().map(Given::to_flag).collect();
    options(&command, &from_variables).map_err(|error| blame_variable(&given, error))?;
    let mut options = options(&command, &[from_variables, flags].concat())?;
    options.variables = Variables::of(&given);
    Ok(Invocation::Run(Box::new(options)))
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

/// Names the variable instead of the flag that it stands for.
fn blame_variable(given: &[Given], error: UsageError) -> UsageError {
    let UsageError::InvalidValue { name, value, reason } = error else { return error };
    match given.iter().find(|given| given.flag == name) {
        Some(Given { variable, .. }) => {
            UsageError::InvalidVariable { variable: variable.clone(), value, reason }
        }
        None => UsageError::InvalidValue { name, value, reason },
    }
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
