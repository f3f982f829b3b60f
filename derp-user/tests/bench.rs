//! `derpd bench`, the binary, against a running relay: counts and errors, never times.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use server::{PATIENCE, Server};

/// Starts the subcommand with these arguments, separated by blanks.
fn start(arguments: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_derpd"))
        .arg("bench")
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("derpd starts")
}

/// Waits, but not forever, until it ends by itself.
fn finish(mut child: Child) -> Output {
    let deadline = Instant::now() + 2 * PATIENCE;
    while child.try_wait().expect("a child of this process").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("derpd bench did not end by itself");
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("its output can be read")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "nothing is said where there is no terminal");
    let text = text(&output.stdout);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).expect("one JSON object")
}

/// Runs a workload against the relay over TLS, its process included, and returns the JSON object.
fn measure(server: &Server, workload: &str) -> Value {
    let (address, pid) = (server.tls_address(), server.id());
    let flags = "--threads 2 --insecure --json";
    let json = json(&finish(start(&format!("--server {address} --pid {pid} {flags} {workload}"))));
    let name = workload.split(' ').next();
    assert_eq!(json["workload"].as_str(), name);
    json
}

/// A number that has to be there.
fn number(json: &Value, path: &str) -> f64 {
    json.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {json}"))
}

fn assert_numbers(json: &Value, paths: &[&str]) {
    for path in paths {
        assert!(number(json, path) >= 0.0, "{path} in {json}");
    }
}

/// Asserts that it fails with this status and one line that holds all `parts`.
fn assert_refused(arguments: &str, status: i32, parts: &[&str]) {
    let output = finish(start(arguments));
    let complaint = text(&output.stderr).trim_end();
    assert_eq!(output.status.code(), Some(status), "{arguments}: {complaint}");
    assert_eq!((output.stdout.as_slice(), complaint.lines().count()), (&[][..], 1), "{complaint}");
    assert!(complaint.starts_with("derpd bench: "), "{complaint}");
    for part in parts {
        assert!(complaint.contains(part), "{part:?} is missing from {complaint:?}");
    }
}

#[test]
fn paced_traffic_arrives_and_is_counted() {
    let server = Server::start();
    // 2000 packets per second for half a second.
    let load = "throughput --pairs 2 --size 1000 --rate 16 --duration 500ms --idle-connections 3";
    let json = measure(&server, load);
    let sent = number(&json, "/sent");
    assert!((500.0..=1000.0).contains(&sent), "{json}");
    assert_eq!((number(&json, "/recv"), number(&json, "/loss_pct")), (sent, 0.0), "{json}");
    assert_eq!((number(&json, "/pairs"), number(&json, "/size")), (2.0, 1000.0));
    assert_eq!(number(&json, "/disconnected"), 0.0);
    assert_eq!(number(&json, "/idle_connections"), 3.0);
    assert!(number(&json, "/recv_mbps") > 0.0 && number(&json, "/client_cpu_s") > 0.0);
    assert!(number(&json, "/rss_peak_kib") >= number(&json, "/rss_kib"), "{json}");
    assert!(number(&json, "/rss_before_kib") > 0.0);
    assert_numbers(&json, &["/server_cpu_s", "/server_us_per_pkt", "/client_us_per_pkt"]);
    // The relay's own numbers agree, and nobody has stayed.
    assert_eq!(server.metric("derp_packets_received"), sent);
    assert_eq!(server.metric("derp_accepts"), 7.0);
    server.wait_for_metric("derp_current_connections", 0.0);
}

#[test]
fn flat_out_traffic_of_every_size_flows() {
    let server = Server::start();
    for size in ["mixed", "1", "65536"] {
        let load = format!("throughput --pairs 3 --size {size} --duration 300ms");
        let json = measure(&server, &load);
        let (sent, received) = (number(&json, "/sent"), number(&json, "/recv"));
        assert!(received > 0.0 && received <= sent, "{json}");
        assert_eq!(number(&json, "/disconnected"), 0.0, "{json}");
    }
}

