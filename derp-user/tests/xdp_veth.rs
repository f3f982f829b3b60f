//! The attached program between two network namespaces, with real sockets on both sides.

#[path = "support/client.rs"]
mod client;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    thread,
    time::{Duration, Instant},
};

use derp_common::Family;
use derp_user::dataplane::{AttachedMode, DataplaneError, Mode, Xdp};

use crate::{
    client::{BOTH, PATIENCE, ask, connect, environment, load},
    daemon::{Daemon, options},
    netns::{CLIENT4, CLIENT6, SERVER_INTERFACE, SERVER4, SERVER6, run_in},
    packets::{attribute, message, tailscale_request},
};

fn every_request_is_answered_in_the_kernel(mode: Mode, expected: AttachedMode) {
    let test = format!("20,000 requests/s over veth, {mode}");
    let Some((namespaces, _client_end)) = environment(&test) else { return };
    let daemon = Daemon::start(&namespaces, mode).expect("daemon");
    let attachments = daemon.xdp.as_ref().expect("attached").attachments();
    assert_eq!(attachments[0].mode, expected);
    // Resolves the neighbours.
    run_in(&namespaces.client, || {
        ask(&connect(CLIENT4, SERVER4), 0);
        ask(&connect(CLIENT6, SERVER6), 0);
    });

    let families = [Family::Ipv4, Family::Ipv6];
    let before = families.map(|family| daemon.answered_in_kernel(family));
    let (userspace, cpu) = (daemon.seen_in_userspace(), daemon.cpu_nanoseconds());
    let total = run_in(&namespaces.client, || load(20_000, Duration::from_secs(5), &BOTH));
    let after = families.map(|family| daemon.answered_in_kernel(family));
    let answered = [after[0] - before[0], after[1] - before[1]];
    assert_eq!(answered, [total / 2, total / 2], "each was answered in the kernel");
    assert_eq!(daemon.seen_in_userspace(), userspace, "none came to userspace");
    let cpu = Duration::from_nanos(daemon.cpu_nanoseconds() - cpu);
    println!("{mode}: {total} requests, daemon's CPU {cpu:?}");
    // 100,000 requests in userspace take most of a second.
    assert!(cpu < Duration::from_millis(50), "the daemon used {cpu:?} of CPU");
}

#[test]
fn native_answers_20000_requests_per_second_without_userspace() {
    every_request_is_answered_in_the_kernel(Mode::Native, AttachedMode::Native);
}

#[test]
fn generic_answers_20000_requests_per_second_without_userspace() {
    every_request_is_answered_in_the_kernel(Mode::Generic, AttachedMode::Generic);
}

#[test]
fn what_the_kernel_passes_is_answered_in_userspace() {
    let Some((namespaces, _client_end)) = environment("XDP with userspace behind it") else {
        return;
    };
    let daemon = Daemon::start(&namespaces, Mode::Auto).expect("daemon");
    let attachments = daemon.xdp.as_ref().expect("attached").attachments();
    assert_eq!(attachments[0].mode, AttachedMode::Native, "auto takes the best");
    for (from, to) in [(CLIENT4, SERVER4), (CLIENT6, SERVER6)] {
        let answer = run_in(&namespaces.client, move || {
            let socket = connect(from, to);
            let request = message(0x0001, &[attribute(0x0003, &[0, 0, 0, 6])]);
            socket.send(&request).expect("send");
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).expect("an answer");
            buffer[..length].to_vec()
        });
        assert_eq!(answer[..2], [0x01, 0x11], "a refusal");
    }
    daemon.wait_for_userspace(2);
}

