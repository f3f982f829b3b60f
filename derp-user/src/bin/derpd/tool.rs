//! Subcommands: the relay before it starts (`check`, `config`), the kernel data plane from outside (`detach`), the DERP map of a relay (`derpmap`), and
//! relays as their clients see them (`netcheck`, `probe`), or as they see themselves (`top`), and the relay for WireGuard
//! (`wireguard`); what packages are made with (`healthcheck`, `completions`, `man`).

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, Write as _},
    process::ExitCode,
};

use derp_user::tools::{
    Invocation, MonitorError, ToolError, check,
    config::{self, Show, ShowError},
    derpmap::{self, DerpmapError},
    detach,
    healthcheck::{self, HealthError},
    manual, netcheck, probe,
    top::{self, TopError},
    wireguard::{self, WireGuardError},
};

use crate::around::{resolve, surroundings};

/// Runs the subcommand that `first` names, if it names one.
pub(crate) fn find(first: &OsString) -> Option<fn(Vec<OsString>) -> ExitCode> {
    match first.to_str() {
        Some("check") => Some(run_check),
        Some("config") => Some(run_config),
        Some("detach") => Some(run_detach),
        Some("derpmap") => Some(run_derpmap),
        Some("netcheck") => Some(run_netcheck),
        Some("probe") => Some(run_probe),
        Some("top") => Some(run_top),
        Some("healthcheck") => Some(run_healthcheck),
        Some("completions") => Some(run_completions),
        Some("man") => Some(run_man),
        Some("wireguard") => Some(run_wireguard),
        Some(_) | None => None,
    }
}

fn run_check(arguments: Vec<OsString>) -> ExitCode {
    finish("check", check(arguments), ToolError::exit_status)
}

fn run_config(arguments: Vec<OsString>) -> ExitCode {
    finish("config", show_config(arguments), ShowError::exit_status)
}

fn run_detach(arguments: Vec<OsString>) -> ExitCode {
    finish("detach", detach(arguments), ToolError::exit_status)
}

fn run_derpmap(arguments: Vec<OsString>) -> ExitCode {
    finish("derpmap", derpmap(arguments), DerpmapError::exit_status)
}

fn run_netcheck(arguments: Vec<OsString>) -> ExitCode {
    finish("netcheck", netcheck(arguments), MonitorError::exit_status)
}

fn run_probe(arguments: Vec<OsString>) -> ExitCode {
    finish("probe", probe(arguments), MonitorError::exit_status)
}

fn run_top(arguments: Vec<OsString>) -> ExitCode {
    finish("top", top(arguments), TopError::exit_status)
}

fn run_healthcheck(arguments: Vec<OsString>) -> ExitCode {
    finish("healthcheck", healthcheck(arguments), HealthError::exit_status)
}

fn run_completions(arguments: Vec<OsString>) -> ExitCode {
    finish("completions", completions(arguments), ToolError::exit_status)
}

fn run_man(arguments: Vec<OsString>) -> ExitCode {
    finish("man", man(arguments), ToolError::exit_status)
}

fn run_wireguard(arguments: Vec<OsString>) -> ExitCode {
    finish("wireguard", wireguard(arguments), WireGuardError::exit_status)
}

fn check(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let check::Arguments { own, relay } = match check::parse(arguments, &surroundings())? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let config = match relay {
        Ok(options) => resolve(*options).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let report = check::run(&own, config.as_ref().map_err(Clone::clone))?;
    let text = if own.json { format!("{}\n", report.to_json()) } else { report.to_string() };
    write_out(text.as_bytes())?;
    Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_config(arguments: Vec<OsString>) -> Result<ExitCode, ShowError> {
    let Show { json, relay } = match config::parse(arguments, &surroundings())? {
        Invocation::Run(show) => show,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let text = config::run(json, &resolve(*relay)?, &surroundings())?;
    write_out(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn detach(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let arguments = match detach::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let outcome = detach::run(&arguments)?;
    if arguments.json {
        println!("{}", outcome.to_json());
    } else {
        print!("{outcome}");
    }
    Ok(ExitCode::SUCCESS)
}

fn derpmap(arguments: Vec<OsString>) -> Result<ExitCode, DerpmapError> {
    let arguments = match derpmap::parse(arguments, &surroundings())? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let printed = derpmap::run(&arguments.own, &resolve(arguments.relay)?)?;
    for note in &printed.notes {
        eprintln!("derpd derpmap: {note}");
    }
    print!("{printed}");
    Ok(ExitCode::SUCCESS)
}

fn netcheck(arguments: Vec<OsString>) -> Result<ExitCode, MonitorError> {
    let arguments = match netcheck::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let report = netcheck::run(&arguments)?;
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(report.severity().exit_status()))
}

fn probe(arguments: Vec<OsString>) -> Result<ExitCode, MonitorError> {
    let arguments = match probe::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let last = probe::run(&arguments, |report| {
        if arguments.json {
            println!("{}", report.to_json());
        } else {
            print!("{report}");
        }
    })?;
    Ok(ExitCode::from(last.status.exit_status()))
}

fn top(arguments: Vec<OsString>) -> Result<ExitCode, TopError> {
    let arguments = match top::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    if let Some(text) = top::run(&arguments)? {
        print!("{text}");
    }
    Ok(ExitCode::SUCCESS)
}

fn healthcheck(arguments: Vec<OsString>) -> Result<ExitCode, HealthError> {
    let options = match healthcheck::parse(arguments, &surroundings())? {
        Invocation::Run(options) => options,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    println!("{} serves", healthcheck::run(&resolve(options)?)?);
    Ok(ExitCode::SUCCESS)
}

fn completions(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let arguments = match manual::parse_completions(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    write_out(&manual::completions(arguments.shell))?;
    Ok(ExitCode::SUCCESS)
}

fn man(arguments: Vec<OsString>) -> Result<ExitCode, ToolError> {
    let arguments = match manual::parse_man(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    let failed = |source| ToolError::System { what: "cannot write the manual", source };
    let pages = manual::pages().map_err(failed)?;
    match (arguments.directory, pages.first()) {
        (Some(directory), _) => {
            for page in &pages {
                fs::write(directory.join(&page.name), &page.text).map_err(failed)?;
            }
        }
        (None, Some(page)) => write_out(&page.text)?,
        (None, None) => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn wireguard(arguments: Vec<OsString>) -> Result<ExitCode, WireGuardError> {
    let arguments = match wireguard::parse(arguments)? {
        Invocation::Run(arguments) => arguments,
        Invocation::Help(text) => return Ok(help(&text)),
    };
    match arguments.command {
        wireguard::Command::Check(arguments) => print!("{}", wireguard::check(&arguments)?),
        wireguard::Command::Status(arguments) => {
            let status = wireguard::status(&arguments)?;
            if arguments.json {
                println!("{}", status.to_json());
            } else {
                print!("{status}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes all of it to the standard output, which may be a pipe that ends early.
fn write_out(text: &[u8]) -> Result<(), ToolError> {
    io::stdout()
        .write_all(text)
        .map_err(|source| ToolError::System { what: "cannot write to standard output", source })
}

fn help(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

fn finish<E: fmt::Display>(
    name: &str,
    result: Result<ExitCode, E>,
    exit_status: impl Fn(&E) -> u8,
) -> ExitCode {
    result.unwrap_or_else(|error| {
        eprintln!("derpd {name}: {error}");
        ExitCode::from(exit_status(&error))
    })
}
