//! The configuration file as it was read, for those who read it in parts.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use clap::Command;

use super::{
    FileSettings, flags, read,
    reader::{self, Section},
};
use crate::{
    config::{ConfigError, UsageError, layers::Given},
    files,
};

/// The configuration file as it was read.
#[derive(Clone, Eq, PartialEq)]
pub struct ConfigFile {
    /// Where it was.
    pub path: PathBuf,
    pub(super) text: String,
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What it says may be secret.
        f.debug_struct("ConfigFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl ConfigFile {
    pub(in crate::config) fn new(path: PathBuf, bytes: Vec<u8>) -> Result<Self, UsageError> {
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Self { path, text }),
            Err(_) => Err(UsageError::File { path, reason: "not UTF-8".to_owned() }),
        }
    }

    /// Reads what it says of flags.
    pub(in crate::config) fn flags(&self, command: &Command) -> Result<Vec<Given>, UsageError> {
        let given = reader::parse(&self.text).and_then(|document| {
            flags::read(&Section::of_document(&self.text, &document), command)
        });
        given.map_err(|fault| UsageError::File {
            path: self.path.clone(),
            reason: fault.to_string(),
        })
    }

    /// Reads what it says of everything else. `stun_port` is the port STUN is answered on, if it is; 0 is one that is
    /// not known yet.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong with it.
    pub fn settings(&self, stun_port: Option<u16>) -> Result<FileSettings, ConfigError> {
        read(&self.text, stun_port).map_err(|fault| ConfigError::Malformed {
            flag: "-config",
            path: self.path.clone(),
            reason: fault.to_string(),
        })
    }
}

/// Reads a configuration file for what there are no flags for; see [`ConfigFile::settings`].
///
/// # Errors
///
/// If the file cannot be read, or the first thing that is wrong with it.
pub fn load_file(path: &Path, stun_port: Option<u16>) -> Result<FileSettings, ConfigError> {
    let bytes = files::read_bounded(path).map_err(|source| ConfigError::Read {
        flag: "-config",
        path: path.to_owned(),
        source,
    })?;
    let text = String::from_utf8(bytes).map_err(|_| ConfigError::Malformed {
        flag: "-config",
        path: path.to_owned(),
        reason: "not UTF-8".to_owned(),
    })?;
    ConfigFile { path: path.to_owned(), text }.settings(stun_port)
}
