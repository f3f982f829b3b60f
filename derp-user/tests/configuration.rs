//! Flags, file and environment of a real process: what `config show` and `check` say of them, and what SIGHUP changes.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    fs,
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, sleep},
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use self::{
    binary::{Place, Relay, derpd, run},
    peer::{Peer, Wire},
    server::{Server, write_file},
};

fn set_mode(path: &str, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

#[test]
fn what_config_show_prints_starts_the_same_relay() {
    let place = Place::new();
    let file = place.path("derpd.toml");
    let text = format!(
        "[server]\naddress = \"127.0.0.1:0\"\nkey_file = {:?}\nhome = \"blank\"\n[stun]\nport = 0\nrate = 7\n\
         [acme]\neab_key = \"c2VjcmV0\"\neab_kid = \"id\"\n[limits]\ndrain_timeout = \"3s\"\n",
        place.path("derper.key")
    );
    fs::write(&file, text).expect("writable");
    let show = |file: &str, extra: &[&str]| {
        let mut command = derpd(&[&["config", "show", "-config", file], extra].concat());
        let (status, output, error) = run(command.env("DERP_HOSTNAME", "relay.example.com"));
        assert_eq!((status, error.as_str()), (0, ""));
        output
    };
    let shown = show(&file, &["-min-workers", "2"]);
    for part in ["hostname = \"relay.example.com\"", "# DERP_HOSTNAME", "# -min-workers", ":4\n"] {
        assert!(shown.contains(part), "{part:?} is missing: {shown}");
    }
    assert!(!shown.contains("c2VjcmV0"), "{shown}");
    let again = place.path("again.toml");
    fs::write(&again, &shown).expect("writable");
    let settings = |output: &str| {
        let report: Value = serde_json::from_str(output).expect("JSON");
        let settings = report["settings"].as_array().expect("a list").clone();
        let is_plain =
            |setting: &&Value| setting["redacted"] != true && setting["key"] != "eab_key";
        let value = |it: &Value| (it["section"].clone(), it["key"].clone(), it["value"].clone());
        settings.iter().filter(is_plain).map(value).collect::<Vec<_>>()
    };
    let first = settings(&show(&file, &["-min-workers", "2", "--json"]));
    let mut second = settings(&show(&again, &["--json"]));
    // A section may list its keys in the order of the file.
    second.sort_by_key(|it| first.iter().position(|other| (&other.0, &other.1) == (&it.0, &it.1)));
    assert_eq!(first, second);
    // The secret is missing, and so the name that goes with it has to go, too.
    fs::write(&again, shown.replace("eab_kid", "# eab_kid")).expect("writable");
    let relay = Relay::start(&mut derpd(&["-config", &again]));
    assert!(relay.has_line("configuration file: "), "{:?}", relay.lines);
}

#[test]
fn healthcheck_and_derpmap_read_the_file_too() {
    let place = Place::new();
    let file = place.path("derpd.toml");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let key = place.path("derper.key");
    let text = format!(
        "[server]\naddress = \"127.0.0.1:{port}\"\nkey_file = {key:?}\nhostname = \"relay.example.com\"\n[stun]\nenabled = false\n"
    );
    fs::write(&file, text).expect("writable");
    let mut command = derpd::<&str>(&[]);
    let _relay = Relay::start(command.env("DERP_CONFIG", &file));
    let mut command = derpd(&["healthcheck"]);
    let (status, output, error) = run(command.env("DERP_CONFIG", &file));
    assert_eq!((status, output), (0, format!("127.0.0.1:{port} serves\n")), "{error}");
    let (status, output, _) = run(&mut derpd(&["derpmap", "--format=json", "-config", &file]));
    assert!(status == 0 && output.contains("relay.example.com"), "{output}");
}

/// The lines of a report that begin so.
fn lines<'a>(report: &'a str, status: &str) -> Vec<&'a str> {
    let lines = report.lines().filter_map(|line| line.strip_prefix(status));
    lines.map(str::trim_start).collect()
}

