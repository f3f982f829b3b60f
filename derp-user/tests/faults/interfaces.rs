//! Interfaces that are renamed, go and come, links that flap, addresses that change, while a flow uses them.

use std::{thread, time::Duration};

use derp_user::dataplane::{AttachedMode, Kernel};
use nix::sys::signal::Signal;

use crate::{
    bed::{Before, Ends, Traffic, converses_in_the_kernel, count, start, wait_for_kernel},
    kernel,
    lab::{Daemon, Lab, RELAY_A, RELAY_B},
    netns::{run, run_in},
};

const NO_PINS: &str = "[dataplane]\npin = false";

fn relay_ip(lab: &Lab, arguments: &str) {
    run(&format!("ip -n {} {arguments}", lab.relay)).expect("ip");
}

/// Whether the metric says that the program is on this interface.
fn is_attached(daemon: &Daemon, interface: &str) -> Option<bool> {
    let page = daemon.get("/debug/varz").expect("metrics");
    let sample = format!("derpd_xdp_interface{{interface=\"{interface}\",mode=\"native\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&sample))?;
    Some(value == "1")
}

#[test]
fn an_interface_that_is_renamed_goes_on_under_its_new_name() {
    let Some(lab) = Lab::create("a renamed interface") else { return };
    let daemon = start(&lab, NO_PINS);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let before = Before::look(&daemon);
    let traffic = Traffic::start(&lab);
    for name in ["uplink-b", "uplink-c"] {
        thread::sleep(Duration::from_millis(300));
        let old = if name == "uplink-b" { RELAY_B } else { "uplink-b" };
        relay_ip(&lab, &format!("link set {old} name {name}"));
        daemon.wait_until("the new name is shown", || is_attached(&daemon, name) == Some(true));
        assert_eq!(is_attached(&daemon, old), None);
    }
    thread::sleep(Duration::from_millis(300));
    let (sent, lost) = traffic.stop();
    println!("{sent} packets each way over two new names, {lost} lost");
    assert!(sent > 100 && lost == 0, "{lost} of {sent} each way");
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    before.compare(&daemon, 0);
}

/// Puts the cable to the second client back in its place, with a program at the client's end.
fn join_again(lab: &Lab) -> Kernel {
    let (relay, b) = (&lab.relay, &lab.b);
    run(&format!("ip link add {RELAY_B} netns {relay} type veth peer name b0 netns {b}"))
        .expect("ip");
    for address in ["10.78.2.1/24", "10.78.2.9/24"] {
        relay_ip(lab, &format!("addr add {address} brd + dev {RELAY_B}"));
    }
    run(&format!("ip -n {b} addr add 10.78.2.2/24 brd + dev b0")).expect("ip");
    relay_ip(lab, &format!("link set {RELAY_B} up"));
    run(&format!("ip -n {b} link set b0 up")).expect("ip");
    run(&format!("ip netns exec {b} ethtool -K b0 tx off")).expect("ethtool");
    run(&format!("ip netns exec {relay} ethtool -K {RELAY_B} tx off")).expect("ethtool");
    let mut end = kernel::load("an interface that comes again").expect("it was loaded before");
    run_in(b, move || {
        end.attach("b0", AttachedMode::Native).expect("a client's end");
        end
    })
}

#[test]
fn an_interface_that_goes_and_comes_is_served_in_userspace_until_the_next_start() {
    let Some(lab) = Lab::create("an interface that comes again") else { return };
    let daemon = start(&lab, NO_PINS);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let before = Before::look(&daemon);
    let mut ends = Vec::new();
    for round in 1..=2 {
        relay_ip(&lab, &format!("link del {RELAY_B}"));
        daemon.wait_until("the metric to tell", || is_attached(&daemon, RELAY_B) == Some(false));
        assert_eq!(is_attached(&daemon, RELAY_A), Some(true));
        daemon.wait_until("the log to tell", || {
            count(&before.news(&daemon), &format!("interface {RELAY_B} is gone")) == 1
        });
        // Nobody can be reached by it, and everybody is patient.
        let stranded = lab.socket(&lab.a, "10.78.1.2:41641");
        for number in 0..50 {
            let packet = crate::lab::geneve(crate::bed::VNI, number, 100);
            stranded.send_to(&packet, "10.78.1.1:40000").expect("send");
        }
        drop(stranded);
        ends.push(join_again(&lab));
        let in_userspace = || daemon.metric("derpd_udp_forwarded_packets_total", &[]);
        let then = in_userspace();
        Ends::new(&lab).converse();
        let forwarded = in_userspace() - then;
        // The way from the other interface leads by way of the stack, too: the new one takes no frames.
        println!("round {round}: {forwarded} packets forwarded in userspace");
        assert!(forwarded >= 1000.0, "{forwarded}\n{}", daemon.log());
        assert_eq!(is_attached(&daemon, RELAY_B), Some(false), "it is not the interface that was");
    }
    let news = before.news(&daemon);
    assert_eq!(count(&news, "is gone"), 1, "said once: {news:#?}");
    before.compare(&daemon, 4);

    daemon.end(Signal::SIGTERM);
    let daemon = start(&lab, NO_PINS);
    assert_eq!(is_attached(&daemon, RELAY_B), Some(true));
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
}

#[test]
fn links_that_flap_interrupt_a_flow_for_no_longer_than_they_are_down() {
    let Some(lab) = Lab::create("links that flap") else { return };
    let daemon = start(&lab, NO_PINS);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let before = Before::look(&daemon);
    for round in 0..10_u64 {
        let interface = if round % 2 == 0 { RELAY_A } else { RELAY_B };
        let namespace =
            if round % 4 < 2 { &lab.relay } else { [&lab.a, &lab.b][(round % 2) as usize] };
        let name = if round % 4 < 2 { interface } else { ["a0", "b0"][(round % 2) as usize] };
        run(&format!("ip -n {namespace} link set {name} down")).expect("ip");
        thread::sleep(Duration::from_millis(20 * round));
        run(&format!("ip -n {namespace} link set {name} up")).expect("ip");
    }
    // IPv6 addresses go with a link, but this flow has none.
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    before.compare(&daemon, 10);
}

#[test]
fn addresses_of_the_relay_that_change_are_followed_by_a_flow() {
    let Some(lab) = Lab::create("addresses that change") else { return };
    let daemon = start(&lab, NO_PINS);
    converses_in_the_kernel(&lab, &daemon, "10.78.2.1");
    let before = Before::look(&daemon);
    let mut current = "10.78.2.1".to_owned();
    for last in [77, 78, 79, 1] {
        let next = format!("10.78.2.{last}");
        // For a moment there is none: those of the same network go with the first of them.
        relay_ip(&lab, &format!("addr del {current}/24 dev {RELAY_B}"));
        relay_ip(&lab, &format!("addr add {next}/24 brd + dev {RELAY_B}"));
        converses_in_the_kernel(&lab, &daemon, &next);
        current = next;
    }
    wait_for_kernel(&daemon);
    before.compare(&daemon, 10);
}
