//! Clients that are logged in and then misbehave.

use std::{
    io::Read as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use crate::{
    peer::{
        DISCO_MAGIC, Event, MAX_PACKET, PING, Peer, RECV_PACKET, WATCH_CONNS, frame, random_bytes,
        random_secret, send_packet,
    },
    scene::{MEGABYTE, Scene, shrink},
    server::Server,
};

const INFO: &str = r#"{"version":2,"CanAckPings":true}"#;
const MESH_KEY: &str = "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";

/// A client that will not read much.
fn reluctant(server: &Server) -> Peer {
    let peer = Peer::connect(server);
    shrink(peer.wire.socket());
    peer
}

#[test]
fn garbage_after_the_login() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("garbage after login", |attack| {
        let mut count = 0;
        while attack.goes_on() {
            let mut peer = Peer::connect(attack.server);
            let _ = peer.wire.try_write(&random_bytes::<4096>());
            count += 1;
        }
        println!("{count} clients");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// 16 clients take a little every now and then, which keeps them connected, and are sent the largest packets there
/// are. 64 of these waited for each, 4 MiB, when the queues were limited in packets only.
#[test]
fn regression_readers_that_hardly_read_hold_little_memory() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("readers that hardly read, 16", |attack| {
        let mut readers: Vec<Peer> = (0..16).map(|_| reluctant(attack.server)).collect();
        let keys: Vec<_> = readers.iter().map(Peer::key).collect();
        thread::scope(|scope| {
            for disco in [false, true] {
                let keys = &keys;
                scope.spawn(move || {
                    let mut sender = Peer::connect(attack.server);
                    let mut packet = vec![0; MAX_PACKET];
                    if disco {
                        packet[..DISCO_MAGIC.len()].copy_from_slice(DISCO_MAGIC);
                    }
                    while attack.goes_on() {
                        keys.iter().for_each(|key| sender.send(key, &packet));
                    }
                });
            }
            let mut buffer = [0; 2048];
            while attack.goes_on() {
                for reader in &mut readers {
                    let mut socket = reader.wire.socket();
                    socket.set_read_timeout(Some(Duration::from_millis(1))).expect("legal");
                    let _ = socket.read(&mut buffer);
                }
                thread::sleep(Duration::from_millis(300));
            }
        });
    });
    let dropped = r#"derp_packets_dropped{reason="queue_head",kind="other"}"#;
    assert!(scene.server.metric(dropped) > 0.0, "their queues were never full");
    scene.judge(&outcome, 24 * MEGABYTE);
}

#[test]
fn senders_that_never_stop() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("senders that never stop, 4", |attack| {
        let received = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                let mut receiver = Peer::connect(attack.server);
                let packets = send_packet(&receiver.key(), &[7; 1000]).repeat(30);
                for _ in 0..2 {
                    let packets = packets.clone();
                    scope.spawn(move || {
                        let mut sender = Peer::connect(attack.server);
                        while attack.goes_on() {
                            sender.wire.write(&packets);
                        }
                    });
                }
                let received = &received;
                scope.spawn(move || {
                    while attack.goes_on() {
                        if let Event::Frame(frame) = receiver.wire.event(Duration::from_millis(50))
                            && frame.kind == RECV_PACKET
                        {
                            received.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        println!("{} packets got through", received.into_inner());
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// One client sends tiny packets, each to another one of 400 clients: each costs the relay a write.
#[test]
fn packets_for_everybody() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("packets for everybody in turn, 400", |attack| {
        let receivers: Vec<Peer> = (0..400).map(|_| Peer::connect(attack.server)).collect();
        let once: Vec<u8> =
            receivers.iter().flat_map(|peer| send_packet(&peer.key(), b"")).collect();
        let mut sender = Peer::connect(attack.server);
        let mut buffer = [0; 4096];
        while attack.goes_on() {
            sender.wire.write(&once.repeat(2));
            for receiver in &receivers {
                let mut socket = receiver.wire.socket();
                socket.set_nonblocking(true).expect("a socket");
                while matches!(socket.read(&mut buffer), Ok(1..)) {}
            }
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn the_largest_frames_by_writes_of_one_byte() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("64 KiB frames byte by byte, 8", |attack| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut peer = Peer::connect(attack.server);
                    let frame = send_packet(&peer.key(), &vec![1; MAX_PACKET]);
                    for piece in frame.chunks(64) {
                        if !attack.goes_on() {
                            return;
                        }
                        let bytes: Vec<Vec<u8>> = piece.iter().map(|byte| vec![*byte]).collect();
                        peer.wire.write_records(&bytes);
                    }
                });
            }
        });
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn pings_without_pause() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("ping flood, with and without reading", |attack| {
        let pings = frame(PING, &random_bytes::<8>()).repeat(1000);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut reader = Peer::connect(attack.server);
                while attack.goes_on() {
                    reader.wire.write(&pings);
                    while matches!(reader.wire.event(Duration::from_millis(1)), Event::Frame(_)) {}
                }
            });
            scope.spawn(|| {
                while attack.goes_on() {
                    let mut mute = reluctant(attack.server);
                    let write = Duration::from_millis(500);
                    mute.wire.socket().set_write_timeout(Some(write)).expect("legal");
                    while attack.goes_on() && mute.wire.try_write(&pings).is_ok() {}
                }
            });
        });
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// Clients with the mesh key ask again and again who is here; one of them reads nothing.
#[test]
fn regression_watchers_that_ask_without_pause_hold_up_nobody() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = crate::server::write_file(directory.path(), "mesh.key", MESH_KEY);
    let scene = Scene::start(&[&format!("-mesh-psk-file={file}")]);
    let outcome = scene.suffer("watch flood", |attack| {
        let _crowd: Vec<Peer> = (0..300).map(|_| Peer::connect(attack.server)).collect();
        let json = format!(r#"{{"version":2,"meshKey":"{MESH_KEY}"}}"#);
        let questions = frame(WATCH_CONNS, &[]).repeat(1000);
        while attack.goes_on() {
            let mut watcher = Peer::connect_as(attack.server, random_secret(), &json);
            shrink(watcher.wire.socket());
            watcher
                .wire
                .socket()
                .set_write_timeout(Some(Duration::from_millis(500)))
                .expect("legal");
            for _ in 0..100 {
                if !attack.goes_on() || watcher.wire.try_write(&questions).is_err() {
                    break;
                }
            }
        }
    });
    scene.judge(&outcome, 96 * MEGABYTE);
}

#[test]
fn connections_that_fight_for_one_key() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("one key flaps among 40 connections", |attack| {
        let secret = random_secret();
        let mut peers: Vec<Peer> =
            (0..40).map(|_| Peer::connect_as(attack.server, secret.clone(), INFO)).collect();
        let mut turns = 0_u64;
        while attack.goes_on() {
            for peer in &mut peers {
                peer.wire.write(&frame(PING, &turns.to_be_bytes()));
                turns += 1;
            }
            if turns.is_multiple_of(400) {
                peers.remove(0);
                peers.push(Peer::connect_as(attack.server, secret.clone(), INFO));
            }
        }
        println!("{turns} turns");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}
