//! The daemon as packages run it: settings in the environment, readiness, health, the log.

#[path = "support/binary.rs"]
mod binary;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    fs, os::unix::net::UnixDatagram, path::Path, process::Command, sync::Arc, time::Instant,
};

use clap::CommandFactory as _;
use derp_user::config::{Options, variable_names};
use nix::{sys::signal::Signal, unistd::geteuid};
use serde_json::Value;
use tempfile::TempDir;

use self::{
    binary::{Place, Relay, assert_refused, derpd, run},
    peer::{CLIENT_INFO, Peer, Wire, frame, to_hex},
    server::{PATIENCE, Server, skip, write_file},
};

#[test]
fn a_relay_runs_on_variables_alone() {
    let place = Place::new();
    let mut command = derpd::<&str>(&[]);
    command
        .env("DERP_ADDR", "127.0.0.1:0")
        .env("DERP_C", place.path("derper.key"))
        .env("DERP_CERT_MODE", "manual")
        .env("DERP_CERT_DIR", place.path("certs"))
        .env("DERP_DOMAIN", "127.0.0.1")
        .env("DERP_HTTP_PORT", "-1")
        .env("DERP_STUN_PORT", "0")
        .env("DERP_VERIFY_CLIENTS", "false")
        .env("DERP_VERIFY_CLIENT_URL", "");
    let relay = Relay::start(&mut command);
    assert!(relay.has_line("with TLS"), "{:?}", relay.lines);
    assert!(Path::new(&place.path("certs/127.0.0.1.crt")).exists());
}

#[test]
fn a_variable_that_cannot_be_used_is_named() {
    let place = Place::new();
    for (name, value, expected) in [
        (
            "DERP_STUN_PORT",
            "many",
            "derpd: DERP_STUN_PORT=\"many\": must be a port from 0 to 65535\n",
        ),
        ("DERP_STUN", "maybe", "derpd: DERP_STUN=\"maybe\": must be true or false\n"),
        (
            "DERP_VERIFY_CLIENT_URL",
            "admit.example.com",
            "derpd: DERP_VERIFY_CLIENT_URL=\"admit.example.com\": write http://host/path or https://host/path\n",
        ),
        (
            "DERP_HOME",
            "example.com",
            "derpd: DERP_HOME=\"example.com\": must be blank, or start with http:// or https://\n",
        ),
        (
            "DERP_CERT_MODE",
            "magic",
            "derpd: DERP_CERT_MODE=\"magic\": must be one of manual, letsencrypt, gcp\n",
        ),
        (
            "DERP_LOG_FORMAT",
            "xml",
            "derpd: DERP_LOG_FORMAT=\"xml\": must be one of auto, human, json, journald\n",
        ),
    ] {
        let arguments = ["-a", "127.0.0.1:0", "-c", &place.path("derper.key")];
        let (status, _, stderr) = run(derpd(&arguments).env(name, value));
        assert_eq!((status, stderr.as_str()), (2, expected), "{name}");
    }
    // A flag replaces the variable, whatever that is.
    let relay = Relay::start(derpd(&place.arguments(&[])).env("DERP_STUN_PORT", "many"));
    drop(relay);
}

#[test]
fn the_file_wins_over_a_variable_and_a_flag_over_both() {
    let place = Place::new();
    fs::write(place.path("derpd.toml"), "[log]\nlevels = \"error\"\n").unwrap();
    let file = place.path("derpd.toml");
    let with = |arguments: &[&str]| {
        let mut command = derpd(&place.arguments(arguments));
        command.env("DERP_CONFIG", &file).env("DERP_LOG", "info");
        command
    };
    let loud = Relay::start(&mut with(&["-log=info"]));
    assert!(loud.has_line("serving on"), "{:?}", loud.lines);
    // With the file's level it does not say when it serves, so it tells a service manager.
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut quiet = with(&[]).env("NOTIFY_SOCKET", &path).spawn().expect("derpd starts");
    socket.recv(&mut [0; 256]).expect("a message");
    quiet.kill().expect("it runs");
    let output = quiet.wait_with_output().expect("it ends");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("serving on"), "{log}");
}

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_ends() {
    let place = Place::new();
    let path = place.path("notify");
    let socket = UnixDatagram::bind(&path).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut command = derpd(&place.arguments(&[]));
    let relay = Relay::start(command.env("NOTIFY_SOCKET", &path));
    let told = || {
        let mut message = [0; 256];
        let length = socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..length]).trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    assert_eq!(relay.stop(Signal::SIGTERM).code(), Some(0));
    assert_eq!(told(), "STOPPING=1");
}

