//! Pages and metrics beside those of Tailscale's derper, which runs with the same flags: whatever differs must be in
//! a list here, with the reason, and whatever is in a list must differ.

#[path = "support/go.rs"]
mod go;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    peer::{Peer, Wire},
    server::{Place, Response, Server, binary, skip},
};

static DERPER: go::Built = go::Built::new();

/// derper and derpd with the same flags.
struct Pair {
    derper: Server,
    derpd: Server,
}

/// Builds derper, or says that `what` is skipped.
fn derper(what: &str) -> Option<PathBuf> {
    match go::go_binary(&DERPER, "derper", &["build"], "tailscale.com/cmd/derper") {
        Ok(derper) => Some(derper),
        Err(reason) => {
            skip(what, &reason);
            None
        }
    }
}

impl Pair {
    fn start(derper: &PathBuf, flags: &[&str]) -> Self {
        let start = |binary: &PathBuf| {
            let directory = Arc::new(TempDir::new().expect("a temporary directory"));
            Server::start_binary(binary, Place::own_address, directory, flags)
        };
        let pair = Self { derper: start(derper), derpd: start(&binary()) };
        if flags.iter().any(|flag| flag.starts_with("-bootstrap-dns-names")) {
            for server in [&pair.derper, &pair.derpd] {
                let known = || {
                    !Question::plain("GET", "/bootstrap-dns")
                        .ask(server, Port::Main)
                        .body
                        .is_empty()
                };
                server::wait_until("the look-up", known);
            }
        }
        pair
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Port {
    Main,
    Plain,
}

/// One question: request line and headers.
#[derive(Debug)]
struct Question {
    line: String,
    headers: &'static [&'static str],
}

impl Question {
    fn plain(method: &str, path: &str) -> Self {
        Self { line: format!("{method} {path}"), headers: &[] }
    }

