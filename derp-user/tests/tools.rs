//! `derpd derpmap`, `netcheck` and `probe`, the binary, against running relays.
//!
//! Tailscale's derper is one of them where Go 1.26 and its modules are there.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "support/go.rs"]
mod go;
#[path = "support/peer.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod peer;
#[path = "support/region.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod region;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use region::{Authority, MESH_KEY, Site};
use server::{PATIENCE, Place, Server, binary, skip, write_file};

static DERPER: go::Built = OnceLock::new();

/// What a run has left.
#[derive(Debug)]
struct Run {
    status: i32,
    output: String,
    error: String,
}

/// Runs the tool; it must end by itself.
fn derpd<T: AsRef<std::ffi::OsStr>>(arguments: &[T]) -> Run {
    let mut child = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("derpd starts");
    let deadline = Instant::now() + 2 * PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child of this process") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            panic!("it did not end by itself");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let (mut output, mut error) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut output).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut error).expect("text");
    Run { status: status.code().expect("no signal"), output, error }
}

impl Run {
    fn json(&self) -> Value {
        serde_json::from_str(&self.output).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The line of a probe.
    #[track_caller]
    fn probe(&self, name: &str) -> &str {
        let part = format!(" {name}: ");
        let line = self.output.lines().find(|line| line.contains(&part));
        line.unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    #[track_caller]
    fn assert_good(&self, names: &[&str]) {
        for name in names {
            assert!(self.probe(name).starts_with("OK "), "{}", self.probe(name));
        }
        assert_eq!(self.status, 0, "{self:?}");
        assert!(self.output.starts_with("DERP OK: "), "{self:?}");
    }
}

/// The map entry of a relay that is known by its pin.
fn node(name: &str, server: &Server) -> Value {
    let pem = fs::read(server.certificate_file()).expect("a certificate");
    let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).expect("PEM");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pem.contents);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "Name": name, "HostName": server.ip().to_string(), "IPv4": server.ip().to_string(), "IPv6": "none",
        "CertName": format!("sha256-raw:{hash}"),
        "DERPPort": server.tls_address().port(), "STUNPort": server.stun_address().port(),
    })
}

/// The map entry of a relay whose certificate its authority vouches for.
fn signed_node(name: &str, place: &Place, stun_port: u16) -> Value {
    let address = place.tls_address();
    json!({
        "Name": name, "HostName": address.ip().to_string(), "IPv6": "none",
        "DERPPort": address.port(), "STUNPort": stun_port,
    })
}

/// Writes a map of one region.
fn write_map(directory: &Path, nodes: &[Value]) -> String {
    let map = json!({"Regions": {"900": {
        "RegionID": 900, "RegionCode": "test", "RegionName": "Relays under test", "Nodes": nodes,
    }}});
    write_file(directory, "map.json", &map.to_string())
}

/// The flags with which the relays of the test support run.
fn relay_flags(server: &Server) -> Vec<String> {
    let (tls, stun) = (server.tls_address(), server.stun_address());
    let directory = server.directory().path().display();
    [
        format!("-a={tls}"),
        format!("-http-port={}", server.http_address().port()),
        format!("-stun-port={}", stun.port()),
        format!("-hostname={}", server.ip()),
        "-certmode=manual".to_owned(),
        format!("-certdir={directory}/certs"),
        format!("-c={directory}/derper.key"),
    ]
    .into()
}

#[test]
fn the_map_of_a_relay_leads_its_tools_to_it() {
    let server = Server::start();
    for format in ["tailscale", "headscale", "json"] {
        let mut arguments = vec!["derpmap".to_owned(), format!("--format={format}")];
        arguments.extend(relay_flags(&server));
        let printed = derpd(&arguments);
        assert_eq!((printed.status, &*printed.error), (0, ""), "{printed:?}");
        let map = write_file(server.directory().path(), "map", &printed.output);
        let probed = derpd(&["probe", "--derp-map", &map]);
        probed.assert_good(&[
            "derp/custom/900a/tls",
            "derp/custom/900a/http",
            "derp/custom/900a/udp",
            "derp/custom/900a/900a/mesh",
        ]);
        assert!(
            probed.probe("derp/custom/900a/tls").contains("pinned certificate is valid for 36")
        );
    }
}

