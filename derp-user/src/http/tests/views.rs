//! Pages of flows, of the mesh and of the peer relay.

use super::*;

/// A flow with as much as there can be in it, by way of a real flow table.
fn some_flows(number: usize) -> FlowsView {
    use crate::flow::{
        EndSpec, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote, TableSettings,
        Viewer,
    };
    let mut table = FlowTable::new(TableSettings { slots: 1024, idle_timeout: 0, seed: 0 });
    for flow in 0..number {
        let end = |remote| EndSpec { remote, local: Local { ip: None, port: 40000 }, sender: 0 };
        let remote = format!("192.0.2.1:{}", flow + 1).parse().unwrap();
        let spec = FlowSpec {
            name: format!("<flow {flow}>"),
            kind: if flow == 0 { Kind::Geneve { vni: Some(7) } } else { Kind::Any },
            ends: [
                end(Remote::Fixed(remote)),
                end(Remote::Learn(vec!["10.0.0.0/8".parse().unwrap()])),
            ],
            rate: None,
            lifetime: Lifetime::Configured,
            source: FlowSource::Configuration,
        };
        table.add(spec, 0).unwrap();
    }
    let flows = table.views(&Viewer { has_kernel: true, interface_name: &|_| None, now: 0 });
    FlowsView { counted_seconds: Some(2.6), flows }
}

#[test]
fn flows_are_shown_to_people() {
    let flows = |number| Settings { flows: Box::new(move || some_flows(number)), ..settings() };
    let ask_flows = |number, line: &str, headers: &[(&str, &str)]| {
        ask(flows(number), line, headers, main_from(LOOPBACK))
    };
    let browser = [("Accept", "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8")];
    let (status, headers, page) = ask_flows(2, "GET /debug/flows", &browser);
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "text/html; charset=utf-8")
    );
    for part in [
        "2 flows, 0 forwarding",
        "Counted 3 s ago.",
        "&lt;flow 0&gt;",
        "<td rowspan=\"2\">7</td>",
        "<td rowspan=\"2\">none</td>",
        "192.0.2.1:1",
        "to be learnt from 10.0.0.0/8",
        "nobody: an end is not known",
        "never",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    assert!(!page.contains("<flow") && !page.contains("<script"));
    assert!(ask_flows(501, "GET /debug/flows", &[]).2.contains("1 more are only in the JSON"));
    assert!(ask_flows(0, "GET /debug/flows", &[]).2.contains("0 flows"));
    assert!(ask_flows(0, "GET /debug/", &[]).2.contains("href=\"/debug/flows\""));
}

#[test]
fn flows_are_told_to_programs() {
    let flows = || Settings { flows: Box::new(|| some_flows(600)), ..settings() };
    let json = [("Accept", "application/json")];
    for (line, headers) in
        [("GET /debug/flows?a=b&format=json", [].as_slice()), ("GET /debug/flows", &json)]
    {
        let (status, headers, body) = ask(flows(), line, headers, main_from(LOOPBACK));
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/json"));
        let document: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(document["counted_seconds"], 2.6);
        let flows = document["flows"].as_array().unwrap();
        assert_eq!(flows.len(), 600);
        assert!(flows.iter().any(|flow| flow["vni"] == 7 && flow["name"] == "<flow 0>"));
    }
    let (_, headers, _) = ask(flows(), "GET /debug/flows?format=html", &json, main_from(LOOPBACK));
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/html"));
}

#[test]
fn flows_are_behind_the_access_rule() {
    for line in ["GET /debug/flows", "GET /debug/flows?format=json"] {
        let (status, _, body) = ask(settings(), line, &[], main_from(STRANGER));
        assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
    }
}

fn some_mesh() -> MeshView {
    let address = |last: u8, state| AddressView {
        address: ([192, 0, 2, last], 443).into(),
        state,
        seconds: 61,
        server_key: Some(format!("nodekey:{}", "0a".repeat(32))),
        connects: 2,
        failures: 1,
        last_failure: Some("Recv: the peer <closed> the link".to_owned()),
        clients: 12,
        forwarded_packets: 3,
        forwarded_bytes: 12_345_678,
        dropped_packets: 4,
    };
    let peer = |name: &str, look_up_fault: Option<&str>, addresses| PeerView {
        name: name.to_owned(),
        dials: format!("{name}:443"),
        look_up_fault: look_up_fault.map(str::to_owned),
        addresses,
    };
    MeshView {
        peers: vec![
            peer("a.example", None, vec![address(1, LinkState::Up), address(2, LinkState::Own)]),
            peer("b.example", Some("cannot look up b.example: <no>"), vec![]),
            peer("c.example", None, vec![address(3, LinkState::Down)]),
        ],
    }
}

