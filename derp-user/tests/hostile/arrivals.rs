//! Connections that never become sessions: TCP, TLS, HTTP, login.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;

use crate::{
    peer::{Peer, UPGRADE, Wire, client_info, random_bytes, random_secret},
    scene::{Attack, MEGABYTE, Scene, connect, connect_from, is_closed_within},
};

/// The first message of a TLS client, made once and sent as often as one likes: all the work is the server's.
pub(crate) fn client_hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows them")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("relay").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("complete");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("memory");
    hello
}

/// Opens connections until there are `count`, or the attack is over; `begin` says what is sent on each.
fn open(
    attack: &Attack<'_>,
    count: usize,
    begin: impl Fn(&mut TcpStream) + Sync,
) -> Vec<TcpStream> {
    let to = attack.server.tls_address();
    let mut streams = Vec::new();
    while streams.len() < count && attack.goes_on() {
        let Some(mut stream) = connect(to) else { continue };
        begin(&mut stream);
        streams.push(stream);
    }
    streams
}

/// Writes the next byte to each connection, again and again.
fn dribble(attack: &Attack<'_>, writers: &mut [impl Write], bytes: &[u8]) {
    for byte in bytes {
        if !attack.goes_on() {
            return;
        }
        for writer in writers.iter_mut() {
            // Whoever was thrown out stays out.
            let _ = writer.write_all(&[*byte]).and_then(|()| writer.flush());
        }
        thread::sleep(Duration::from_millis(20));
    }
    attack.wait();
}

