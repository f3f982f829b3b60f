//! Address translation in front of a client: its port is another one to everybody else, and can be changed.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    lab::{Host, Lab, client_address},
    node::WIREGUARD_PORT,
};
use crate::process::CommandExt as _;

/// The first port outside. Each change takes the next one.
const FIRST_PORT: u16 = 50_000;
const LAST_PORT: u16 = FIRST_PORT + 9;

/// The translation, in the client's own namespace. It has no connections that would have to be forgotten.
pub(super) struct Translation<'lab> {
    lab: &'lab Lab,
    host: Host,
    port: u16,
}

impl<'lab> Translation<'lab> {
    /// Installs it.
    pub(super) fn install(lab: &'lab Lab, host: Host) -> Result<Self> {
        let translation = Self { lab, host, port: FIRST_PORT };
        translation.apply()?;
        Ok(translation)
    }

    /// Takes another port, at once and without notice. What comes to an old one is dropped and counted.
    pub(super) fn change_port(&mut self) -> Result<()> {
        ensure!(self.port < LAST_PORT, "there are no more ports");
        self.port += 1;
        self.apply()
    }

    /// Returns where everybody else sees the client.
    pub(super) fn outside(&self) -> String {
        format!("{}:{}", client_address(self.host), self.port)
    }

    /// Returns how many packets have come to ports that are not in use any more, since the last change.
    pub(super) fn strays(&self) -> Result<u64> {
        let listing = self.nft().args(["list", "counter", "ip", "translation", "stray"]).read()?;
        let words: Vec<&str> = listing.split_whitespace().collect();
        let count = words.windows(2).find_map(|pair| match pair {
            ["packets", count] => count.parse().ok(),
            _ => None,
        });
        count.with_context(|| format!("no number of packets: {listing}"))
    }

    fn apply(&self) -> Result<()> {
        let port = self.port;
        let rules = format!(
            "table ip translation
            delete table ip translation
            table ip translation {{
                counter stray {{}}
                chain out {{
                    type filter hook postrouting priority 100;
                    udp sport {WIREGUARD_PORT} udp sport set {port}
                }}
                chain in {{
                    type filter hook prerouting priority -300;
                    udp dport {port} udp dport set {WIREGUARD_PORT} accept
                    udp dport {FIRST_PORT}-{LAST_PORT} counter name stray drop
                }}
            }}"
        );
        let mut command = self.nft();
        let mut child = command
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .context("the program `nft` is needed with --peer-relay")?;
        let mut input = child.stdin.take().context("no input of `nft`")?;
        input.write_all(rules.as_bytes()).context("telling `nft` the rules")?;
        drop(input);
        let status = child.wait().context("waiting for `nft`")?;
        ensure!(status.success(), "`{}` failed: {status}", command.describe());
        Ok(())
    }

    fn nft(&self) -> Command {
        self.lab.command(self.host, Path::new("nft"))
    }
}
