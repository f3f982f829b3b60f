//! The metrics as the real Prometheus reads them: its checker over the text, and the server scraping a running relay.

#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    peer::Peer,
    server::{PATIENCE, Place, Response, Server, skip, wait_until, write_file},
};

const PROMTOOL: &str = "/usr/bin/promtool";
const PROMETHEUS: &str = "/usr/bin/prometheus";

/// Whether a program is there; says that `what` is skipped if not.
fn has(program: &str, what: &str) -> bool {
    let found = Path::new(program).exists();
    if !found {
        skip(what, &format!("no {program} (Debian package prometheus)"));
    }
    found
}

/// A relay with everything switched on that adds metrics.
fn full_relay(directory: &TempDir) -> Server {
    let limits =
        r#"{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 1000000}"#;
    let limits = write_file(directory.path(), "rate.json", limits);
    let keys = write_file(directory.path(), "keys", "# nobody\n");
    let relay_keys = directory.path().join("relay.keys").display().to_string();
    let file = format!(
        "[peer_relay]\nport = 40000\nkey_file = {relay_keys:?}\nallow = []\nstun = []\n\
         derp = \"http://127.0.0.1:1\"\n"
    );
    let file = write_file(directory.path(), "derpd.toml", &file);
    Server::start_with(&[
        &format!("-rate-config={limits}"),
        &format!("-allow-keys={keys}"),
        "-proxy-protocol-from=192.0.2.1",
        "-bootstrap-dns-names=localhost",
        &format!("-config={file}"),
    ])
}

/// What the checker finds in names that are derper's, and have to stay.
const KNOWN_COMPLAINTS: [&str; 4] = [
    "counter metrics should have \"_total\" suffix",
    "non-counter metrics should not have \"_total\" suffix",
    "metric names should not contain abbreviated units",
    "non-histogram metrics should not have \"le\" label",
];

#[test]
fn promtool_complains_only_of_derpers_names() {
    if !has(PROMTOOL, "promtool check metrics") {
        return;
    }
    let directory = TempDir::new().expect("a temporary directory");
    let text = full_relay(&directory).get("/debug/varz").body;
    let (status, complaints) = check_metrics(&text);
    println!("{complaints}");
    assert!(matches!(status, 0 | 3), "status {status}: {complaints}\n{text}");
    for complaint in complaints.lines() {
        let (name, fault) = complaint.split_once(' ').expect("a name and what is wrong with it");
        let ours = ["derpd_", "tailscaled_", "process_cpu"];
        let is_ours = ours.iter().any(|prefix| name.starts_with(prefix));
        assert!(!is_ours && KNOWN_COMPLAINTS.contains(&fault), "{complaint}");
        assert!(text.contains(&format!("# TYPE {name} ")), "{complaint}: not in\n{text}");
    }
    for name in ["tailscaled_peer_relay_endpoints", "derpd_peer_relay_derp_connected"] {
        assert!(text.contains(&format!("# TYPE {name} gauge")), "{name}: not in\n{text}");
    }
    // The checker does find faults.
    let (status, complaints) = check_metrics("# TYPE a counter\na 1\n");
    assert_eq!((status, complaints.contains("no help text")), (3, true), "{complaints}");
    assert_eq!(check_metrics(&text.replace("# TYPE derp_accepts counter", "# TYPE !")).0, 1);
}

/// The exit status of `promtool check metrics`, and what it has to say.
fn check_metrics(text: &str) -> (i32, String) {
    let mut promtool = Command::new(PROMTOOL)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool runs");
    // It reads all before it writes anything.
    promtool.stdin.take().expect("piped").write_all(text.as_bytes()).expect("promtool reads");
    let output = promtool.wait_with_output().expect("promtool ends");
    let complaints = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    (output.status.code().expect("no signal"), complaints)
}

/// A running Prometheus; killed when dropped.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    _directory: TempDir,
}

impl Prometheus {
    /// Starts one that scrapes `target` every second.
    fn start(target: SocketAddr) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let configuration = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n- job_name: derpd\n  \
             metrics_path: /debug/varz\n  static_configs: [{{targets: ['{target}']}}]\n"
        );
        let configuration = write_file(directory.path(), "prometheus.yml", &configuration);
        let address = Place::own_address().tls_address();
        let process = Command::new(PROMETHEUS)
            .arg(format!("--config.file={configuration}"))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus runs");
        Self { process, address, _directory: directory }
    }

    /// The samples that a query finds, once Prometheus answers: labels and value of each.
    fn query(&self, query: &str) -> Vec<(Value, String)> {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return Vec::new() };
        stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
        let request = format!(
            "GET /api/v1/query?query={query} HTTP/1.1\r\nHost: prometheus\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the request is small");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer ends");
        let body = Response::parse(&answer).body;
        let Ok(answer) = serde_json::from_str::<Value>(&body) else { return Vec::new() };
        let result = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        let sample = |found: Value| {
            let value = found["value"][1].as_str()?.to_owned();
            Some((found["metric"].clone(), value))
        };
        result.into_iter().filter_map(sample).collect()
    }

    fn wait_for(&self, query: &str, wanted: &str) -> Value {
        let mut found = Vec::new();
        wait_until(&format!("{query} = {wanted}"), || {
            found = self.query(query);
            matches!(&found[..], [(_, value)] if value == wanted)
        });
        found.remove(0).0
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn prometheus_scrapes_a_running_relay() {
    if !has(PROMETHEUS, "a scrape by Prometheus") {
        return;
    }
    let server = Server::start();
    let mut peer = Peer::connect(&server);
    let key = peer.key();
    for _ in 0..3 {
        peer.send(&key, &[7; 100]);
        peer.receive();
    }
    let prometheus = Prometheus::start(server.http_address());
    let labels = prometheus.wait_for("up", "1");
    assert_eq!(labels["instance"], server.http_address().to_string());
    prometheus.wait_for("derp_current_connections", "1");
    prometheus.wait_for("derp_bytes_sent", "300");
    prometheus.wait_for("derp_packets_received_kind%7Bkind=%22other%22%7D", "3");
    prometheus.wait_for("derper_tls_active_version%7Bversion=%221.3%22%7D", "1");
    prometheus.wait_for("derp_buffered_write_frames_bucket%7Ble=%22%2BInf%22%7D", "3");
    let version = prometheus.query("version");
    assert_eq!(version[0].0["binary"], "derpd", "{version:?}");
    drop(peer);
    prometheus.wait_for("derp_current_connections", "0");
}