#[test]
fn addresses_that_come_and_go_are_followed() {
    let Some((namespaces, _client_end)) = environment("changes of addresses") else { return };
    let daemon = Daemon::start(&namespaces, Mode::Native).expect("daemon");
    let ask_until = |answered: &dyn Fn() -> bool, what: &str| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            run_in(&namespaces.client, || ask(&connect(CLIENT4, "10.77.0.99"), 7));
            if answered() {
                return;
            }
            assert!(Instant::now() < deadline, "{what}");
            thread::sleep(Duration::from_millis(20));
        }
    };
    namespaces.server_ip(&format!("addr add 10.77.0.99/24 dev {SERVER_INTERFACE}"));
    let answered = || daemon.answered_in_kernel(Family::Ipv4) > 0;
    ask_until(&answered, "a new address is not answered in the kernel");

    // What is addressed to the new MAC is userspace's, until the program is told of it.
    namespaces.server_ip(&format!("link set {SERVER_INTERFACE} address 02:00:00:00:99:01"));
    namespaces.forget_neighbours();
    let before = daemon.answered_in_kernel(Family::Ipv4);
    let answered = || daemon.answered_in_kernel(Family::Ipv4) > before;
    ask_until(&answered, "a new MAC address is not noticed");

    namespaces.server_ip(&format!("addr del 10.77.0.99/24 dev {SERVER_INTERFACE}"));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = daemon.answered_in_kernel(Family::Ipv4);
        run_in(&namespaces.client, || {
            let socket = connect(CLIENT4, "10.77.0.99");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("timeout");
            let _ = socket.send(&tailscale_request());
            let _ = socket.recv(&mut [0; 100]);
        });
        if daemon.answered_in_kernel(Family::Ipv4) == before {
            break;
        }
        assert!(Instant::now() < deadline, "an address that is gone is still answered");
    }
}

#[test]
fn dropping_it_detaches_the_program_and_userspace_goes_on() {
    let Some((namespaces, _client_end)) = environment("detaching") else { return };
    let mut daemon = Daemon::start(&namespaces, Mode::Native).expect("daemon");
    run_in(&namespaces.client, || ask(&connect(CLIENT4, SERVER4), 1));
    assert_eq!(daemon.seen_in_userspace(), 0);
    drop(daemon.xdp.take());
    run_in(&namespaces.client, || ask(&connect(CLIENT4, SERVER4), 2));
    daemon.wait_for_userspace(1);
    // And the interface is free again.
    let again = run_in(&namespaces.server, || Xdp::attach(&options(Mode::Native)));
    assert!(again.expect("attach again").is_some());
}

#[test]
fn what_prevents_attaching_is_said() {
    let Some((namespaces, _client_end)) = environment("errors of attaching") else { return };
    let attach = |options: derp_user::dataplane::XdpOptions| {
        run_in(&namespaces.server, move || Xdp::attach(&options))
    };
    let mut unknown = options(Mode::Auto);
    unknown.interfaces.push("nosuch0".to_owned());
    let error = attach(unknown).err().expect("an error");
    assert!(matches!(error, DataplaneError::UnknownInterface { .. }), "{error}");
    assert!(error.to_string().contains("\"nosuch0\""), "{error}");

    let mut none = options(Mode::Native);
    none.interfaces.clear();
    let error = attach(none).err().expect("an error");
    assert!(matches!(error, DataplaneError::NoInterface(Mode::Native)), "{error}");

    let first = attach(options(Mode::Native)).expect("first").expect("attached");
    for mode in [Mode::Native, Mode::Generic] {
        let error = attach(options(mode)).err().expect("an error");
        assert!(matches!(error, DataplaneError::Occupied { .. }), "{mode}: {error}");
    }
    assert!(attach(options(Mode::Auto)).expect("auto degrades").is_none());
    assert!(attach(options(Mode::Off)).expect("off").is_none());
    drop(first);

    // The loopback interface has no native mode.
    let mut loopback = options(Mode::Native);
    loopback.interfaces = vec!["lo".to_owned()];
    let error = attach(loopback.clone()).err().expect("an error");
    assert!(matches!(error, DataplaneError::Unsupported { .. }), "{error}");
    loopback.mode = Mode::Auto;
    let xdp = attach(loopback).expect("auto").expect("attached");
    assert_eq!(xdp.attachments()[0].mode, AttachedMode::Generic);
}
