//! Limits that are reached: connections, connections that do not log in, descriptors.

use std::{
    fs, io::Write as _, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc, thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::{
    apart,
    arrivals::client_hello,
    pair::Pair,
    peer::{Event, Peer, Wire},
    scene::{MEGABYTE, Scene, connect, is_closed_within},
    server::{Place, Server, binary, wait_until},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A relay that may open this many files.
fn start_with_files(files: u32, flags: &[&str]) -> Server {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let script: PathBuf = directory.path().join("derpd");
    let text = format!("#!/bin/sh\nulimit -n {files}\nexec '{}' \"$@\"\n", binary().display());
    fs::write(&script, text).expect("writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its own file");
    Server::start_binary(&script, Place::own_address, directory, flags)
}

/// Half-open connections of one client took all descriptors, and nobody else came in for 30 seconds.
#[test]
fn regression_connections_that_do_not_log_in_make_room() {
    let scene = Scene::start(&["-arrival-limit=100"]);
    let hello = client_hello();
    let outcome = scene.suffer("half-open handshakes beyond the limit", |attack| {
        let mut held = Vec::new();
        while attack.goes_on() && held.len() < 2000 {
            let Some(mut stream) = connect(attack.server.tls_address()) else { continue };
            let _ = stream.write_all(&hello);
            held.push(stream);
        }
        Peer::connect(attack.server).round_trip();
        assert!(is_closed_within(&mut held[0], PATIENCE), "the oldest is still there");
        attack.wait();
    });
    scene.judge(&outcome, 64 * MEGABYTE);
    // Those that are on their way out count, too.
    assert!(outcome.height.descriptors < 1000, "{outcome:?}");
    assert!(scene.server.metric("derpd_arrivals_evicted_total") > 500.0);
    let log = scene.server.log();
    let told = log.lines().filter(|line| line.contains("-arrival-limit")).count();
    assert_eq!(told, 1, "{log}");
}

#[test]
fn beyond_the_connection_limit_clients_are_refused_and_those_there_stay() {
    let scene = Scene::start(&["-connection-limit=50"]);
    let outcome = scene.suffer("clients beyond the limit", |attack| {
        let mut crowd: Vec<Peer> = (0..48).map(|_| Peer::connect(attack.server)).collect();
        for _ in 0..100 {
            let mut stream = connect(attack.server.tls_address()).expect("the system takes it");
            assert!(is_closed_within(&mut stream, PATIENCE), "one too many is in");
        }
        crowd.iter_mut().for_each(Peer::round_trip);
        attack.wait();
    });
    scene.judge(&outcome, 64 * MEGABYTE);
    assert!(scene.server.metric("derpd_connections_refused_total") >= 100.0);
    Peer::connect(&scene.server).round_trip();
}

#[test]
fn a_source_has_as_many_connections_as_the_limit_says() {
    let server = Server::start_with(&["-source-limit=5"]);
    let mut peers: Vec<Peer> = (0..5).map(|_| Peer::connect(&server)).collect();
    let mut stream = connect(server.tls_address()).expect("the system takes it");
    assert!(is_closed_within(&mut stream, PATIENCE));
    let other = Some(std::net::Ipv4Addr::new(127, 1, 2, 3));
    let stream = crate::scene::connect_from(other, server.tls_address()).expect("it is open");
    let name = rustls_pki_types::ServerName::IpAddress(server.ip().into());
    Wire::over(stream, name, None).expect("another source is served");
    peers.pop();
    wait_until("room", || {
        let mut stream = connect(server.tls_address()).expect("the system takes it");
        !is_closed_within(&mut stream, Duration::from_millis(300))
    });
    assert_eq!(peers[0].wire.event(Duration::from_millis(50)), Event::Silence);
}

/// Every descriptor is taken, by connections to port 80 that nothing else limits below this number.
#[test]
fn without_descriptors_those_who_are_there_go_on() {
    let scene = Scene::of(|| {
        let server = start_with_files(120, apart::flags());
        let pair = Pair::start(&server);
        (server, pair)
    });
    let outcome = scene.suffer("no descriptor left", |attack| {
        let held: Vec<_> = (0..200).filter_map(|_| connect(attack.server.http_address())).collect();
        let more: Vec<_> = (0..20).filter_map(|_| connect(attack.server.tls_address())).collect();
        thread::sleep(Duration::from_secs(1));
        attack.wait();
        drop((held, more));
    });
    scene.judge(&outcome, 32 * MEGABYTE);
    let log = scene.server.log();
    let told = log.lines().filter(|line| line.contains("accept: ")).count();
    assert!((1..=4).contains(&told), "{told} lines:\n{log}");
    assert!(scene.server.metric("derpd_accept_failures_total") > 0.0);
    Peer::connect(&scene.server).round_trip();
}