/// The flags that a health check needs of those that [`Server`] starts a relay with.
fn health_flags(server: &Server) -> Vec<String> {
    let directory = server.directory().path();
    vec![
        format!("-a={}", server.tls_address()),
        format!("-hostname={}", server.ip()),
        "-certmode=manual".to_owned(),
        format!("-certdir={}", directory.join("certs").display()),
        format!("-c={}", server.key_file().display()),
    ]
}

#[test]
fn the_health_check_needs_the_relays_flags_and_nothing_else() {
    let server = Server::start();
    let flags = health_flags(&server);
    let check = |flags: &[String]| run(derpd(flags).env("DERP_STUN", "false"));
    let arguments = [&["healthcheck".to_owned()], &flags[..]].concat();
    let expected = (0, format!("{} serves\n", server.tls_address()), String::new());
    assert_eq!(check(&arguments), expected);
    // Nobody asks TLS of a relay that speaks plain HTTP.
    let plain = Place::new();
    let relay = Relay::start(&mut derpd(&plain.arguments(&[])));
    let line = relay.lines.iter().find(|line| line.contains("serving on")).expect("the line");
    let address = line.rsplit(' ').next().expect("an address");
    let (status, stdout, stderr) =
        run(&mut derpd(&["healthcheck", "-a", address, "-c", &plain.path("derper.key")]));
    assert_eq!((status, stdout), (0, format!("{address} serves\n")), "{stderr}");
    drop(server);
    let (status, stdout, stderr) = check(&arguments);
    assert_eq!((status, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("derpd healthcheck: cannot connect to "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let (status, _, stderr) = run(&mut derpd(&["healthcheck", "-stun-prt=1"]));
    assert_eq!(status, 2);
    assert!(stderr.contains("did you mean -stun-port?"), "{stderr}");
}

#[test]
fn completions_and_manual_are_printed_and_written() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, stdout, stderr) = run(&mut derpd(&["completions", shell]));
        assert_eq!((status, stderr.as_str()), (0, ""));
        assert!(stdout.contains("verify-client-url"), "{shell}: {stdout}");
    }
    let (status, _, stderr) = run(&mut derpd(&["completions", "csh"]));
    assert_eq!(status, 2, "{stderr}");
    let (status, stdout, _) = run(&mut derpd(&["man"]));
    assert_eq!(status, 0);
    assert!(stdout.contains(".TH derpd 8"), "{stdout}");
    let place = Place::new();
    let (status, _, stderr) = run(&mut derpd(&["man", &place.path("")]));
    assert_eq!((status, stderr.as_str()), (0, ""));
    let written = fs::read_to_string(place.path("derpd-probe.8")).expect("a page");
    assert!(
        written.contains(".TH derpd\\-probe 8") || written.contains(".TH derpd-probe 8"),
        "{written}"
    );
    assert_refused_tool(&["man", &place.path("missing")], "cannot write the manual");
}

fn assert_refused_tool(arguments: &[&str], part: &str) {
    let (status, _, stderr) = run(&mut derpd(arguments));
    assert_eq!(status, 1, "{stderr}");
    assert!(stderr.contains(part), "{stderr}");
}

#[test]
fn the_log_can_be_json() {
    let server = Server::start_with(&["-log-format=json"]);
    drop(Peer::connect(&server));
    server.wait_for_log("serving on");
    let log = server.log();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for field in ["timestamp", "level", "message", "target"] {
            assert!(line[field].is_string(), "{field} is missing from {line}");
        }
    }
    let serving =
        |line: &Value| line["message"].as_str().is_some_and(|it| it.contains("serving on"));
    assert_eq!(lines.iter().filter(|line| serving(line)).count(), 1, "{log}");
}

#[test]
fn without_a_journal_there_is_no_journal_format() {
    if Path::new("/run/systemd/journal/socket").exists() {
        return skip("a log without journal", "this machine has a journal");
    }
    let place = Place::new();
    let arguments = place.arguments(&["-log-format=journald"]);
    assert_refused(&mut derpd(&arguments), 1, &["-log-format journald", "cannot be reached"]);
    // Of itself it falls back to lines.
    let relay = Relay::start(derpd(&place.arguments(&[])).env("JOURNAL_STREAM", "1:2"));
    assert!(relay.has_line("serving on"));
}

