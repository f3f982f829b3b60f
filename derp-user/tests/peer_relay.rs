//! The peer relay of a running daemon: who may ask, by which DERP server, what SIGHUP changes, and what a flood does.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/relay_client.rs"]
mod relay_client;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{TryRecvError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use derp_user::{client::Trust, peer_relay::disco::DiscoPublic};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    relay_client::{Derp, RelayClient, RelayNode},
    server::{Kind, PATIENCE, Place, Server, kind, skip, wait_until, write_file},
};

/// How long nothing must come for the relay to be silent.
const SILENCE: Duration = Duration::from_millis(500);

/// A daemon that is a peer relay.
struct Relay {
    server: Server,
    file: PathBuf,
    node: RelayNode,
}

impl Relay {
    /// Starts one with these further lines of `[peer_relay]`, or skips the test.
    fn start(test: &str, lines: &str) -> Option<Self> {
        if kind() == Kind::Derper {
            skip(test, "derper is no peer relay");
            return None;
        }
        let directory = Arc::new(TempDir::new().expect("a temporary directory"));
        let file = write_file(directory.path(), "derpd.toml", &Self::text(&directory, lines));
        let server = Server::start_in(Arc::clone(&directory), &[&format!("-config={file}")]);
        let node = RelayNode::of_file(&directory.path().join("relay.keys"));
        Some(Self { server, file: file.into(), node })
    }

    fn text(directory: &TempDir, lines: &str) -> String {
        let keys = directory.path().join("relay.keys");
        format!(
            "[peer_relay]\nport = 40000\nkey_file = {:?}\n\
             addresses = [\"192.0.2.1:40000\"]\n{lines}\n",
            keys.display().to_string()
        )
    }

    /// Has it reload with these lines instead.
    fn reload(&self, lines: &str) {
        fs::write(&self.file, Self::text(self.server.directory(), lines)).expect("write");
        self.server.reload();
    }

    fn connect(&self, client: &RelayClient) -> Derp {
        connect(&self.server, client)
    }

    fn view(&self) -> Value {
        let page = self.server.get("/debug/peer-relay?format=json").body;
        serde_json::from_str(&page).expect("JSON")
    }

    /// Whether a request is answered.
    fn answers(&self, client: &RelayClient, derp: &Derp, other: DiscoPublic) -> bool {
        let request = client.request(&self.node, [client.key(), other]);
        // Nobody can know that nothing will come; what should come is waited for elsewhere.
        derp.ask(self.node.node, &request, SILENCE).is_some()
    }

    fn refusals(&self, result: &str) -> f64 {
        self.server.metric(&format!("derpd_peer_relay_requests_total{{result=\"{result}\"}}"))
    }
}

fn connect(server: &Server, client: &RelayClient) -> Derp {
    let url = format!("https://{}", server.tls_address());
    Derp::connect(None, &url, &client.node, Trust::Anything)
}

/// The list of these clients' node keys.
fn list(clients: &[&RelayClient]) -> String {
    let keys = clients.iter().map(|client| format!("\"{}\"", client.node.public()));
    format!("allow = [{}]", keys.collect::<Vec<_>>().join(", "))
}

