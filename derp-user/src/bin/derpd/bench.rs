//! `derpd bench`: the load generator as a subcommand.

use std::{ffi::OsString, process::ExitCode, thread};

use derp_user::tools::bench::{self, BenchError, Invocation, Stop};
use nix::sys::signal::{SigSet, Signal};

use crate::listen;

/// The subcommand's name.
pub(crate) const NAME: &str = "bench";
/// Exit status of a program that ends by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Runs the subcommand with the arguments that follow its name.
pub(crate) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("derpd bench: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}

fn run(arguments: impl Iterator<Item = OsString>) -> Result<(), BenchError> {
    let arguments = match bench::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => {
            print!("{text}");
            return Ok(());
        }
    };
    listen::raise_file_limit();
    let stop = Stop::default();
    stop_on_signals(stop.clone())?;
    let report = bench::run(&arguments, &stop)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(())
}

/// The first SIGINT or SIGTERM ends the measurement, the second one the program.
fn stop_on_signals(stop: Stop) -> Result<(), BenchError> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    // Threads inherit this, so that the one below gets them all.
    signals.thread_block().map_err(|error| BenchError::System {
        what: "cannot catch SIGINT",
        source: error.into(),
    })?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            stop.set();
        }
        if signals.wait().is_ok() {
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}