#[test]
fn the_journal_gets_messages_with_fields() {
    if !geteuid().is_root() || Path::new("/run/systemd/journal/socket").exists() {
        return skip("a log in the journal", "root and a machine without a journal are needed");
    }
    let place = Place::new();
    let directory = place.path("journal");
    fs::create_dir(&directory).expect("a directory");
    let journal = UnixDatagram::bind(format!("{directory}/socket")).expect("a socket");
    journal.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // In a mount namespace of its own the socket is where the journal's would be.
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind {directory} /run/systemd/journal && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--fork",
        "--kill-child",
        "sh",
        "-c",
        &script,
        "sh",
        env!("CARGO_BIN_EXE_derpd"),
    ]);
    command.args(place.arguments(&["-log-format=journald"]));
    let mut child = command.spawn().expect("unshare runs");
    let mut message = vec![0; 1 << 16];
    loop {
        let length = journal.recv(&mut message).expect("a message");
        let text = String::from_utf8_lossy(&message[..length]);
        if text.contains("serving on") {
            assert!(
                text.contains("SYSLOG_IDENTIFIER")
                    && text.contains("PRIORITY")
                    && text.contains("TARGET"),
                "{text}"
            );
            break;
        }
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
}

#[test]
fn levels_change_on_sighup() {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let file = write_file(directory.path(), "derpd.toml", "[log]\nlevels = \"info\"\n");
    let flag = format!("-config={file}");
    let server = Server::start_in(Arc::clone(&directory), &[&flag]);
    let debug_lines = || server.log().lines().filter(|line| line.contains("DEBUG")).count();
    drop(Peer::connect(&server));
    assert_eq!(debug_lines(), 0, "{}", server.log());
    fs::write(&file, "[log]\nlevels = \"info,derp_user::server=debug\"\n").unwrap();
    server.reload();
    server.wait_for_log("log: levels are info,derp_user::server=debug");
    drop(Peer::connect(&server));
    server::wait_until("a line about the client", || debug_lines() > 0);
    // What cannot be used changes nothing.
    fs::write(&file, "[log]\nlevels = \"info,x=loud\"\n").unwrap();
    server.reload();
    let line = server.wait_for_log("reload failed, nothing has changed");
    assert!(line.contains("line 2: [log] levels"), "{line}");
    fs::write(&file, "").unwrap();
    server.reload();
    let is_as_before = || server.log().lines().any(|line| line.ends_with("log: levels are info"));
    server::wait_until("the usual levels", is_as_before);
    let before = debug_lines();
    drop(Peer::connect(&server));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(debug_lines(), before, "{}", server.log());
}

#[test]
fn a_session_is_no_more_than_one_line_and_no_key_is_told() {
    const SESSIONS: usize = 50;
    let server = Server::start();
    let before = server.log().lines().count();
    let mut keys = Vec::new();
    for _ in 0..SESSIONS {
        let mut peer = Peer::connect(&server);
        let key = peer.key();
        peer.send(&key, &[7; 100]);
        peer.receive();
        keys.push(key);
    }
    server.wait_for_metric("derp_current_connections", 0.0);
    let log = server.log();
    assert!(log.lines().count() - before <= SESSIONS, "{log}");
    for key in keys {
        assert!(!log.contains(&to_hex(key.as_bytes())), "{log}");
    }
    assert!(!log.contains("privkey:"), "{log}");
}

/// What is not a flag's: derper's own, that of an image of derper, and what Kubernetes makes of a service's name.
const OTHER_VARIABLES: [&str; 5] =
    ["DERP_", "DERP_CERTS", "DERP_DEBUG_LOGS", "DERP_PORT", "DERP_PROBER_DEBUG_LOGS"];

