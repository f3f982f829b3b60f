//! Running the benchmarks of `derp-user` under callgrind.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::Counts;
use crate::{
    process::{self, CommandExt as _},
    workspace,
};

/// Payload bytes of the packets: small ones, and those of a full tunnel.
const SIZES: [u32; 2] = [128, 1400];
/// The cases of `benches/instructions.rs`.
const PARTS: [&str; 3] = ["frames", "records-in", "records-out"];
/// Counts only within the function that `benches/instructions.rs` keeps for this.
const COUNTED: &str = "--toggle-collect=*counted_section*";
/// Start, handshakes and end of the relay are in both counts, so that the difference is the packets.
const FEW_ROUNDS: u32 = 20;
/// So many that the chance in making keys and certificates, half a million instructions, drowns.
const MANY_ROUNDS: u32 = 1520;
/// Starts the relay under callgrind in the place of the relay.
const RELAY_SCRIPT: &str = "#!/bin/sh
exec valgrind --quiet --tool=callgrind --callgrind-out-file=\"$COUNTS\" \"$RELAY\" \"$@\"
";

/// The programs whose instructions are counted.
pub(super) struct Counter {
    /// `benches/instructions.rs`
    parts: PathBuf,
    /// `benches/relay.rs`
    relay_client: PathBuf,
    derpd: PathBuf,
    directory: PathBuf,
}

impl Counter {
    /// Builds everything as it is shipped.
    pub(super) fn build() -> Result<Self> {
        let bench = || {
            let mut command = process::cargo();
            command.current_dir(workspace::root()).args([
                "bench",
                "--no-run",
                "--locked",
                "--package=derp-user",
                "--features=bench",
                "--bench=instructions",
                "--bench=relay",
            ]);
            command
        };
        bench().run()?;
        // Once more, and at once: now for the names of what was built.
        let messages = bench().arg("--message-format=json").read()?;
        let mut built = executables(&messages)?;
        let mut find = |name| built.remove(name).with_context(|| format!("cargo built no {name}"));
        let directory = workspace::target_dir()?.join("instructions");
        fs::create_dir_all(&directory)
            .with_context(|| format!("creating {}", directory.display()))?;
        Ok(Self {
            parts: find("instructions")?,
            relay_client: find("relay")?,
            derpd: find("derpd")?,
            directory,
        })
    }

    /// Counts every case.
    pub(super) fn count(&self) -> Result<Counts> {
        let mut counts = Counts::new();
        let parts_packets = number_from(&self.parts)?;
        let relay_packets = number_from(&self.relay_client)? * f64::from(MANY_ROUNDS - FEW_ROUNDS);
        for size in SIZES {
            for part in PARTS {
                eprintln!("counting: {part}, {size} B");
                let count = self.part(part, size)?;
                counts.insert(format!("{part}, {size} B"), rounded(count / parts_packets));
            }
            eprintln!("counting: relay, {size} B");
            let count = self.relay(size, MANY_ROUNDS)? - self.relay(size, FEW_ROUNDS)?;
            counts.insert(format!("relay, {size} B"), rounded(count / relay_packets));
        }
        Ok(counts)
    }

    fn part(&self, case: &str, size: u32) -> Result<f64> {
        let file = self.directory.join("callgrind.out");
        let mut command = process::command("valgrind");
        command
            .args(["--quiet", "--tool=callgrind", COUNTED])
            .arg(format!("--callgrind-out-file={}", file.display()))
            .arg(&self.parts)
            .args([case, &size.to_string()]);
        counted(&mut command, &file)
    }

    fn relay(&self, size: u32, rounds: u32) -> Result<f64> {
        // The tests' support takes a relay of the name derper for another one.
        let script = self.directory.join("derpd");
        fs::write(&script, RELAY_SCRIPT)
            .and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("writing {}", script.display()))?;
        let file = self.directory.join("callgrind.out");
        let mut command = process::command(&self.relay_client);
        command
            .env("DERPD_TEST_SERVER", script)
            .env("COUNTS", &file)
            .env("RELAY", &self.derpd)
            .args([size.to_string(), rounds.to_string()]);
        counted(&mut command, &file)
    }
}

/// Runs a command that has callgrind write `file`; how many instructions it counted.
fn counted(command: &mut Command, file: &Path) -> Result<f64> {
    // What an earlier run left there must not be taken for this one's.
    if file.exists() {
        fs::remove_file(file).with_context(|| format!("removing {}", file.display()))?;
    }
    command.read()?;
    let text = fs::read_to_string(file)
        .with_context(|| format!("reading what callgrind wrote, {}", file.display()))?;
    match total(&text) {
        Some(count) if count > 0.0 => Ok(count),
        Some(_) | None => bail!("`{}` counted nothing", command.describe()),
    }
}

/// Returns how many packets a benchmark handles, which it says when it is given nothing to do.
fn number_from(program: &Path) -> Result<f64> {
    let text = process::command(program).read()?;
    text.trim().parse().with_context(|| format!("{} printed {text:?}", program.display()))
}

/// Reads the sum in callgrind's output.
fn total(output: &str) -> Option<f64> {
    output.lines().find_map(|line| line.strip_prefix("totals: ")?.trim().parse().ok())
}

fn rounded(count: f64) -> f64 {
    (count * 10.0).round() / 10.0
}

/// Reads the programs by name in cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Result<BTreeMap<String, PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        target: Option<Target>,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line).context("reading cargo's messages")?;
        if let (Some(target), Some(path)) = (message.target, message.executable) {
            found.insert(target.name, path);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_total() {
        let output =
            "version: 1\ncreator: callgrind-3.19.0\nevents: Ir\nsummary: 5\n\ntotals: 42\n";
        assert_eq!(total(output), Some(42.0));
        assert_eq!(total("summary: 5\n"), None);
    }

    #[test]
    fn finds_programs_in_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"relay"},"executable":"/t/relay-1"}
{"reason":"build-finished","success":true}"#;
        let found = executables(messages).unwrap();
        assert_eq!(found, BTreeMap::from([("relay".to_owned(), PathBuf::from("/t/relay-1"))]));
    }

    #[test]
    fn a_run_without_a_count_is_an_error() {
        let file = std::env::temp_dir().join(format!("derpd-count-{}", std::process::id()));
        let write = |text: &str| format!("printf '{text}' > {}", file.display());
        let run = |script: &str| counted(Command::new("sh").args(["-c", script]), &file);
        assert_eq!(run(&write("totals: 7\\n")).unwrap(), 7.0);
        // The file of the run before is not read again.
        run("true").unwrap_err();
        run(&write("totals: 0\\n")).unwrap_err();
        fs::remove_file(file).unwrap();
    }
}
