//! `derpd check`: what the kernel data plane needs, what of it is there, and what runs.
//!
//! Every question is one function that adds its [`Finding`]s to a [`Report`]; a further one (a configuration
//! file, a certificate) is a further function.

mod host;
mod report;

use std::{ffi::OsString, path::Path};

use clap::Parser;

pub use self::report::{Finding, Report, Status};
use super::{Invocation, PinPlace, ToolError, parse_arguments};
use crate::dataplane::inspect;

/// Shows what the kernel data plane needs, what of it is there, and what is attached and pinned. Changes
/// nothing.
///
/// Needs no rights but to read the directory of pins. Exit status 0: derpd could run its kernel data plane as
/// the user who asks, and what is pinned is in order; 1: not so, the lines that begin with `problem` say why;
/// 2: the command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd check",
    bin_name = "derpd check",
    term_width = 100,
    disable_version_flag = true
)]
pub struct Arguments {
    /// Where links and maps are pinned.
    #[command(flatten)]
    pub pins: PinPlace,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Parses the arguments after `check`.
///
/// # Errors
///
/// [`ToolError::Usage`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, ToolError> {
    parse_arguments("derpd check", arguments)
}

/// Looks at everything.
///
/// # Errors
///
/// When this process cannot even ask.
pub fn run(arguments: &Arguments) -> Result<Report, ToolError> {
    let mut report = Report::default();
    host::kernel(&mut report);
    host::program(&mut report);
    host::capabilities(&mut report);
    host::file_system(&mut report, &arguments.pins.directory);
    pins(&mut report, &arguments.pins.directory);
    interfaces(&mut report)?;
    Ok(report)
}

fn pins(report: &mut Report, directory: &Path) {
    let pins = match inspect::Pins::read(directory) {
        Ok(pins) => pins,
        Err(error) => return report.problem("pins", error.to_string(), None),
    };
    let place = directory.display();
    if !pins.exists {
        report.ok("pins", format!("nothing is pinned in {place}"));
    } else if pins.in_use {
        report.ok("daemon", format!("a derpd runs with what is pinned in {place}"));
    } else {
        report.note("daemon", format!("no derpd runs with what is pinned in {place}"));
    }
    for link in pins.links.iter().filter(|link| !link.is_alive) {
        let text =
            format!("the link to interface {} holds nothing: the interface is gone", link.index);
        report.problem(
            "pins",
            text,
            Some("derpd removes it when it starts; so does `derpd detach`"),
        );
    }
    for maps in &pins.generations {
        let place = maps.path.display();
        match &maps.incompatible {
            None if maps.is_same_object => {
                report.ok("pins", format!("this derpd would adopt program and maps in {place}"));
            }
            None => report.ok(
                "pins",
                format!("this derpd would adopt the maps in {place}, and replace the program"),
            ),
            Some(reason) => {
                let text = format!("this derpd would replace what is in {place}: {reason}");
                report.note("pins", text);
            }
        }
    }
    report.pins = Some(pins);
}

fn interfaces(report: &mut Report) -> Result<(), ToolError> {
    let failed = |source| ToolError::System { what: "cannot ask for the interfaces", source };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    report.interfaces = runtime.block_on(inspect::occupied_interfaces()).map_err(failed)?;
    let ours = |program: Option<u32>, index| {
        let links = report.pins.iter().flat_map(|pins| &pins.links);
        links.into_iter().any(|it| it.index == index && Some(it.program_id) == program)
    };
    let mut findings = Vec::new();
    for it in &report.interfaces {
        let whose = if ours(it.program_id, it.index) { "pinned" } else { "not pinned here" };
        let id = it.program_id.map_or_else(String::new, |id| format!(" {id}"));
        findings.push(format!("{}: XDP program{id}, {}, {whose}", it.interface, it.mode));
    }
    if findings.is_empty() {
        findings.push("no interface has an XDP program".to_owned());
    }
    for finding in findings {
        report.ok("interfaces", finding);
    }
    Ok(())
}