#[test]
fn packages_and_manual_set_variables_that_there_are() {
    let command = Options::command();
    let known: Vec<_> = command
        .get_arguments()
        .flat_map(|flag| variable_names(flag.get_id().as_str()))
        .chain(OTHER_VARIABLES.map(str::to_owned))
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut found = 0;
    for file in [
        "deploy/compose/compose.yaml",
        "deploy/container/Containerfile",
        "deploy/debian/default",
        "deploy/debian/postinst",
        "deploy/helm/derpd/templates/NOTES.txt",
        "deploy/helm/derpd/templates/statefulset.yaml",
        "deploy/helm/derpd/values.yaml",
        "deploy/systemd/derpd.service",
        "docs/MIGRATION.md",
        "docs/OPERATIONS.md",
    ] {
        let text = fs::read_to_string(root.join(file)).expect(file);
        let is_word = |letter: char| letter.is_ascii_uppercase() || letter == '_';
        for word in text.split(|letter| !is_word(letter)).filter(|word| word.contains("DERP_")) {
            let is_derpers = word.starts_with("TS_") || word.starts_with("TAILSCALE_");
            assert!(is_derpers || known.iter().any(|name| name == word), "{file}: {word}");
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

#[test]
fn regression_logins_that_fail_do_not_flood_the_log() {
    const LOGINS: usize = 60;
    const AT_ONCE: usize = 20;
    let server = Server::start();
    let is_about_one = |line: &&str| line.contains("receive client key");
    let started = Instant::now();
    for _ in 0..LOGINS {
        let mut wire = Wire::connect(&server);
        wire.upgrade();
        wire.write(&frame(CLIENT_INFO, &[7; 100]));
        wire.expect_closed();
    }
    server.wait_for_log("receive client key");
    let written = server.log().lines().filter(is_about_one).count();
    // Two more each second.
    let allowed = AT_ONCE + 2 * usize::try_from(started.elapsed().as_secs()).expect("not long") + 2;
    assert!(written <= allowed, "{written} lines in {:?}\n{}", started.elapsed(), server.log());
}

#[test]
fn regression_clients_over_ipv4_are_told_by_their_own_address() {
    let place = Place::new();
    let relay = Relay::start(&mut derpd(&place.arguments(&["-a", "[::]:0", "-stun=false"])));
    let line = relay.lines.iter().find(|line| line.contains("serving on")).expect("a line");
    let port = line.rsplit(':').next().expect("a port");
    let url = format!("http://127.0.0.1:{port}");
    let mut load = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["bench", "--server", &url, "idle", "--connections", "1", "--hold", "50s"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("derpd starts");
    let look = || {
        let arguments = ["top", "--once", "--json", &url];
        let (status, text, error) = run(&mut derpd(&arguments));
        assert_eq!(status, 0, "{error}");
        serde_json::from_str::<Value>(&text).expect("JSON")["clients"]["shown"].clone()
    };
    // The look that finds one is kept: the load looks at the server by a connection that ends at once.
    let mut clients = Value::Null;
    server::wait_until("a client", || {
        clients = look();
        clients.as_array().is_some_and(|it| !it.is_empty())
    });
    load.kill().expect("it runs");
    load.wait().expect("it ends");
    let address = clients[0]["address"].as_str().expect("an address");
    assert!(address.starts_with("127.0.0.1:"), "{clients}");
}

#[test]
fn regression_strange_upgrades_do_not_flood_the_log() {
    const REQUESTS: usize = 100;
    let server = Server::start();
    let started = Instant::now();
    let long = "x".repeat(5000);
    for _ in 0..REQUESTS {
        let mut wire = Wire::connect(&server);
        let request = format!(
            "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: upgrade\r\nUpgrade: {long}\r\n\r\n"
        );
        wire.write(request.as_bytes());
        assert!(wire.response_head().starts_with("HTTP/1.1 426 "));
    }
    server.wait_for_log("weird upgrade");
    let log = server.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("weird upgrade")).collect();
    let allowed = 20 + 2 * usize::try_from(started.elapsed().as_secs()).expect("not long") + 2;
    assert!(lines.len() <= allowed, "{} lines in {:?}", lines.len(), started.elapsed());
    assert!(lines.iter().all(|line| line.len() < 300), "{}", lines[0]);
}

#[test]
fn a_log_on_a_terminal_has_colours_unless_nobody_wants_them() {
    if !Path::new("/usr/bin/script").exists() {
        return skip("colours on a terminal", "/usr/bin/script is not there");
    }
    let place = Place::new();
    // It says who it is, and ends because of this file.
    let broken = write_file(place.directory.path(), "broken", "no key");
    let arguments = place.arguments(&["-c", &broken]).join(" ");
    let command = format!("{} {arguments}", env!("CARGO_BIN_EXE_derpd"));
    for (no_color, is_coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let mut terminal = Command::new("/usr/bin/script");
        terminal.args(["-qec", &command, "/dev/null"]).env_remove("NO_COLOR");
        terminal.envs(no_color.map(|value| ("NO_COLOR", value)));
        let output = terminal.output().expect("script runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("INFO"), "{text}");
        assert_eq!(text.contains('\u{1b}'), is_coloured, "NO_COLOR={no_color:?}: {text:?}");
    }
    // And none where the log is no terminal.
    let relay = Relay::start(&mut derpd(&place.arguments(&[])));
    assert!(relay.lines.iter().all(|line| !line.contains('\u{1b}')), "{:?}", relay.lines);
}
