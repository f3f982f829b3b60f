//! What outlives the daemon: pinned links and maps, who adopts them, and what becomes of the requests meanwhile.

#[path = "support/client.rs"]
mod client;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/pins.rs"]
mod pins;

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::MetadataExt as _,
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use aya::maps::MapInfo;
use derp_common::{
    Settings,
    maps::{LEG_STATISTICS, LEGS, SENDERS, SLOTS, SOURCES},
};
use derp_user::dataplane::{
    AttachedMode, DataplaneError, Kernel, MapSizes, Mode, Pin, Xdp, XdpOptions,
};
use nix::sys::signal::Signal;

use crate::{
    client::{BOTH, PATIENCE, ask, connect, environment, load},
    netns::{CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, run_in, spawn_in},
    packets::STUN_PORT,
    pins::{BpfFs, NOBODY, Process, User, answered_in_userspace, tool},
};

/// Two namespaces and a BPF file system, or why there are none.
fn place(test: &str) -> Option<(Namespaces, Kernel, BpfFs)> {
    let (namespaces, client_end) = environment(test)?;
    match BpfFs::mount() {
        Ok(bpf) => Some((namespaces, client_end, bpf)),
        Err(reason) => {
            kernel::skip(test, &reason);
            None
        }
    }
}

/// Resolves the neighbours, so that the kernel has an answer for everything that follows.
fn greet(namespaces: &Namespaces) {
    run_in(&namespaces.client, || {
        for (from, to) in BOTH {
            ask(&connect(from, to), 0);
        }
    });
}

/// Requests at a steady rate from both families, every one of which must be answered, and rightly.
fn steady(namespaces: &Namespaces, seconds: u64) -> JoinHandle<u64> {
    spawn_in(&namespaces.client, move || load(2_000, Duration::from_secs(seconds), &BOTH))
}

