//! Who says what each flag is: the command line, the configuration file, a variable or nobody.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use clap::{Arg, Command, CommandFactory as _};

use super::{ConfigError, Options, file::ConfigFile};
use crate::http::HomeError;

/// Where the value of a flag comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// The flag itself, on the command line.
    Flag,
    /// The configuration file.
    File {
        /// The line, counted from 1.
        line: usize,
        /// Section and key.
        place: String,
    },
    /// A variable of the environment.
    Variable(String),
}

/// The values of one flag, as a command line has them, and who gives them.
#[derive(Clone, Eq, PartialEq)]
pub(super) struct Given {
    /// The flag's name without dashes.
    pub(super) flag: String,
    /// More than one where a flag may be given several times.
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
}

impl Given {
    /// As the flags would be written.
    pub(super) fn to_flags(&self) -> impl Iterator<Item = String> {
        self.values.iter().map(|value| format!("--{}={value}", self.flag))
    }
}

/// What is given for the flags, each by whoever counts most: the command line, else the file, else the environment.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Layers {
    given: BTreeMap<String, (Vec<String>, Origin)>,
    /// The configuration file, if there is one.
    pub file: Option<ConfigFile>,
}

/// Without the values, some of which are secrets.
impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {:?}", self.flag, self.origin)
    }
}

/// Without the values, some of which are secrets.
impl fmt::Debug for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origins = self.given.iter().map(|(flag, (_, origin))| (flag, origin));
        f.debug_map().entries(origins).finish_non_exhaustive()
    }
}

impl Layers {
    pub(super) fn new(given: impl IntoIterator<Item = Given>, file: Option<ConfigFile>) -> Self {
        let entry = |it: Given| (it.flag, (it.values, it.origin));
        Self { given: given.into_iter().map(entry).collect(), file }
    }

    /// Who gives a flag's value; `None` where it is the default.
    #[must_use]
    pub fn origin(&self, flag: &str) -> Option<&Origin> {
        self.given.get(flag).map(|(_, origin)| origin)
    }

    /// The values of a flag, the default if nobody gives any.
    #[must_use]
    pub fn values(&self, flag: &Arg) -> Vec<String> {
        match self.given.get(flag.get_id().as_str()) {
            Some((values, _)) => values.clone(),
            None => {
                let text = |value: &clap::builder::OsStr| value.to_string_lossy().into_owned();
                flag.get_default_values().iter().map(text).collect()
            }
        }
    }

    /// Names the flags that have other values in `other`.
    #[must_use]
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let command: Command = Options::command();
        let differs = |flag: &&Arg| self.values(flag) != other.values(flag);
        let flags = command.get_arguments().filter(differs);
        flags.map(|flag| flag.get_id().to_string()).collect()
    }

    /// The path of the configuration file.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| file.path.clone())
    }

    /// Names the variable or the line of the file instead of the flag that has its value from there.
    pub(super) fn blame(&self, error: ConfigError) -> ConfigError {
        let (flag, value, reason) = if let ConfigError::Flag { flag, value, reason } = error {
            (flag, value, reason)
        } else if let ConfigError::Home(HomeError(value)) = &error
            && let Some(Origin::File { .. } | Origin::Variable(_)) = self.origin("home")
        {
            let reason = "must be blank, or start with http:// or https://";
            ("home", value.clone(), reason.to_owned())
        } else {
            return error;
        };
        match (self.origin(flag), &self.file) {
            (Some(Origin::Variable(variable)), _) => {
                ConfigError::FlagVariable { variable: variable.clone(), value, reason }
            }
            (Some(Origin::File { line, place }), Some(file)) => ConfigError::Malformed {
                flag: "-config",
                path: file.path.clone(),
                reason: format!("line {line}: {place}: {reason}"),
            },
            _ => ConfigError::Flag { flag, value, reason },
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::File { line, .. } => write!(f, "line {line}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}