#[test]
fn probes_are_answered() {
    let server = Server::start();
    for traffic in ["", "--pairs 2 --rate 8 --size 500"] {
        let json = measure(&server, &format!("latency --duration 300ms {traffic}"));
        let probes = number(&json, "/probes");
        assert!((100.0..=300.0).contains(&probes), "{json}");
        assert_eq!(number(&json, "/answered"), probes, "{json}");
        let quantiles = ["/p50_us", "/p90_us", "/p99_us", "/p999_us", "/max_us"];
        let values = quantiles.map(|path| number(&json, path));
        assert!(values[0] > 0.0 && values.is_sorted(), "{json}");
        assert_eq!(number(&json, "/loss_pct"), 0.0);
        assert_eq!(number(&json, "/sent") > 0.0, !traffic.is_empty(), "{json}");
    }
}

#[test]
fn idle_connections_come_and_leave() {
    let server = Server::start();
    let json = measure(&server, "idle --connections 40 --warm-up 3 --hold 100ms --settle 100ms");
    assert_eq!((number(&json, "/conns"), number(&json, "/disconnected")), (40.0, 0.0));
    let paths = [
        "/connect_s",
        "/server_cpu_ms_per_conn",
        "/rss_before_kib",
        "/rss_warm_kib",
        "/rss_after_kib",
        "/rss_kib_per_conn",
        "/rss_left_kib",
        "/rss_left_ratio",
    ];
    assert_numbers(&json, &paths);
    assert_eq!(
        server.metric("derp_accepts"),
        43.0,
        "the first three are not counted as connections"
    );
    server.wait_for_metric("derp_current_connections", 0.0);
}

#[test]
fn a_storm_connects_as_often_as_asked() {
    let server = Server::start();
    let json = measure(&server, "storm --connections 50 --concurrency 5");
    assert_eq!(number(&json, "/conns"), 50.0);
    assert!(number(&json, "/p50_ms") > 0.0 && number(&json, "/p99_ms") >= number(&json, "/p50_ms"));
    assert_numbers(&json, &["/connect_s", "/connects_per_s", "/server_cpu_ms_per_conn"]);
    assert_eq!(server.metric("derp_accepts"), 50.0);
    server.wait_for_metric("derp_current_connections", 0.0);
}

#[test]
fn a_pair_is_watched_beside_trouble() {
    let server = Server::start();
    for workload in ["flood", "stall"] {
        let json = measure(&server, &format!("{workload} --rate 4 --duration 400ms"));
        // 357 packets per second.
        let sent = number(&json, "/pair_alone/sent");
        assert!((70.0..=143.0).contains(&sent), "{json}");
        for pair in ["pair_alone", "pair_beside"] {
            let keys = ["loss_pct", "p50_us", "p99_us", "p999_us"];
            for key in keys {
                assert_numbers(&json, &[&format!("/{pair}/{key}")]);
            }
        }
        assert_eq!(number(&json, "/pair_alone/recv"), sent, "{json}");
        assert!(number(&json, "/pair_beside/recv") > 0.0, "{json}");
        let (sent, received) = (number(&json, "/flood_sent"), number(&json, "/flood_recv"));
        assert!(sent > 0.0 && received <= sent, "{json}");
        assert_eq!(received > 0.0, workload == "flood", "{json}");
        assert_eq!(json.get("stalled_sent").is_some(), workload == "stall");
        assert_numbers(&json, &["/rss_before_kib", "/rss_peak_kib"]);
    }
}