#[test]
fn case_39_refused_requests_are_not_answered_and_counted() {
    let (a, b, c) = (RelayClient::new(), RelayClient::new(), RelayClient::new());
    let Some(relay) = Relay::start("case 39", &list(&[&a])) else { return };
    let (derp_a, derp_b) = (relay.connect(&a), relay.connect(&b));
    assert!(!relay.answers(&b, &derp_b, a.key()), "B is not on the list");
    assert_eq!(relay.refusals("not_permitted"), 1.0);

    // A asks for others, in another's name, for the relay itself, with a broken box, and with no request at all.
    let for_others = a.request(&relay.node, [b.key(), c.key()]);
    let node_itself = a.request(&relay.node, [a.key(), relay.node.disco]);
    let mut broken = a.request(&relay.node, [a.key(), b.key()]);
    *broken.last_mut().expect("bytes") ^= 1;
    for (what, packet, result) in [
        ("for others", &for_others[..], "not_listed"),
        ("with the relay's node", &node_itself, "unusable_clients"),
        ("broken", &broken, "seal"),
        ("no disco", b"hello", "malformed"),
    ] {
        assert_eq!(derp_a.ask(relay.node.node, packet, SILENCE), None, "{what}");
        assert_eq!(relay.refusals(result), 1.0, "{what}");
    }
    let endpoint = a.ask(&derp_a, &relay.node, &b);
    assert_eq!(endpoint.addresses[0].to_string(), "192.0.2.1:40000");
    assert_eq!(relay.refusals("allocated"), 1.0);
    let view = relay.view();
    assert_eq!((&view["allow"], &view["requests"]["not_permitted"]), (&"1 node".into(), &1.into()));
    let session = &view["sessions"][0];
    assert_eq!((&session["vni"], &session["state"]), (&endpoint.vni.into(), &"connecting".into()));
    assert_eq!(session["node"], a.node.public().to_string());
    let sessions = relay.server.get("/debug/peer-relay?format=tailscale").body;
    let sessions: Value = serde_json::from_str(&sessions).expect("JSON");
    assert_eq!(sessions["UDPPort"], 40000);
    assert_eq!(sessions["Sessions"][0]["VNI"], endpoint.vni);
}

#[test]
fn sighup_takes_the_rules_into_use_all_or_nothing() {
    let (a, b) = (RelayClient::new(), RelayClient::new());
    let Some(relay) = Relay::start("reloading", &list(&[&a])) else { return };
    let (derp_a, derp_b) = (relay.connect(&a), relay.connect(&b));
    let endpoint = a.ask(&derp_a, &relay.node, &b);

    // Something is wrong: nothing changes.
    relay.reload(&format!("{}\nmax_endpoints = 0", list(&[&b])));
    relay.server.wait_for_log("reload failed, nothing has changed");
    assert!(!relay.answers(&b, &derp_b, a.key()));
    relay.reload(&format!("{}\nderp = \"a\"\nderp_ca_file = \"/does/not/exist\"", list(&[&b])));
    let line = relay.server.wait_for_log("derp_ca_file of [peer_relay]");
    assert!(line.contains("/does/not/exist"), "{line}");
    assert!(!relay.answers(&b, &derp_b, a.key()));
    assert_eq!(relay.view()["sessions"].as_array().map(Vec::len), Some(1));

    // B instead of A: A's endpoint ends, B gets another one.
    relay.reload(&list(&[&b]));
    relay.server.wait_for_log("peer relay: 1 node may ask for endpoints");
    wait_until("A's endpoint to end", || {
        relay.view()["sessions"].as_array().is_some_and(Vec::is_empty)
    });
    assert_eq!(relay.view()["ended"]["permission"], 1);
    assert!(!relay.answers(&a, &derp_a, b.key()));
    assert_ne!(b.ask(&derp_b, &relay.node, &a).vni, endpoint.vni);

    // A new limit counts at once, and what only a start can change is named.
    let keys = relay.server.directory().path().join("relay.keys").display().to_string();
    let text = format!(
        "[peer_relay]\nport = 40001\nkey_file = {keys:?}\nallow = \"any\"\nmax_endpoints = 1\n\
         addresses = [\"192.0.2.2:1\"]\n"
    );
    fs::write(&relay.file, text).expect("write");
    relay.server.reload();
    relay.server.wait_for_log("not before the next start: port of [peer_relay]");
    relay.server.wait_for_log("peer relay: other limits from now on");
    wait_until("other addresses", || relay.view()["addresses"][0] == "192.0.2.2:1");
    let c = RelayClient::new();
    assert!(!relay.answers(&a, &derp_a, c.key()));
    assert!(relay.refusals("full") >= 1.0);
    assert_eq!(relay.view()["limits"]["endpoints"], 1);
    fs::write(&relay.file, "").expect("write");
    relay.server.reload();
    relay.server.wait_for_log("not before the next start: whether there is a [peer_relay]");
    assert_eq!(b.ask(&derp_b, &relay.node, &a).addresses[0].to_string(), "192.0.2.2:1");
}