#[test]
fn check_says_what_would_be_served_and_what_is_in_the_way() {
    let place = Place::new();
    set_mode(&place.path("derper.key"), 0o600);
    let pins = place.path("nowhere");
    let check = |extra: &[&str]| {
        let tool = ["check", "--pin", &pins].map(str::to_owned);
        run(&mut derpd(&[&tool[..], &place.tls_arguments(extra)].concat()))
    };
    let (status, output, error) = check(&[]);
    assert_eq!((status, error.as_str()), (0, ""), "{output}");
    for part in [
        "ok       config: the flags are in order; no configuration file is read\n",
        "note     tls: derpd makes a self-signed certificate of 127.0.0.1 when it starts\n",
        "ok       ports: TCP 127.0.0.1:0 (-a): the system chooses one\n",
        "note     admission: anybody who can reach this relay may use it; ",
        "\nwould serve\n  DERP        TCP 127.0.0.1:0         TLS, as 127.0.0.1\n",
        "\n  STUN        UDP 127.0.0.1:0         userspace\n",
    ] {
        assert!(output.contains(part), "{part:?} is missing: {output}");
    }
    assert!(!Path::new(&place.path("certs")).exists(), "nothing is made");

    // Everything that is wrong, at once.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let keys = place.path("keys");
    fs::write(&keys, "nonsense").expect("writable");
    let secret = place.path("mesh.key");
    fs::write(&secret, "ab".repeat(32)).expect("writable");
    set_mode(&secret, 0o644);
    let address = format!("127.0.0.1:{port}");
    let flags =
        ["-a", &address, "-allow-keys", &keys, "-mesh-psk-file", &secret, "-hostname", "a.test"];
    let (status, output, _) = check(&flags);
    assert_eq!(status, 1, "{output}");
    let problems = lines(&output, "problem");
    for (index, part) in [
        format!("mesh: {secret} has mode 0644: everybody on this machine may use it; `chmod o=` takes that away"),
        format!("admission: -allow-keys: {keys}:1: a key must start with \"nodekey:\""),
        format!(
            "tls: -hostname a.test needs {0}/a.test.crt and {0}/a.test.key, and neither exists",
            place.path("certs")
        ),
    ]
    .iter()
    .enumerate()
    {
        assert_eq!(problems.get(index), Some(&part.as_str()), "{output}");
    }
    let port_line = format!("ports: TCP {address} (-a) is in use by ");
    assert!(problems[3].starts_with(&port_line) && problems.len() == 4, "{output}");

    let (status, output, _) = check(&["--json", "-a", &address]);
    let report: Value = serde_json::from_str(&output).expect("JSON");
    assert_eq!((status, &report["ok"]), (1, &false.into()), "{output}");
    assert_eq!(report["services"][0]["what"], "DERP");
    assert_eq!(report["services"][0]["where"], format!("TCP {address}"));
}

#[test]
fn check_knows_the_derpd_that_runs_and_the_file_that_is_wrong() {
    let server = Server::start();
    let directory = server.directory().path().to_owned();
    let (certs, key) = (directory.join("certs"), server.key_file());
    let file = write_file(
        &directory,
        "derpd.toml",
        &format!(
            "[server]\naddress = \"{}\"\nhttp_port = {}\ncertmode = \"manual\"\ncertdir = {certs:?}\nkey_file = {key:?}\n\
             hostname = \"{}\"\n[stun]\nport = {}\n",
            server.tls_address(),
            server.http_address().port(),
            server.ip(),
            server.stun_address().port(),
        ),
    );
    let pins = directory.join("nowhere");
    let pins = pins.to_str().expect("UTF-8");
    let check = |file: &str| run(&mut derpd(&["check", "--pin", pins, "-config", file]));
    let (status, output, _) = check(&file);
    assert_eq!(status, 0, "{output}");
    let held = format!("has the derpd that runs, process {}", server.id());
    assert_eq!(output.matches(&held).count(), 3, "{output}");
    assert!(output.contains(&format!("config: {file} and the flags are in order")), "{output}");
    assert!(output.contains("days more\n") && output.contains("holds nodekey:"), "{output}");

    for (text, sentence) in [
        ("[server]\nadress = 1\n", "line 2: [server] adress: unknown key; did you mean address?"),
        ("[relay]\nslots = 5\n", "line 2: [relay] slots: must be a number from 16 to 262144"),
        (
            "[server]\naddress = \"1\"\n",
            "line 2: [server] address: write :port, ip:port or [ip6]:port",
        ),
    ] {
        let bad = write_file(&directory, "bad.toml", &format!("{text}[limits]\nworkers = 1\n"));
        let mut command = derpd(&["check", "--pin", pins, "-config", &bad]);
        let (status, output, _) = run(command
            .env("DERP_C", "/k")
            .env("DERP_CERT_DIR", "/c")
            .env("DERP_HOSTNAME", "a.test"));
        assert_eq!(status, 1, "{output}");
        assert_eq!(lines(&output, "problem"), [format!("config: -config: {bad}: {sentence}")]);
        assert!(!output.contains("would serve"), "{output}");
    }
}

/// Ends of a flow that go on sending each other numbers, and expect each to come.
struct Flow {
    done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<u32>>,
}