#[test]
fn a_map_that_cannot_be_made_says_why() {
    let directory = TempDir::new().expect("a temporary directory");
    let place = directory.path().display();
    let arguments = [
        "derpmap",
        "-a",
        ":8443",
        "-certmode",
        "manual",
        "-certdir",
        &place.to_string(),
        "-hostname",
        "192.0.2.1",
    ];
    let run = derpd(&arguments);
    assert_eq!((run.status, &*run.output), (1, ""));
    let expected = format!(
        "derpd derpmap: {place}/192.0.2.1.crt is not there: start derpd once, which makes a certificate for \
         192.0.2.1, and ask again\n"
    );
    assert_eq!(run.error, expected);
    assert!(
        fs::read_dir(directory.path()).expect("still there").next().is_none(),
        "nothing is made"
    );
    let run = derpd(&["derpmap", "-hostnam=x"]);
    assert_eq!(run.status, 2);
    assert!(run.error.contains("did you mean -hostname?"), "{run:?}");
    let run = derpd(&["derpmap", "-a", ":8080", "-hostname", "relay.test"]);
    assert_eq!(run.status, 0);
    assert!(run.error.contains("plain HTTP") && run.output.contains("\"relay.test\""), "{run:?}");
}

#[test]
fn netcheck_measures_by_stun_and_by_https() {
    let (first, second) = (Server::start(), Server::start());
    let map = json!({"Regions": {
        "901": {"RegionCode": "one", "RegionName": "First", "Nodes": [node("901a", &first)]},
        "902": {"RegionCode": "two", "RegionName": "Second", "Nodes": [node("902a", &second)]},
    }});
    let map = write_file(first.directory().path(), "map.json", &map.to_string());
    let run = derpd(&["netcheck", "--derp-map", &map]);
    assert_eq!((run.status, &*run.error), (0, ""), "{run:?}");
    for part in ["* UDP: true", "* IPv4: yes, 127.0.0.1:", "- one: ", "- two: ", "IPv4 ", "HTTPS "]
    {
        assert!(run.output.contains(part), "{part}: {run:?}");
    }
    let run = derpd(&["netcheck", "--derp-map", &map, "--json", "--region", "two"]);
    let report = run.json();
    assert_eq!((&report["UDP"], &report["Status"]), (&true.into(), &"ok".into()));
    assert_eq!(report["PreferredDERP"], 902);
    for latency in ["RegionLatency", "RegionV4Latency", "RegionHTTPSLatency"] {
        let latencies = report[latency].as_object().expect("an object");
        assert_eq!(latencies.len(), 1, "{latency}");
        assert!(latencies["902"].as_u64() > Some(0), "{latency}");
    }
    assert_eq!(report["MappingVariesByDestIP"], Value::Null, "one relay cannot tell");
}

#[test]
fn netcheck_without_udp_or_without_anything() {
    let server = Server::start_with(&["-stun=false"]);
    let map = write_map(server.directory().path(), &[node("900a", &server)]);
    let run = derpd(&["netcheck", "--derp-map", &map]);
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.output.contains("* UDP: false") && run.output.contains("HTTPS "), "{run:?}");
    assert!(run.output.contains("* Nearest DERP: Relays under test"), "{run:?}");
}

#[test]
fn netcheck_where_nobody_is() {
    let directory = TempDir::new().expect("a temporary directory");
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let gone = json!({"Name": "900a", "HostName": "127.0.0.1", "DERPPort": closed.port(), "STUNPort": closed.port()});
    let map = write_map(directory.path(), &[gone]);
    let run = derpd(&["netcheck", "--derp-map", &map, "--insecure"]);
    assert_eq!(run.status, 2, "{run:?}");
    assert!(run.output.contains("Nearest DERP: unknown"), "{run:?}");
    assert!(run.output.contains(&format!("cannot connect to 127.0.0.1 ({closed})")), "{run:?}");
}

