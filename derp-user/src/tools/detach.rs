//! `derpd detach`: removes what stays attached when derpd has ended.

use std::{ffi::OsString, fmt, path::PathBuf};

use clap::Parser;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Invocation, PinPlace, ToolError, parse_arguments};
use crate::dataplane::inspect::{self, Detached};

/// Removes the links and maps that derpd has pinned, which detaches its XDP program from every interface. From
/// then on, userspace answers alone, or nobody if no derpd runs.
///
/// Where nothing is pinned it does nothing. A derpd that runs with the pins is in the way, unless --force is
/// given.
///
/// Exit status 0: nothing is pinned any more; 1: something could not be removed, or a derpd is in the way; 2: the
/// command line is wrong.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "derpd detach",
    bin_name = "derpd detach",
    term_width = 100,
    disable_version_flag = true
)]
pub struct Arguments {
    /// Where links and maps are pinned.
    #[command(flatten)]
    pub pins: PinPlace,
    /// Also while a derpd runs; it goes on in userspace
    #[arg(long)]
    pub force: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Parses the arguments after `detach`.
///
/// # Errors
///
/// [`ToolError::Usage`].
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<Invocation<Arguments>, ToolError> {
    parse_arguments("derpd detach", arguments)
}

/// Removes everything, and says what that was.
///
/// # Errors
///
/// When a derpd uses it, or it cannot be removed.
pub fn run(arguments: &Arguments) -> Result<Outcome, ToolError> {
    let detached = inspect::detach(&arguments.pins.directory, arguments.force)?;
    Ok(Outcome { place: arguments.pins.directory.clone(), detached })
}

/// What was removed.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    #[serde(rename = "pin")]
    place: PathBuf,
    #[serde(flatten)]
    detached: Detached,
}

impl Outcome {
    /// What was removed, as one JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!(self)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Detached { links, generations, directory } = &self.detached;
        let place = self.place.display();
        if links.is_empty() && *generations == 0 {
            return writeln!(f, "nothing was pinned in {place}");
        }
        for link in links {
            let (index, mode) = (link.index, link.mode);
            match &link.interface {
                Some(name) => writeln!(f, "detached from {name} (interface {index}, {mode})")?,
                None => writeln!(f, "removed the link to interface {index}, which is gone")?,
            }
        }
        writeln!(
            f,
            "removed {generations} set{} of maps",
            if *generations == 1 { "" } else { "s" }
        )?;
        if *directory { writeln!(f, "removed {place}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_is_told_in_words_and_as_json() {
        let detached = Detached { links: Vec::new(), generations: 1, directory: true };
        let outcome = Outcome { place: "/bpf/derpd".into(), detached };
        assert_eq!(outcome.to_string(), "removed 1 set of maps\nremoved /bpf/derpd\n");
        let expected =
            json!({ "pin": "/bpf/derpd", "links": [], "generations": 1, "directory": true });
        assert_eq!(outcome.to_json(), expected);
    }
}
