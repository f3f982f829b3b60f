//! The metrics as the real Prometheus reads them: its checker over the text, the server scraping a running relay, the
//! alert rules on made-up series, and every query of the dashboard on what was scraped.

#[path = "support/fake.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod fake;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    fake::{Fake, Reply},
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
        Self::start_on(&[target])
    }

    /// Starts one that scrapes all `targets` every second, and evaluates the alerts as often.
    fn start_on(targets: &[SocketAddr]) -> Self {
        let targets: Vec<_> = targets.iter().map(|target| format!("'{target}'")).collect();
        let targets = targets.join(", ");
        let directory = TempDir::new().expect("a temporary directory");
        let configuration = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{}]\nscrape_configs:\n\
             - job_name: derpd\n  metrics_path: /debug/varz\n  static_configs: [{{targets: [{targets}]}}]\n",
            write_file(directory.path(), "alerts.yml", RULES)
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

    /// The samples that a query, as in a URL, finds once Prometheus answers: labels and value of each.
    fn query(&self, query: &str) -> Vec<(Value, String)> {
        let data = self.data(&format!("query?query={query}")).unwrap_or_default();
        let result = data["result"].as_array().cloned().unwrap_or_default();
        let sample = |found: Value| {
            let value = found["value"][1].as_str()?.to_owned();
            Some((found["metric"].clone(), value))
        };
        result.into_iter().filter_map(sample).collect()
    }

    /// What the API tells under a path once Prometheus answers.
    fn data(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
        let request =
            format!("GET /api/v1/{path} HTTP/1.1\r\nHost: prometheus\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the request is small");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer ends");
        let answer: Value = serde_json::from_str(&Response::parse(&answer).body).ok()?;
        Some(answer["data"].clone())
    }

    /// The alerts as Prometheus has read them.
    fn rules(&self) -> Vec<Value> {
        let groups = self.data("rules").unwrap_or_default()["groups"].as_array().cloned();
        let rules = |group: Value| group["rules"].as_array().cloned().unwrap_or_default();
        groups.unwrap_or_default().into_iter().flat_map(rules).collect()
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

const RULES: &str = include_str!("../../deploy/prometheus/alerts.yml");
const RULE_TESTS: &str = include_str!("../../deploy/prometheus/alerts_test.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/derpd.json");
const MANUAL: &str = include_str!("../../docs/OPERATIONS.md");

/// Names of the alerts.
fn alerts() -> Vec<&'static str> {
    RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect()
}

#[test]
fn every_alert_is_tested_and_in_the_manual() {
    let alerts = alerts();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        for case in [format!("- name: {alert}\n"), format!("- name: {alert}, quiet\n")] {
            assert!(RULE_TESTS.contains(&case), "{case:?} is missing from alerts_test.yml");
        }
        assert!(MANUAL.contains(&format!("\n| `{alert}` |")), "{alert} is not in the manual");
    }
}

#[test]
fn the_alerts_fire_when_they_should_and_only_then() {
    if !has(PROMTOOL, "promtool test rules") {
        return;
    }
    let directory = TempDir::new().expect("a temporary directory");
    let promtool = |rules: &str| {
        write_file(directory.path(), "alerts.yml", rules);
        let tests = write_file(directory.path(), "alerts_test.yml", RULE_TESTS);
        let output = Command::new(PROMTOOL).args(["test", "rules", &tests]).output();
        let output = output.expect("promtool runs");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (succeeds, said) = promtool(RULES);
    assert!(succeeds, "{said}");
    // The tests do find faults.
    let (succeeds, said) = promtool(&RULES.replace("> 0.8", "> 0.99"));
    assert!(!succeeds && said.contains("DerpdFilesRunOut"), "{said}");
}

/// The metrics that a rule or a query names.
fn metrics_in(query: &str) -> Vec<&str> {
    let is_word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let families =
        ["derp_", "derper_", "derpd_", "stun_", "xdp_stun_server_", "tls_listener_", "process_"];
    query
        .split(|letter| !is_word(letter))
        .filter(|word| families.iter().any(|family| word.starts_with(family)))
        .collect()
}

#[test]
fn alerts_and_dashboard_name_metrics_that_there_are() {
    let queries = queries();
    let queries = queries.iter().map(|(_, query)| query.as_str()).chain(RULES.lines());
    let named: Vec<_> = queries.flat_map(metrics_in).collect();
    assert!(named.len() > 50, "{named:?}");
    for metric in named {
        assert!(
            MANUAL.contains(&format!("`{metric}`")) || MANUAL.contains(&format!("`{metric}{{")),
            "{metric}"
        );
    }
}

/// The queries of the dashboard, with the titles of their panels.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let of_panel = |panel: &Value| -> Vec<_> {
        let title = panel["title"].as_str().expect("a title").to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let query = |target: &Value| target["expr"].as_str().expect("a query").to_owned();
        targets.iter().map(|target| (title.clone(), query(target))).collect()
    };
    panels.iter().flat_map(of_panel).collect()
}

/// The variables of the dashboard as Grafana fills them in.
fn filled_in(query: &str) -> String {
    query.replace("$job", "derpd").replace("$instance", ".*").replace("$__rate_interval", "5s")
}

