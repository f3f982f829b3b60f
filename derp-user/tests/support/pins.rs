//! A BPF file system, and derpd as a process in a namespace that pins there.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::links::{FdLink, PinnedLink},
};
use derp_common::{
    Family, Reason,
    maps::{COUNTERS, Counter, counter_index},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    netns::{SERVER_INTERFACE, run_in},
    packets::STUN_PORT,
};

/// The user without rights.
pub(crate) const NOBODY: u32 = 65534;
const PORT: u16 = 3340;
const HANG: Duration = Duration::from_secs(30);

/// A BPF file system of its own, unmounted on drop, which frees whatever is pinned in it.
pub(crate) struct BpfFs {
    directory: TempDir,
}

impl BpfFs {
    /// Mounts it, in a directory that everybody can pass through.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub(crate) fn mount() -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        open_to_all(directory.path());
        let this = Self { directory };
        fs::create_dir(this.root()).map_err(|error| error.to_string())?;
        let none: Option<&str> = None;
        mount(Some("bpf"), &this.root(), Some("bpf"), MsFlags::empty(), none)
            .map_err(|errno| format!("mount a BPF file system: {errno}"))?;
        open_to_all(&this.root());
        fs::write(this.key(), "{\"PrivateKey\":\"privkey:5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb\"}")
            .map_err(|error| error.to_string())?;
        fs::set_permissions(this.key(), fs::Permissions::from_mode(0o644)).expect("chmod");
        Ok(this)
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("bpf")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("key")
    }

    /// The directory of pins.
    pub(crate) fn pins(&self) -> PathBuf {
        self.root().join("derpd")
    }

    /// A directory that is on no BPF file system.
    pub(crate) fn elsewhere(&self) -> PathBuf {
        self.directory.path().join("elsewhere")
    }

    /// Makes the directory of pins for another user.
    pub(crate) fn give_to(&self, user: u32) {
        fs::create_dir(self.pins()).expect("mkdir");
        chown(self.pins(), Some(user), Some(user)).expect("chown");
    }

    /// Names of what is in a directory below the pins, in order; empty when there is none.
    pub(crate) fn list(&self, below: &str) -> Vec<String> {
        let entries = fs::read_dir(self.pins().join(below)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }

    /// The one generation of maps.
    pub(crate) fn generation(&self) -> PathBuf {
        let names = self.list("");
        let found: Vec<_> = names.iter().filter(|name| name.starts_with("maps-")).collect();
        let [name] = found[..] else { panic!("not one generation: {names:?}") };
        self.pins().join(name)
    }

    /// The program in the one link, by the kernel's number.
    pub(crate) fn linked_program(&self) -> u32 {
        let names = self.list("links");
        let [name] = &names[..] else { panic!("not one link: {names:?}") };
        let link = PinnedLink::from_pin(self.pins().join("links").join(name)).expect("a link");
        FdLink::from(link).info().expect("info").program_id()
    }

    /// The pinned counters, which stay readable when they are no longer pinned.
    pub(crate) fn counters(&self) -> Counters {
        Counters(open(&self.generation().join(COUNTERS)))
    }

    /// Alters bytes of what the maps say about themselves.
    pub(crate) fn tamper(&self, at: usize) {
        let mut meta: Array<MapData, [u8; 80]> = open(&self.generation().join("META"));
        let mut value = meta.get(&0, 0).expect("a value");
        value[at] ^= 0xff;
        meta.set(0, value, 0).expect("written");
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        // It may not have been mounted.
        let _ = umount2(&self.root(), MntFlags::MNT_DETACH);
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

fn open<M: TryFrom<Map, Error = MapError>>(path: &Path) -> M {
    let data = MapData::from_pin(path).expect("a pinned map");
    Map::from_map_data(data).expect("a map").try_into().expect("of this type")
}

/// The program's counters.
pub(crate) struct Counters(PerCpuArray<MapData, Counter>);

impl Counters {
    /// Requests the kernel has answered.
    pub(crate) fn answered(&self) -> u64 {
        let count = |family| {
            let index = counter_index(family, Reason::StunAnswered);
            let per_cpu = self.0.get(&index, 0).expect("a counter");
            per_cpu.iter().map(|cpu| cpu.packets).sum::<u64>()
        };
        count(Family::Ipv4) + count(Family::Ipv6)
    }
}

/// Who runs derpd.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum User {
    Root,
    /// [`NOBODY`] with the capabilities that the kernel data plane needs.
    WithCapabilities,
}

/// A running derpd, killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) log: Vec<String>,
}

