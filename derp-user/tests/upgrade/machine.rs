//! A Debian under a real systemd, in a container of systemd-nspawn.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Instant,
};

use tempfile::TempDir;

use crate::{Host, PATIENCE, lab::Lab, program::write_build};

/// A running container; ended when dropped, with everything that was written in it.
pub(crate) struct Machine {
    container: Child,
    /// The process that is number 1 in there.
    leader: u32,
    packages: TempDir,
    deb: PathBuf,
}

impl Machine {
    /// Boots a container on a copy of the Debian that `cargo xtask package trial` has made, in the network namespace of
    /// a lab's relay or in one of its own. The error says why there is none.
    pub(crate) fn boot(lab: Option<&Lab>) -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let from = |name: &str| {
            env::var_os(name).map(PathBuf::from).ok_or_else(|| {
                "it needs a Debian and the package: run `cargo xtask package trial`".to_owned()
            })
        };
        let (root, deb) = (from("DERPD_DEBIAN_ROOT")?, from("DERPD_DEB")?);
        let packages = tempfile::tempdir().expect("a temporary directory");
        let name =
            format!("derpd-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new("systemd-nspawn");
        command.args(["--quiet", "--boot", "--volatile=overlay", "--console=pipe"]);
        // Without systemd outside, which would keep a register of it.
        command.args(["--register=no", "--keep-unit", "--link-journal=no"]);
        // As on a machine of its own; the service gives up what it need not have.
        command.args(["--capability=all", "--system-call-filter=bpf perf_event_open"]);
        command.arg(format!("--directory={}", root.display())).arg(format!("--machine={name}"));
        command.arg(format!("--bind-ro={}:/packages", packages.path().display()));
        match lab {
            Some(lab) => command.arg(format!("--network-namespace-path=/run/netns/{}", lab.relay)),
            None => command.arg("--private-network"),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let container = command.spawn().map_err(|error| format!("systemd-nspawn: {error}"))?;
        let mut this = Self { container, leader: 0, packages, deb };
        this.wait("a process in the container", |this| {
            this.leader = child_of(this.container.id()).unwrap_or(0);
            this.leader != 0
        });
        this.wait("a system that has started", |this| {
            let output = this.output(&["systemctl", "is-system-running"]);
            ["running\n", "degraded\n"].contains(&text(&output.stdout).as_str())
        });
        Ok(this)
    }

    fn wait(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            let ended = self.container.try_wait().expect("a child");
            assert!(ended.is_none(), "{what}: systemd-nspawn has ended: {ended:?}");
            assert!(Instant::now() < deadline, "no {what}");
            thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    /// Runs a command in the container.
    fn output(&self, command: &[&str]) -> Output {
        Command::new("nsenter")
            .arg(format!("--target={}", self.leader))
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--",
            ])
            .args(command)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .output()
            .expect("nsenter runs")
    }

    /// Runs a script in the container, and returns its status and what it printed.
    pub(crate) fn try_run(&self, script: &str) -> (i32, String) {
        let output = self.output(&["sh", "-c", script]);
        (output.status.code().unwrap_or(-1), text(&output.stdout) + &text(&output.stderr))
    }

    /// Runs a script that has to succeed, and returns what it printed.
    pub(crate) fn run(&self, script: &str) -> String {
        let (status, said) = self.try_run(script);
        assert_eq!(status, 0, "{script}: {said}\n{}", self.log());
        said
    }

    /// The place of a file of the container for others to find it.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{file}", self.leader))
    }

    /// Has the package manager install a build of the package, made when it is first asked for, and returns what that
    /// printed.
    pub(crate) fn install_build(&self, build: u8) -> String {
        let place = self.packages.path().join(format!("derpd-{build}.deb"));
        if !place.exists() {
            repack(&self.deb, &place, build);
        }
        self.run(&format!("dpkg --install /packages/derpd-{build}.deb"))
    }

    /// What the manual says for the kernel data plane. (On a machine of its own systemd mounts the file system.)
    pub(crate) fn allow_kernel(&self) {
        self.run(
            "mount -t bpf bpf /sys/fs/bpf && install -D -m 0644 /usr/share/derpd/kernel.conf \
             /etc/systemd/system/derpd.service.d/kernel.conf && systemctl daemon-reload",
        );
    }
}

/// Packs another build of the program as a package with a later version.
fn repack(deb: &Path, place: &Path, build: u8) {
    let run = |arguments: &[&str]| {
        let output = Command::new("dpkg-deb").args(arguments).output().expect("dpkg-deb runs");
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let tree = directory.path().join("tree");
    let (tree_name, deb) = (tree.display().to_string(), deb.display().to_string());
    run(&["--raw-extract", &deb, &tree_name]);
    let program = tree.join("usr/bin/derpd");
    write_build(&program, &program, build);
    let control = tree.join("DEBIAN/control");
    let fields = fs::read_to_string(&control).expect("control");
    let with_version = |line: &str| {
        let suffix =
            if line.starts_with("Version: ") { format!("+build{build}") } else { String::new() };
        format!("{line}{suffix}\n")
    };
    fs::write(&control, fields.lines().map(with_version).collect::<String>()).expect("control");
    run(&[
        "--root-owner-group",
        "-Zgzip",
        "-z1",
        "--build",
        &tree_name,
        &place.display().to_string(),
    ]);
}

impl Host for Machine {
    fn configure(&self, variables: &str, file: &str) {
        fs::write(self.path("/etc/default/derpd"), variables).expect("writable");
        fs::write(self.path("/etc/derpd/derpd.toml"), file).expect("writable");
    }

    fn start(&mut self) {
        self.run("systemctl enable --now derpd.socket derpd.service");
    }

    fn upgrade(&mut self, build: u8) {
        let process = || self.run("systemctl show --property=MainPID derpd");
        let before = process();
        self.install_build(build);
        self.run("systemctl is-active derpd.service derpd.socket");
        assert_ne!(process(), before, "the package has restarted the service");
    }

    fn stop(&mut self) {
        self.run("systemctl stop derpd.socket derpd.service");
        let result = self.run("systemctl show --property=Result derpd.service");
        assert_eq!(result, "Result=success\n");
    }

    fn certificate(&self) -> PathBuf {
        self.path(&format!("/var/lib/derpd/certs/{}.crt", crate::crowd::RELAY))
    }

    fn log(&self) -> String {
        text(&self.output(&["journalctl", "--unit=derpd", "--no-pager", "--lines=200"]).stdout)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.log());
        }
        // Whatever runs in the container ends with its first process.
        if self.leader != 0 {
            let _ = Command::new("kill").args(["-KILL", &self.leader.to_string()]).status();
        }
        let _ = self.container.wait();
    }
}

/// A child of a process, by the kernel's list.
fn child_of(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