impl Flow {
    fn start([a, b]: [UdpSocket; 2], relay: (std::net::IpAddr, u16)) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        // Until both ends have spoken, and that has been noted, neither is reached.
        let reach = |from: &UdpSocket, to: &UdpSocket| {
            from.send_to(b"hello", relay).expect("sent");
            to.recv_from(&mut [0; 16]).is_ok()
        };
        for socket in [&a, &b] {
            socket.set_read_timeout(Some(Duration::from_millis(10))).expect("a socket");
        }
        server::wait_until("both ends are reached", || reach(&a, &b) && reach(&b, &a));
        for socket in [&a, &b] {
            socket.set_read_timeout(Some(server::PATIENCE)).expect("a socket");
        }
        let thread = thread::spawn({
            let done = Arc::clone(&done);
            move || {
                let mut count = 0_u32;
                while !done.load(Ordering::Relaxed) {
                    for (from, to) in [(&a, &b), (&b, &a)] {
                        from.send_to(&count.to_be_bytes(), relay).expect("sent");
                        let mut buffer = [0; 16];
                        loop {
                            let (length, source) =
                                to.recv_from(&mut buffer).expect("the flow goes on");
                            assert_eq!(source.port(), relay.1);
                            if buffer[..length] == count.to_be_bytes() {
                                break;
                            }
                        }
                    }
                    count += 1;
                    sleep(Duration::from_millis(1));
                }
                count
            }
        });
        Self { done, thread: Some(thread) }
    }

    fn finish(mut self) -> u32 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("no packet was lost")
    }
}

#[test]
fn sighup_takes_the_file_whole_or_not_at_all_while_clients_and_flows_go_on() {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let sockets = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").expect("a port"));
    let [a, b, relay] = sockets.each_ref().map(|it| it.local_addr().expect("bound"));
    let [a_socket, b_socket, reserved] = sockets;
    drop(reserved);
    let text = |lines: &str| {
        format!(
            "{lines}\n[relay]\nport = {}\n[[flow]]\nname = \"x\"\na = \"{a}\"\nb = \"{b}\"\n",
            relay.port()
        )
    };
    let file =
        write_file(directory.path(), "derpd.toml", &text("[limits]\ndrain_timeout = \"1s\""));
    let server = Server::start_in(Arc::clone(&directory), &[&format!("-config={file}")]);
    let flow = Flow::start([a_socket, b_socket], (server.ip(), relay.port()));
    let done = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (mut peer, done) = (Peer::connect(&server), Arc::clone(&done));
            thread::spawn(move || {
                let (key, mut count) = (peer.key(), 0_u32);
                while !done.load(Ordering::Relaxed) {
                    peer.send(&key, &count.to_be_bytes());
                    assert_eq!(peer.receive().1, count.to_be_bytes());
                    count += 1;
                }
                count
            })
        })
        .collect();
    let home = || {
        let request = "GET / HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
        Wire::connect(&server).http(request).status
    };
    assert_eq!(home(), 200);
    let reload = |lines: &str| {
        fs::write(&file, text(lines)).expect("writable");
        let before = server.log().len();
        server.reload();
        let mut said = String::new();
        // It is counted before what came of it is logged.
        server::wait_until("the reload is logged", || {
            said = server.log()[before..].to_owned();
            ["nothing has changed", "after SIGTERM"].iter().any(|part| said.contains(part))
        });
        said
    };
    for round in 0..3 {
        // What is good beside what is bad is not taken.
        for (bad, sentence) in [
            ("workers = 0", "line 5: [limits] workers: must be a number from 1 to 1024"),
            ("worker = 1", "line 5: [limits] worker: unknown key; did you mean workers?"),
            ("rate_config = \"/missing\"", "-rate-config: cannot read /missing: "),
            ("drain_timeout = \"48h\"", "line 5: [limits] drain_timeout: is too long"),
        ] {
            let lines =
                format!("[server]\nhome = \"https://{round}.example.com\"\n[limits]\n\n{bad}");
            let said = reload(&lines);
            assert!(said.contains("reload failed, nothing has changed"), "{said}");
            assert!(said.contains(sentence), "{said}");
            assert_eq!(home(), if round == 0 { 200 } else { 302 });
        }
        let said = reload(&format!(
            "[server]\nhome = \"https://{round}.example.com\"\nhttp_port = 1\n[limits]\nworkers = 7\ndrain_timeout = \"{}s\"\n\
             [acme]\nemail = \"a@b\"",
            round + 2
        ));
        assert!(said.contains("another home page from now on"), "{said}");
        assert!(said.contains(&format!("clients may stay {}s after SIGTERM", round + 2)), "{said}");
        // Flags win over the file, so what they say has not changed: -http-port and -workers.
        let late = said.lines().find(|line| line.contains("not before the next start: "));
        assert!(late.is_some_and(|line| line.ends_with("start: [acme] email")), "{said}");
        assert_eq!(home(), 302);
    }
    done.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("no client lost its connection or a packet") > 0);
    }
    assert!(flow.finish() > 0);
    assert_eq!(server.metric("derpd_reloads_total{result=\"failed\"}"), 12.0);
    assert_eq!(server.metric("derpd_reloads_total{result=\"ok\"}"), 3.0);
}
