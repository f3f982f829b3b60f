//! The service without systemd: what the unit files say, done by hand.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{PermissionsExt as _, chown},
            net::UnixDatagram,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use socket2::{Domain, Protocol, Socket, Type};
use tempfile::TempDir;

use crate::{Host, PATIENCE, lab::Lab, netns::run_in, program::write_build};

const SERVICE: &str = include_str!("../../../deploy/systemd/derpd.service");
const DROP_IN: &str = include_str!("../../../deploy/systemd/kernel.conf");
const SOCKET: &str = include_str!("../../../deploy/systemd/derpd.socket");
/// In the place of the user that the package makes.
const NOBODY: u32 = 65534;

/// The values of a key in unit files, in order.
fn values<'a>(units: &[&'a str], key: &str) -> Vec<&'a str> {
    let lines = units.iter().flat_map(|unit| unit.lines());
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
}

fn value<'a>(units: &[&'a str], key: &str) -> &'a str {
    values(units, key).last().unwrap_or_else(|| panic!("the unit has no {key}="))
}

/// derpd as a service in a lab's relay namespace; killed when dropped.
pub(crate) struct Bare {
    directory: TempDir,
    relay: String,
    /// A process in a mount namespace with a BPF file system of its own.
    mounts: Child,
    sockets: Vec<TcpListener>,
    notify: UnixDatagram,
    process: Option<Child>,
}