#[test]
fn the_mesh_is_shown_to_people_and_told_to_programs() {
    let ask_mesh = |line| {
        let settings = Settings { mesh: Box::new(some_mesh), ..settings() };
        ask(settings, line, &[], main_from(LOOPBACK))
    };
    let (status, _, page) = ask_mesh("GET /debug/mesh");
    assert_eq!(status, 200);
    for part in [
        "1 of 2 links up",
        "<td>192.0.2.1:443</td><td>up</td><td>1 min 1 s</td>",
        "<td>this server</td>",
        "the peer &lt;closed&gt; the link",
        "cannot look up b.example: &lt;no&gt;",
        "3 packets, 12 MB",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    let index = ask_mesh("GET /debug/").2;
    assert!(index.contains("<th>Mesh</th><td>1 of 2 links up</td>"), "{index}");

    let (_, headers, body) = ask_mesh("GET /debug/mesh?format=json");
    assert_eq!(headers["content-type"].to_str().unwrap(), "application/json");
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    let first = &document["peers"][0]["addresses"][0];
    assert_eq!((&first["state"], &first["clients"]), (&"up".into(), &12.into()));
    assert_eq!(document["peers"][0]["addresses"][1]["state"], "own");
    assert!(document["peers"][1]["look_up_fault"].is_string());

    let alone = ask(settings(), "GET /debug/mesh", &[], main_from(LOOPBACK)).2;
    assert!(alone.contains("<p>none. "), "{alone}");
    let (status, _, body) =
        ask(settings(), "GET /debug/mesh?format=json", &[], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
}

fn some_peer_relay() -> PeerRelayView {
    use crate::peer_relay::{
        ClientView, DerpView, EndpointState, LimitsView, Mapping, SessionView,
    };
    let client = |disco: &str, end: &crate::flow::EndView| ClientView {
        disco: disco.to_owned(),
        end: end.clone(),
    };
    let mut ends = some_flows(1).flows.remove(0).ends;
    ends[0].kernel.packets = 3;
    ends[0].kernel.bytes = 300;
    ends[0].userspace.packets = 1;
    ends[0].userspace.bytes = 50;
    let derp = |server: &str, is_connected, fault: Option<&str>| DerpView {
        server: server.to_owned(),
        is_connected,
        seconds: 61,
        fault: fault.map(str::to_owned),
    };
    PeerRelayView {
        node_key: format!("nodekey:{}", "0a".repeat(32)),
        port: 40000,
        allow: "2 nodes".to_owned(),
        addresses: vec!["203.0.113.1:40000".parse().unwrap()],
        mappings: vec![Mapping {
            server: "198.51.100.1:3478".parse().unwrap(),
            seen: "203.0.113.1:61000".parse().unwrap(),
        }],
        cloud: vec!["203.0.113.7".parse().unwrap()],
        derp: vec![derp("https://a", true, None), derp("https://b", false, Some("<no>"))],
        limits: LimitsView { endpoints: 16, endpoints_per_node: 2 },
        requests: [("allocated", 5), ("not_permitted", 7), ("repeated", 0)].into(),
        forwarded: [("kernel", (4, 12_345_678))].into(),
        counted_seconds: Some(2.6),
        sessions: vec![SessionView {
            vni: 0x05_0003,
            state: EndpointState::Connecting,
            node: format!("nodekey:{}", "0b".repeat(32)),
            age_seconds: 62,
            clients: [
                client("d:0102030405060708", &ends[0]),
                client("d:1112131415161718", &ends[1]),
            ],
        }],
        ..PeerRelayView::default()
    }
}

#[test]
fn the_peer_relay_is_shown_to_people_and_told_to_programs() {
    let ask_relay = |line| {
        let settings = Settings { peer_relay: Box::new(|| Some(some_peer_relay())), ..settings() };
        ask(settings, line, &[], main_from(LOOPBACK))
    };
    let (status, _, page) = ask_relay("GET /debug/peer-relay");
    assert_eq!(status, 200);
    for part in [
        "1 endpoints, 0 open",
        "<th>May ask for endpoints</th><td>2 nodes</td>",
        "<th>Clients are told</th><td>203.0.113.1:40000</td>",
        "203.0.113.1:61000 (says 198.51.100.1:3478)",
        "https://a (for 1 min 1 s), https://b (not for 1 min 1 s: &lt;no&gt;)",
        "<td>16, 2 of one node</td>",
        "<th>Requests</th><td>5 allocated, 7 not permitted</td>",
        "<th>Handshake messages</th><td>none</td>",
        "<th>Forwarded in the kernel</th><td>4 packets, 12 MB</td>",
        "Counted 3 s ago.",
        ">327683</td><td rowspan=\"2\">connecting</td><td rowspan=\"2\">1 min 2 s</td>",
        "<td>d:0102030405060708</td><td>192.0.2.1:1</td>",
        "<td>not bound</td>",
        "<td>3 packets, 300 B</td><td>1 packets, 50 B</td>",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    assert!(!page.contains("<script"));
    assert!(ask_relay("GET /debug/").2.contains("href=\"/debug/peer-relay\""));

    let document = |line| {
        let (_, headers, body) = ask_relay(line);
        assert_eq!(headers["content-type"].to_str().unwrap(), "application/json");
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    };
    let json = document("GET /debug/peer-relay?format=json");
    assert_eq!((&json["port"], &json["requests"]["not_permitted"]), (&40000.into(), &7.into()));
    let session = &json["sessions"][0];
    assert_eq!((&session["vni"], &session["state"]), (&327_683.into(), &"connecting".into()));
    assert_eq!(session["clients"][0]["kernel"]["packets"], 3);
    assert_eq!(session["clients"][0]["forwarder"], "nobody");

    let expected = serde_json::json!({"UDPPort": 40000, "Sessions": [{
        "VNI": 327_683,
        "Client1": {"Endpoint": "192.0.2.1:1", "ShortDisco": "d:0102030405060708",
            "PacketsTx": 4, "BytesTx": 350},
        "Client2": {"Endpoint": "", "ShortDisco": "d:1112131415161718", "PacketsTx": 0,
            "BytesTx": 0},
    }]});
    assert_eq!(document("GET /debug/peer-relay?format=tailscale"), expected);

    let none = |line| ask(settings(), line, &[], main_from(LOOPBACK)).2;
    assert!(none("GET /debug/peer-relay").contains("None: [peer_relay]"));
    assert_eq!(none("GET /debug/peer-relay?format=json"), "null\n");
    let nothing = "{\"UDPPort\":null,\"Sessions\":[]}\n";
    assert_eq!(none("GET /debug/peer-relay?format=tailscale"), nothing);
    let (status, _, body) =
        ask(settings(), "GET /debug/peer-relay?format=tailscale", &[], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
}