impl Process {
    /// A command that runs derpd in a namespace; `extra` follows what every relay of these tests gets.
    pub(crate) fn command(bpf: &BpfFs, namespace: &str, user: User, extra: &[&str]) -> Command {
        let mut command = in_namespace(namespace);
        if user == User::WithCapabilities {
            let capabilities = "+bpf,+perfmon,+net_admin,+net_bind_service";
            command.args(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]);
            command.args(["--inh-caps", capabilities, "--ambient-caps", capabilities]);
        }
        command.arg(env!("CARGO_BIN_EXE_derpd"));
        command.args(["-a", &format!(":{PORT}"), "-stun-port", &STUN_PORT.to_string()]);
        command.arg("-c").arg(bpf.key()).args(["-workers", "2", "-min-workers", "2"]);
        command.args(extra);
        command
    }

    /// The flags for native XDP on the server's end, pinned.
    pub(crate) fn start(bpf: &BpfFs, namespace: &str, extra: &[&str]) -> Self {
        let pin = format!("-xdp-pin={}", bpf.pins().display());
        let mut flags = vec!["-xdp-interface", SERVER_INTERFACE, "-xdp-mode=native", &pin];
        flags.extend_from_slice(extra);
        Self::run(&mut Self::command(bpf, namespace, User::Root, &flags))
    }

    /// Runs a command until it says that it serves.
    pub(crate) fn run(command: &mut Command) -> Self {
        match Self::try_run(command) {
            Ok(process) => process,
            Err(log) => panic!("derpd does not start: {log:#?}"),
        }
    }

    /// Like [`Process::run`]; the error is the log of one that ended instead.
    pub(crate) fn try_run(command: &mut Command) -> Result<Self, Vec<String>> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("derpd starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut log = Vec::new();
        loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).expect("text") == 0 {
                child.wait().expect("waitable");
                return Err(log);
            }
            let serves = line.contains("derper: serving on ");
            log.push(line.trim_end().to_owned());
            if serves {
                break;
            }
        }
        // Whatever else it logs must not block it.
        thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        Ok(Self { child, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn says(&self, part: &str) -> bool {
        self.log.iter().any(|line| line.contains(part))
    }

    /// Ends it by a signal and waits.
    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("kill");
        let deadline = Instant::now() + HANG;
        loop {
            if let Some(status) = self.child.try_wait().expect("waitable") {
                return status;
            }
            assert!(Instant::now() < deadline, "derpd does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool of derpd in a namespace; returns its status and output.
pub(crate) fn tool(namespace: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = in_namespace(namespace);
    let output = command.arg(env!("CARGO_BIN_EXE_derpd")).args(arguments).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Requests that the userspace STUN server of the running relay has answered.
pub(crate) fn answered_in_userspace(namespace: &str) -> u64 {
    let text = run_in(namespace, || {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT)).expect("connect");
        stream.set_read_timeout(Some(HANG)).expect("timeout");
        let request = "GET /debug/varz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("send");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("metrics");
        text
    });
    let line = text.lines().find(|line| line.starts_with("stun_requests{disposition=\"success\"}"));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("no counter: {text}"))
}

fn in_namespace(namespace: &str) -> Command {
    // `ip netns exec` would mount another /sys.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").env_remove("RUST_LOG");
    command
}