#[test]
fn plain_http_and_a_summary() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut relay = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["-a=127.0.0.1:0", "-stun=false", "-c"])
        .arg(directory.path().join("derper.key"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("derpd starts");
    let mut log = BufReader::new(relay.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let address = log
        .find_map(|line| Some(line.split_once("serving on ")?.1.trim().to_owned()))
        .expect("it serves");
    let output =
        finish(start(&format!("latency --duration 200ms --server http://{address} --threads 1")));
    relay.kill().expect("it is alive");
    relay.wait().expect("it ends");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary = text(&output.stdout);
    assert!(summary.starts_with("latency: nothing beside the probes"), "{summary}");
    assert!(summary.contains("delay, µs"), "{summary}");
    assert!(!summary.contains("server CPU"), "no process was named: {summary}");
}

#[test]
fn the_certificate_can_be_pinned_or_be_its_own_root() {
    let server = Server::start();
    let (address, file) = (server.tls_address(), server.certificate_file());
    let hint = server.wait_for_log("sha256-raw:");
    let start_of_pin = hint.find("sha256-raw:").expect("the line was searched for it");
    let pin = hint[start_of_pin..].split('"').next().unwrap_or_default();
    for trust in [format!("--pin {pin}"), format!("--ca {}", file.display())] {
        let storm = "storm --connections 2 --json";
        let json = json(&finish(start(&format!("--server {address} {trust} {storm}"))));
        assert_eq!(number(&json, "/conns"), 2.0);
    }
    let wrong = format!("sha256-raw:{}", "0".repeat(64));
    let parts = [&address.to_string(), "certificate"];
    assert_refused(&format!("--server {address} --pin {wrong} idle"), 1, &parts);
}

#[test]
fn ctrl_c_ends_with_what_was_measured() {
    let server = Server::start();
    let address = server.tls_address();
    let load = "throughput --pairs 1 --rate 8 --duration 1h --json";
    let child = start(&format!("--server {address} --insecure {load}"));
    server::wait_until("packets", || server.metric("derp_packets_received") > 50.0);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("it is alive");
    let json = json(&finish(child));
    let sent = number(&json, "/sent");
    assert!(sent > 50.0, "{json}");
    assert_eq!(number(&json, "/recv"), sent, "{json}");
    assert!(number(&json, "/duration_s") < PATIENCE.as_secs_f64(), "{json}");
}

#[test]
fn wrong_command_lines_exit_with_2() {
    assert_refused("", 2, &["workload"]);
    assert_refused("idle", 2, &["--server"]);
    assert_refused("--server h --sped 3 idle", 2, &["--sped"]);
    assert_refused("--server ftp://h idle", 2, &["ftp://h"]);
    assert_refused("--server h throughput --size 0", 2, &["--size"]);
    assert_refused("--server h --server-name .. idle", 2, &["server name", "\"..\""]);
    let help = finish(start("--help"));
    assert!(help.status.success() && text(&help.stdout).contains("throughput"));
}

#[test]
fn the_daemons_help_mentions_the_subcommand() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_derpd")).arg("--help").output().expect("derpd starts");
    assert!(text(&output.stdout).contains("derpd bench"));
}

#[test]
fn faults_of_the_server_exit_with_1_and_are_named() {
    let host = "relay.invalid";
    assert_refused(&format!("--server {host} --insecure idle"), 1, &[host]);

    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let free = free.to_string();
    assert_refused(&format!("--server {free} --insecure idle"), 1, &[&free, "refused"]);

    let server = Server::start();
    let address = server.tls_address().to_string();
    // System roots, if there are any, do not know a certificate that was made just now.
    assert_refused(&format!("--server {address} idle"), 1, &["certificate"]);
    let gone = "--pid 4194999";
    assert_refused(&format!("--server {address} --insecure {gone} idle"), 1, &["4194999"]);

    let stun_only = Server::start_with(&["-derp=false"]);
    let address = stun_only.tls_address().to_string();
    assert_refused(&format!("--server {address} --insecure idle"), 1, &[&address, "404"]);
}

#[test]
fn a_server_of_another_protocol_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request);
            let _ = socket.write_all(b"220 mail.example.com ESMTP\r\n");
        }
    });
    assert_refused(&format!("--server {address} --insecure storm"), 1, &[&address, "TLS"]);
    assert_refused(&format!("--server http://{address} storm"), 1, &[&address, "HTTP"]);
}
