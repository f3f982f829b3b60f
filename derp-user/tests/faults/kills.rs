//! A daemon that is killed at random moments, again and again, while the kernel forwards.

use std::{
    env, fs, thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::sys::signal::Signal;

use crate::{
    bed::{Traffic, converses_in_the_kernel, start, wait_for_kernel},
    kernel,
    lab::Lab,
    party::{Host, Keys, converse, shake_hands},
    pins::BpfFs,
};

const WIREGUARD_PORT: u16 = 51_820;

/// A moment by chance, below `limit`.
fn chance(limit: Duration) -> Duration {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).expect("random numbers");
    limit * u32::from(u16::from_ne_bytes(bytes)) / (1 << 16)
}

/// One flow of the configuration is always in use; a WireGuard session is used now and then, and never made anew.
fn kill_at_random(test: &str, lasts: Duration) {
    let Some(lab) = Lab::create(test) else { return };
    let bpf = match BpfFs::mount() {
        Ok(bpf) => bpf,
        Err(reason) => return kernel::skip(test, &reason),
    };
    let (hub, spoke) = (Keys::random(), Keys::random());
    let public = |keys: &Keys| BASE64_STANDARD.encode(keys.public.as_bytes());
    let lines = format!(
        "[dataplane]\npin = {:?}\n[wireguard]\nport = {WIREGUARD_PORT}\nstate_file = {:?}\n\
         [[wireguard.network]]\nname = \"test\"\n\
         [[wireguard.network.peer]]\npublic_key = \"{}\"\n[[wireguard.network.peer]]\npublic_key = \"{}\"",
        bpf.pins().display().to_string(),
        lab.directory().join("wireguard.json").display().to_string(),
        public(&hub),
        public(&spoke),
    );
    let mut daemon = start(&lab, &lines);
    let key_file = lab.directory().join("key");
    let key = fs::read(&key_file).expect("the relay's key");
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let at = |namespace: &str, own: &str, relay: &str, keys: &Keys, peer: &Keys| {
        let relay = format!("{relay}:{WIREGUARD_PORT}").parse().expect("an address");
        Host::new(lab.socket(namespace, own), relay, keys, &[peer.public], 1)
    };
    let mut a = at(&lab.a, "10.78.1.3:1000", "10.78.1.1", &hub, &spoke);
    let mut b = at(&lab.b, "10.78.2.3:1000", "10.78.2.1", &spoke, &hub);
    shake_hands((&mut a, 0), (&mut b, 0));
    converse((&mut a, 0), (&mut b, 0), b"before the first fault");
    // The state is saved once a second.
    thread::sleep(Duration::from_secs(2));

    let traffic = Traffic::start(&lab);
    let begun = Instant::now();
    let mut handshake = Instant::now();
    let mut recoveries = Vec::new();
    while recoveries.len() < 3 || begun.elapsed() < lasts {
        thread::sleep(chance(Duration::from_millis(500)));
        daemon.end(Signal::SIGKILL);
        let fault = Instant::now();
        thread::sleep(chance(Duration::from_millis(300)));
        // Nobody is there but the kernel.
        converse((&mut a, 0), (&mut b, 0), b"while the daemon is dead");
        let start_again = Instant::now();
        daemon = start(&lab, &lines);
        let served = start_again.elapsed();
        // It knows the flow as it was, and the session, for which nobody has shaken hands again.
        wait_for_kernel(&daemon);
        let known = start_again.elapsed();
        let flows = daemon.flows();
        let is_of = |kind: &str| flows.iter().any(|flow| flow["kind"] == kind);
        assert!(is_of("geneve") && is_of("wireguard"), "{flows:#?}");
        converse((&mut a, 0), (&mut b, 0), b"after it has come again");
        assert_eq!(fs::read(&key_file).expect("the key"), key, "the key is another one");
        if recoveries.len() < 10 {
            println!(
                "killed: dead for {:.1?}, serves after {served:.1?}, knows its flows after {known:.1?}",
                start_again - fault
            );
        }
        recoveries.push(known);
        // WireGuard's own sessions end after three minutes.
        if handshake.elapsed() > Duration::from_secs(100) {
            shake_hands((&mut a, 0), (&mut b, 0));
            handshake = Instant::now();
            thread::sleep(Duration::from_secs(2));
        }
    }
    let (sent, lost) = traffic.stop();
    // While no daemon runs, nobody forwards the one of 65,536 that the kernel passes because its checksum looks half
    // computed.
    let lost_beyond = lost.saturating_sub(1 + (sent / 16_384) as usize);
    recoveries.sort_unstable();
    println!(
        "{} kills: flows are known again after {:.2?} (median), {:.2?} (longest); {sent} packets each way, {lost} lost",
        recoveries.len(),
        recoveries[recoveries.len() / 2],
        recoveries[recoveries.len() - 1],
    );
    assert_eq!(lost_beyond, 0, "{lost} of {sent} each way are lost");
    assert!(daemon.get("/debug/check").is_some(), "{}", daemon.log());
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn flows_in_the_kernel_outlive_a_daemon_that_is_killed_at_random_moments() {
    let seconds = env::var("DERPD_HOSTILE_SECONDS").ok().and_then(|text| text.parse().ok());
    kill_at_random("kills under flows", Duration::from_secs(seconds.unwrap_or(2)));
}

#[test]
#[ignore = "ten minutes: cargo test --test faults -- --ignored --nocapture"]
fn flows_in_the_kernel_outlive_a_daemon_that_is_killed_for_ten_minutes() {
    kill_at_random("kills under flows", Duration::from_secs(600));
}