#[test]
fn tcp_connections_that_say_nothing() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("silent TCP connections, 2000", |attack| {
        let _streams = open(attack, 2000, |_| {});
        attack.wait();
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn tls_handshakes_byte_by_byte() {
    let scene = Scene::start(&[]);
    let hello = client_hello();
    let outcome = scene.suffer("TLS byte by byte, 500", |attack| {
        let mut streams = open(attack, 500, |_| {});
        dribble(attack, &mut streams, &hello);
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn ten_thousand_half_open_handshakes() {
    let scene = Scene::start(&[]);
    let hello = client_hello();
    let opened = AtomicU64::new(0);
    let outcome = scene.suffer("half-open handshakes, 10000", |attack| {
        let one = |_| {
            let mut streams = Vec::new();
            // All of them, however long it takes.
            while streams.len() < 5000 {
                let Some(mut stream) = connect(attack.server.tls_address()) else { continue };
                let _ = stream.write_all(&hello);
                streams.push(stream);
                opened.fetch_add(1, Ordering::Relaxed);
            }
            streams
        };
        let streams = thread::scope(|scope| {
            let threads = [0, 1].map(|number| scope.spawn(move || one(number)));
            threads.map(|thread| thread.join().expect("it does not panic"))
        });
        let newcomer = thread::spawn({
            let (address, name) = (attack.server.tls_address(), attack.server.ip());
            move || Wire::connect_to(address, ServerName::IpAddress(name.into()), None).is_ok()
        });
        crate::server::wait_until("a newcomer among them", || newcomer.is_finished());
        assert!(newcomer.join().expect("it does not panic"), "a newcomer was not served");
        drop(streams);
    });
    assert_eq!(opened.load(Ordering::Relaxed), 10_000);
    scene.judge(&outcome, 512 * MEGABYTE);
}

#[test]
fn http_requests_byte_by_byte() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("HTTP byte by byte, 200", |attack| {
        let mut wires: Vec<Wire> = (0..200).map(|_| Wire::connect(attack.server)).collect();
        for byte in UPGRADE.as_bytes() {
            for wire in &mut wires {
                let _ = wire.try_write(&[*byte]);
            }
            if !attack.goes_on() {
                return;
            }
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn logins_byte_by_byte() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("logins byte by byte, 200", |attack| {
        let connect = |_| {
            let mut wire = Wire::connect(attack.server);
            let key = wire.upgrade();
            (wire, client_info(&random_secret(), &key, r#"{"version":2}"#))
        };
        let mut wires: Vec<(Wire, Vec<u8>)> = (0..200).map(connect).collect();
        for at in 0..60 {
            for (wire, login) in &mut wires {
                let _ = wire.try_write(&login[at..=at]);
            }
            if !attack.goes_on() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// Connects, says something, hangs up, without pause, on two threads.
fn flood(attack: &Attack<'_>, source: impl Fn() -> Option<Ipv4Addr> + Sync, says: &[u8]) -> u64 {
    let count = AtomicU64::new(0);
    let to: SocketAddr = attack.server.tls_address();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut open = std::collections::VecDeque::new();
                while attack.goes_on() {
                    let Some(mut stream) = connect_from(source(), to) else { continue };
                    let _ = stream.write_all(says);
                    open.push_back(stream);
                    // Each stays long enough for the relay to do its work.
                    if open.len() > 200 {
                        open.pop_front();
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner()
}

#[test]
fn connections_without_pause_from_one_source() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("connect flood, one source", |attack| {
        let count = flood(attack, || None, b"");
        println!("{count} connections");
    });
    scene.judge(&outcome, 128 * MEGABYTE);
}

#[test]
fn connections_without_pause_from_many_sources() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("connect flood, many sources", |attack| {
        let anywhere = || {
            let [b, c, d] = random_bytes::<3>();
            Some(Ipv4Addr::new(127, b | 1, c, d | 1))
        };
        let count = flood(attack, anywhere, b"");
        println!("{count} connections");
    });
    scene.judge(&outcome, 128 * MEGABYTE);
}

#[test]
fn client_hellos_without_pause() {
    let scene = Scene::start(&[]);
    let hello = client_hello();
    let outcome = scene.suffer("TLS handshake flood", |attack| {
        let count = flood(attack, || None, &hello);
        println!("{count} handshakes");
    });
    scene.judge(&outcome, 128 * MEGABYTE);
}

#[test]
fn request_heads_without_end() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("oversized headers", |attack| {
        let mut refused = 0;
        while attack.goes_on() {
            let mut wire = Wire::connect(attack.server);
            let mut head = b"GET /derp HTTP/1.1\r\nHost: relay\r\n".to_vec();
            if refused % 2 == 0 {
                head.extend(b"X-Filler: ");
                head.resize(head.len() + (64 << 10), b'a');
            } else {
                (0..4000).for_each(|number| head.extend(format!("X-{number}: a\r\n").bytes()));
            }
            let _ = wire.try_write(&head);
            let closed = is_closed_within(
                &mut wire.socket().try_clone().expect("a descriptor"),
                Duration::from_secs(10),
            );
            assert!(closed, "a head of {} bytes was taken", head.len());
            refused += 1;
        }
        println!("{refused} refused");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn regression_strange_upgrades_do_not_flood_the_log() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("requests that are logged", |attack| {
        let request = format!(
            "GET /derp HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: {}\r\n\r\n",
            "x\u{fc}".repeat(2000)
        );
        while attack.goes_on() {
            let mut wire = Wire::connect(attack.server);
            for _ in 0..20 {
                let _ = wire.try_write(request.as_bytes());
            }
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
    let longest = scene.server.log().lines().map(str::len).max().unwrap_or(0);
    assert!(longest < 1000, "a log line of {longest} bytes");
}

#[test]
fn guesses_of_the_mesh_key() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let key = "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";
    let file = crate::server::write_file(directory.path(), "mesh.key", key);
    let scene = Scene::start(&[&format!("-mesh-psk-file={file}")]);
    let outcome = scene.suffer("mesh key guessing", |attack| {
        let mut guesses = 0;
        while attack.goes_on() {
            let guess = crate::peer::to_hex(&random_bytes::<32>());
            let json = format!(r#"{{"version":2,"meshKey":"{guess}"}}"#);
            let mut peer = Peer::connect_as(attack.server, random_secret(), &json);
            peer.wire.write(&crate::peer::frame(crate::peer::WATCH_CONNS, &[]));
            peer.wire.expect_closed();
            guesses += 1;
        }
        println!("{guesses} guesses");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
    assert_eq!(scene.server.metric("derp_watchers"), 0.0);
}
