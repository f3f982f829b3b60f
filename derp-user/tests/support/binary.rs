//! The daemon as a program: started with arguments, watched, ended.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

/// A private key,
pub(crate) const KEY: &str =
    "privkey:5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";
/// and its public one.
pub(crate) const PUBLIC: &str =
    "nodekey:de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f";
/// A test that should have ended long before this is ended, so that it fails instead of hanging.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) fn derpd<T: AsRef<OsStr>>(arguments: &[T]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_derpd"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Exit code, standard output and standard error of a run that ends by itself.
pub(crate) fn run(command: &mut Command) -> (i32, String, String) {
    let mut child = command.spawn().expect("derpd starts");
    let status = wait(&mut child);
    let (mut stdout, mut stderr) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut stdout).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    (status.code().unwrap_or_else(|| panic!("{status}: {stderr}")), stdout, stderr)
}

pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("waitable") {
            return status;
        }
        if started.elapsed() > HANG {
            let _ = child.kill();
            panic!("derpd did not end by itself");
        }
        sleep(Duration::from_millis(5));
    }
}

/// Asserts that the run fails with `code` and that its complaint is one line, the last, holding all `parts`.
pub(crate) fn assert_refused(command: &mut Command, code: i32, parts: &[&str]) {
    let (got, stdout, stderr) = run(command);
    let complaints: Vec<&str> = stderr.lines().filter(|line| line.starts_with("derpd: ")).collect();
    assert_eq!((got, stdout.as_str()), (code, ""), "{stderr}");
    let [complaint] = complaints[..] else { panic!("not one complaint: {stderr}") };
    assert_eq!(stderr.lines().last(), Some(complaint));
    for part in parts {
        assert!(complaint.contains(part), "{part:?} is missing from {complaint:?}");
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A directory with a key file, and arguments for a plain-HTTP relay on ports that the system chooses.
pub(crate) struct Place {
    pub(crate) directory: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join("derper.key"), format!("{{\"PrivateKey\":\"{KEY}\"}}"))
            .expect("writable");
        Self { directory }
    }

    pub(crate) fn path(&self, name: &str) -> String {
        text(&self.directory.path().join(name)).to_owned()
    }

    pub(crate) fn arguments(&self, extra: &[&str]) -> Vec<String> {
        let key = self.path("derper.key");
        let basic = ["-a", "127.0.0.1:0", "-stun-port", "0", "-c", &key];
        basic.iter().chain(extra).map(|argument| (*argument).to_owned()).collect()
    }

    /// The same over TLS for the host name 127.0.0.1, without a second listener.
    pub(crate) fn tls_arguments(&self, extra: &[&str]) -> Vec<String> {
        let directory = self.path("certs");
        let tls =
            ["-certmode=manual", "-certdir", &directory, "-hostname=127.0.0.1", "-http-port=-1"];
        let extra: Vec<&str> = tls.iter().chain(extra).copied().collect();
        self.arguments(&extra)
    }
}

/// A running relay, killed when dropped.
pub(crate) struct Relay {
    pub(crate) child: Child,
    pub(crate) lines: Vec<String>,
}

impl Relay {
    /// Starts derpd and reads its log up to the line that says it serves.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("derpd starts");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if log.read_line(&mut line).expect("text") == 0 {
                panic!("derpd ended with {}: {lines:?}", wait(&mut child));
            }
            let serves = line.contains("derper: serving on ");
            lines.push(line.trim_end().to_owned());
            if serves {
                break;
            }
        }
        // Whatever else it logs must not block it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, lines }
    }

    pub(crate) fn has_line(&self, part: &str) -> bool {
        self.lines.iter().any(|line| line.contains(part))
    }

    pub(crate) fn stop(mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("it runs");
        wait(&mut self.child)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
