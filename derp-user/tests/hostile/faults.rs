//! Faults of the machine and of other servers, under traffic.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    apart,
    pair::Pair,
    peer::{Event, PEER_PRESENT, Peer, RECV_PACKET, Wire, frame, random_bytes, random_secret},
    region::{Authority, Site, start_with_peers_and},
    scene::{MEGABYTE, Scene, duration, shrink},
    server::{PATIENCE, Place, Server, binary, skip, wait_until},
};

const INFO: &str = r#"{"version":2,"CanAckPings":true}"#;

#[test]
fn scrapes_without_pause() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("metrics scraped without pause", |attack| {
        let _crowd: Vec<Peer> = (0..300).map(|_| Peer::connect(attack.server)).collect();
        let mut scrapes = 0;
        while attack.goes_on() {
            for page in ["/debug/varz", "/debug/vars", "/debug/status.json", "/debug/mesh"] {
                let page = attack.server.get(page);
                assert_eq!(page.status, 200, "{}", page.body);
                scrapes += 1;
            }
        }
        println!("{scrapes} scrapes");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// A program in the relay's place that first does `before` in a shell.
fn wrapped(directory: &Path, name: &str, before: &str) -> PathBuf {
    let script = directory.join(name);
    let text = format!("#!/bin/sh\n{before}\nexec '{}' \"$@\"\n", binary().display());
    fs::write(&script, text).expect("writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its own file");
    script
}

/// Connects as often as it takes.
fn persistently(server: &Server, secret: &crypto_box::SecretKey) -> Peer {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let name = rustls_pki_types::ServerName::IpAddress(server.ip().into());
        if let Ok(wire) = Wire::connect_to(server.tls_address(), name, None) {
            return Peer::log_in(wire, secret.clone(), INFO);
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("no connection within {PATIENCE:?}");
}

/// Kills one of three meshed servers after another, at random moments, while packets go from each to each.
fn kill_at_random(rounds_last: Duration) {
    let authority = Authority::new();
    let sites = [(); 3].map(|()| Site::prepare(&authority));
    let names: Vec<String> = sites.iter().map(Site::name).collect();
    let start = |site: &Site| site.start(&names);
    let mut servers: Vec<Option<Server>> = sites.iter().map(|site| Some(start(site))).collect();
    let secrets = [(); 3].map(|()| random_secret());
    let server_keys: Vec<_> = servers
        .iter()
        .map(|server| Wire::connect(server.as_ref().expect("it runs")).announced_key())
        .collect();
    let mut peers: Vec<Peer> = (0..3)
        .map(|at| persistently(servers[at].as_ref().expect("it runs"), &secrets[at]))
        .collect();
    let begun = Instant::now();
    let mut recoveries = Vec::new();
    // All ways work before the first fault.
    settle(&mut peers);
    while recoveries.len() < 3 || begun.elapsed() < rounds_last {
        let [which, pause, ..] = random_bytes::<8>();
        let victim = usize::from(which) % 3;
        // Traffic up to the moment of the fault.
        let until = Instant::now() + Duration::from_millis(u64::from(pause) * 2);
        while Instant::now() < until {
            for at in 0..3 {
                let to = peers[(at + 1) % 3].key();
                let _ = peers[at].wire.try_write(&crate::peer::send_packet(&to, &[0; 1000]));
            }
        }
        // Dropping it is SIGKILL.
        drop(servers[victim].take());
        let fault = Instant::now();
        let server = start(&sites[victim]);
        let served = fault.elapsed();
        let peer = persistently(&server, &secrets[victim]);
        assert_eq!(
            peer.wire.announced_key(),
            server_keys[victim],
            "the server's key is another one"
        );
        peers[victim] = peer;
        let connected = fault.elapsed();
        servers[victim] = Some(server);
        settle(&mut peers);
        let settled = fault.elapsed();
        println!(
            "killed server {victim}: served {served:.1?}, client {connected:.1?}, all ways {settled:.1?}"
        );
        recoveries.push(settled);
    }
    recoveries.sort_unstable();
    println!(
        "{} kills: all ways work again after {:.1?} (median), {:.1?} (longest)",
        recoveries.len(),
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1],
    );
    for server in servers.iter().flatten() {
        let check = server.get("/debug/check");
        assert_eq!(check.status, 200, "{}", check.body);
        assert!(!server.log().contains("panicked"), "{}", server.log());
    }
}

/// Waits until every client reaches every other one.
fn settle(peers: &mut [Peer]) {
    let deadline = Instant::now() + PATIENCE;
    let token = random_bytes::<16>();
    let mut missing: Vec<(usize, usize)> =
        (0..9).map(|pair| (pair / 3, pair % 3)).filter(|(from, to)| from != to).collect();
    while !missing.is_empty() {
        assert!(Instant::now() < deadline, "{missing:?} do not work after {PATIENCE:?}");
        for &(from, to) in &missing {
            let packet = [&token[..], &[from as u8]].concat();
            let key = peers[to].key();
            peers[from].send(&key, &packet);
        }
        let until = Instant::now() + Duration::from_millis(50);
        for (to, peer) in peers.iter_mut().enumerate() {
            while let Event::Frame(frame) = peer.wire.event(
                until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)),
            ) {
                if frame.kind == RECV_PACKET && frame.payload[32..].starts_with(&token) {
                    let from = usize::from(frame.payload[48]);
                    missing.retain(|&way| way != (from, to));
                }
            }
        }
    }
}