fn finish(load: JoinHandle<u64>) -> u64 {
    match load.join() {
        Ok(total) => total,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn kernel_answers(namespaces: &Namespaces) -> bool {
    run_in(&namespaces.client, || {
        let socket = connect(CLIENT4, SERVER4);
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
        socket.send(&client::request(9)).is_ok() && socket.recv(&mut [0; 100]).is_ok()
    })
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn no_request_is_lost_over_restarts(mode: &str) {
    let Some((namespaces, _client_end, bpf)) = place(&format!("restarts, {mode}")) else { return };
    let flag = format!("-xdp-mode={mode}");
    let start = || Process::start(&bpf, &namespaces.server, &[&flag]);
    let mut daemon = start();
    greet(&namespaces);
    let (counters, program) = (bpf.counters(), bpf.linked_program());
    let before = counters.answered();

    let load = steady(&namespaces, 8);
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL] {
        thread::sleep(Duration::from_millis(500));
        assert_eq!(answered_in_userspace(&namespaces.server), 0, "none came to userspace");
        daemon.end(signal);
        // Nobody but the kernel is there.
        thread::sleep(Duration::from_millis(500));
        daemon = start();
        assert!(daemon.says("the program and maps pinned in"), "{:#?}", daemon.log);
        assert_eq!(bpf.linked_program(), program, "the same program goes on");
    }
    let total = finish(load);
    assert_eq!(bpf.counters().answered() - before, total, "each was answered in the kernel");
    assert_eq!(answered_in_userspace(&namespaces.server), 0);
    println!("{mode}: {total} requests over three restarts, none lost");
}

#[test]
fn no_request_is_lost_when_the_daemon_is_killed_and_restarted_native() {
    no_request_is_lost_over_restarts("native");
}

#[test]
fn no_request_is_lost_when_the_daemon_is_killed_and_restarted_generic() {
    no_request_is_lost_over_restarts("generic");
}

#[test]
fn no_request_is_lost_in_an_upgrade() {
    const LAYOUT: usize = 16;
    const OBJECT: usize = 32;
    const FORMAT: usize = 4;
    let Some((namespaces, _client_end, bpf)) = place("upgrade") else { return };
    let start = || Process::start(&bpf, &namespaces.server, &[]);
    let mut daemon = start();
    greet(&namespaces);
    let mut answered = 0;
    let mut counted_before = bpf.counters().answered();

    let load = steady(&namespaces, 9);
    // What is pinned comes to be of another program with the same maps, of other maps, of another way to pin.
    for (byte, keeps_maps) in [(OBJECT, true), (LAYOUT, false), (FORMAT, false), (OBJECT, true)] {
        thread::sleep(Duration::from_millis(300));
        daemon.end(Signal::SIGKILL);
        let (old_maps, old_program) = (bpf.generation(), bpf.linked_program());
        let old_counters = bpf.counters();
        bpf.tamper(byte);
        daemon = start();
        assert_ne!(bpf.linked_program(), old_program, "the program is another");
        assert_eq!(bpf.generation() == old_maps, keeps_maps, "{:#?}", daemon.log);
        assert_eq!(daemon.says("the maps pinned in"), keeps_maps, "{:#?}", daemon.log);
        assert_eq!(daemon.says("what is pinned will be replaced"), !keeps_maps);
        if !keeps_maps {
            // No packet is with the old program any more, a grace period after it was replaced.
            thread::sleep(Duration::from_millis(100));
            answered += old_counters.answered() - counted_before;
            counted_before = 0;
        }
    }
    let total = finish(load);
    answered += bpf.counters().answered() - counted_before;
    assert_eq!(answered, total, "each was answered in the kernel");
    assert_eq!(answered_in_userspace(&namespaces.server), 0);
    println!("{total} requests over four upgrades, none lost");
}

#[test]
fn a_second_daemon_is_refused_and_disturbs_nothing() {
    let Some((namespaces, _client_end, bpf)) = place("two daemons") else { return };
    let first = Process::start(&bpf, &namespaces.server, &[]);
    greet(&namespaces);
    let (program, maps) = (bpf.linked_program(), bpf.generation());
    for mode in ["native", "auto"] {
        let pin = format!("-xdp-pin={}", bpf.pins().display());
        let mode = format!("-xdp-mode={mode}");
        let flags =
            ["-a", ":3341", "-stun-port=3479", "-xdp-interface", SERVER_INTERFACE, &mode, &pin];
        let mut command = Process::command(&bpf, &namespaces.server, User::Root, &flags);
        let log = Process::try_run(&mut command).err().expect("refused");
        let last = log.last().expect("a complaint");
        let process = format!("(process {})", first.id());
        assert!(last.contains("another derpd") && last.contains(&process), "{log:#?}");
    }
    assert_eq!((bpf.linked_program(), bpf.generation()), (program, maps));
    assert!(kernel_answers(&namespaces));
    assert_eq!(answered_in_userspace(&namespaces.server), 0);

    let pins = bpf.pins();
    let pins = pins.to_str().expect("UTF-8");
    let (status, _, error) = tool(&namespaces.server, &["detach", "--pin", pins]);
    assert_eq!(status, 1, "{error}");
    assert!(error.contains("another derpd"), "{error}");
    let (status, output, error) = tool(&namespaces.server, &["detach", "--pin", pins, "--force"]);
    assert_eq!(status, 0, "{error}");
    assert!(output.contains("detached from server0"), "{output}");
    wait_until("userspace does not take over", || {
        kernel_answers(&namespaces) && answered_in_userspace(&namespaces.server) > 0
    });
}

#[test]
fn sigterm_leaves_what_is_pinned_and_detach_removes_it() {
    let Some((namespaces, _client_end, bpf)) = place("SIGTERM and detach") else { return };
    let pins = bpf.pins();
    let pins = pins.to_str().expect("UTF-8");
    let daemon = Process::start(&bpf, &namespaces.server, &[]);
    greet(&namespaces);
    assert_eq!(daemon.end(Signal::SIGTERM).code(), Some(0));
    assert!(kernel_answers(&namespaces), "the kernel goes on");

    let (status, output, error) = tool(&namespaces.server, &["check", "--kernel", "--pin", pins]);
    assert_eq!(status, 0, "{output}{error}");
    for part in
        ["no derpd runs", "would adopt program and maps", "link to server0", "ADDRESSES", "CAP_BPF"]
    {
        assert!(output.contains(part), "{part:?} is missing: {output}");
    }
    let (_, output, _) = tool(&namespaces.server, &["check", "--kernel", "--json", "--pin", pins]);
    let report: serde_json::Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!(report["ok"], true, "{output}");
    assert_eq!(report["pins"]["links"][0]["interface"], SERVER_INTERFACE);
    assert_eq!(report["pins"]["in_use"], false);
    assert_eq!(report["interfaces"][0]["mode"], "native");
    assert!(report["pins"]["generations"][0]["maps"][0]["memory"].as_u64() > Some(0), "{output}");

    for expected in ["detached from server0 (interface", "nothing was pinned"] {
        let (status, output, error) = tool(&namespaces.server, &["detach", "--pin", pins]);
        assert_eq!(status, 0, "{error}");
        assert!(output.contains(expected), "{output}");
    }
    assert!(!bpf.pins().exists());
    wait_until("it stays attached", || !kernel_answers(&namespaces));
}

/// Case 49 of the relay's test cases: whatever ends the daemon, the host stays reachable.
#[test]
fn attaching_and_ending_cost_the_host_no_connection() {
    let Some((namespaces, _client_end, bpf)) = place("connectivity") else { return };
    let socket = run_in(&namespaces.server, || UdpSocket::bind((SERVER4, 7777)).expect("echo"));
    let echo = thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length @ 1.., from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&buffer[..length], from).expect("echo");
        }
    });
    let sender = spawn_in(&namespaces.client, || {
        let socket = UdpSocket::bind((CLIENT4, 0)).expect("socket");
        socket.connect((SERVER4, 7777)).expect("connect");
        socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let start = Instant::now();
        let mut round_trips = 0_u32;
        while start.elapsed() < Duration::from_secs(6) {
            socket.send(&round_trips.to_be_bytes()).expect("send");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("the host is reachable");
            assert_eq!(buffer[..length], round_trips.to_be_bytes());
            round_trips += 1;
            thread::sleep(Duration::from_micros(200));
        }
        socket.send(&[]).expect("send");
        round_trips
    });
    // veth takes its queues down and up again when a first program comes or the last one goes, and loses
    // what is in them, here as with any XDP program; in generic mode, nothing of the driver's changes.
    let flags = ["-xdp-mode=generic"];
    for (pin, signal) in [
        ("off", Signal::SIGTERM),
        ("off", Signal::SIGKILL),
        ("on", Signal::SIGKILL),
        ("on", Signal::SIGTERM),
    ] {
        let daemon = if pin == "off" {
            Process::start(&bpf, &namespaces.server, &[flags[0], "-xdp-pin=off"])
        } else {
            Process::start(&bpf, &namespaces.server, &flags)
        };
        assert!(kernel_answers(&namespaces));
        daemon.end(signal);
        if pin == "off" {
            wait_until("the link outlives the process", || !kernel_answers(&namespaces));
        } else {
            assert!(kernel_answers(&namespaces), "{signal}");
        }
    }
    let round_trips = sender.join().expect("the host is reachable throughout");
    assert!(round_trips > 1000, "{round_trips}");
    echo.join().expect("echo");
}

