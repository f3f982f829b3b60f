//! Why the relay cannot start as it was asked to, in one sentence each.

use std::{io, path::PathBuf};

use crate::http::{AccessError, HomeError};

/// A command line, or what stands for it, that cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// No such flag.
    #[error("unknown flag -{name}{} (derpd -help lists all flags)", suggestion(.nearest))]
    UnknownFlag {
        /// The name as given, without dashes.
        name: String,
        /// The flag that is spelled most like it.
        nearest: Option<String>,
    },
    /// A flag of derper for something that this program does not do.
    #[error("-{name}: derpd does not support {feature}")]
    Unsupported {
        /// The name without dashes.
        name: &'static str,
        /// What the flag asks for.
        feature: &'static str,
    },
    /// The flag needs a value and is the last argument.
    #[error("-{0} needs a value")]
    MissingValue(String),
    /// The value of a flag cannot be used.
    #[error("-{name} {value:?}: {reason}")]
    InvalidValue {
        /// The name without dashes.
        name: String,
        /// The value as given.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The value of a variable that stands for a flag cannot be used.
    #[error("{variable}={value:?}: {reason}")]
    InvalidVariable {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The configuration file cannot be read.
    #[error("-config: cannot read {}: {source}", path.display())]
    FileRead {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration file does not hold what it should.
    #[error("-config: {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Where, and what would be right.
        reason: String,
    },
    /// An argument that belongs to no flag.
    #[error("unexpected argument {argument:?}{}", boolean_hint(.after_boolean, .argument))]
    UnexpectedArgument {
        /// The argument.
        argument: String,
        /// The boolean flag it follows, whose value must be joined with `=`.
        after_boolean: Option<String>,
    },
    /// An argument that is not UTF-8.
    #[error("the argument {0} is not valid UTF-8")]
    Encoding(String),
    /// Anything else the parser objects to.
    #[error("{0}")]
    Other(String),
}

impl UsageError {
    /// Exit status for this error: 1 where the configuration file is at fault, else 2, like derper.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::FileRead { .. } | Self::File { .. } => 1,
            Self::UnknownFlag { .. }
            | Self::Unsupported { .. }
            | Self::MissingValue(_)
            | Self::InvalidValue { .. }
            | Self::InvalidVariable { .. }
            | Self::UnexpectedArgument { .. }
            | Self::Encoding(_)
            | Self::Other(_) => 2,
        }
    }
}

fn suggestion(nearest: &Option<String>) -> String {
    nearest.as_ref().map(|name| format!("; did you mean -{name}?")).unwrap_or_default()
}

fn boolean_hint(flag: &Option<String>, argument: &str) -> String {
    flag.as_ref().map(|name| format!("; did you mean -{name}={argument}?")).unwrap_or_default()
}

/// Settings that cannot be used together, or files that do not hold what they should.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The value of a flag cannot be used.
    #[error("-{flag} {value:?}: {reason}")]
    Flag {
        /// The name without dashes.
        flag: &'static str,
        /// The value as given.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The value of a flag cannot be used, and a variable gives it.
    #[error("{variable}={value:?}: {reason}")]
    FlagVariable {
        /// The variable.
        variable: String,
        /// Its value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// The value of `-home` cannot be used.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// TLS without a directory for certificates.
    #[error("-certdir must name a directory (its default needs XDG_CACHE_HOME or HOME)")]
    NoCertificateDirectory,
    /// No key file was named, and this user has no default one.
    #[error("-c is needed when not running as root: it names the file that keeps the server's key")]
    NoKeyPath,
    /// An environment variable cannot be used.
    #[error("{name}={value:?}: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        reason: String,
    },
    /// A variable of the debug access rule cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A file cannot be read.
    #[error("{flag}: cannot read {}: {source}", path.display())]
    Read {
        /// What named the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be created.
    #[error("{flag}: cannot create {}: {source}", path.display())]
    Create {
        /// What named the file.
        flag: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should. It is never overwritten.
    #[error("{flag}: {}: {reason}", path.display())]
    Malformed {
        /// What named the file.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with its contents.
        reason: String,
    },
    /// The system gave no random bytes for a new key.
    #[error("cannot make a key: {0}")]
    Random(getrandom::Error),
}

impl ConfigError {
    /// Exit status for this error: 2 where the command line or what stands for it is at fault, else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Flag { .. }
            | Self::FlagVariable { .. }
            | Self::Home(_)
            | Self::NoCertificateDirectory
            | Self::NoKeyPath => 2,
            Self::Variable { .. }
            | Self::Access(_)
            | Self::Read { .. }
            | Self::Create { .. }
            | Self::Malformed { .. }
            | Self::Random(_) => 1,
        }
    }
}