impl Bare {
    /// Prepares files, mounts and the program; or says why that is impossible here.
    pub(crate) fn new(lab: &Lab) -> Result<Self, String> {
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        for (name, mode) in [("", 0o755), ("etc", 0o755), ("state", 0o700), ("run", 0o755)] {
            let path = directory.path().join(name);
            fs::create_dir_all(&path).expect("mkdir");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("chmod");
        }
        chown(directory.path().join("state"), Some(NOBODY), Some(NOBODY)).expect("chown");
        let mut mounts = Command::new("unshare")
            .args(["--mount", "--propagation=private", "sh", "-c"])
            .arg("mount -t bpf bpf /sys/fs/bpf && echo mounted && exec sleep infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let output = mounts.stdout.take().expect("piped");
        BufReader::new(output).read_line(&mut line).map_err(|error| error.to_string())?;
        let notify = directory.path().join("run/notify");
        let this = Self {
            notify: UnixDatagram::bind(&notify).expect("a socket"),
            relay: lab.relay.clone(),
            directory,
            mounts,
            sockets: Vec::new(),
            process: None,
        };
        fs::set_permissions(&notify, Permissions::from_mode(0o777)).expect("chmod");
        if line.trim() != "mounted" {
            return Err("no BPF file system can be mounted".to_owned());
        }
        this.notify.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        this.write_program(0);
        Ok(this)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_program(&self, build: u8) {
        let program = Path::new(env!("CARGO_BIN_EXE_derpd"));
        write_build(program, &self.path("derpd"), build);
    }

    /// A value of the unit with this host's paths and user.
    fn here(&self, value: &str) -> String {
        let own = [
            ("/usr/bin/derpd", "derpd"),
            ("/var/lib/derpd", "state"),
            ("/etc/default/derpd", "etc/default"),
            ("/etc/derpd", "etc"),
        ];
        let value = value.replace("-o derpd -g derpd", "-o nobody -g nogroup");
        let replace = |text: String, (from, to): &(&str, &str)| {
            text.replace(from, &self.path(to).display().to_string())
        };
        own.iter().fold(value, replace)
    }

    /// A command in the namespaces of the service.
    fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.mounts.id()));
        command.arg(format!("--net=/run/netns/{}", self.relay)).arg("--");
        command
    }

    /// What `derpd.socket` says: the sockets stay open from now on, whatever becomes of the service.
    fn open_sockets(&mut self) {
        let backlog = value(&[SOCKET], "Backlog").parse().expect("a number");
        for port in values(&[SOCKET], "ListenStream") {
            let port: u16 = port.parse().expect("a port");
            let listener = run_in(&self.relay, move || {
                let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP));
                let socket = socket.expect("a socket");
                socket.set_only_v6(false).expect("both families");
                socket.set_reuse_address(true).expect("an option");
                socket.bind(&SocketAddr::from(([0_u16; 8], port)).into()).expect("bind");
                socket.listen(backlog).expect("listen");
                TcpListener::from(socket)
            });
            // The service inherits them.
            fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty())).expect("fcntl");
            self.sockets.push(listener);
        }
    }

    /// What `derpd.service` says with the drop-in, up to readiness.
    fn start_service(&mut self) {
        const UNITS: [&str; 2] = [SERVICE, DROP_IN];
        assert_eq!(value(&UNITS, "Type"), "notify");
        for line in values(&UNITS, "ExecStartPre") {
            let line = self.here(line.strip_prefix('+').expect("as root"));
            let status = self.command().args(line.split_whitespace()).status().expect("it runs");
            assert!(status.success(), "{line}: {status}");
        }
        let capabilities: Vec<_> = values(&UNITS, "AmbientCapabilities")
            .iter()
            .flat_map(|line| line.split_whitespace())
            .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        let capabilities = capabilities.join(",");
        let handed_over: Vec<_> = (3..)
            .zip(&self.sockets)
            .map(|(number, socket)| format!("{number}<&{}", socket.as_raw_fd()))
            .collect();
        let script = format!(
            "exec {}; export LISTEN_PID=$$ LISTEN_FDS={}; exec \"$@\"",
            handed_over.join(" "),
            handed_over.len()
        );
        let log = File::options().create(true).append(true).open(self.path("log"));
        let mut command = self.command();
        command.args(["bash", "-c", &script, "bash", "setpriv"]);
        command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
        command.args(["--clear-groups", "--no-new-privs"]);
        command.args(["--inh-caps", &capabilities, "--ambient-caps", &capabilities]);
        command.arg(self.here(value(&UNITS, "ExecStart")));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        for variable in values(&UNITS, "Environment") {
            let (name, value) = variable.split_once('=').expect("a variable");
            command.env(name, self.here(value));
        }
        let file = self.here(value(&UNITS, "EnvironmentFile").trim_start_matches('-'));
        for variable in fs::read_to_string(file).expect("the variables").lines() {
            let (name, value) = variable.split_once('=').expect("a variable");
            command.env(name, value);
        }
        command.env("NOTIFY_SOCKET", self.path("run/notify"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log file"));
        self.process = Some(command.spawn().expect("nsenter runs"));
        while self.hear() != "READY=1" {}
    }

    /// The next thing that derpd tells its service manager.
    fn hear(&mut self) -> String {
        let mut message = [0; 256];
        let Ok(length) = self.notify.recv(&mut message) else {
            let ended = self.process.as_mut().map(Child::try_wait);
            panic!("derpd says nothing, {ended:?}:\n{}", self.log());
        };
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    }

    /// What systemd does: SIGTERM, and as much time as it takes.
    fn stop_service(&mut self) {
        let mut process = self.process.take().expect("it was started");
        let id = i32::try_from(process.id()).expect("a pid");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = process.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < deadline, "derpd does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert_eq!(self.hear(), "STOPPING=1");
    }
}

impl Host for Bare {
    fn configure(&self, variables: &str, file: &str) {
        fs::write(self.path("etc/default"), variables).expect("writable");
        fs::write(self.path("etc/derpd.toml"), file).expect("writable");
    }

    fn start(&mut self) {
        self.open_sockets();
        self.start_service();
    }

    fn upgrade(&mut self, build: u8) {
        self.write_program(build);
        self.stop_service();
        self.start_service();
    }

    fn stop(&mut self) {
        self.stop_service();
        self.sockets.clear();
    }

    fn certificate(&self) -> PathBuf {
        self.path(&format!("state/certs/{}.crt", crate::crowd::RELAY))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for process in self.process.iter_mut().chain([&mut self.mounts]) {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
