//! derpd: the relay server. Parses the command line, sets everything up, and runs until told to stop.

mod around;
mod banner;
mod bench;
mod certificates;
mod control;
mod daemon;
mod gate;
mod listen;
mod logging;
mod metrics;
mod reload;
mod sandbox;
mod site;
mod status;
mod tailnet;
mod tool;
mod udp;

use std::{env, process::ExitCode};

use derp_user::{
    config::{self, ConfigError, Invocation},
    dataplane,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let mut rest = arguments.iter().cloned().peekable();
    if rest.next_if(|first| first == bench::NAME).is_some() {
        return bench::main(rest);
    }
    if let Some(tool) = rest.peek().and_then(tool::find) {
        return tool(rest.skip(1).collect());
    }
    let options = match config::parse(rest, &around::surroundings()) {
        Ok(Invocation::Run(options)) => *options,
        Ok(Invocation::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("derpd: {error}");
            return ExitCode::from(error.exit_status());
        }
    };
    if options.version {
        println!("{}", version());
        return ExitCode::SUCCESS;
    }
    match daemon::run(options, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("derpd: {}", in_words(&error));
            let status = error.downcast_ref().map_or(1, ConfigError::exit_status);
            ExitCode::from(status)
        }
    }
}

/// An error with its causes, each said once: some errors have their cause in their own words.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The version of the program and of the kernel program in it.
fn version() -> String {
    match dataplane::object_hash() {
        Some(hash) => format!("derpd {VERSION} (XDP program {hash})"),
        None => format!("derpd {VERSION} (built without its XDP program)"),
    }
}
