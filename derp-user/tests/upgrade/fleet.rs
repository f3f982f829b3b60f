//! Clients of Tailscale's library, which a Go program keeps on one relay.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use serde_json::Value;

use crate::{
    go::{Built, go_binary},
    netns::run_in,
};

static FLEET: Built = OnceLock::new();

/// Builds the program, or says why it cannot be had.
pub(crate) fn build() -> Result<PathBuf, String> {
    go_binary(&FLEET, "fleet", &["build"], "./fleet")
}

/// The running program, killed when dropped.
pub(crate) struct Fleet {
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// What has happened to the clients since the last report.
pub(crate) struct Report {
    /// Clients that had to connect again.
    pub(crate) reconnected: u32,
    /// The longest time that one of them had no session.
    pub(crate) slowest: Duration,
    /// Attempts that nobody listened for.
    pub(crate) refused: u32,
    /// Attempts that failed otherwise.
    pub(crate) failed: u32,
    pub(crate) packets: u64,
}

impl Fleet {
    pub(crate) fn start(
        program: &Path,
        namespace: &str,
        address: &str,
        certificate: &Path,
        clients: u32,
    ) -> Self {
        let mut command = Command::new(program);
        command
            .arg(format!("-address={address}"))
            .arg(format!("-certificate={}", certificate.display()))
            .arg(format!("-clients={clients}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = run_in(namespace, move || command.spawn().expect("it was just built"));
        let input = process.stdin.take().expect("piped");
        let output = BufReader::new(process.stdout.take().expect("piped")).lines();
        Self { process, input, output }
    }

    fn obey(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("the program runs");
        let answer = self.output.next().expect("an answer").expect("text");
        let Some(rest) = answer.strip_prefix("ok ") else { panic!("{line}: {answer}") };
        rest.to_owned()
    }

    /// Waits until every client has heard from its partner since now.
    pub(crate) fn settle(&mut self) {
        self.obey("settle");
    }

    pub(crate) fn report(&mut self) -> Report {
        let text = self.obey("report");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let number = |name: &str| value[name].as_u64().expect("a number");
        let small = |name: &str| u32::try_from(number(name)).expect("not many");
        Report {
            reconnected: small("Reconnected"),
            slowest: Duration::from_millis(number("SlowestMs")),
            refused: small("Refused"),
            failed: small("Failed"),
            packets: number("Packets"),
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
