//! What is kept of a run that has failed: every log, and what the relays and the clients say of themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context as _, Error, Result};

use super::{
    Programs,
    lab::{Host, Lab, RELAYS, last_lines, say},
    node,
    relay::page,
};
use crate::{process::CommandExt as _, workspace};

/// Of each relay.
const PAGES: [(&str, &str); 3] = [
    ("flows.json", "/debug/flows?format=json"),
    ("peer-relay.json", "/debug/peer-relay?format=json"),
    ("metrics", "/debug/varz"),
];
/// Of each host.
const COMMANDS: [&str; 5] = [
    "ip -statistics address",
    "ip neighbour",
    "ip route",
    "nft list ruleset",
    "ss --numeric --udp --all",
];
/// Of each client.
const QUESTIONS: [&str; 3] = ["status", "debug peer-relay-servers", "debug netmap"];

/// Keeps what explains a fault of the run `name`, prints the end of every log, and returns the fault with the directory
/// where all of it is. To be called while everything still runs.
pub(super) fn keep(lab: &Lab, programs: &Programs, name: &str, fault: Error) -> Error {
    match collect(lab, programs, name) {
        Ok(directory) => fault.context(format!("what has happened is in {}", directory.display())),
        Err(error) => fault.context(format!("what has happened could not be kept: {error:#}")),
    }
}

fn collect(lab: &Lab, programs: &Programs, name: &str) -> Result<PathBuf> {
    let seconds = SystemTime::UNIX_EPOCH.elapsed().context("a clock before 1970")?.as_secs();
    let directory = workspace::target_dir()?.join("e2e").join(format!("failed-{name}-{seconds}"));
    fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let write = |name: String, text: String| {
        let file = directory.join(name);
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    };
    for address in RELAYS {
        for (name, path) in PAGES {
            // A relay that does not answer is a finding, too.
            let text =
                page(lab, address.parse()?, path).unwrap_or_else(|error| format!("{error:#}"));
            if name == "metrics" {
                say(&format!("counters of {address} that are not 0:\n{}", not_zero(&text)));
            }
            write(format!("{address}-{name}"), text)?;
        }
    }
    for host in Host::ALL {
        write(format!("{}-network", host.name()), network(lab, host))?;
        if host != Host::Relay {
            write(format!("{}-tailscale", host.name()), client(lab, host, &programs.tailscale))?;
        }
    }
    for entry in fs::read_dir(lab.directory()).context("reading the run's directory")? {
        let path = entry.context("reading the run's directory")?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !name.ends_with(".log") {
            continue;
        }
        let log = fs::read_to_string(&path).with_context(|| format!("reading {name}"))?;
        say(&format!("{name} ends:\n{}", last_lines(&log)));
        write(name.to_owned(), log)?;
    }
    Ok(directory)
}

/// Returns the samples of derpd's own and the kernel program's counters that are not 0.
fn not_zero(metrics: &str) -> String {
    let is_counter = |line: &&str| line.starts_with("derpd_") || line.starts_with("xdp_");
    let lines = metrics.lines().filter(is_counter).filter(|line| !line.ends_with(" 0"));
    lines.collect::<Vec<_>>().join("\n")
}

fn network(lab: &Lab, host: Host) -> String {
    let ask = |line: &str| {
        let mut words = line.split(' ');
        let mut command = lab.command(host, Path::new(words.next().unwrap_or_default()));
        answer(line, command.args(words).read())
    };
    COMMANDS.map(ask).concat()
}

fn client(lab: &Lab, host: Host, tailscale: &Path) -> String {
    let socket = format!("--socket={}", node::socket(lab, host).display());
    let ask = |question: &str| {
        let mut command = lab.command(host, tailscale);
        answer(question, command.arg(&socket).args(question.split(' ')).read())
    };
    QUESTIONS.map(ask).concat()
}

fn answer(question: &str, answer: Result<String>) -> String {
    let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
    format!("$ {question}\n{answer}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_that_are_zero_are_left_out() {
        let metrics = "# HELP derpd_a words\nderpd_a 0\nderpd_b{x=\"y\"} 10\nderp_c 5\nxdp_d 1\n";
        assert_eq!(not_zero(metrics), "derpd_b{x=\"y\"} 10\nxdp_d 1");
    }
}