/// A text as a part of a URL.
fn in_url(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

/// Two ends of a virtual cable, for a relay to attach its program to; removed when dropped.
struct Cable(String);

impl Cable {
    /// Lays one; says why not if that is impossible.
    fn lay() -> Result<Self, String> {
        let name = format!("prom{}", std::process::id());
        let arguments = ["link", "add", &name, "type", "veth", "peer", "name", &format!("{name}b")];
        let output =
            Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Self(name))
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // It ends with its namespace at the latest.
        let _ = Command::new("ip").args(["link", "delete", &self.0]).status();
    }
}

/// An alert's expression as one that says of everything it looks at whether the alert would fire: a comparison by
/// itself leaves out what is as it should be.
fn whether(expression: &str) -> String {
    [" > ", " < ", " == "].iter().fold(expression.to_owned(), |text, comparison| {
        text.replace(comparison, &format!("{comparison}bool "))
    })
}

/// A real Prometheus, a region of two relays that do everything metrics tell of, and a minute.
#[test]
fn every_query_of_the_dashboard_and_of_the_alerts_finds_something() {
    const MINUTE: Duration = Duration::from_secs(60);
    if !has(PROMETHEUS, "the queries of the dashboard and of the alerts") {
        return;
    }
    let begun = Instant::now();
    // One of the relays also relays UDP; the other one asks who may use it, and gets no answer.
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let mesh_key = write_file(directory.path(), "mesh.key", &"5a".repeat(32));
    let flow =
        "[[flow]]\nname = \"a\"\nvni = 1\na = \"127.0.0.1:9\"\nb = \"127.0.0.1:10\"\nport = 0\n";
    let (first_place, second_place) = (Place::own_address(), Place::own_address());
    let port = first_place.http_port() + 100;
    let flow = write_file(
        directory.path(),
        "derpd.toml",
        &flow.replace("port = 0", &format!("port = {port}")),
    );
    let cable = Cable::lay();
    let mut flags = vec![
        format!("-mesh-psk-file={mesh_key}"),
        format!("-mesh-with={}", second_place.tls_address()),
        format!("-config={flow}"),
        "-xdp-pin=off".to_owned(),
    ];
    match &cable {
        Ok(Cable(name)) => flags.push(format!("-xdp-interface={name}")),
        Err(reason) => skip("queries of the kernel data plane", reason),
    }
    let token = write_file(directory.path(), "token", "secret\n");
    let control = Fake::on_tcp(Reply::new(
        200,
        &format!(r#"{{"nodes":[{{"nodeKey":"nodekey:{}"}}]}}"#, "5a".repeat(32)),
    ));
    let second = Server::start_at(
        || second_place,
        Arc::new(TempDir::new().expect("a temporary directory")),
        &[
            &format!("-mesh-psk-file={mesh_key}"),
            &format!("-allow-from-api={}", control.url("/api/v1/node")),
            &format!("-api-token-file={token}"),
            "-verify-client-url=http://127.0.0.1:1/",
        ],
    );
    let hint = second.wait_for_log("\"sha256-raw:");
    let pin = hint.split('"').find(|word| word.starts_with("sha256-raw:")).expect("a pin");
    flags.push(format!("-mesh-pin={pin}"));
    let flags: Vec<_> = flags.iter().map(String::as_str).collect();
    let first = Server::start_at(|| first_place, directory, &flags);

    let prometheus = Prometheus::start_on(&[first.http_address(), second.http_address()]);
    let mut peer = Peer::connect(&first);
    let key = peer.key();
    wait_until("the alerts", || !prometheus.rules().is_empty());
    let rules = prometheus.rules();
    let names: Vec<_> = rules.iter().map(|rule| rule["name"].as_str().expect("a name")).collect();
    assert_eq!(names, alerts());
    let of_rule = |rule: &Value| {
        let [name, query] =
            ["name", "query"].map(|key| rule[key].as_str().expect("text").to_owned());
        (name, whether(&query))
    };
    let mut wanted: Vec<_> = queries().into_iter().chain(rules.iter().map(of_rule)).collect();
    assert!(wanted.len() > 40, "{wanted:?}");
    if cable.is_err() {
        wanted.retain(|(_, query)| !query.contains("xdp_"));
    }
    // What belongs to no flow is refused.
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // Round trips are sampled every 10 seconds, and rates need two scrapes.
    let deadline = Instant::now() + 2 * PATIENCE;
    while !wanted.is_empty() {
        assert!(Instant::now() < deadline, "nothing found for {wanted:?}");
        stranger.send_to(&[7; 100], (first.ip(), port)).expect("it fits");
        peer.send(&key, &[7; 100]);
        peer.receive();
        // Nobody says whether this one may come in.
        drop(Peer::connect(&second));
        wanted.retain(|(_, query)| prometheus.query(&in_url(&filled_in(query))).is_empty());
        sleep(Duration::from_millis(100));
    }
    let sent = prometheus.query(&in_url(&filled_in(
        "sum(rate(derp_packets_sent{job=~\"$job\"}[$__rate_interval]))",
    )));
    assert!(sent[0].1.parse::<f64>().expect("a number") > 0.0, "{sent:?}");
    sleep(MINUTE.saturating_sub(begun.elapsed()));
    // Nothing was missed, and every rule could be evaluated each time.
    prometheus.wait_for("min%28min_over_time%28up[45s]%29%29", "1");
    for rule in prometheus.rules() {
        assert_eq!((&rule["health"], &rule["lastError"]), (&"ok".into(), &Value::Null), "{rule}");
    }
}
