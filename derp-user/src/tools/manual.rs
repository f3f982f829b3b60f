//! `derpd completions` and `derpd man`: shell completions and manual pages, made from the command lines themselves.

use std::{ffi::OsString, io, path::PathBuf};

use clap::{Arg, Command, CommandFactory as _, Id, Parser, builder::Resettable};
use clap_complete::Shell;
use clap_mangen::{
    Man,
    roff::{Roff, roman},
};

use super::{
    Invocation, ToolError, bench, check, config, derpmap, detach, healthcheck, netcheck,
    parse_arguments, probe, top, wireguard,
};
use crate::config::{Options, variable_names};

/// How the end of a paragraph of a help text begins that says what the exit status means.
const EXIT_STATUS: &str = "Exit status 0: ";
/// Section of the manual for daemons and their tools.
const SECTION: &str = "8";

/// Prints the completions of derpd's command line for a shell.
///
/// Exit status 0: printed; 1: standard output could not be written to; 2: the command line is wrong.
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
///
/// Exit status 0: written; 1: something could not be written; 2: the command line is wrong.
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
    let (command, exit_status, notes) = divided(command);
    // The page's name has a dash where the command line has a space.
    let command = command.name(name);
    Man::new(command).section(SECTION).render(&mut text)?;
    let mut sections = Roff::new();
    for note in &notes {
        let (title, lines) = match note.split_once(":\n") {
            Some((title, lines)) if !title.contains(' ') => (title.to_uppercase(), lines),
            Some(_) | None => ("NOTES".to_owned(), note.as_str()),
        };
        // Lines stay as they are.
        sections.control("SH", [title.as_str()]).control("nf", []);
        for line in lines.lines() {
            sections.text([roman(line)]);
        }
        sections.control("fi", []);
    }
    if let Some(exit_status) = exit_status {
        sections.control("SH", ["EXIT STATUS"]).text([roman(exit_status)]);
    }
    sections.to_writer(&mut text)?;
    Ok(Page { name: format!("{name}.{SECTION}"), text })
}

/// Takes apart what a help text has in one piece and a manual in sections: the command without these, what its exit
/// status means, and its notes by paragraph.
fn divided(command: Command) -> (Command, Option<String>, Vec<String>) {
    let texts = [command.get_long_about(), command.get_after_help()];
    let mut exit_status = None;
    let [about, notes] = texts.map(|text| {
        let text = text.map(ToString::to_string).unwrap_or_default();
        let mut paragraphs = Vec::new();
        for paragraph in text.trim_end().split("\n\n") {
            let (paragraph, rest) =
                paragraph.split_at(paragraph.find(EXIT_STATUS).unwrap_or(paragraph.len()));
            if !rest.is_empty() {
                exit_status = Some(rest.split_whitespace().collect::<Vec<_>>().join(" "));
            }
            if !paragraph.trim().is_empty() {
                paragraphs.push(paragraph.trim_end().to_owned());
            }
        }
        paragraphs
    });
    let command = command.after_help(Resettable::Reset);
    let command = if about.is_empty() { command } else { command.long_about(about.join("\n\n")) };
    (command, exit_status, notes)
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
        .long_about(format!(
            "Asks the relay with these flags, on this machine, whether it serves.\n\n{}",
            healthcheck::EXIT_STATUS
        ))
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
        for page in pages {
            let text = text(page.text);
            // Once, in its own section.
            let parts: Vec<_> = text.split("Exit status 0: ").collect();
            assert_eq!(parts.len(), 2, "{}:\n{text}", page.name);
            assert!(parts[0].trim_end().ends_with(".SH \"EXIT STATUS\""), "{}:\n{text}", page.name);
            assert!(parts[1].contains("; 2: "), "{}:\n{text}", page.name);
        }
    }

    #[test]
    fn the_daemons_help_names_every_tool() {
        let help = relay().render_long_help().to_string();
        for (tool, _, _) in tools() {
            assert!(
                help.contains(&format!("       derpd {tool} ")),
                "{tool} is missing from\n{help}"
            );
        }
    }

    #[test]
    fn the_whole_command_line_is_well_formed() {
        whole().debug_assert();
    }
}
