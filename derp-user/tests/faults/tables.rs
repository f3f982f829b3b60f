//! Tables at their limits.

use std::{
    fmt::Write as _,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use derp_user::client::Trust;

use crate::{
    bed::{Before, converses_in_the_kernel, count, start},
    lab::Lab,
    relay_client::{Derp, RelayClient, RelayNode},
};

/// The fewest slots there can be.
const SLOTS: usize = 16;
/// How long an answer takes that comes at all.
const ANSWERED: Duration = Duration::from_secs(2);
/// Longer than an endpoint that nobody binds is kept, and its slot after it.
const FREED: Duration = Duration::from_secs(90);
/// More addresses than the kernel's table has room for.
const ADDRESSES: usize = 4200;

#[test]
fn flows_that_find_the_table_full_are_refused_and_those_in_it_go_on() {
    let Some(lab) = Lab::create("a full flow table") else { return };
    let keys = lab.directory().join("relay.keys");
    let lines = format!(
        "slots = {SLOTS}\n[dataplane]\npin = false\n[peer_relay]\nkey_file = {:?}\nallow = \"any\"",
        keys.display().to_string()
    );
    let daemon = start(&lab, &lines);
    let node = RelayNode::of_file(&keys);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let asker = RelayClient::new();
    let derp =
        Derp::connect(Some(lab.a.as_str()), "http://10.78.1.1:8080", &asker.node, Trust::System);
    let before = Before::look(&daemon);
    let is_given = || {
        let [a, b] = [RelayClient::new(), RelayClient::new()];
        let request = a.request(&node, [a.key(), b.key()]);
        derp.send(node.node, &request);
        derp.receive(node.node, ANSWERED).is_some()
    };
    let given = (0..SLOTS).take_while(|_| is_given()).count();
    assert_eq!(given, SLOTS - 1, "all but the flow's own");
    let refused = || daemon.metric("derpd_peer_relay_requests_total", &["result=\"full\""]);
    assert_eq!(refused(), 1.0);
    for _ in 0..5 {
        assert!(!is_given());
    }
    assert_eq!(refused(), 6.0);
    assert_eq!(daemon.metric("derpd_udp_flows", &[]), SLOTS as f64);
    let news = before.news(&daemon);
    assert_eq!(count(&news, "there is no room for another endpoint"), 1, "{news:#?}");
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");

    // Nobody has bound those that were given, and so they end.
    let deadline = Instant::now() + FREED;
    while !is_given() {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        thread::sleep(Duration::from_secs(1));
    }
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    before.compare(&daemon, 30);
}

/// Has `ip` do this for many addresses at once.
fn batch(lab: &Lab, what: &str) {
    let mut text = String::new();
    for number in 1..=ADDRESSES {
        writeln!(text, "addr {what} fd99::{number:x}/128 dev lo").expect("a string");
    }
    let file = lab.directory().join("batch");
    fs::write(&file, text).expect("writable");
    let done = Command::new("ip").args(["-n", &lab.relay, "-batch"]).arg(&file).status();
    assert!(done.is_ok_and(|status| status.success()));
}

#[test]
fn more_addresses_than_the_table_holds_are_said_once_and_harm_no_flow() {
    let Some(lab) = Lab::create("a full address table") else { return };
    let daemon = start(&lab, "[dataplane]\npin = false");
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let before = Before::look(&daemon);
    let told = || count(&before.news(&daemon), "addresses may be stale");
    batch(&lab, "add");
    daemon.wait_until("it is said", || told() == 1);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    // The host is read anew with every change, and every 10 s.
    thread::sleep(Duration::from_secs(12));
    assert_eq!(told(), 1, "{:#?}", before.news(&daemon));
    batch(&lab, "del");
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    before.compare(&daemon, 2);
}
