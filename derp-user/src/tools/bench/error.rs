//! Why a benchmark cannot be run.

use std::io;

use crate::client::ClientError;

/// Faults of the command line, of the server and of this machine.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The command line is wrong.
    #[error("{0} (`derpd bench --help` shows how)")]
    Usage(String),
    /// A connection to the server could not be opened.
    #[error("connection {number} of {wanted}: {source}")]
    Connect {
        /// Which one, counted from 1.
        number: usize,
        /// How many were to be opened.
        wanted: usize,
        /// What went wrong.
        source: ClientError,
    },
    /// The server cannot be named, found or trusted.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The process of `--pid` cannot be measured.
    #[error("process {pid} (--pid): {reason}")]
    Process {
        /// Its id.
        pid: u32,
        /// What went wrong.
        reason: String,
    },
    /// This process may not open as many files as there are connections.
    #[error(
        "{wanted} connections need as many open files, but this process may have {limit} (raise `ulimit -Hn`)"
    )]
    FileLimit {
        /// Connections wanted.
        wanted: usize,
        /// Open files allowed.
        limit: u64,
    },
    /// It was asked to end before there was anything to report.
    #[error("interrupted before anything was measured")]
    Interrupted,
    /// Something that this machine should give was not given.
    #[error("{what}: {source}")]
    System {
        /// What was wanted.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A thread of the generator ended by a fault of its own.
    #[error("a thread of the generator has failed")]
    Thread,
}

impl BenchError {
    /// Exit status of the program: 2 for the command line, 1 for everything else.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_)
            | Self::Client(
                ClientError::Target { .. } | ClientError::Pin(_) | ClientError::ServerName(_),
            ) => 2,
            Self::Client(_)
            | Self::Connect { .. }
            | Self::Process { .. }
            | Self::FileLimit { .. }
            | Self::Interrupted
            | Self::System { .. }
            | Self::Thread => 1,
        }
    }

    /// For `map_err`: what the system was to give.
    pub(super) fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}
