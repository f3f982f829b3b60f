//! TLS beyond the handshake.

use std::{
    io::Write as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConnection, StreamOwned};

use crate::{
    arrivals::client_hello,
    peer::Peer,
    scene::{MEGABYTE, Scene, connect, is_closed_within},
    server::skip,
};

/// What looks like early data: records that nothing opens, behind a ClientHello that offered no key for them.
#[test]
fn early_data_that_nobody_asked_for() {
    let scene = Scene::start(&[]);
    let mut begin = client_hello();
    let record = [&[23, 3, 3, 0x40, 0][..], &[0; 0x4000]].concat();
    begin.extend(record.repeat(4));
    let outcome = scene.suffer("early data", |attack| {
        let mut count = 0;
        while attack.goes_on() {
            let Some(mut stream) = connect(attack.server.tls_address()) else { continue };
            let _ = stream.write_all(&begin);
            assert!(is_closed_within(&mut stream, Duration::from_secs(10)), "early data was taken");
            count += 1;
        }
        println!("{count} refused");
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

/// New keys again and again, with just enough data in between that they are not idle.
#[test]
fn key_updates_without_pause() {
    let scene = Scene::start(&[]);
    let outcome = scene.suffer("key update flood", |attack| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while attack.goes_on() {
                        let mut peer = Peer::connect(attack.server);
                        let stream: &mut StreamOwned<ClientConnection, _> = peer.wire.stream();
                        while attack.goes_on() {
                            for _ in 0..100 {
                                if stream.conn.refresh_traffic_keys().is_err() {
                                    break;
                                }
                                // A keepalive, byte by byte.
                                let _ = stream.conn.writer().write_all(&[0]);
                            }
                            if stream.flush().is_err() {
                                break;
                            }
                        }
                    }
                });
            }
        });
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}

#[test]
fn renegotiation_is_refused() {
    let scene = Scene::start(&[]);
    let program = Command::new("openssl").arg("version").output();
    if program.is_err() {
        return skip("renegotiation", "openssl is not installed");
    }
    let outcome = scene.suffer("renegotiation, TLS 1.2", |attack| {
        while attack.goes_on() {
            let mut client = Command::new("openssl")
                .args(["s_client", "-tls1_2", "-connect", &attack.server.tls_address().to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("openssl runs");
            let mut stdin = client.stdin.take().expect("piped");
            let begun = Instant::now();
            while client.try_wait().expect("a child").is_none() {
                // A line with R asks for it.
                let _ = stdin.write_all(b"R\n");
                thread::sleep(Duration::from_millis(50));
                assert!(begun.elapsed() < Duration::from_secs(20), "the connection goes on");
            }
        }
    });
    scene.judge(&outcome, 64 * MEGABYTE);
}