#[test]
fn maps_that_cannot_be_used_are_status_3_with_their_place() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = |text: &str| write_file(directory.path(), "map.json", text);
    let node = r#""Name": "1a", "HostName": "h""#;
    let region = |fields: &str| {
        format!(
            "{{\n\"Regions\": {{\"1\": {{\"RegionCode\": \"fra\",\n\"Nodes\": [{{{node}, {fields}}}]}}}}}}"
        )
    };
    let missing = directory.path().join("none.json").display().to_string();
    for tool in ["netcheck", "probe"] {
        for (text, parts) in [
            (
                region("\"DERPPort\": true"),
                ["malformed: Regions.1.Nodes[0].DERPPort", "line 3"].as_slice(),
            ),
            (region("\"STUNPort\": 65536"), &["Regions.1.Nodes[0].STUNPort is 65536"]),
            ("{\"Regions\": {}".to_owned(), &["EOF", "line 1"]),
            ("regions:\n  1:\n    nodes: x\n".to_owned(), &["malformed", "line 3"]),
            ("{\"Regions\": {}}".to_owned(), &["has no relays"]),
        ] {
            let run = derpd(&[tool, "--derp-map", &file(&text)]);
            assert_eq!((run.status, &*run.output), (3, ""), "{text}");
            for part in parts.iter().chain(&["map.json"]) {
                assert!(run.error.contains(part), "{part:?}: {run:?}");
            }
        }
        let map = file(&region("\"DERPPort\": 1"));
        let run = derpd(&[tool, "--derp-map", &map, "--region", "nyc"]);
        assert_eq!(run.status, 3);
        assert!(run.error.contains("has no region \"nyc\"; it has fra (1)"), "{run:?}");
        let run = derpd(&[tool, "--derp-map", &missing]);
        assert!(run.status == 3 && run.error.contains("none.json: No such file"), "{run:?}");
        let run = derpd(&[tool, "--derp-map", &map, "--ca", &missing]);
        assert!(
            run.status == 3 && run.error.contains("cannot read") && run.error.contains("none.json"),
            "{run:?}"
        );
        let run = derpd(&[tool, "--nonsense"]);
        assert!(run.status == 3 && run.error.starts_with(&format!("derpd {tool}: ")), "{run:?}");
        let run = derpd(&[tool, "--help"]);
        assert!(run.status == 0 && run.output.contains("--derp-map"), "{run:?}");
    }
}

/// Maps come from control servers, too.
#[test]
fn a_map_is_fetched_from_its_address() {
    let server = Server::start();
    let map = json!({"Regions": {"900": {"RegionCode": "test", "Nodes": [node("900a", &server)]}}})
        .to_string();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        for (status, body) in [("200 OK", map), ("404 Not Found", String::new())] {
            let (mut socket, _) = listener.accept().expect("a client");
            let _ = socket.read(&mut [0; 4096]);
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            );
            socket.write_all(answer.as_bytes()).expect("taken");
        }
    });
    let url = format!("http://{address}/derpmap");
    derpd(&["probe", "--derp-map", &url]).assert_good(&["derp/test/900a/900a/mesh"]);
    let run = derpd(&["netcheck", "--derp-map", &url]);
    assert!(run.status == 3 && run.error.contains("HTTP status 404"), "{run:?}");
}

/// Relays of one region by one authority, in a map.
struct Region {
    _servers: Vec<Server>,
    directory: TempDir,
    authority: PathBuf,
    map: String,
}

impl Region {
    /// Starts relays with these binaries; `links` says with which others each is meshed.
    fn start(binaries: &[PathBuf], links: &[&[usize]]) -> Self {
        let authority = Authority::new();
        let sites: Vec<_> = binaries.iter().map(|_| Site::prepare(&authority)).collect();
        let servers: Vec<_> = sites
            .iter()
            .zip(binaries)
            .zip(links)
            .map(|((site, binary), links)| {
                let peers: Vec<_> = links.iter().map(|&at| sites[at].name()).collect();
                site.start_binary(binary.clone(), &peers)
            })
            .collect();
        let directory = TempDir::new().expect("a temporary directory");
        let nodes: Vec<_> = sites
            .iter()
            .zip(&servers)
            .zip(["900a", "900b", "900c"])
            .map(|((site, server), name)| {
                signed_node(name, &site.place, server.stun_address().port())
            })
            .collect();
        let map = write_map(directory.path(), &nodes);
        Self { _servers: servers, authority: authority.write(&directory), directory, map }
    }

    fn probe(&self, more: &[&str]) -> Run {
        let authority = self.authority.display().to_string();
        let mut arguments = vec!["probe", "--derp-map", &self.map, "--ca", &authority];
        arguments.extend(more);
        derpd(&arguments)
    }
}

const PAIRS: [&str; 4] = ["900a/900a", "900a/900b", "900b/900a", "900b/900b"];