#[test]
fn without_pins_everything_ends_with_the_process() {
    let Some((namespaces, _client_end, bpf)) = place("no pins") else { return };
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let daemon = Process::start(&bpf, &namespaces.server, &["-xdp-pin=off"]);
        assert!(kernel_answers(&namespaces));
        assert!(!bpf.pins().exists());
        daemon.end(signal);
        wait_until("the link outlives the process", || !kernel_answers(&namespaces));
    }
}

#[test]
fn a_directory_that_cannot_be_used_is_fatal_only_if_it_was_asked_for() {
    let Some((namespaces, _client_end, bpf)) = place("no BPF file system") else { return };
    let pin = format!("-xdp-pin={}", bpf.elsewhere().display());
    let flags = ["-xdp-interface", SERVER_INTERFACE, "-xdp-mode=auto", &pin];
    let mut command = Process::command(&bpf, &namespaces.server, User::Root, &flags);
    let log = Process::try_run(&mut command).err().expect("refused");
    let complaint = log.last().expect("a complaint");
    assert!(
        complaint.contains("no BPF file system") && complaint.contains("mount -t bpf"),
        "{complaint}"
    );
    assert!(!bpf.elsewhere().exists());

    let options = XdpOptions {
        interfaces: vec![SERVER_INTERFACE.to_owned()],
        mode: Mode::Native,
        stun_port: STUN_PORT,
        pin: Pin::Directory { path: bpf.elsewhere(), is_required: false },
        ..XdpOptions::default()
    };
    let xdp = run_in(&namespaces.server, move || Xdp::attach(&options));
    let xdp = xdp.expect("it goes on").expect("attached");
    assert!(!xdp.stays_attached());
}