    fn ask(&self, server: &Server, port: Port) -> Response {
        let mut request = format!("{} HTTP/1.1\r\n", self.line);
        if !self.headers.iter().any(|header| header.starts_with("Host:")) {
            request += "Host: relay.example\r\n";
        }
        for header in self.headers {
            request += &format!("{header}\r\n");
        }
        request += "Connection: close\r\n\r\n";
        match port {
            Port::Main => Wire::connect(server).http(&request),
            Port::Plain => server.http(&request),
        }
    }
}

const PATHS: [&str; 24] = [
    "/",
    "/?a=b",
    "/no-such-page",
    "/no-such-page/below?a=b",
    "/robots.txt",
    "/generate_204",
    "/derp",
    "/derp/",
    "/derp/probe",
    "/derp/latency-check",
    "/derp/other",
    "/bootstrap-dns",
    "/bootstrap-dns?q=localhost",
    "/bootstrap-dns?q=other.example",
    "/debug/",
    "/debug",
    "/debug?a=b",
    "/debug/varz",
    "/debug/vars",
    "/debug/check",
    "/debug/no-such-page",
    "//derp/probe",
    "/x/../derp/./probe",
    "/.well-known/acme-challenge/token",
];
const METHODS: [&str; 5] = ["GET", "HEAD", "POST", "PUT", "OPTIONS"];

const SPECIAL: [(&str, &[&str]); 14] = [
    ("GET /generate_204", &["X-Tailscale-Challenge: ts_1.2.3.4"]),
    ("POST /generate_204", &["X-Tailscale-Challenge: Az09.-_:"]),
    ("GET /generate_204", &["X-Tailscale-Challenge: two words"]),
    ("GET /derp", &["Upgrade: h2c"]),
    ("GET /debug/", &["X-Forwarded-For: 127.0.0.1"]),
    ("GET /debug/varz", &["X-Forwarded-For: 127.0.0.1"]),
    ("GET /debug/no-such-page", &["X-Forwarded-For: 127.0.0.1"]),
    ("GET /", &["X-Forwarded-For: 127.0.0.1"]),
    ("GET /derp/probe", &["Host: other.example:8443"]),
    ("GET /a?b=c", &["Host: other.example:8443"]),
    ("GET /", &["Host: [2001:db8::1]:80"]),
    ("CONNECT login.tailscale.com:443", &[]),
    ("GET http://other.example/derp/probe", &[]),
    ("OPTIONS *", &[]),
];

/// What two answers to one question differ in.
fn differences(derper: &Response, derpd: &Response) -> Vec<String> {
    // What the connection needs, and the time.
    const OWN: [&str; 4] = ["date", "content-length", "transfer-encoding", "connection"];
    let headers = |response: &Response| -> BTreeMap<String, String> {
        let lines = response.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        let all = lines.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        all.filter(|(name, _)| !OWN.contains(&name.as_str())).collect()
    };
    let mut found = Vec::new();
    if derper.status != derpd.status {
        found.push(format!("status {} {}", derper.status, derpd.status));
    }
    let (theirs, ours) = (headers(derper), headers(derpd));
    let names: BTreeSet<_> = theirs.keys().chain(ours.keys()).collect();
    for name in names {
        let [one, other] = [&theirs, &ours].map(|headers| headers.get(name).map(String::as_str));
        if one != other {
            found.push(format!("{name}: {} -> {}", one.unwrap_or("-"), other.unwrap_or("-")));
        }
    }
    // Numbers differ, and what people read is worded differently.
    let is_text = derper.header("content-type").is_some_and(|kind| kind.contains("text/plain"))
        && !derper.body.contains("# TYPE");
    let is_json = derper.header("content-type") == Some("application/json");
    if (is_text || is_json) && derper.body != derpd.body {
        found.push(format!("body: {:?} -> {:?}", derper.body, derpd.body));
    } else if derper.body.is_empty() != derpd.body.is_empty() {
        found.push(format!("body: {} -> {} bytes", derper.body.len(), derpd.body.len()));
    }
    found
}

/// Where the answers differ on purpose: port (both if `None`), what the request line begins with, what the difference
/// begins with, and why.
const DIFFERENCES: [(Option<Port>, &str, &str, &str); 4] = [
    (
        None,
        "/debug/varz",
        "content-type: text/plain; charset=utf-8 -> text/plain; version=0.0.4",
        "the exposition format has this type",
    ),
    (
        Some(Port::Plain),
        "login.tailscale.com:443",
        "status 404 400",
        "tunnels are refused in the same words as everything else that needs TLS",
    ),
    (Some(Port::Plain), "login.tailscale.com:443", "body: ", "the same"),
    (
        Some(Port::Plain),
        "http://other.example/",
        "location: https://other.examplehttp://other.example/",
        "derper takes the whole address for a path",
    ),
];

#[test]
fn every_page_is_as_derpers() {
    let Some(derper) = derper("pages beside derper") else { return };
    let questions: Vec<Question> = METHODS
        .iter()
        .flat_map(|method| PATHS.iter().map(move |path| Question::plain(method, path)))
        .chain(SPECIAL.iter().map(|&(line, headers)| Question { line: line.to_owned(), headers }))
        .collect();
    let mut met = BTreeSet::new();
    for flags in [
        &["-bootstrap-dns-names=localhost"][..],
        &["-home=blank", "-derp=false"],
        &["-home=https://elsewhere.example/about"],
    ] {
        let pair = Pair::start(&derper, flags);
        for (port, question) in [Port::Main, Port::Plain]
            .into_iter()
            .flat_map(|port| questions.iter().map(move |question| (port, question)))
        {
            let [theirs, ours] = [&pair.derper, &pair.derpd].map(|it| question.ask(it, port));
            for difference in differences(&theirs, &ours) {
                let target = question.line.split_once(' ').expect("a method and a target").1;
                let listed = DIFFERENCES.iter().position(|(on, target_start, start, _)| {
                    on.is_none_or(|on| on == port)
                        && target.starts_with(target_start)
                        && difference.starts_with(start)
                });
                let Some(listed) = listed else {
                    panic!("{flags:?} {port:?} {question:?}: {difference}\n{theirs:?}\n{ours:?}");
                };
                met.insert(listed);
            }
        }
    }
    assert_eq!(met.len(), DIFFERENCES.len(), "a difference in the list is none: {met:?}");
}

#[test]
fn bootstrap_dns_ends_the_connection_by_itself() {
    let Some(derper) = derper("bootstrap DNS beside derper") else { return };
    let pair = Pair::start(&derper, &["-bootstrap-dns-names=localhost"]);
    for server in [&pair.derper, &pair.derpd] {
        let request = "GET /bootstrap-dns HTTP/1.1\r\nHost: relay\r\n\r\n";
        let answer = Wire::connect(server).http(request);
        assert_eq!(answer.header("Connection"), Some("close"));
        let names: Value = serde_json::from_str(&answer.body).expect("JSON");
        let addresses = names["localhost"].as_array().expect("addresses");
        assert!(addresses.iter().any(|ip| ip == "127.0.0.1" || ip == "::1"), "{answer:?}");
    }
}

/// A relay of each kind with everything switched on that adds metrics, and one client.
fn busy_pair(derper: &PathBuf) -> (Pair, [Peer; 2], TempDir) {
    let directory = TempDir::new().expect("a temporary directory");
    let limits =
        r#"{"PerClientRateLimitBytesPerSec": 1000000, "PerClientRateBurstBytes": 1000000}"#;
    let limits = server::write_file(directory.path(), "rate.json", limits);
    let pair = Pair::start(derper, &[&format!("-rate-config={limits}")]);
    let mut peers = [&pair.derper, &pair.derpd].map(Peer::connect);
    for (peer, server) in peers.iter_mut().zip([&pair.derper, &pair.derpd]) {
        peer.round_trip();
        server.wait_for_metric("derp_current_connections", 1.0);
    }
    (pair, peers, directory)
}

/// Metrics and variables of derper's that derpd has not, and why.
const MISSING: [(&str, &str); 5] = [
    ("go_", "the Go runtime"),
    ("memstats", "the Go runtime"),
    ("goroutines", "the Go runtime"),
    ("gauge_goroutines", "the Go runtime"),
    ("derp_memstats_sys0", "the Go runtime"),
];

fn is_missing(name: &str) -> bool {
    MISSING.iter().any(|(start, _)| name.starts_with(start))
}

/// A metric: its type, if it has one, and the names of its labels, if it has samples.
#[derive(Debug, Default, Eq, PartialEq)]
struct Family {
    kind: Option<String>,
    labels: Option<Vec<String>>,
}

/// The metrics of a text in the exposition format.
fn families(text: &str) -> BTreeMap<String, Family> {
    let mut families = BTreeMap::<_, Family>::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|it| it.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = Some(kind.to_owned());
        }
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let (sample, _value) = line.rsplit_once(' ').expect("a sample and its value");
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let mut labels: Vec<_> = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|label| Some(label.split_once('=')?.0.to_owned()))
            .collect();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let name = name.strip_suffix(end)?;
            let kind = families.get(name)?.kind.as_deref();
            (kind == Some("histogram") || kind == Some("summary")).then(|| name.to_owned())
        });
        if of_histogram.is_some() {
            labels.clear();
        }
        let name = of_histogram.unwrap_or_else(|| name.to_owned());
        families.entry(name).or_default().labels = Some(labels);
    }
    families
}

