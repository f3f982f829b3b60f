//! `derpd check`: everything that a start needs, what of it is there, and what would be served.
//!
//! Every question is one function that adds its [`Finding`]s to a [`Report`].

mod certificates;
mod files;
mod host;
mod ports;
mod report;
mod served;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::SystemTime,
};

use clap::Parser;

pub use self::report::{Finding, Report, Service, Status};
use super::{Invocation, ToolError, absolute, parse_arguments, runtime, take_own};
use crate::{
    config::{self, Config, Options, Surroundings, UsageError},
    dataplane::{DEFAULT_DIRECTORY, Mode, Pin, inspect},
};

/// Checks everything before the relay with these flags starts, and shows what it would serve. Changes nothing.
///
/// Give the relay's own flags, exactly as it runs with them, and its environment; ask as the user that it runs as.
/// Configuration, keys, certificates, ports, capabilities, interfaces and the kernel are looked at; certificate
/// authorities and other servers are not asked. Exit status 0: it would start, and do all that is configured; 1: not
/// so, each line that begins with `problem` says why and what to do; 2: the command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd check",
    bin_name = "derpd check",
    override_usage = "derpd check [flags of this tool] [flags of the relay]",
    term_width = 100,
    disable_version_flag = true
)]
pub struct Own {
    /// Where links and maps are pinned [default: as the relay's -xdp-pin]
    #[arg(long = "pin", value_name = "DIRECTORY", value_parser = absolute)]
    pub pin: Option<PathBuf>,
    /// Look at the kernel data plane alone, whatever the relay's configuration says
    #[arg(long)]
    pub kernel: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a command line says.
#[derive(Debug)]
pub struct Arguments {
    /// Of this tool.
    pub own: Own,
    /// Of the relay: its options, or why there are none.
    pub relay: Result<Box<Options>, UsageError>,
}

/// Parses the arguments after `check`; `surroundings` are the relay's.
///
/// # Errors
///
/// [`ToolError::Usage`], where the command line is at fault.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    surroundings: &Surroundings<'_>,
) -> Result<Invocation<Arguments>, ToolError> {
    let (own, relay) = take_own::<Own>(arguments);
    let own = match parse_arguments::<Own>("derpd check", own)? {
        Invocation::Run(own) => own,
        Invocation::Help(text) => return Ok(Invocation::Help(text)),
    };
    let relay = match config::parse(relay, surroundings) {
        Ok(config::Invocation::Run(options)) => Ok(options),
        Ok(config::Invocation::Help(text)) => return Ok(Invocation::Help(text)),
        Err(error) if error.exit_status() == 2 => return Err(ToolError::Usage(error.to_string())),
        Err(error) => Err(error),
    };
    Ok(Invocation::Run(Arguments { own, relay }))
}

/// Looks at everything. `relay` is its configuration, or why it has none.
///
/// # Errors
///
/// When this process cannot even ask.
pub fn run(own: &Own, relay: Result<&Config, String>) -> Result<Report, ToolError> {
    let mut report = Report::default();
    let relay = if own.kernel { None } else { Some(relay) };
    let config = match relay {
        Some(Err(error)) => {
            report.problem("config", error, None);
            None
        }
        Some(Ok(config)) => Some(config),
        None => None,
    };
    if let Some(config) = config {
        configured(&mut report, config)?;
    }
    let wants_kernel =
        |config: &Config| !config.xdp_interfaces.is_empty() && config.xdp_mode != Mode::Off;
    let is_vital = own.kernel || config.is_some_and(wants_kernel);
    let pin = match (&own.pin, config) {
        (Some(path), _) => Pin::Directory { path: path.clone(), is_required: true },
        (None, Some(config)) => config.xdp_pin.clone(),
        (None, None) => Pin::Directory { path: DEFAULT_DIRECTORY.into(), is_required: true },
    };
    let directory = pin.directory().unwrap_or_else(|| Path::new(DEFAULT_DIRECTORY));
    let mut kernel = Report::default();
    host::kernel(&mut kernel);
    host::program(&mut kernel);
    host::capabilities(&mut kernel);
    host::file_system(&mut kernel, &pin);
    pins(&mut kernel, directory);
    interfaces(&mut kernel)?;
    if let Some(config) = config.filter(|config| wants_kernel(config)) {
        named_interfaces(&mut kernel, config);
    }
    report.extend(kernel, is_vital);
    Ok(report)
}

/// What the configuration comes to, with all files and ports that it names.
fn configured(report: &mut Report, config: &Config) -> Result<(), ToolError> {
    let file = match config.file_settings() {
        Ok(file) => file,
        Err(error) => {
            report.problem("config", error.to_string(), None);
            return Ok(());
        }
    };
    report.ok(
        "config",
        match config.layers.path() {
            Some(path) => format!("{} and the flags are in order", path.display()),
            None => "the flags are in order; no configuration file is read".to_owned(),
        },
    );
    let runtime = runtime()?;
    files::check(report, config, &file, &runtime);
    certificates::check(report, config, SystemTime::now());
    ports::check(report, config, &file);
    report.services = served::services(config, &file);
    runtime.shutdown_background();
    Ok(())
}

/// The interfaces of the configuration, and whether the mode that is asked for is possible.
fn named_interfaces(report: &mut Report, config: &Config) {
    for name in &config.xdp_interfaces {
        let Ok(index) = nix::net::if_::if_nametoindex(name.as_str()) else {
            report.problem(
                "interfaces",
                format!("-xdp-interface {name}: there is no such interface"),
                Some("`ip -br link` lists those that there are"),
            );
            continue;
        };
        let whose = |it: &&inspect::Occupied| it.index == index;
        let occupied = report.interfaces.iter().find(whose).cloned();
        let links = report.pins.iter().flat_map(|pins| &pins.links);
        let is_ours = |program| links.clone().any(|it| Some(it.program_id) == program);
        if let Some(occupied) = occupied
            && !is_ours(occupied.program_id)
            && !report.pins.as_ref().is_some_and(|pins| pins.in_use)
        {
            report.note(
                "interfaces",
                format!("{name} has an XDP program that is not pinned; derpd cannot attach beside another's"),
            );
        }
        match (inspect::has_native_xdp(index), config.xdp_mode) {
            (Ok(true), mode) => {
                report.ok("interfaces", format!("{name}: its driver takes XDP, for mode {mode}"));
            }
            (Ok(false), Mode::Native) => report.problem(
                "interfaces",
                format!("{name}: its driver does not take XDP, so mode native is impossible"),
                Some("-xdp-mode=auto or generic does without the driver"),
            ),
            (Ok(false), mode) => report.note(
                "interfaces",
                format!("{name}: its driver does not take XDP; mode {mode} is generic here"),
            ),
            (Err(_), mode) => report.note(
                "interfaces",
                format!("{name}: this kernel does not say what its driver can; mode {mode} is tried at a start"),
            ),
        }
    }
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