#[test]
fn what_a_crash_or_a_change_left_behind_is_cleaned() {
    let Some((namespaces, _client_end, bpf)) = place("stale pins") else { return };
    let server = &namespaces.server;
    namespaces.server_ip("link add extra0 type veth peer name extra1");
    namespaces.server_ip("link set extra0 up");
    // Native mode is refused where nobody takes in what is sent back.
    let pass_at_extra1 = || {
        run_in(server, || {
            let mut kernel = Kernel::load().expect("load");
            kernel.attach("extra1", AttachedMode::Native).expect("attach");
            kernel
        })
    };
    let mut other_end = pass_at_extra1();
    let both = ["-xdp-interface", "extra0"];
    Process::start(&bpf, server, &both).end(Signal::SIGKILL);
    assert_eq!(bpf.list("links").len(), 2);

    // An interface that is no longer configured.
    Process::start(&bpf, server, &[]).end(Signal::SIGKILL);
    assert_eq!(bpf.list("links").len(), 1);

    // An interface that is gone, and comes back as another one.
    Process::start(&bpf, server, &both).end(Signal::SIGKILL);
    namespaces.server_ip("link del extra0");
    let pins = bpf.pins();
    let pins = pins.to_str().expect("UTF-8");
    let (status, output, _) = tool(server, &["check", "--kernel", "--pin", pins]);
    assert!(status == 1 && output.contains("the interface is gone"), "{output}");
    namespaces.server_ip("link add extra0 type veth peer name extra1");
    drop(std::mem::replace(&mut other_end, pass_at_extra1()));
    let before = bpf.list("links");
    let daemon = Process::start(&bpf, server, &both);
    let after = bpf.list("links");
    assert!(after.len() == 2 && after != before, "{before:?} {after:?}");
    assert!(daemon.says("which is gone"), "{:#?}", daemon.log);
    daemon.end(Signal::SIGKILL);

    // Maps that were never completed, and some without a description.
    let current = bpf.generation();
    for number in [90, 91] {
        fs::create_dir(bpf.pins().join(format!("maps-{number}"))).expect("mkdir");
    }
    let daemon = Process::start(&bpf, server, &both);
    assert!(daemon.says("the program and maps pinned in"), "{:#?}", daemon.log);
    assert_eq!(bpf.generation(), current, "and nothing else");
    daemon.end(Signal::SIGKILL);

    // A map that somebody removed: the rest is of no use.
    fs::remove_file(current.join("ADDRESSES")).expect("remove");
    let daemon = Process::start(&bpf, server, &both);
    assert!(daemon.says("ADDRESSES is missing"), "{:#?}", daemon.log);
    assert_ne!(bpf.generation(), current);
    assert!(kernel_answers(&namespaces));
    daemon.end(Signal::SIGKILL);

    // Switched off.
    let flags = ["-xdp-mode=off", &format!("-xdp-pin={pins}")];
    let daemon = Process::run(&mut Process::command(&bpf, server, User::Root, &flags));
    assert!(daemon.says("is detached"), "{:#?}", daemon.log);
    assert!(!bpf.pins().exists());
}

