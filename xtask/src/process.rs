//! Running other programs: every command is printed, and a failure names it.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Returns a command whose environment is what the user's shell had.
///
/// `cargo run` and rustup's proxies leave variables behind that would steer another compiler (the
/// library path, the toolchain choice) or make build scripts believe that their inputs changed.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, value) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text == "LD_LIBRARY_PATH" {
            match without_build_directories(&value) {
                Some(rest) => command.env(name, rest),
                None => command.env_remove(name),
            };
        } else if is_left_behind_by_cargo(&text) {
            command.env_remove(name);
        }
    }
    command
}

/// Returns a command for the cargo that started this program.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns the directory of the Rust compiler's own libraries.
pub(crate) fn rust_sysroot() -> Result<PathBuf> {
    Ok(command("rustc").arg("--print=sysroot").read()?.trim().into())
}

/// Returns what the Rust compiler says of itself under a name such as `host`.
pub(crate) fn rust_version(name: &str) -> Result<String> {
    let version = command("rustc").arg("-vV").read()?;
    let value = version.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Ok(value.with_context(|| format!("`rustc -vV` names no {name}"))?.to_owned())
}

/// What can be done with a prepared [`Command`].
pub(crate) trait CommandExt {
    /// Prints the command and runs it with this program's input and output.
    fn run(&mut self) -> Result<()>;

    /// Runs the command silently and returns what it printed.
    fn read(&mut self) -> Result<String>;

    /// Returns the command as one would type it.
    fn describe(&self) -> String;
}

impl CommandExt for Command {
    fn run(&mut self) -> Result<()> {
        eprintln!("+ {}", self.describe());
        let status =
            self.status().with_context(|| format!("cannot start `{}`", self.describe()))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.describe());
        }
        Ok(())
    }

    fn read(&mut self) -> Result<String> {
        let output = self
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", self.describe()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` failed: {}: {}", self.describe(), output.status, said.trim());
        }
        String::from_utf8(output.stdout)
            .with_context(|| format!("`{}` printed something that is not UTF-8", self.describe()))
    }

    fn describe(&self) -> String {
        let set = self.get_envs().filter_map(|(name, value)| {
            let value = value?;
            (name != "LD_LIBRARY_PATH").then(|| {
                // cargo's separator for compiler flags is not printable.
                let value = value.to_string_lossy().replace('\u{1f}', " ");
                format!("{}={}", name.to_string_lossy(), quoted(&value))
            })
        });
        let program = match std::env::var_os("CARGO") {
            Some(cargo) if cargo == self.get_program() => OsStr::new("cargo"),
            Some(_) | None => self.get_program(),
        };
        let words = std::iter::once(program)
            .chain(self.get_args())
            .map(|word| quoted(&word.to_string_lossy()));
        set.chain(words).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains(char::is_whitespace) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}

fn is_left_behind_by_cargo(name: &str) -> bool {
    const PREFIXES: [&str; 2] = ["CARGO_PKG_", "CARGO_MANIFEST_"];
    const NAMES: [&str; 6] = [
        "CARGO",
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
        "RUST_RECURSION_COUNT",
    ];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Removes the entries that cargo and rustup put in front of a library path.
fn without_build_directories(path: &OsStr) -> Option<OsString> {
    let added = |entry: &Path| {
        let text = entry.to_string_lossy();
        text.contains("/target/") || text.contains("/toolchains/") || text.contains("/.rustup/")
    };
    let rest: Vec<_> = std::env::split_paths(path)
        .filter(|entry| !entry.as_os_str().is_empty() && !added(entry))
        .collect();
    if rest.is_empty() { None } else { std::env::join_paths(rest).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn description_quotes_and_shows_the_environment() {
        let mut command = Command::new("prog");
        command.arg("two words").env("FLAGS", "-C\u{1f}x");
        assert_eq!(command.describe(), "FLAGS='-C x' prog 'two words'");
    }

    #[test]
    fn library_path_keeps_only_what_the_user_set() {
        let path =
            OsStr::new("/src/target/debug/deps:/home/u/.rustup/toolchains/stable/lib:/opt/lib");
        assert_eq!(without_build_directories(path), Some("/opt/lib".into()));
        assert_eq!(without_build_directories(OsStr::new("/src/target/debug:")), None);
    }

    #[test]
    fn failure_names_the_command() {
        let error =
            Command::new("sh").args(["-c", "exit 3"]).read().expect_err("exit 3 is a failure");
        assert!(error.to_string().contains("`sh -c 'exit 3'` failed"), "{error}");
    }
}
