//! `derpd completions` and `derpd man`: shell completions and manual pages, made from the command lines themselves.

use std::{ffi::OsString, io, path::PathBuf};

use clap::{Arg, Command, CommandFactory as _, Id, Parser};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    Invocation, ToolError, bench, check, config, derpmap, detach, netcheck, parse_arguments, probe,
    top, wireguard,
};
use crate::config::{Options, variable_names};

/// Section of the manual for daemons and their tools.
const SECTION: &str = "8";

/// Prints the completions of derpd's command line for a shell.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd completions",
    bin_name = "derpd completions",
    term_width = 100,
    disable_version_flag = true
)]
pub struct CompletionArguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

/// Writes the manual pages of derpd and its tools, or prints one.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd man",
    bin_name = "derpd man",
    term_width = 100,
    disable_version_flag = true
)]
pub struct ManArguments {
    /// Directory for derpd.8, derpd-bench.8 and so on; without it, derpd.8 is printed
    #[arg(value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
}

/// Parses the arguments after `completions`.
///
/// # Errors
///
/// [`ToolError::Usage`].
pub fn parse_completions(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<CompletionArguments>, ToolError> {
    parse_arguments("derpd completions", arguments)
}

/// Parses the arguments after `man`.
///
/// # Errors
///
/// [`ToolError::Usage`].
pub fn parse_man(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<ManArguments>, ToolError> {
    parse_arguments("derpd man", arguments)
}

/// The completions for a shell. They complete flags with two dashes; derpd takes one, too.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut command = whole();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "derpd", &mut text);
    text
}

/// One page of the manual.
#[derive(Clone, Debug)]
pub struct Page {
    /// The file's name, such as `derpd-bench.8`.
    pub name: String,
    /// Its contents, for troff.
    pub text: Vec<u8>,
}

/// The manual pages, derpd's own first.
///
/// # Errors
///
/// If one cannot be written down.
pub fn pages() -> io::Result<Vec<Page>> {
    let tools = tools().into_iter().map(|(_, name, command)| page(command, name));
    std::iter::once(page(relay(), "derpd")).chain(tools).collect()
}

fn page(command: Command, name: &'static str) -> io::Result<Page> {
    let mut text = Vec::new();
    // The page's name has a dash where the command line has a space.
    let command = command.name(name);
    Man::new(command).section(SECTION).render(&mut text)?;
    Ok(Page { name: format!("{name}.{SECTION}"), text })
}

/// The command line of the relay, with the variables that stand for its flags.
fn relay() -> Command {
    let relay = Options::command();
    let notes = relay.get_after_help().map(ToString::to_string).unwrap_or_default();
    let flags: Vec<_> = relay.get_arguments().map(|flag| flag.get_id().clone()).collect();
    let with_variables = |relay: Command, flag: Id| {
        let variables: Vec<_> = variable_names(flag.as_str()).collect();
        relay.mut_arg(flag, |argument: Arg| match (argument.get_help(), &variables[..]) {
            (Some(help), [_, ..]) => {
                let help = format!("{help}. Variable: {}", variables.join(" or "));
                argument.help(help)
            }
            _ => argument,
        })
    };
    flags
        .into_iter()
        .fold(relay, with_variables)
        .after_help(format!("Flags may be written with one dash instead of two.\n\n{notes}"))
}

/// The command lines of the tools: name, name of the page, and the command line.
fn tools() -> [(&'static str, &'static str, Command); 12] {
    let healthcheck = Command::new("derpd healthcheck")
        .about("Asks the relay with these flags, on this machine, whether it serves")
        .disable_help_flag(true)
        .after_help("The flags are the relay's own, see derpd(8).");
    [
        ("bench", "derpd-bench", bench::Arguments::command()),
        ("check", "derpd-check", check::Own::command()),
        ("completions", "derpd-completions", CompletionArguments::command()),
        ("config", "derpd-config", config::Arguments::command()),
        ("derpmap", "derpd-derpmap", derpmap::Own::command()),
        ("detach", "derpd-detach", detach::Arguments::command()),
        ("healthcheck", "derpd-healthcheck", healthcheck),
        ("man", "derpd-man", ManArguments::command()),
        ("netcheck", "derpd-netcheck", netcheck::Arguments::command()),
        ("probe", "derpd-probe", probe::Arguments::command()),
        ("top", "derpd-top", top::Arguments::command()),
        ("wireguard", "derpd-wireguard", wireguard::Arguments::command()),
    ]
}

/// Everything that may follow `derpd`.
fn whole() -> Command {
    // A name with a space would become part of a shell function's.
    let tools = tools().into_iter().map(|(name, _, tool)| tool.name(name));
    relay().subcommands(tools)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn completions_know_every_flag_and_tool() {
        for (shell, flag) in [
            (Shell::Bash, "--xdp-interface"),
            (Shell::Zsh, "--xdp-interface"),
            (Shell::Fish, "-l xdp-interface"),
        ] {
            let text = text(completions(shell));
            assert!(text.contains(flag), "{shell}: {text}");
            for (tool, _, _) in tools() {
                assert!(text.contains(tool), "{shell}: {tool}");
            }
        }
    }

    #[test]
    fn the_manual_has_a_page_for_derpd_and_each_tool() {
        let pages = pages().expect("pages");
        assert_eq!(pages.len(), 1 + tools().len());
        let derpd = text(pages[0].text.clone());
        assert_eq!(pages[0].name, "derpd.8");
        for word in [
            ".TH derpd 8",
            "verify\\-client\\-url",
            "DERP_DOMAIN or DERP_HOST or DERP_HOSTNAME",
            "one dash",
        ] {
            assert!(derpd.contains(word), "{word} is missing from\n{derpd}");
        }
        assert!(pages.iter().any(|page| page.name == "derpd-bench.8"));
    }

    #[test]
    fn the_whole_command_line_is_well_formed() {
        whole().debug_assert();
    }
}
