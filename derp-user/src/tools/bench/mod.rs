//! `derpd bench`: offers load to any DERP server and measures what becomes of it.
//!
//! [`Arguments`] is the command line. [`run`] opens the connections, runs the workload and returns a
//! [`Report`], which is one JSON object for programs and a summary for people. The generator is made to
//! cost less than the server: every thread drives its connections with one epoll loop.

mod arguments;
mod dial;
mod error;
mod frames;
mod load;
mod pace;
mod process;
mod report;
mod statistics;
mod stop;
mod summary;
mod workload;

use std::{num::NonZeroUsize, thread};

pub(super) use self::statistics::Delays;
pub use arguments::{Arguments, Contention, Invocation, Traffic, Workload, parse};
pub use error::BenchError;
pub use frames::Size;
pub use report::Report;
pub use stop::Stop;

use self::process::ServerProcess;
use super::progress::Progress;
use crate::client::Connector;

/// What all workloads need to know.
struct Setting {
    connector: Connector,
    threads: NonZeroUsize,
    process: Option<ServerProcess>,
    progress: Progress,
    stop: Stop,
}

/// Runs the workload that `arguments` ask for, until it is done or `stop` is set.
///
/// # Errors
///
/// If a connection cannot be opened, or the server's process cannot be measured.
pub fn run(arguments: &Arguments, stop: &Stop) -> Result<Report, BenchError> {
    let setting = Setting {
        connector: dial::resolve(arguments.connector()?)?,
        threads: arguments
            .threads
            .unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
        process: arguments.pid.map(ServerProcess::new).transpose()?,
        progress: Progress::new(!arguments.no_progress),
        stop: stop.clone(),
    };
    let report = workload::run(&setting, &arguments.workload);
    setting.progress.clear();
    report.map(Report)
}