#[test]
fn every_pair_of_a_meshed_region_is_probed_with_traffic() {
    let region = Region::start(&[binary(), binary()], &[&[1], &[0]]);
    let key = write_file(region.directory.path(), "mesh.key", MESH_KEY);
    let run = region.probe(&[
        "--bandwidth-size=1000001",
        "--delay-packets=50",
        "--delay-duration=400ms",
        "--loss-warning=100",
        "--mesh-psk-file",
        &key,
    ]);
    let names =
        PAIRS.map(|pair| ["mesh", "bw", "qd"].map(|class| format!("derp/test/{pair}/{class}")));
    let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    run.assert_good(&names);
    run.assert_good(&["derp/test/900a/tls", "derp/test/900b/udp", "derp/test/900b/http"]);
    assert!(run.probe("derp/test/900a/900b/bw").contains("1000001 bytes in "), "{run:?}");
    assert!(
        run.probe("derp/test/900b/900a/qd").contains(" of 20 packets lost; delay p50 "),
        "{run:?}"
    );

    let run = region.probe(&["--json", "--interval=100ms", "--count=2"]);
    assert_eq!((run.status, run.output.lines().count()), (0, 2), "{run:?}");
    for line in run.output.lines() {
        let report: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(report["status"], "ok");
        let mesh: Vec<_> = report["probes"]
            .as_array()
            .expect("probes")
            .iter()
            .filter(|it| it["class"] == "derp_mesh")
            .collect();
        assert_eq!(mesh.len(), 4);
        assert!(
            mesh.iter().all(|it| it["values"]["latency_seconds"].as_f64() > Some(0.0)),
            "{line}"
        );
    }
}

/// Only one of the two has a link, so that packets get one way only.
#[test]
fn a_missing_mesh_link_is_named_by_its_pair() {
    let region = Region::start(&[binary(), binary()], &[&[1], &[]]);
    let run = region.probe(&["--timeout=3s"]);
    assert_eq!(run.status, 2, "{run:?}");
    let line = run.probe("derp/test/900b/900a/mesh");
    assert_eq!(
        line,
        "CRITICAL derp/test/900b/900a/mesh: no packet got from 900b to 900a within 3s: 900b has no mesh link \
         to 900a (-mesh-with)"
    );
    assert!(
        run.output.starts_with("DERP CRITICAL: 1 of 10 probes: derp/test/900b/900a/mesh\n"),
        "{run:?}"
    );
    assert!(run.probe("derp/test/900a/900b/mesh").starts_with("OK "), "{run:?}");
}

#[test]
fn a_region_with_tailscales_derper_is_probed_alike() {
    let derper = match go::go_binary(&DERPER, "derper", &["build"], "tailscale.com/cmd/derper") {
        Ok(derper) => derper,
        Err(reason) => return skip("probes of a mixed region", &reason),
    };
    let region = Region::start(&[derper, binary()], &[&[1], &[0]]);
    let run =
        region.probe(&["--bandwidth-size=200000", "--delay-packets=50", "--delay-duration=200ms"]);
    let names =
        PAIRS.map(|pair| ["mesh", "bw", "qd"].map(|class| format!("derp/test/{pair}/{class}")));
    let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
    run.assert_good(&names);
    run.assert_good(&["derp/test/900a/tls", "derp/test/900a/http", "derp/test/900a/udp"]);
}