#[test]
fn servers_of_a_mesh_are_killed_at_random_moments() {
    kill_at_random(duration());
}

#[test]
#[ignore = "ten minutes: cargo test --test hostile -- --ignored --nocapture"]
fn servers_of_a_mesh_are_killed_for_ten_minutes() {
    kill_at_random(Duration::from_secs(600));
}

/// A peer that announces keys without number, which nobody has, and then says nothing at all.
#[test]
fn a_mesh_peer_that_lies_and_then_hangs() {
    let mut mesh = None;
    let scene = Scene::of(|| {
        let (server, peers) = start_with_peers_and::<1>(apart::flags());
        let pair = Pair::start(&server);
        mesh = Some((peers[0].accept(), peers));
        (server, pair)
    });
    let (mut link, _peers) = mesh.expect("the scene has begun");
    let outcome = scene.suffer("a mesh peer that lies and hangs", |attack| {
        let begun = Instant::now();
        while begun.elapsed() < duration() / 2 {
            let mut lies = Vec::new();
            for _ in 0..500 {
                let unknown =
                    [&random_bytes::<32>()[..], &[0; 10], &[255, 255, 192, 0, 2, 1, 4, 0, 1]];
                lies.extend(frame(PEER_PRESENT, &unknown.concat()));
            }
            link.write(&lies);
        }
        attack.wait();
    });
    assert!(scene.server.metric("derp_clients_remote") > 1000.0, "it was not heard");
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// Certificates are on a file system that nothing can be written to, and then on one that is full.
#[test]
fn certificate_directories_that_take_nothing() {
    let unshare = Command::new("unshare").args(["-m", "true"]).status();
    if !unshare.is_ok_and(|status| status.success()) {
        return skip("certificate directories", "no mount namespaces: run as root");
    }
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let certificates = directory.path().join("certs");
    // A run that makes the certificate, then one that may only read it.
    let address = Place::own_address();
    drop(Server::start_at(|| address, Arc::clone(&directory), &[]));
    let mount = format!(
        "mount --make-rprivate / && mount --bind '{0}' '{0}' && mount -o remount,ro,bind '{0}' || exit 9",
        certificates.display()
    );
    let script = wrapped(directory.path(), "inner", &mount);
    let outer = directory.path().join("derpd");
    fs::write(&outer, format!("#!/bin/sh\nexec unshare -m '{}' \"$@\"\n", script.display()))
        .expect("writable");
    fs::set_permissions(&outer, fs::Permissions::from_mode(0o755)).expect("its own file");
    let server = Server::start_binary(&outer, || address, Arc::clone(&directory), &[]);
    Peer::connect(&server).round_trip();
    drop(server);

    // Without one, and no room to make it: an error that names the file, and no half of one stays.
    let full = directory.path().join("full");
    fs::create_dir(&full).expect("its own directory");
    let mount = format!(
        "mount --make-rprivate / && mount -t tmpfs -o size=4k none '{0}' && head -c 4096 /dev/zero > '{0}/filler' || exit 9",
        full.display()
    );
    let script = wrapped(directory.path(), "inner-full", &mount);
    let output = Command::new("unshare")
        .arg("-m")
        .arg(&script)
        .args([
            "-a=127.0.0.1:0",
            "-http-port=-1",
            "-stun=false",
            "-certmode=manual",
            "-hostname=127.0.0.1",
        ])
        .arg(format!("-certdir={}", full.display()))
        .arg(format!("-c={}", directory.path().join("derper.key").display()))
        .output()
        .expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(9), "{text}");
    assert!(!output.status.success());
    let complaint = text.lines().last().unwrap_or_default();
    assert!(complaint.contains("No space left") && complaint.contains("full"), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

/// A new control group, and the file that limits its memory; with either version of control groups.
fn memory_group() -> Option<(PathBuf, PathBuf)> {
    let root = Path::new("/sys/fs/cgroup");
    let is_unified = root.join("cgroup.controllers").exists();
    let name = format!("derpd-test-{}", std::process::id());
    let (group, limit) = if is_unified {
        (root.join(name), "memory.max")
    } else {
        (root.join("memory").join(name), "memory.limit_in_bytes")
    };
    fs::create_dir(&group).ok()?;
    let limit = group.join(limit);
    if !limit.exists() {
        fs::remove_dir(&group).ok();
        return None;
    }
    Some((group, limit))
}

/// In a control group with little memory, clients that take nothing do not get the relay killed.
#[test]
fn little_memory() {
    const MEMORY: u64 = 192 * MEGABYTE;
    let Some((group, limit)) = memory_group() else {
        return skip("little memory", "no control group of memory can be made");
    };
    let scene = Scene::start(&[]);
    fs::write(limit, MEMORY.to_string()).expect("the group is ours");
    fs::write(group.join("cgroup.procs"), scene.server.id().to_string()).expect("ours");
    let outcome = scene.suffer("192 MB of memory, 300 readers that do not read", |attack| {
        let readers: Vec<Peer> = (0..300).map(|_| Peer::connect(attack.server)).collect();
        readers.iter().for_each(|reader| shrink(reader.wire.socket()));
        let mut sender = Peer::connect(attack.server);
        while attack.goes_on() {
            for reader in &readers {
                sender.send(&reader.key(), &vec![0; 60_000]);
                if !attack.goes_on() {
                    break;
                }
            }
        }
    });
    scene.judge(&outcome, MEMORY);
    drop(scene);
    wait_until("the group to be empty", || fs::remove_dir(&group).is_ok());
}