#[test]
fn the_mode_can_be_changed_with_a_gap_and_auto_keeps_it() {
    let Some((namespaces, _client_end, bpf)) = place("change of mode") else { return };
    let start =
        |mode: &str| Process::start(&bpf, &namespaces.server, &[&format!("-xdp-mode={mode}")]);
    let names = |bpf: &BpfFs| bpf.list("links").join(" ");
    start("generic").end(Signal::SIGKILL);
    greet(&namespaces);
    let counters = bpf.counters().answered();
    start("auto").end(Signal::SIGKILL);
    assert!(names(&bpf).starts_with("generic-"), "{}", names(&bpf));
    let daemon = start("native");
    assert!(daemon.says("changing the mode"), "{:#?}", daemon.log);
    assert!(names(&bpf).starts_with("native-"), "{}", names(&bpf));
    assert!(kernel_answers(&namespaces));
    assert_eq!(bpf.counters().answered(), counters + 1, "the maps are the same");
    drop(daemon);
    // The loopback interface cannot do it; what it had comes back.
    let lo = ["-xdp-interface", "lo"];
    Process::start(&bpf, &namespaces.server, &["-xdp-mode=generic", lo[0], lo[1]])
        .end(Signal::SIGKILL);
    assert_eq!(names(&bpf).matches("generic-").count(), 2, "{}", names(&bpf));
    let pin = format!("-xdp-pin={}", bpf.pins().display());
    let flags = [lo[0], lo[1], "-xdp-mode=native", &pin];
    let log = Process::try_run(&mut Process::command(&bpf, &namespaces.server, User::Root, &flags));
    let log = log.err().expect("refused");
    assert!(log.last().is_some_and(|it| it.contains("no native XDP")), "{log:#?}");
    assert!(names(&bpf).contains("generic-1"), "{}", names(&bpf));
}

#[test]
fn another_namespace_with_the_same_pins_is_refused() {
    let Some((namespaces, _client_end, bpf)) = place("another namespace") else { return };
    Process::start(&bpf, &namespaces.server, &[]).end(Signal::SIGKILL);
    let options = XdpOptions {
        interfaces: vec!["lo".to_owned()],
        mode: Mode::Generic,
        stun_port: STUN_PORT,
        pin: Pin::Directory { path: bpf.pins(), is_required: true },
        ..XdpOptions::default()
    };
    let error = run_in(&namespaces.client, move || Xdp::attach(&options));
    let error = error.err().expect("refused");
    assert!(matches!(error, DataplaneError::Pin(_)), "{error}");
    assert!(error.to_string().contains("another network namespace"), "{error}");
    assert!(kernel_answers(&namespaces), "and nothing is disturbed");
}

#[test]
fn adopted_tables_are_corrected_and_never_empty() {
    let Some((namespaces, _client_end, bpf)) = place("adoption") else { return };
    namespaces.server_ip(&format!("addr add 10.77.0.98/24 dev {SERVER_INTERFACE}"));
    Process::start(&bpf, &namespaces.server, &[]).end(Signal::SIGKILL);
    namespaces.server_ip(&format!("addr del 10.77.0.98/24 dev {SERVER_INTERFACE}"));
    namespaces.server_ip(&format!("addr add 10.77.0.99/24 dev {SERVER_INTERFACE}"));
    let options = XdpOptions {
        interfaces: vec![SERVER_INTERFACE.to_owned()],
        mode: Mode::Native,
        stun_port: STUN_PORT,
        pin: Pin::Directory { path: bpf.pins(), is_required: true },
        // As of a daemon without flows.
        sizes: MapSizes { slots: 16, ..MapSizes::default() },
    };
    let prepared = run_in(&namespaces.server, move || Xdp::prepare(&options));
    let mut prepared = prepared.expect("prepared").expect("not off");
    assert!(prepared.is_adopted());
    assert_eq!(prepared.kernel_mut().settings().expect("settings").version, Settings::VERSION);
    greet(&namespaces);
    prepared.configure(Settings::new(STUN_PORT)).expect("settings");
    let xdp = run_in(&namespaces.server, move || prepared.commit()).expect("attached");
    let answered = |address: &'static str| {
        run_in(&namespaces.client, move || {
            let socket = connect(CLIENT4, address);
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("timeout");
            socket.send(&client::request(1)).is_ok() && socket.recv(&mut [0; 100]).is_ok()
        })
    };
    assert!(answered("10.77.0.99"), "the new address");
    namespaces.server_ip(&format!("addr add 10.77.0.98/24 dev {SERVER_INTERFACE}"));
    assert!(!answered("10.77.0.98"), "one that the daemon has not written: nobody else is there");
    assert!(xdp.stays_attached());
}

