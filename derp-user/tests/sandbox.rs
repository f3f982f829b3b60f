//! What a relay that serves can no longer do, what it still can, and what it says where a kernel cannot help.

#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    collections::BTreeMap,
    env, fs,
    io::{ErrorKind, Write as _},
    net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket},
    os::unix::{fs::symlink, net::UnixDatagram, process::CommandExt as _},
    path::Path,
    process::{self, Command, Stdio},
    thread,
};

use derp_user::privilege::{Files, Layer, Needs, enter, seal_memory};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{resource, resource::Resource, signal::kill},
    unistd::{Pid, getppid, setuid},
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use server::{Server, skip, write_file};

/// Tells a test that it runs as the process that is confined, and where its files are.
const CONFINED: &str = "DERPD_TEST_CONFINED";
/// Tells a test to become derpd on a kernel that has neither Landlock nor filters.
const POOR_KERNEL: &str = "DERPD_TEST_POOR_KERNEL";

/// What `/proc` says of a process or thread, by field.
fn status(path: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).expect("a process that runs");
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

/// Runs this test again as a process of its own, which does what `variable` stands for.
fn again(test: &str, variable: &str, value: &Path) -> process::Output {
    Command::new(env::current_exe().expect("a path"))
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .output()
        .expect("the test program runs")
}

#[test]
fn a_relay_that_serves_holds_nothing() {
    let server = Server::start();
    // It takes connections a moment before it gives up the last rights.
    server.wait_for_log("derper: serving on ");
    let id = server.id();
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("threads");
    let mut threads = 0;
    for task in tasks {
        let path = task.expect("a thread").path().join("status");
        let status = status(&path.display().to_string());
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(status[set], "0000000000000000", "{set} of {path:?}");
        }
        if nix::unistd::geteuid().is_root() {
            assert_eq!(status["CapBnd"], "0000000000000000", "{path:?}");
        }
        assert_eq!(status["NoNewPrivs"], "1", "{path:?}");
        assert_eq!(status["Seccomp"], "2", "{path:?}");
        threads += 1;
    }
    assert!(threads > 1, "workers have threads of their own");
    let limits = fs::read_to_string(format!("/proc/{id}/limits")).expect("limits");
    let cores = limits.lines().find(|line| line.starts_with("Max core file size"));
    let cores = cores.expect("a limit").split_whitespace().skip(4).collect::<Vec<_>>();
    assert_eq!(cores, ["0", "0", "bytes"]);
    for layer in [Layer::Memory, Layer::Capabilities, Layer::Calls] {
        let metric = format!("derpd_sandbox_in_force{{layer=\"{}\"}}", layer.as_str());
        assert_eq!(server.metric(&metric), 1.0, "{metric}");
    }
    if server.metric("derpd_sandbox_in_force{layer=\"landlock\"}") < 1.0 {
        let log = server.log();
        assert!(log.contains("sandbox: not all is in force: landlock: "), "{log}");
        skip("all rights of Landlock", "this kernel does not have them");
    }
}

#[test]
fn it_can_be_switched_off_and_capabilities_go_all_the_same() {
    let server = Server::start_with(&["-sandbox=false"]);
    server.wait_for_log("derper: serving on ");
    let status = status(&format!("/proc/{}/status", server.id()));
    assert_eq!(status["CapEff"], "0000000000000000");
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "0"));
    let log = server.log();
    assert!(log.contains("-sandbox=false: files and system calls are not restricted"), "{log}");
    for layer in Layer::ALL {
        let metric = format!("derpd_sandbox_in_force{{layer=\"{}\"}}", layer.as_str());
        assert_eq!(server.metric(&metric), 0.0, "{metric}");
    }
}

/// What a process has been confined in tries what it should not, and what it must be able to.
#[test]
fn forbidden_things_fail_and_the_rest_works() {
    if let Some(directory) = env::var_os(CONFINED) {
        return try_everything(Path::new(&directory));
    }
    let directory = tempfile::tempdir().expect("a directory");
    for name in ["read", "write", "other"] {
        fs::create_dir(directory.path().join(name)).expect("a directory");
        write_file(&directory.path().join(name), "file", "text");
    }
    symlink("../other/file", directory.path().join("read/link")).expect("a link");
    let output = again("forbidden_things_fail_and_the_rest_works", CONFINED, directory.path());
    let (said, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("1 passed"), "{said}");
    std::io::stderr().write_all(errors.as_bytes()).ok();
}

