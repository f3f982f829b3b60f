//! Ways out, and legs that change.

use super::*;

#[test]
fn case_21_the_way_out_may_be_another_interface() {
    let Some(mut bed) = Bed::new("case 21") else { return };
    for ip in Ip::BOTH {
        let vni = redirected_vni(ip);
        let to = Leg {
            interface: OTHER_INTERFACE,
            local: Address::from(second_address(ip)),
            source_mac: flows::halves(flows::OTHER_MAC),
            ..legs(ip, RELAY_PORT)[1]
        };
        let frame = from_client(ip, vni);
        let output = forwarded(&frame, ip, &to);
        bed.expect("out by the other", &frame, Reason::Redirected, &output);
        assert_eq!(bed.statistics(vni & (SLOTS - 1), Side::A).packets, 1);
    }
    let closed = from_client(Ip::V4, CLOSED_VNI);
    bed.expect_untouched("takes no frames from others", &closed, Reason::Unresolved);
    bed.tables.remove_interface(OTHER_INTERFACE).expect("remove");
    let gone = from_client(Ip::V4, redirected_vni(Ip::V4));
    bed.expect_untouched("gone", &gone, Reason::Unresolved);
}

#[test]
fn case_21_the_way_back_comes_in_by_the_other_interface() {
    let Some(mut bed) = Bed::new("case 21, other direction") else { return };
    // A second interface of this namespace, for the frame to come in by.
    let Ok(namespaces) =
        netns::Namespaces::create().inspect_err(|reason| kernel::skip("case 21", reason))
    else {
        return;
    };
    let kernel = netns::run_in(&namespaces.server, move || {
        let index = nix::net::if_::if_nametoindex(netns::SERVER_INTERFACE).expect("index");
        let mut other = derp_common::Interface::new(flows::OTHER_MAC);
        bed.tables.insert_interface(index, other).expect("interface");
        other.mac = flows::halves(SERVER_MAC);
        other.is_redirect_target = 1;
        bed.tables.insert_interface(flows::INTERFACE, other).expect("interface");
        bed.maps.devices.insert(flows::INTERFACE, index, None, 0).expect("device");
        for ip in Ip::BOTH {
            let [a, b] = legs(ip, RELAY_PORT);
            let b = Leg { interface: index, source_mac: flows::halves(flows::OTHER_MAC), ..b };
            bed.apply(|plan| plan.geneve(vni(ip), [a, b]));
            let mut frame = relay_frame(peer(ip), ip, &data(vni(ip)));
            frame[..6].copy_from_slice(&flows::OTHER_MAC);
            let output = forwarded(&frame, ip, &a);
            let before = bed.counters();
            let got = bed.kernel.test_run_on(&frame, index).expect("test run");
            bed.check("back", &before, &frame, Reason::Redirected, &output, got);
            frame[..6].copy_from_slice(&SERVER_MAC);
            let before = bed.counters();
            let got = bed.kernel.test_run_on(&frame, index).expect("test run");
            bed.check("MAC of the first", &before, &frame, Reason::ForeignMac, &frame, got);
        }
        bed.kernel
    });
    drop(kernel);
}

#[test]
fn case_22_a_leg_to_this_host_stays_unresolved() {
    // The daemon leaves the interface of such a leg 0 (as it does while it looks for the way).
    let Some(bed) = Bed::new("case 22") else { return };
    bed.expect_untouched("unresolved", &from_client(Ip::V4, UNRESOLVED_VNI), Reason::Unresolved);
    assert_eq!(bed.statistics(UNRESOLVED_VNI, Side::A).packets, 0, "userspace counts it");
}

#[test]
fn case_23_what_is_longer_than_the_way_out_allows_is_passed() {
    let Some(mut bed) = Bed::new("case 23") else { return };
    for ip in Ip::BOTH {
        let [a, b] = legs(ip, RELAY_PORT);
        let longest = ip.header() + 8 + data(vni(ip)).len();
        let mtu = u16::try_from(longest).expect("short");
        let frame = from_client(ip, vni(ip));
        bed.apply(|plan| plan.geneve(vni(ip), [a, Leg { mtu: mtu - 1, ..b }]));
        bed.expect_untouched("a byte too long", &frame, Reason::TooBig);
        bed.apply(|plan| plan.geneve(vni(ip), [a, Leg { mtu, ..b }]));
        let output = forwarded(&frame, ip, &b);
        bed.expect("just fits", &frame, Reason::Forwarded, &output);
    }
}

