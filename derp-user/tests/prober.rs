//! Tailscale's own prober against a running relay, and against the two relays of a region.
//!
//! The prober checks that certificate and SNI fit a name, so the relays are `localhost` here.
//! Without Go 1.26 or the modules the tests are skipped.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::Duration,
};

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

use go::{Built, go_binary};
use region::{Authority, Site};
use server::{AUTHORITY_FILE, Place, Response, Server, binary, skip, wait_until, write_file};

const NAME: &str = "localhost";
/// Packets of a pair after which its queueing delay counts as measured.
const MEASURED: u32 = 200;

static PROBER: Built = OnceLock::new();

fn prober(what: &str) -> Option<PathBuf> {
    match go_binary(&PROBER, "derpprobe", &["build"], "tailscale.com/cmd/derpprobe") {
        Ok(prober) => Some(prober),
        Err(reason) => {
            skip(what, &reason);
            None
        }
    }
}

/// Writes the DERP map of one region with these servers, named `900a` and so on; its flag.
fn derp_map(directory: &Path, places: &[Place]) -> String {
    let nodes: Vec<_> = ('a'..)
        .zip(places)
        .map(|(letter, place)| {
            serde_json::json!({
                "Name": format!("900{letter}"), "RegionID": 900, "HostName": NAME, "IPv4": "127.0.0.1",
                "DERPPort": place.tls_address().port(), "STUNPort": place.stun_address().port(),
            })
        })
        .collect();
    let map = serde_json::json!({"Regions": {"900": {
        "RegionID": 900, "RegionCode": "test", "RegionName": "Relays under test", "Nodes": nodes,
    }}});
    format!("-derp-map=file://{}", write_file(directory, "map.json", &map.to_string()))
}

/// Probes everything once and checks that these classes are good, and nothing is bad. Returns the report.
fn probe_once(prober: &Path, site: &Site, map: &str, classes: &[&str]) -> String {
    let output = Command::new(prober)
        .args(["-once", "-spread=false", "-bw-interval=15s", map])
        .env("SSL_CERT_FILE", site.directory.path().join(AUTHORITY_FILE))
        .output()
        .expect("the prober was just built");
    let report = String::from_utf8_lossy(&output.stderr);
    println!("{report}");
    assert!(output.status.success());
    for class in classes {
        let good = report
            .lines()
            .any(|line| line.contains("good: ") && line.contains(&format!("derp/test/{class}")));
        assert!(good, "{class} is not among the good ones");
    }
    report.into_owned()
}

#[test]
fn prober_finds_tls_stun_and_relaying_good() {
    let Some(prober) = prober("the prober") else { return };
    let site = Site::prepare_at(&Authority::new(), free_place(), NAME);
    let _server = start(&site, &[]);
    let map = derp_map(site.directory.path(), &[site.place]);
    let classes = ["900a/tls", "900a/udp", "900a/900a/mesh", "900a/900a/bw"];
    let theirs = probe_once(&prober, &site, &map, &classes);

    // Ours finds the same good, under the same names.
    let map = map.rsplit("file://").next().expect("a path");
    let output = Command::new(env!("CARGO_BIN_EXE_derpd"))
        .args(["probe", "--bandwidth-size=1000000", "--derp-map", map, "--ca"])
        .arg(site.directory.path().join(AUTHORITY_FILE))
        .output()
        .expect("derpd runs");
    let ours = String::from_utf8_lossy(&output.stdout);
    println!("{ours}");
    let names = |report: &str, before: &str| -> BTreeSet<String> {
        let named = report.lines().filter_map(|line| line.split_once(before)?.1.split_once(": "));
        let names = named.map(|(name, _)| name.trim().to_owned());
        names.filter(|name| name.starts_with("derp/") && !name.ends_with("/http")).collect()
    };
    assert_eq!(names(&ours, "OK "), names(&theirs, "good: "));
}

