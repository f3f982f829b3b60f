//! `derpd check` and `derpd detach`: the kernel data plane from outside.

use std::{ffi::OsString, process::ExitCode};

use derp_user::tools::{Invocation, ToolError, check, detach};

/// Runs the subcommand that `first` names, if it names one.
pub(crate) fn find(first: &OsString) -> Option<fn(Vec<OsString>) -> ExitCode> {
    match first.to_str() {
        Some("check") => Some(run_check),
        Some("detach") => Some(run_detach),
        Some(_) | None => None,
    }
}

fn run_check(arguments: Vec<OsString>) -> ExitCode {
    finish("check", check(arguments))
}

fn run_detach(arguments: Vec<OsString>) -> ExitCode {
    finish("detach", detach(arguments))
}

fn check(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let arguments = match check::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let report = check::run(&arguments)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn detach(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let arguments = match detach::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    print!("{}", detach::run(&arguments)?);
    Ok(ExitCode::SUCCESS)
}

fn help(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn finish(name: &str, result: Result<ExitCode, ToolError>) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("derpd {name}: {error}");
        ExitCode::from(error.exit_status())
    })
}