#[test]
fn case_24_ends_of_different_families_are_for_userspace() {
    let Some(bed) = Bed::new("case 24") else { return };
    bed.expect_untouched("IPv4 to IPv6", &from_client(Ip::V4, CROSS_VNI), Reason::CrossFamily);
    let back = relay_frame(peer(Ip::V6), Ip::V6, &data(CROSS_VNI));
    bed.expect_untouched("IPv6 to IPv4", &back, Reason::CrossFamily);
}

#[test]
fn case_27_a_rebind_under_load_never_mixes_old_and_new() {
    const FRAMES: u64 = 1_000_000;
    let Some(mut bed) = Bed::new("case 27") else { return };
    let input = from_client(Ip::V4, 1);
    let [a, old] = legs(Ip::V4, RELAY_PORT);
    let elsewhere = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 99).into(), 1);
    let local = SocketAddr::new(second_address(Ip::V4), RELAY_PORT);
    let new = Leg { remote_port: 0xffff, ..leg(elsewhere, local, CLIENT_MAC) };
    let outputs = [old, new].map(|to| forwarded(&input, Ip::V4, &to));
    assert_ne!(outputs[0], outputs[1]);
    let seen = [const { AtomicU64::new(0) }; 2];
    let done = AtomicBool::new(false);
    let Bed { kernel, maps, .. } = &mut bed;
    let kernel = &*kernel;
    let mut flips = 0;
    thread::scope(|scope| {
        let forwarders = [(); 2].map(|()| {
            scope.spawn(|| {
                while seen.iter().map(|it| it.load(Relaxed)).sum::<u64>() < FRAMES {
                    let (action, got) = kernel.test_run(&input).expect("test run");
                    let which = outputs.iter().position(|output| *output == got);
                    let which = which.unwrap_or_else(|| panic!("a mix: {got:02x?}"));
                    assert_eq!(action, 3);
                    seen[which].fetch_add(1, Relaxed);
                }
                done.store(true, Relaxed);
            })
        });
        while !done.load(Relaxed) && forwarders.iter().any(|it| !it.is_finished()) {
            let started = Instant::now();
            flips += 1;
            let to = if flips % 2 == 0 { old } else { new };
            flow_maps::rebind(maps, slot(Ip::V4), [a, to]);
            thread::sleep(Duration::from_nanos(GRACE).saturating_sub(started.elapsed()));
        }
    });
    let [of_old, of_new] = seen.map(AtomicU64::into_inner);
    println!("{flips} changes, {of_old} frames to the old, {of_new} to the new address");
    assert!(flips > 10 && of_old > 0 && of_new > 0);
    let counted = bed.statistics(slot(Ip::V4), Side::A).packets;
    assert_eq!(counted, of_old + of_new, "two processors count for one leg");
}

#[test]
fn case_28_a_slot_that_is_used_again_refuses_its_former_vni() {
    let Some(mut bed) = Bed::new("case 28") else { return };
    let former = 0x00_0101;
    let next = 0x00_0201;
    let legs = legs(Ip::V4, RELAY_PORT);
    let [of_former, of_next] = [former, next].map(|vni| from_client(Ip::V4, vni));
    let output = |frame: &[u8]| forwarded(frame, Ip::V4, &legs[1]);
    bed.apply(|plan| plan.geneve(former, legs));
    bed.expect("the former", &of_former, Reason::Forwarded, &output(&of_former));
    bed.expect_untouched("not yet", &of_next, Reason::UnknownVni);
    bed.apply(|plan| plan.geneve(next, legs));
    bed.expect_untouched("the former", &of_former, Reason::UnknownVni);
    bed.expect("the next", &of_next, Reason::Forwarded, &output(&of_next));
}