/// The pin of a server's certificate, as it tells at start.
fn pin(server: &Server) -> String {
    let line = server.wait_for_log("sha256-raw:");
    let at = line.find("sha256-raw:").expect("in it");
    line[at..].chars().take("sha256-raw:".len() + 64).collect()
}

#[test]
fn the_relay_is_also_asked_by_way_of_another_regions_server() {
    if kind() == Kind::Derper {
        return skip("a peer relay elsewhere", "derper is no peer relay");
    }
    let place = Place::own_address();
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let elsewhere = Server::start_at(|| place, Arc::clone(&directory), &[]);
    let derp = |servers: &[&Server]| {
        let urls =
            servers.iter().map(|server| format!("\"https://{}/derp\"", server.tls_address()));
        let urls = urls.collect::<Vec<_>>().join(", ");
        let pins = servers.iter().map(|server| format!("{:?}", pin(server))).collect::<Vec<_>>();
        format!("stun = []\nderp = [{urls}]\nderp_pin = [{}]", pins.join(", "))
    };
    let lines = format!("allow = \"any\"\n{}", derp(&[&elsewhere]));
    let Some(relay) = Relay::start("a peer relay elsewhere", &lines) else { return };
    let connected = format!(
        "derpd_peer_relay_derp_connected{{server=\"https://{}\"}}",
        elsewhere.tls_address()
    );
    relay.server.wait_for_metric(&connected, 1.0);

    // A is at home there, B here: both get the same endpoint.
    let (a, b) = (RelayClient::new(), RelayClient::new());
    let (derp_a, derp_b) = (connect(&elsewhere, &a), relay.connect(&b));
    let endpoint = a.ask(&derp_a, &relay.node, &b);
    assert_eq!(b.ask(&derp_b, &relay.node, &a).vni, endpoint.vni);
    assert_eq!(relay.view()["derp"][0]["is_connected"], true);

    // Only whom this server has admitted itself.
    relay.reload(&format!("allow = \"admitted\"\n{}", derp(&[&elsewhere])));
    wait_until("the rule", || !relay.answers(&a, &derp_a, b.key()));
    assert_eq!(b.ask(&derp_b, &relay.node, &a).vni, endpoint.vni, "which stays");

    // A list works by either way; the connection survives a reload that does not concern it.
    relay.reload(&format!("{}\n{}", list(&[&a]), derp(&[&elsewhere])));
    wait_until("the list", || !relay.answers(&b, &derp_b, a.key()));
    assert_eq!(a.ask(&derp_a, &relay.node, &b).vni, endpoint.vni);

    // The relay's own server is no other one.
    relay.reload(&format!("allow = \"any\"\n{}", derp(&[&relay.server])));
    relay.server.wait_for_log("it is this server itself");
    let b_still = b.ask(&derp_b, &relay.node, &a);
    assert_eq!(b_still.vni, endpoint.vni);

    // One that goes away is connected to again when it is back.
    relay.reload(&format!("allow = \"any\"\n{}", derp(&[&elsewhere])));
    relay.server.wait_for_metric(&connected, 1.0);
    drop(derp_a);
    drop(elsewhere);
    relay.server.wait_for_metric(&connected, 0.0);
    let fault = relay.view()["derp"][0]["fault"].as_str().map(str::to_owned);
    assert!(fault.is_some_and(|fault| !fault.is_empty()));
    let back = Server::start_at(|| place, directory, &[]);
    relay.server.wait_for_metric(&connected, 1.0);
    let derp_a = connect(&back, &a);
    assert_eq!(a.ask(&derp_a, &relay.node, &b).vni, endpoint.vni);
}