fn try_everything(directory: &Path) {
    let path = |name: &str| directory.join(name);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let own = listener.local_addr().expect("an address");
    seal_memory().expect("sealed");
    let sandbox = enter(&Needs {
        files: Files { read: vec![path("read/file")], write: vec![path("write/file")] },
        ..Needs::default()
    });
    let faults: Vec<_> = sandbox.faults().collect();

    let status = status("/proc/thread-self/status");
    assert_eq!((&*status["NoNewPrivs"], &*status["Seccomp"]), ("1", "2"), "{faults:?}");
    assert_eq!(status["CapPrm"], "0000000000000000");
    assert_eq!(resource::getrlimit(Resource::RLIMIT_CORE), Ok((0, 0)));

    // System calls.
    assert_eq!(
        Command::new("/bin/true").spawn().expect_err("a program").kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(Command::new("/bin/true").exec().kind(), ErrorKind::Unsupported);
    assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::ENOSYS));
    assert_eq!(setuid(1.into()), Err(Errno::ENOSYS));
    assert_eq!(kill(getppid(), None), Err(Errno::ENOSYS));
    assert_eq!(kill(Pid::this(), None), Err(Errno::ENOSYS));
    assert_eq!(nix::mount::umount("/proc"), Err(Errno::ENOSYS));
    assert_eq!(resource::setrlimit(Resource::RLIMIT_CORE, 1, 1), Err(Errno::EPERM));
    for (name, call) in [
        ("ptrace", libc::SYS_ptrace),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("bpf", libc::SYS_bpf),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("keyctl", libc::SYS_keyctl),
        ("init_module", libc::SYS_init_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("io_uring_setup", libc::SYS_io_uring_setup),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("setns", libc::SYS_setns),
        ("seccomp", libc::SYS_seccomp),
        ("memory that is written and executed", libc::SYS_mmap),
        ("a packet socket", libc::SYS_socket),
    ] {
        assert_eq!(forbidden(call), Errno::ENOSYS, "{name}");
    }
    assert!(TcpListener::bind("127.0.0.1:0").is_err(), "nobody listens on another port");

    // What a relay does all day.
    let stream = TcpStream::connect(own).expect("a connection");
    let (mut accepted, _) = listener.accept().expect("the connection");
    accepted.write_all(b"x").expect("sent");
    drop(stream);
    UdpSocket::bind("127.0.0.1:0").expect("a socket");
    UnixDatagram::pair().expect("sockets");
    let named = thread::Builder::new().name("worker".to_owned()).spawn(|| 7);
    assert_eq!(named.expect("a thread").join().expect("its result"), 7);
    ("localhost", 80).to_socket_addrs().expect("a name can be looked up").next();
    assert!(thread::available_parallelism().is_ok());
    assert!(!fs::read_to_string("/proc/self/stat").expect("figures").is_empty());

    // Files.
    assert_eq!(fs::read_to_string(path("read/file")).expect("readable"), "text");
    fs::write(path("write/.new"), "other").expect("writable");
    fs::rename(path("write/.new"), path("write/file")).expect("replaced");
    assert_eq!(fs::read_to_string(path("write/file")).expect("readable"), "other");
    if faults.iter().any(|(_, reason)| reason.contains("no Landlock")) {
        return skip("files out of reach", "this kernel has no Landlock");
    }
    let denied = |result: std::io::Result<String>, what: &str| {
        let error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{what}: {error}");
    };
    denied(fs::read_to_string(path("other/file")), "a file elsewhere");
    denied(fs::read_to_string(path("read/link")), "a link to it");
    denied(
        fs::read_to_string(format!(
            "/proc/{}/../../{}/other/file",
            process::id(),
            directory.display()
        )),
        "a detour",
    );
    let write = |name: &str| fs::write(path(name), "").map(|()| String::new());
    denied(write("read/file"), "a file that is only read");
    denied(write("read/new"), "a new one beside it");
    denied(write("other/new"), "a new file elsewhere");
    denied(fs::remove_file(path("read/file")).map(|()| String::new()), "removing one");
    denied(fs::read_dir(path("other")).map(|_| String::new()), "a directory elsewhere");
    denied(fs::read_dir("/root").or_else(|_| fs::read_dir("/")).map(|_| String::new()), "the root");
    denied(
        fs::OpenOptions::new()
            .write(true)
            .open("/proc/sys/kernel/core_pattern")
            .map(|_| String::new()),
        "settings of the kernel",
    );
}

/// Makes a system call with arguments that no rule allows. Without a filter it would fail otherwise, or do nothing.
#[expect(unsafe_code, reason = "nothing else makes calls that are to fail")]
fn forbidden(call: libc::c_long) -> Errno {
    let (first, third) = match call {
        libc::SYS_mmap => (0, libc::PROT_WRITE | libc::PROT_EXEC),
        libc::SYS_socket => (libc::AF_PACKET, 0),
        _ => (-1, 0),
    };
    // SAFETY: no argument is an address; what is mapped, should that succeed, is never touched.
    let result = unsafe {
        libc::syscall(
            call,
            i64::from(first),
            4096i64,
            i64::from(third),
            i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
            -1i64,
            0i64,
        )
    };
    if result == -1 { Errno::last() } else { Errno::UnknownErrno }
}