#[test]
fn every_metric_is_as_derpers() {
    let Some(derper) = derper("metrics beside derper") else { return };
    let (pair, _peers, _directory) = busy_pair(&derper);
    let [theirs, ours] =
        [&pair.derper, &pair.derpd].map(|server| families(&server.get("/debug/varz").body));
    assert!(theirs.len() > 100, "these are not all of derper's: {theirs:#?}");
    let mut faults = Vec::new();
    for (name, family) in theirs.iter().filter(|(name, _)| !is_missing(name)) {
        let Some(own) = ours.get(name) else {
            faults.push(format!("{name} is missing"));
            continue;
        };
        // What derper gives no type is a gauge or a counter here: there is nothing that it could break.
        if family.kind.is_some() && family.kind != own.kind {
            faults.push(format!("{name}: {:?} -> {:?}", family.kind, own.kind));
        }
        if family.labels.is_some() && family.labels != own.labels {
            faults.push(format!("{name}: {:?} -> {:?}", family.labels, own.labels));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    for (start, reason) in MISSING.iter().filter(|(start, _)| !start.starts_with("gauge")) {
        assert!(theirs.keys().any(|name| name.starts_with(start)), "{start}: derper has none");
        assert!(!ours.keys().any(|name| name.starts_with(start)), "{start}: not {reason}");
    }
}

#[test]
fn every_variable_is_as_derpers() {
    let Some(derper) = derper("variables beside derper") else { return };
    let (pair, _peers, _directory) = busy_pair(&derper);
    let [theirs, ours] = [&pair.derper, &pair.derpd].map(|server| -> Value {
        serde_json::from_str(&server.get("/debug/vars").body).expect("JSON")
    });
    let mut faults = Vec::new();
    compare("", &theirs, &ours, &mut faults);
    assert!(faults.is_empty(), "{faults:#?}\n{ours:#}");
    let dropped = &ours["derp_packets_dropped"]["queue_head"]["disco"];
    assert!(theirs["derp_packets_dropped"] == "MultiLabelMap" && dropped == 0);
}

/// Notes what of `theirs` is not in `ours`, or is something else there.
fn compare(path: &str, theirs: &Value, ours: &Value, faults: &mut Vec<String>) {
    match (theirs, ours) {
        (Value::Object(members), Value::Object(own)) => {
            for (name, member) in members {
                let path = format!("{path}/{name}");
                let is_go = is_missing(name) || name == "gauge_memstats_sys0";
                match own.get(name) {
                    Some(own) => compare(&path, member, own, faults),
                    None if is_go => {}
                    None => faults.push(format!("{path} is missing")),
                }
            }
        }
        // A word that stands for what cannot be shown.
        (Value::String(word), Value::Object(_)) if word == "MultiLabelMap" => {}
        (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_))
        | (Value::Array(_), Value::Array(_)) => {}
        _ => faults.push(format!("{path}: {theirs} -> {ours}")),
    }
}

/// Each test that docs/PARITY.md names exists, and each feature has one row.
#[test]
fn the_table_of_features_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = fs::read_to_string(root.join("../docs/PARITY.md")).expect("the table");
    let mut features = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| ")) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, feature, .., shown, _] = columns[..] else { continue };
        let Ok(feature) = feature.parse::<u32>() else { continue };
        features.push(feature);
        for name in shown.split(", ").filter(|name| !name.is_empty()) {
            let (module, test) = name
                .trim_matches('`')
                .split_once("::")
                .unwrap_or_else(|| panic!("{feature}: {name} is not file::test"));
            let places = ["tests", "src"].map(|directory| root.join(directory).join(module));
            let mut sources = vec![root.join("tests").join(module).with_extension("rs")];
            places.iter().for_each(|place| add_sources(place, &mut sources));
            let definition = format!("fn {test}(");
            let exists = sources.iter().any(|source| {
                fs::read_to_string(source).is_ok_and(|text| text.contains(&definition))
            });
            assert!(exists, "{feature}: there is no test {name}");
        }
    }
    assert_eq!(features, (1..=91).collect::<Vec<_>>());
}

fn add_sources(directory: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            add_sources(&path, sources);
        } else {
            sources.push(path);
        }
    }
}