#[test]
fn an_expired_certificate_and_another_name_are_critical() {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let certificates = directory.path().join("certs");
    fs::create_dir(&certificates).expect("an empty directory");
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let day = Duration::from_secs(24 * 3600);
    parameters.not_before = (SystemTime::now() - 100 * day).into();
    parameters.not_after = (SystemTime::now() - 10 * day - day / 2).into();
    let certificate = parameters.self_signed(&key).expect("a certificate");
    let authority = write_file(&certificates, "localhost.crt", &certificate.pem());
    write_file(&certificates, "localhost.key", &key.serialize_pem());
    let server =
        Server::start_at(Place::localhost, Arc::clone(&directory), &["-hostname=localhost"]);
    let node = json!({
        "Name": "900a", "HostName": "localhost", "IPv4": "127.0.0.1", "IPv6": "none",
        "DERPPort": server.tls_address().port(), "STUNPort": server.stun_address().port(),
    });
    let map = write_map(directory.path(), std::slice::from_ref(&node));
    let run = derpd(&["probe", "--derp-map", &map, "--ca", &authority]);
    assert_eq!(run.status, 2, "{run:?}");
    let line = run.probe("derp/test/900a/tls");
    assert!(
        line.starts_with("CRITICAL ") && line.contains("a certificate has expired 10 days ago"),
        "{line}"
    );
    assert!(run.probe("derp/test/900a/udp").starts_with("OK "), "{run:?}");
    assert!(
        run.probe("derp/test/900a/900a/mesh").contains("a client cannot log in to 900a: TLS with"),
        "{run:?}"
    );

    let mut other = node;
    other["CertName"] = "other.test".into();
    let map = write_map(directory.path(), &[other]);
    let run = derpd(&["probe", "--derp-map", &map, "--insecure"]);
    let line = run.probe("derp/test/900a/tls");
    assert!(line.ends_with("a certificate has expired 10 days ago"), "{line}");
    assert!(run.probe("derp/test/900a/900a/mesh").starts_with("OK "), "any is accepted: {run:?}");
    let mut pinned: Value =
        serde_json::from_str(&fs::read_to_string(&map).expect("written")).expect("JSON");
    pinned["Regions"]["900"]["Nodes"][0]["CertName"] =
        format!("sha256-raw:{}", "00".repeat(32)).into();
    let map = write_file(directory.path(), "pinned.json", &pinned.to_string());
    let run = derpd(&["probe", "--derp-map", &map]);
    assert!(
        run.probe("derp/test/900a/tls")
            .ends_with("clients refuse the certificate: it is not the pinned one"),
        "{run:?}"
    );
}

#[test]
fn certificates_near_their_end_are_warned_about() {
    let authority = Authority::new();
    let site = Site::prepare(&authority);
    let server = site.start(&[]);
    let node = signed_node("900a", &site.place, server.stun_address().port());
    let map = write_map(site.directory.path(), &[node]);
    let roots = authority.write(&site.directory).display().to_string();
    // rcgen's certificates end in the year 4096.
    let arguments = ["probe", "--derp-map", &map, "--ca", &roots];
    derpd(&arguments).assert_good(&["derp/test/900a/tls"]);
    let run = derpd(&[&arguments[..], &["--expiry-warning=1000000"]].concat());
    assert_eq!(run.status, 1, "{run:?}");
    assert!(run.probe("derp/test/900a/tls").starts_with("WARNING "), "{run:?}");
    assert!(run.output.starts_with("DERP WARNING: 1 of 4 probes: derp/test/900a/tls\n"), "{run:?}");
}

/// The probe keeps to the rate as every client does, and says so rather than to call it a fault of the network.
#[test]
fn a_rate_limit_is_told_from_loss() {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let limit = r#"{"PerClientRateLimitBytesPerSec": 1000, "PerClientRateBurstBytes": 100000, "AnnounceToClients": true}"#;
    let flag = format!("-rate-config={}", write_file(directory.path(), "rate.json", limit));
    let server = Server::start_in(Arc::clone(&directory), &[&flag]);
    let map = write_map(directory.path(), &[node("900a", &server)]);
    let run = derpd(&["probe", "--derp-map", &map, "--bandwidth-size=1000000"]);
    let line = run.probe("derp/test/900a/900a/bw");
    assert!(
        line.ends_with("of 1000000 bytes arrived: the relay asks its clients to send no more"),
        "{line}"
    );
    assert_eq!(run.status, 2);
}

#[test]
fn stun_that_is_closed_or_silent_is_critical() {
    let server = Server::start_with(&["-stun=false"]);
    let closed = write_map(server.directory().path(), &[node("900a", &server)]);
    let run = derpd(&["probe", "--derp-map", &closed]);
    assert_eq!(run.status, 2, "{run:?}");
    let line = run.probe("derp/test/900a/udp");
    assert!(line.ends_with("nobody listens there (port unreachable)"), "{line}");
    assert!(
        run.output.starts_with("DERP CRITICAL: 1 of 4 probes: derp/test/900a/udp\n"),
        "{run:?}"
    );

    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let mut entry = node("900a", &server);
    entry["STUNPort"] = silent.local_addr().expect("bound").port().into();
    entry["STUNTestIP"] = "127.0.0.1".into();
    let map = write_map(server.directory().path(), &[entry]);
    let run = derpd(&["probe", "--derp-map", &map]);
    let line = run.probe("derp/test/900a/udp");
    assert!(
        line.starts_with("CRITICAL ") && line.ends_with("no answer to 3 requests within 3s"),
        "{line}"
    );
}