#[test]
fn a_kernel_that_cannot_do_it_is_said_and_counted() {
    if let Some(flags) = env::var_os(POOR_KERNEL) {
        become_derpd_on_a_poor_kernel(&flags.to_string_lossy());
    }
    let directory = tempfile::tempdir().expect("a directory");
    let key = directory.path().join("derper.key");
    let flags = format!("-a=127.0.0.1:0 -stun=false -c={}", key.display());
    let mut child = Command::new(env::current_exe().expect("a path"))
        .args(["a_kernel_that_cannot_do_it_is_said_and_counted", "--exact", "--nocapture"])
        .env(POOR_KERNEL, &flags)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the test program runs");
    let log = std::io::BufReader::new(child.stderr.take().expect("piped"));
    let mut said = Vec::new();
    let mut address = None;
    for line in std::io::BufRead::lines(log) {
        let line = line.expect("text");
        if let Some((_, rest)) = line.split_once("derper: serving on ") {
            address = Some(rest.trim().to_owned());
        }
        said.push(line);
        if address.is_some() {
            break;
        }
    }
    let address = address.unwrap_or_else(|| panic!("it does not serve: {said:?}"));
    let mut stream = TcpStream::connect(&address).expect("it serves");
    stream.write_all(b"GET /debug/varz HTTP/1.0\r\n\r\n").expect("asked");
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("an answer");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let faults: Vec<_> = said.iter().filter(|line| line.contains("sandbox: ")).collect();
    let [fault] = &faults[..] else { panic!("not said once: {said:?}") };
    for part in
        ["landlock: this kernel has no Landlock", "seccomp: the kernel or a container refuses it: "]
    {
        assert!(fault.contains(part), "{part:?} is missing from {fault:?}");
    }
    for (layer, value) in [("memory", 1), ("capabilities", 1), ("landlock", 0), ("seccomp", 0)] {
        let line = format!("derpd_sandbox_in_force{{layer=\"{layer}\"}} {value}\n");
        assert!(answer.contains(&line), "{line}: {answer}");
    }
}

/// Forbids what a sandbox is made with, as container runtimes and old kernels do.
fn become_derpd_on_a_poor_kernel(flags: &str) -> ! {
    let calls = [libc::SYS_landlock_create_ruleset, libc::SYS_seccomp];
    let filter = SeccompFilter::new(
        calls.map(|call| (call, Vec::new())).into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        env::consts::ARCH.try_into().expect("a processor with filters"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    seccompiler::apply_filter(&program).expect("applied");
    let error = Command::new(env!("CARGO_BIN_EXE_derpd")).args(flags.split(' ')).exec();
    panic!("derpd does not start: {error}");
}

#[test]
fn a_reload_says_why_a_new_place_is_out_of_reach() {
    let (old, new) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("another"));
    let config = |authorities: &Path| {
        format!(
            "[peer_relay]\nport = 47000\nallow = \"any\"\nkey_file = \"{}/keys\"\nderp = [\"127.0.0.1:9\"]\n\
             derp_ca_file = \"{}/ca.pem\"\n",
            old.path().display(),
            authorities.display()
        )
    };
    let authority = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).expect("one");
    for place in [&old, &new] {
        write_file(place.path(), "ca.pem", &authority.cert.pem());
    }
    let file = write_file(old.path(), "derpd.toml", &config(old.path()));
    let server = Server::start_with(&["-config", &file]);
    // In the same place, a new file is as good as the old one.
    fs::rename(old.path().join("ca.pem"), old.path().join("was.pem")).expect("renamed");
    write_file(old.path(), "ca.pem", &authority.cert.pem());
    server.reload();
    server.wait_for_metric("derpd_reloads_total{result=\"ok\"}", 1.0);
    write_file(old.path(), "derpd.toml", &config(new.path()));
    server.reload();
    if server.metric("derpd_sandbox_in_force{layer=\"landlock\"}") < 1.0 {
        return skip("files out of reach", "this kernel has no Landlock");
    }
    let log = server.wait_for_log("reload failed, nothing has changed: ");
    assert!(log.contains("need a restart, or -sandbox=false"), "{log}");
}

#[test]
fn the_systemd_unit_lets_the_sandbox_be_made() {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/derpd.service");
    let unit = fs::read_to_string(unit).expect("the unit");
    let mut filters = unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter="));
    let last = filters.next_back().expect("filters");
    let allowed: Vec<_> = last.split(' ').collect();
    for call in [
        "capset",
        "landlock_create_ruleset",
        "landlock_add_rule",
        "landlock_restrict_self",
        "seccomp",
    ] {
        assert!(allowed.contains(&call), "{call} comes after what takes it away: {last}");
    }
}
