//! What outlives the daemon: links and maps pinned in a BPF file system.
//!
//! ```text
//! DIRECTORY/              locked by the daemon that runs
//!   links/native-3        the link that holds the program on interface 3; `generic-3` in that mode
//!   maps-7/               a generation: the maps of one layout, `META` about them, and `program`
//! ```
//!
//! A daemon that starts adopts the newest generation if its layout is its own, or fills a new one. Only then
//! it puts its program into the links, which is atomic for each; what has become useless is removed last. A
//! daemon that dies at any point leaves what the next one can adopt or remove.

mod directory;
mod error;
mod generation;
mod link;
mod meta;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

pub use self::error::PinError;
pub(super) use self::{
    directory::{PinDirectory, clear, exists, is_taken},
    generation::Generation,
    link::{LINKS, LinkPin},
    meta::Meta,
};

/// Where links and maps are pinned unless configured otherwise.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/derpd";

/// Whether the kernel data plane outlives the daemon, and where it is pinned.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Pin {
    /// It ends with the process.
    #[default]
    Off,
    /// It stays until `derpd detach`.
    Directory {
        /// A directory of its own, in a BPF file system.
        path: PathBuf,
        /// Whether somebody asked for it; if not, what prevents pinning is only logged.
        is_required: bool,
    },
}

impl Pin {
    /// The default: [`DEFAULT_DIRECTORY`], where that is possible.
    #[must_use]
    pub fn if_possible() -> Self {
        Self::Directory { path: DEFAULT_DIRECTORY.into(), is_required: false }
    }

    /// Returns the directory, if there is one.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::Off => None,
            Self::Directory { path, .. } => Some(path),
        }
    }
}

/// The text names no place to pin in.
#[derive(Debug, thiserror::Error)]
#[error("must be `off`, or the absolute path of a directory without `.` in its name")]
pub struct UnknownPin;

impl FromStr for Pin {
    type Err = UnknownPin;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let path = Path::new(text);
        // The BPF file system reserves the dot.
        let has_dot = path.file_name().is_none_or(|name| name.to_string_lossy().contains('.'));
        if !path.is_absolute() || has_dot {
            return Err(UnknownPin);
        }
        Ok(Self::Directory { path: path.to_owned(), is_required: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_or_an_absolute_directory() {
        assert_eq!("off".parse::<Pin>().expect("off"), Pin::Off);
        let pin = "/sys/fs/bpf/relay".parse::<Pin>().expect("a directory");
        let path = PathBuf::from("/sys/fs/bpf/relay");
        assert_eq!(pin, Pin::Directory { path, is_required: true });
        for wrong in ["", "on", "bpf/relay", "/", "/sys/fs/bpf/relay.1", "/sys/fs/bpf/.."] {
            assert!(wrong.parse::<Pin>().is_err(), "{wrong}");
        }
    }
}
