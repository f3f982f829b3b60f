//! Why nothing can be pinned, or what is pinned cannot be used.

use std::{io, path::PathBuf};

/// What is wrong with the directory of pins.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// The directory is on another file system, or its parent does not exist.
    #[error(
        "{path} is on no BPF file system; `mount -t bpf bpf /sys/fs/bpf` mounts one, -xdp-pin names \
         another directory, and -xdp-pin=off does without", path = .path.display())]
    NotBpf {
        /// The directory.
        path: PathBuf,
    },
    /// The directory, or something in it, may not be used.
    #[error(
        "cannot {operation} {path}: {source}; the directory must belong to the user that derpd runs \
         as, and that user must be able to reach it (see Rights in OPERATIONS.md)", path = .path.display())]
    Access {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory belongs to another user.
    #[error(
        "{path} belongs to user {owner}; run derpd as that user, or remove what is pinned with \
         `derpd detach --pin {path}` and the directory with it", path = .path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// Another daemon runs with these pins.
    #[error(
        "another derpd{who} uses {path}; stop it, or give each its own directory with -xdp-pin", path = .path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process, in words, where known.
        who: String,
    },
    /// The pinned links hold interfaces of another network namespace.
    #[error(
        "what is pinned in {path} is attached in another network namespace; `derpd detach --pin \
         {path}` removes it, or give each namespace its own directory with -xdp-pin", path = .path.display())]
    ForeignNamespace {
        /// The directory.
        path: PathBuf,
    },
    /// The kernel attaches, but by no link that can be pinned.
    #[error("this kernel attaches XDP without a link that can be pinned (Linux 5.9 has them)")]
    NoLinks,
}

impl PinError {
    /// Tells whether going on without pins would disturb somebody else.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::ForeignNamespace { .. })
    }

    /// Gives an error of the system its place.
    pub(crate) fn access(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Access { operation, path, source }
    }
}