/// Round trips of packets between two clients, in milliseconds, in order.
fn round_trips(ends: [(&RelayClient, &Derp); 2], count: usize) -> Vec<f64> {
    let [(a, derp_a), (b, derp_b)] = ends;
    let mut times: Vec<_> = (0..count)
        .map(|_| {
            let begun = Instant::now();
            derp_a.send(b.node.public(), b"ping");
            derp_b.receive(a.node.public(), PATIENCE).expect("there");
            derp_b.send(a.node.public(), b"pong");
            derp_a.receive(b.node.public(), PATIENCE).expect("and back");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            thread::sleep(Duration::from_millis(2));
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Times of answers to requests for the endpoint of two clients, in milliseconds, in order.
fn answer_times(relay: &RelayNode, a: &RelayClient, derp: &Derp, other: DiscoPublic) -> Vec<f64> {
    let request = a.request(relay, [a.key(), other]);
    let mut times: Vec<_> = (0..30)
        .map(|_| {
            let begun = Instant::now();
            derp.ask(relay.node, &request, PATIENCE).expect("an answer");
            let took = begun.elapsed().as_secs_f64() * 1e3;
            thread::sleep(Duration::from_millis(30));
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// One node asks 10,000 times a second for endpoints with others. It gets its share, and others are served as before.
/// The figures are printed; on a busy machine only the bounds that hold anywhere are asserted.
#[test]
fn case_40_a_flood_of_requests_of_one_node_keeps_nobody_else_waiting() {
    const PER_SECOND: u64 = 10_000;
    let Some(relay) = Relay::start("case 40", "allow = \"any\"") else { return };
    let clients: [RelayClient; 4] = std::array::from_fn(|_| RelayClient::new());
    let [flooder, a, b, c] = &clients;
    let [derp_flooder, derp_a, derp_b, derp_c] = clients.each_ref().map(|it| relay.connect(it));
    let requests: Vec<_> = (0..2_000)
        .map(|_| flooder.request(&relay.node, [flooder.key(), RelayClient::new().key()]))
        .collect();
    let pair = [(a, &derp_a), (b, &derp_b)];
    let idle = (round_trips(pair, 300), answer_times(&relay.node, c, &derp_c, a.key()));

    let (stop, to_stop) = channel::<()>();
    let node = relay.node.node;
    let flood = thread::spawn(move || {
        let begun = Instant::now();
        let mut sent = 0_u64;
        while to_stop.try_recv() != Err(TryRecvError::Disconnected) {
            let due = begun.elapsed().as_millis() as u64 * PER_SECOND / 1000;
            while sent < due {
                derp_flooder.send(node, &requests[sent as usize % requests.len()]);
                sent += 1;
            }
            thread::sleep(Duration::from_millis(1));
        }
        (sent, begun.elapsed())
    });
    // The flood has begun to be refused, too.
    wait_until("the flood", || relay.refusals("over_rate") > 200.0);
    let flooded = (round_trips(pair, 300), answer_times(&relay.node, c, &derp_c, a.key()));
    let live = relay.view()["sessions"].as_array().map_or(0, Vec::len);
    drop(stop);
    let (sent, took) = flood.join().expect("the flood");
    let text = relay.server.get("/debug/varz").body;
    let seen: f64 = text
        .lines()
        .filter(|line| line.starts_with("derpd_peer_relay_requests_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    let show = |times: &[f64]| {
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        format!("{:.2} / {:.2} / {:.2} ms", at(50), at(90), at(99))
    };
    println!(
        "{:.0} requests per second for {:.1} s; {seen} reached the relay; live endpoints: {live}\n\
         p50 / p90 / p99 of a DERP round trip between others: idle {}, flooded {}\n\
         of an answer to another node: idle {}, flooded {}",
        sent as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        show(&idle.0),
        show(&flooded.0),
        show(&idle.1),
        show(&flooded.1),
    );
    assert!(live <= 256 + 1, "{live}: 256 of the flooder, one of C");
    // Every question of the others was answered at all: see `answer_times`.
    assert_eq!(relay.server.get("/debug/check").status, 200);
}