#[test]
fn maps_of_another_size_are_replaced() {
    let Some((namespaces, _client_end, bpf)) = place("map sizes") else { return };
    let attach = |slots: u32| {
        let options = XdpOptions {
            interfaces: vec![SERVER_INTERFACE.to_owned()],
            mode: Mode::Native,
            stun_port: STUN_PORT,
            pin: Pin::Directory { path: bpf.pins(), is_required: true },
            sizes: MapSizes { slots, ..MapSizes::default() },
        };
        let xdp = run_in(&namespaces.server, move || Xdp::attach(&options));
        assert!(xdp.expect("no error").expect("attached").stays_attached());
        bpf.generation()
    };
    let first = attach(1024);
    if !first.join(SLOTS).exists() {
        println!("skipped: this program has no flow tables");
        return;
    }
    assert_eq!(attach(1024), first);
    let second = attach(2048);
    assert_ne!(second, first);
    let entries = |name: &str| MapInfo::from_pin(second.join(name)).expect("a map").max_entries();
    assert_eq!(
        [SLOTS, LEGS, LEG_STATISTICS, SENDERS, SOURCES].map(entries),
        [2048, 8192, 4096, 2048, 4096]
    );
    assert!(kernel_answers(&namespaces));
}

#[test]
fn an_ordinary_user_with_three_capabilities_is_enough_and_they_are_given_up() {
    let Some((namespaces, _client_end, bpf)) = place("unprivileged start") else { return };
    if Command::new("setpriv").arg("--version").output().is_err() {
        return kernel::skip("unprivileged start", "there is no setpriv");
    }
    let probe = Command::new("setpriv")
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            env!("CARGO_BIN_EXE_derpd"),
            "-version",
        ])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        return kernel::skip("unprivileged start", "nobody may not run the test binary");
    }
    bpf.give_to(NOBODY);
    let pin = format!("-xdp-pin={}", bpf.pins().display());
    let flags = ["-xdp-interface", SERVER_INTERFACE, "-xdp-mode=native", &pin];
    let start = || {
        Process::run(&mut Process::command(
            &bpf,
            &namespaces.server,
            User::WithCapabilities,
            &flags,
        ))
    };
    for _ in 0..2 {
        let daemon = start();
        greet(&namespaces);
        assert_eq!(answered_in_userspace(&namespaces.server), 0);
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.id())).expect("tasks");
        let mut threads = 0;
        for task in tasks {
            let status =
                fs::read_to_string(task.expect("a task").path().join("status")).expect("status");
            let field = |name: &str| {
                let line =
                    status.lines().find_map(|line| line.strip_prefix(name)).expect("a field");
                line.trim().to_owned()
            };
            for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set} {status}");
            }
            assert_eq!(field("NoNewPrivs:"), "1");
            assert_eq!(field("Uid:").split('\t').next(), Some("65534"));
            threads += 1;
        }
        assert!(threads >= 3, "the workers are among the {threads} threads");
        // The host is still followed.
        namespaces.server_ip(&format!("addr add 10.77.0.97/24 dev {SERVER_INTERFACE}"));
        let before = bpf.counters().answered();
        wait_until("a new address is not answered in the kernel", || {
            run_in(&namespaces.client, || ask(&connect(CLIENT4, "10.77.0.97"), 7));
            bpf.counters().answered() > before
        });
        namespaces.server_ip(&format!("addr del 10.77.0.97/24 dev {SERVER_INTERFACE}"));
        daemon.end(Signal::SIGKILL);
    }
    let owner = fs::metadata(bpf.generation()).expect("pins").uid();
    assert_eq!(owner, NOBODY);
    // Root would pin what that user could not open.
    let log = Process::try_run(&mut Process::command(&bpf, &namespaces.server, User::Root, &flags));
    let log = log.err().expect("refused");
    assert!(log.last().is_some_and(|it| it.contains("belongs to user 65534")), "{log:#?}");
}