/// Every class, for every pair of the two servers, once and then all the time.
#[test]
fn prober_finds_a_region_of_two_servers_good() {
    let Some(prober) = prober("the prober on a region") else { return };
    let authority = Authority::new();
    let sites = [(); 2].map(|()| Site::prepare_at(&authority, free_place(), NAME));
    let names = sites.each_ref().map(|site| format!("{NAME}:{}", site.place.tls_address().port()));
    let servers = sites.each_ref().map(|site| start(site, &names));
    for server in &servers {
        server.wait_for_log("connected; ");
    }
    let map = derp_map(sites[0].directory.path(), &sites.each_ref().map(|site| site.place));
    let pairs = ["900a/900a", "900a/900b", "900b/900a", "900b/900b"];
    let of_pairs = |class: &str| pairs.map(|pair| format!("{pair}/{class}")).to_vec();
    let single = ["tls", "udp"].map(|class| [format!("900a/{class}"), format!("900b/{class}")]);
    let classes = [single.concat(), of_pairs("mesh"), of_pairs("bw")].concat();
    let classes: Vec<_> = classes.iter().map(String::as_str).collect();
    probe_once(&prober, &sites[0], &map, &classes);

    let mut unmeasured: BTreeSet<_> = of_pairs("qd").into_iter().collect();
    for _ in 0..20 {
        if unmeasured.is_empty() {
            break;
        }
        let measured = measure(&prober, &sites[0], &map, &classes, &of_pairs("qd"));
        unmeasured.retain(|class| !measured.contains(class));
    }
    assert_eq!(unmeasured, BTreeSet::new());
    for server in &servers {
        let forwarded = server.metric("derp_packets_forwarded_in");
        assert!(forwarded >= f64::from(MEASURED), "only {forwarded} packets were forwarded");
    }
}

/// Runs the prober until it has found these classes good, and has measured the queueing delay of some
/// pairs, without a loss; which these are.
///
/// It starts each measurement by chance only, in version 1.103.0-pre: the wait for a free place has a
/// deadline in the past, and the next attempt comes after 10 s.
fn measure(
    prober: &Path,
    site: &Site,
    map: &str,
    classes: &[&str],
    delays: &[String],
) -> BTreeSet<String> {
    let prober = Prober::start(prober, site, map);
    let value =
        |page: &str, name: &str, class: &str| sample(page, &format!("derpprobe_{name}"), class);
    let count = |page: &str, class: &str| {
        value(page, "derp_qd_probe_delays_seconds_count", class).unwrap_or_default()
    };
    // So far, each measurement that has been started has come to a few packets.
    thread::sleep(Duration::from_millis(1500));
    let mut page = String::new();
    wait_until("the other classes to be good, and enough packets", || {
        page = prober.metrics();
        classes.iter().all(|class| value(&page, "result", class) == Some(1.0))
            && delays.iter().all(|class| {
                let count = count(&page, class);
                count == 0.0 || count >= f64::from(MEASURED)
            })
    });
    let measured = delays.iter().filter(|class| count(&page, class) > 0.0);
    measured
        .map(|class| {
            assert_eq!(value(&page, "derp_qd_probe_dropped_packets", class), Some(0.0), "{class}");
            let sum = value(&page, "derp_qd_probe_delays_seconds_sum", class).expect("a sum");
            println!("{class}: {:.3} ms on average", sum / count(&page, class) * 1e3);
            class.clone()
        })
        .collect()
}

fn start(site: &Site, mesh_with: &[String]) -> Server {
    site.start_with(binary(), mesh_with, &[format!("-hostname={NAME}")])
}

/// A place at `localhost` whose ports nobody has at the moment.
fn free_place() -> Place {
    loop {
        let place = Place::localhost();
        let is_free = [place.tls_address(), place.http_address()]
            .map(|address| TcpListener::bind(address).is_ok())
            == [true, true];
        if is_free && UdpSocket::bind(place.stun_address()).is_ok() {
            return place;
        }
    }
}

/// A prober that runs on; killed when dropped.
struct Prober {
    process: Child,
    address: SocketAddr,
}

impl Prober {
    fn start(program: &Path, site: &Site, map: &str) -> Self {
        let address = free_place().http_address();
        let intervals = ["", "mesh-", "stun-", "tls-", "bw-"].map(|it| format!("-{it}interval=1s"));
        let process = Command::new(program)
            .args(["-spread=false", "-qd-packets-per-second=100", map])
            .arg(format!("-listen={address}"))
            .args(intervals)
            .env("SSL_CERT_FILE", site.directory.path().join(AUTHORITY_FILE))
            .stderr(Stdio::null())
            .spawn()
            .expect("the prober was just built");
        Self { process, address }
    }

    /// Its metrics page, which is empty until it listens.
    fn metrics(&self) -> String {
        let Ok(mut stream) = TcpStream::connect(self.address) else { return String::new() };
        let request = "GET /debug/varz HTTP/1.1\r\nHost: prober\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).expect("the request is small");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the answer ends");
        Response::parse(&answer).body
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The value of a family for one class and the servers it is about.
fn sample(page: &str, family: &str, class: &str) -> Option<f64> {
    let name = format!("name=\"derp/test/{class}\"");
    let line =
        page.lines().find(|line| line.split('{').next() == Some(family) && line.contains(&name))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
