//! What an operator sees of the clients.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    differences::{is_derpd, kind},
    peer::{PEER_PRESENT, Peer, WATCH_CONNS, frame, to_hex},
    queues::{read_all, stalled_peer},
    region::{MESH_KEY, mesh_client},
    server::{Kind, PATIENCE, Server, skip, wait_until, write_file},
};

/// Begins to read the traffic: status line and headers, and what follows them.
fn traffic(server: &Server) -> (String, impl Iterator<Item = String> + use<>) {
    let mut stream = TcpStream::connect(server.http_address()).expect("the HTTP port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
    stream.write_all(b"GET /debug/traffic HTTP/1.1\r\nHost: relay\r\n\r\n").expect("it is small");
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    (head.join("\n"), lines)
}

#[test]
fn the_traffic_of_each_client_is_told() {
    if kind() == Kind::Derper && Command::new("ss").arg("-V").output().is_err() {
        return skip("traffic of derper", "it needs ss (Debian package iproute2)");
    }
    let server = Server::start();
    let (mut sender, mut receiver) = (Peer::connect(&server), Peer::connect(&server));
    for _ in 0..5 {
        sender.send(&receiver.key(), &[7; 1000]);
        receiver.receive();
    }
    let (head, lines) = traffic(&server);
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain"), "{head}");
    let mut told = [None, None];
    // What comes in chunks is lines still, since each piece is.
    for line in lines.filter(|line| line.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        for (peer, told) in [&sender, &receiver].into_iter().zip(&mut told) {
            if line["Key"] == format!("nodekey:{}", to_hex(peer.key().as_bytes())) {
                *told = Some(line.clone());
            }
        }
        if told.iter().all(Option::is_some) {
            break;
        }
    }
    let [sent, received] = told.map(|line| line.expect("both are told of"));
    assert!(sent["Recv"].as_u64() > Some(5000) && sent.get("UniqueSenders").is_none(), "{sent}");
    assert!(received["Sent"].as_u64() > Some(5000), "{received}");
    assert_eq!(received["UniqueSenders"], 1, "{received}");
}

#[test]
fn few_can_look_at_the_traffic_at_once() {
    if !is_derpd() {
        return;
    }
    let server = Server::start();
    let streams: Vec<_> = (0..4).map(|_| traffic(&server)).collect();
    assert!(streams.iter().all(|(head, _)| head.starts_with("HTTP/1.1 200")));
    assert!(traffic(&server).0.starts_with("HTTP/1.1 503"));
    drop(streams);
    wait_until("a stream for somebody else", || traffic(&server).0.starts_with("HTTP/1.1 200"));
}

#[test]
fn round_trip_times_are_sampled() {
    let server = Server::start();
    let _clients = [(); 2].map(|()| Peer::connect(&server));
    wait_until("a sample of each", || server.metric("derp_tcp_rtt{le=\"10ms\"}") >= 2.0);
}

#[test]
fn time_in_the_queue_is_averaged() {
    let server = Server::start_with(&["-tcp-write-timeout=120s"]);
    let mut receiver = stalled_peer(&server);
    let mut sender = Peer::connect(&server);
    for _ in 0..12_000 {
        sender.send(&receiver.key(), &[7; 1400]);
    }
    sender.round_trip();
    thread::sleep(Duration::from_millis(300));
    let dropped = r#"derp_packets_dropped{reason="queue_head",kind="other"}"#;
    assert!(server.metric(dropped) > 0.0);
    read_all(&mut receiver);
    // Those that were left in the queue waited for all this time, and nothing came after them.
    let average = server.metric("derp_average_queue_duration_ms");
    assert!(average > 30.0, "{average} ms");
}

#[test]
fn news_for_mesh_peers_are_counted_by_batch() {
    let directory = TempDir::new().expect("a temporary directory");
    let key = write_file(directory.path(), "mesh.key", MESH_KEY);
    let server = Server::start_with(&[&format!("-mesh-psk-file={key}")]);
    let client = Peer::connect(&server);
    let sum = "derp_mesh_update_batch_size_sum";
    assert_eq!(server.metric(sum), 0.0);
    let mut watcher = mesh_client(&server);
    watcher.wire.write(&frame(WATCH_CONNS, &[]));
    for _ in 0..2 {
        watcher.wire.expect(PEER_PRESENT);
    }
    server.wait_for_metric(sum, 2.0);
    let other = Peer::connect(&server);
    server.wait_for_metric(sum, 3.0);
    drop((client, other));
    server.wait_for_metric(sum, 5.0);
    let [batches, bound, loops] = [
        "derp_mesh_update_batch_size_count",
        "derp_mesh_update_batch_size_bucket{le=\"1000\"}",
        "derp_mesh_update_loop_count_count",
    ]
    .map(|name| server.metric(name));
    assert!((2.0..=5.0).contains(&batches) && batches == bound && loops > 0.0, "{batches} {loops}");
}

#[test]
fn requests_and_sessions_are_counted_by_tls_version() {
    let server = Server::start();
    let active = "derper_tls_active_version{version=\"1.3\"}";
    let requests = "derper_tls_request_version{version=\"1.3\"}";
    let clients = [(); 3].map(|()| Peer::connect(&server));
    server.wait_for_metric(active, 3.0);
    assert_eq!(server.metric(requests), 3.0);
    drop(clients);
    server.wait_for_metric(active, 0.0);
    assert_eq!(server.metric(requests), 3.0);
}
