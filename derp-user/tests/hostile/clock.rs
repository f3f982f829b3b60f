//! The system's clock jumps under a running relay: libfaketime changes what its process is told, and nobody else's.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use tempfile::TempDir;

use crate::{
    pair::Pair,
    peer::{Event, Peer, RECV_PACKET},
    scene::{MEGABYTE, Scene, duration},
    server::{PATIENCE, Place, Server, binary, skip, write_file},
};

/// What the clock is told to be, each for a while: days from the right time, there and back.
const JUMPS: [&str; 8] = ["+1d", "-1d", "+0", "+400d", "-400d", "+36500d", "-3600", "+0"];
const DAY: u64 = 24 * 3600;
/// Bytes per second that one client may send.
const RATE: usize = 50_000;

/// The library, where the package has it.
fn library() -> Option<PathBuf> {
    let places = fs::read_dir("/usr/lib").ok()?.flatten();
    let mut libraries = places.map(|it| it.path().join("faketime/libfaketimeMT.so.1"));
    libraries.find(|it| it.exists())
}

/// A relay's program whose clock is what a file says.
fn with_clock(directory: &Path, library: &Path) -> (PathBuf, PathBuf) {
    let (script, file) = (directory.join("derpd"), directory.join("clock"));
    fs::write(&file, "+0\n").expect("writable");
    // Timers go by the clock that only ever advances, as they do on a real machine.
    let text = format!(
        "#!/bin/sh\nLD_PRELOAD='{}' FAKETIME_TIMESTAMP_FILE='{}' FAKETIME_NO_CACHE=1 \
         FAKETIME_DONT_FAKE_MONOTONIC=1 exec '{}' \"$@\"\n",
        library.display(),
        file.display(),
        binary().display()
    );
    fs::write(&script, text).expect("writable");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("its own file");
    (script, file)
}

/// What the relay takes the time for.
fn time_of(server: &Server) -> SystemTime {
    let page = server.get("/");
    let date = page.header("Date").expect("a date");
    httpdate::parse_http_date(date).expect("a date")
}

#[test]
fn a_clock_that_jumps_both_ways() {
    let Some(library) = library() else {
        return skip("a clock that jumps", "libfaketime is missing: apt install libfaketime");
    };
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let (script, clock) = with_clock(directory.path(), &library);
    let json = format!("{{\"PerClientRateLimitBytesPerSec\":{RATE}}}");
    let rates = format!("-rate-config={}", write_file(directory.path(), "rates.json", &json));
    let scene = Scene::of(|| {
        // What the library reads is not among the relay's files.
        let flags = ["-sandbox=false", rates.as_str()];
        let server = Server::start_binary(&script, Place::own_address, directory, &flags);
        let pair = Pair::start(&server);
        (server, pair)
    });
    let outcome = scene.suffer("a clock that jumps both ways", |attack| {
        let mut steady = Peer::connect(attack.server);
        let pause = duration() / 16;
        for jump in JUMPS {
            fs::write(&clock, format!("{jump}\n")).expect("writable");
            thread::sleep(pause);
            let told = time_of(attack.server);
            let off = told
                .duration_since(SystemTime::now())
                .unwrap_or_else(|error| error.duration())
                .as_secs();
            let expected = match jump.trim_start_matches(['+', '-']).strip_suffix('d') {
                Some(days) => days.parse::<u64>().expect("a number") * DAY,
                None => jump.trim_start_matches(['+', '-']).parse().expect("a number"),
            };
            assert!(off.abs_diff(expected) < 60, "{jump}: the relay's clock is off by {off} s");
            steady.round_trip();
            Peer::connect(attack.server).round_trip();
            for page in ["/debug/varz", "/debug/vars", "/debug/status.json", "/debug/check"] {
                let page = attack.server.get(page);
                assert_eq!(page.status, 200, "{jump}: {}", page.body);
            }
            attack.server.reload();
        }
        limits_its_rate(attack.server, &clock);
    });
    scene.judge(&outcome, 32 * MEGABYTE);
}

/// A client that sends more than it may gets through as much as it may, while the clock jumps.
fn limits_its_rate(server: &Server, clock: &Path) {
    let (mut sender, mut receiver) = (Peer::connect(server), Peer::connect(server));
    let to = receiver.key();
    // The burst, which is 64 KiB and a key, and three seconds' worth behind it.
    let begun = Instant::now();
    for _ in 0..(65_536 + 3 * RATE) / 1000 {
        sender.send(&to, &[0; 1000 - 37]);
    }
    let (mut bytes, mut jumps) = (0, JUMPS.iter().cycle());
    let mut jumped = begun;
    while bytes < 65_536 + 2 * RATE {
        match receiver.wire.event(Duration::from_millis(20)) {
            Event::Frame(frame) if frame.kind == RECV_PACKET => bytes += frame.payload.len() + 5,
            Event::Frame(_) | Event::Silence => {}
            Event::Closed => panic!("the relay has closed the connection"),
        }
        if jumped.elapsed() > Duration::from_millis(100) {
            fs::write(clock, format!("{}\n", jumps.next().expect("endless"))).expect("writable");
            jumped = Instant::now();
        }
        assert!(begun.elapsed() < PATIENCE, "{bytes} bytes in {PATIENCE:?}");
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1800), "{bytes} bytes in {took:?}");
    fs::write(clock, "+0\n").expect("writable");
}
