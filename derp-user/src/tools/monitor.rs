//! What the tools that watch relays have in common: how bad a finding is, and many questions at once.

use std::{cell::Cell, fmt, io};

use futures_util::future::join_all;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::{RelaysError, ToolError};
use crate::{client::ClientError, config::ConfigError};

/// How bad it is, in the words and with the exit statuses of Nagios.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Somebody should look at it.
    Warning,
    /// It does not work.
    Critical,
}

impl Severity {
    /// Exit status of a program that has found this.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        })
    }
}

/// Why nothing could be looked at, which says nothing of the relays.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The command line is wrong, or this machine gives no runtime.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// It is not known which relays to look at.
    #[error(transparent)]
    Relays(#[from] RelaysError),
    /// A relay of the map cannot be dialled, or certificates cannot be judged.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The mesh key cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl MonitorError {
    /// Exit status of the program: "unknown" in the words of Nagios.
    #[must_use]
    pub const fn exit_status(&self) -> u8 {
        3
    }
}

/// A runtime for one tool.
pub(super) fn runtime() -> Result<Runtime, ToolError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime
        .map_err(|source: io::Error| ToolError::System { what: "cannot start a runtime", source })
}

/// Does `count` things, `lanes` of them at any time; what they came to, in their order.
pub(super) async fn in_lanes<T>(
    lanes: usize,
    count: usize,
    work: impl AsyncFn(usize) -> T,
) -> Vec<T> {
    let next = Cell::new(0);
    let lane = async || {
        let mut done = Vec::new();
        while next.get() < count {
            let at = next.replace(next.get() + 1);
            done.push((at, work(at).await));
        }
        done
    };
    let lanes = join_all((0..lanes.min(count)).map(|_| lane())).await;
    let mut done: Vec<_> = lanes.into_iter().flatten().collect();
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[test]
    fn lanes_bound_what_goes_on_at_once_and_keep_the_order() {
        let (running, most) = (Cell::new(0), Cell::new(0));
        let done = in_lanes(3, 10, async |at| {
            running.set(running.get() + 1);
            most.set(most.get().max(running.get()));
            for _ in 0..10 - at {
                yield_now().await;
            }
            running.set(running.get() - 1);
            at * at
        });
        let done = runtime().unwrap().block_on(done);
        assert_eq!(done, (0..10).map(|at| at * at).collect::<Vec<_>>());
        assert_eq!(most.get(), 3);
    }

    #[test]
    fn the_worst_is_the_greatest() {
        let found = [Severity::Warning, Severity::Critical, Severity::Ok];
        assert_eq!(found.into_iter().max().map(Severity::exit_status), Some(2));
        assert_eq!(format!("{:<8}|", Severity::Ok), "OK      |");
    }
}
