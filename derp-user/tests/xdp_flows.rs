//! The loaded program on packets of flows: cases 1 to 30 of the relay's test plan, by number. Every frame's
//! verdict, bytes and counters are checked.
//!
//! `BPF_PROG_TEST_RUN` runs the program on one frame that has come in by the loopback or a named interface;
//! a redirect ends with its action. What needs a network (frames really crossing interfaces, the userspace
//! forwarder's half of case 24, the self-test of case 30) is tested elsewhere.

#[path = "support/bed.rs"]
mod bed;
#[path = "support/flow_maps.rs"]
mod flow_maps;
#[path = "../../derp-common/tests/support/flows.rs"]
mod flows;
#[path = "../../derp-common/tests/support/host.rs"]
mod host;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use derp_common::{
    Address, Rate, Reason, Switches,
    flow::{
        Leg, LegStatistics, Side,
        table::{GRACE, source_value},
    },
    maps::Event,
};

use crate::{
    bed::{Bed, from_client, relay_frame, with_port},
    flows::{
        ANY_PORT, ANY_SLOT, CLOSED_VNI, CROSS_VNI, INDEX, OFF_VNI, OTHER_INTERFACE, RELAY_PORT,
        ROUTER_MAC, SENDERS, SLOTS, UNBOUND_VNI, UNRESOLVED_VNI, VLAN_VNI, WIREGUARD_PORT,
        WIREGUARD_SLOT, client, control, data, forwarded, geneve, leg, legs, peer, redirected_vni,
        second_address, server, source, vni, wireguard,
    },
    packets::{
        CLIENT_MAC, Ip, SERVER_MAC, answer, fix_checksums, fix_ip_checksum, fix_udp_checksum,
        frame, message, success, tailscale_request, udp_frame,
    },
};

fn slot(ip: Ip) -> u32 {
    vni(ip) & (SLOTS - 1)
}

/// The frame of the reference vectors: IPv4 without traffic class.
fn vector4(payload: &[u8]) -> Vec<u8> {
    let mut frame = relay_frame(client(Ip::V4), Ip::V4, payload);
    frame[15] = 0;
    fix_ip_checksum(&mut frame, Ip::V4);
    frame
}

#[test]
fn case_01_ipv4_data_is_forwarded_as_in_the_reference_vector() {
    let Some(bed) = Bed::new("case 1") else { return };
    let input = vector4(&data(1));
    assert_eq!((&input[24..26], &input[40..42]), (&[0xc9, 0x35][..], &[0x24, 0x8d][..]));
    let output = forwarded(&input, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    assert_eq!((&output[24..26], &output[40..42]), (&[0x32, 0x5f][..], &[0x64, 0xf3][..]));
    assert_eq!(output[42..], input[42..], "the payload");
    assert_eq!(output[..12], [ROUTER_MAC, SERVER_MAC].concat());
    bed.expect("data", &input, Reason::Forwarded, &output);
    let seen = bed.statistics(slot(Ip::V4), Side::A);
    assert_eq!((seen.packets, seen.bytes, seen.over_rate), (1, 40, 0));
    assert!(seen.last_seen != 0);

    let back = relay_frame(peer(Ip::V4), Ip::V4, &data(1));
    let output = forwarded(&back, Ip::V4, &legs(Ip::V4, RELAY_PORT)[0]);
    bed.expect("the other way", &back, Reason::Forwarded, &output);
    assert_eq!(bed.statistics(slot(Ip::V4), Side::B).packets, 1);
}

#[test]
fn case_02_no_checksum_in_ipv4_stays_no_checksum() {
    let Some(bed) = Bed::new("case 2") else { return };
    let mut input = vector4(&data(1));
    input[40..42].fill(0);
    let output = forwarded(&input, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    assert_eq!((&output[24..26], &output[40..42]), (&[0x32, 0x5f][..], &[0, 0][..]));
    bed.expect("no checksum", &input, Reason::Forwarded, &output);
}

#[test]
fn case_03_ipv6_data_is_forwarded_and_needs_a_checksum() {
    let Some(mut bed) = Bed::new("case 3") else { return };
    bed.apply(|plan| plan.geneve(1, legs(Ip::V6, RELAY_PORT)));
    let mut input = from_client(Ip::V6, 1);
    assert_eq!(input[60..62], [0x2f, 0x40]);
    let output = forwarded(&input, Ip::V6, &legs(Ip::V6, RELAY_PORT)[1]);
    assert_eq!(output[60..62], [0x07, 0x6c]);
    bed.expect("data", &input, Reason::Forwarded, &output);
    input[60..62].fill(0);
    bed.expect_untouched("no checksum", &input, Reason::InvalidUdpChecksum);
}

#[test]
fn case_04_a_checksum_that_computes_to_zero_goes_out_as_ffff() {
    let Some(bed) = Bed::new("case 4") else { return };
    let mut payload = data(1);
    payload[38..].copy_from_slice(&[0x7f, 0x0e]);
    let input = vector4(&payload);
    assert_eq!(input[40..42], [0xbf, 0x99]);
    let output = forwarded(&input, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    assert_eq!(output[40..42], [0xff, 0xff]);
    bed.expect("zero", &input, Reason::Forwarded, &output);
}

#[test]
fn case_05_an_unknown_vni_is_dropped_and_passed_beside_a_companion() {
    let Some(mut bed) = Bed::new("case 5") else { return };
    for ip in Ip::BOTH {
        for unknown in [0, 13, vni(ip) + SLOTS, 0xff_ffff] {
            let frame = from_client(ip, unknown);
            bed.expect_untouched(&format!("{ip:?} {unknown}"), &frame, Reason::UnknownVni);
        }
    }
    bed.companion();
    bed.expect_untouched("companion", &from_client(Ip::V4, 13), Reason::UnknownVni);
}

#[test]
fn case_06_another_source_than_the_legs_is_dropped_and_leaves_no_trace() {
    let Some(mut bed) = Bed::new("case 6") else { return };
    for ip in Ip::BOTH {
        let port = relay_frame(with_port(client(ip), 41_640), ip, &data(vni(ip)));
        bed.expect_untouched("another port", &port, Reason::UnknownLeg);
        let other = SocketAddr::new(peer(ip).ip(), client(ip).port());
        bed.expect_untouched(
            "another address",
            &relay_frame(other, ip, &data(vni(ip))),
            Reason::UnknownLeg,
        );
        for side in Side::ALL {
            assert_eq!(bed.statistics(slot(ip), side), LegStatistics::default());
        }
    }
    bed.companion();
    let port = relay_frame(with_port(client(Ip::V4), 41_640), Ip::V4, &data(1));
    bed.expect_untouched("companion", &port, Reason::UnknownLeg);
    assert_eq!(bed.statistics(slot(Ip::V4), Side::A), LegStatistics::default());
}

#[test]
fn case_07_a_flow_with_one_end_is_not_forwarded() {
    let Some(mut bed) = Bed::new("case 7") else { return };
    for vni in [UNBOUND_VNI, OFF_VNI] {
        bed.expect_untouched("one end", &from_client(Ip::V4, vni), Reason::Unbound);
    }
    let from_nobody = relay_frame(with_port(peer(Ip::V4), 0), Ip::V4, &data(UNBOUND_VNI));
    bed.expect_untouched("port 0 is nobody's", &from_nobody, Reason::UnusableSource);
    bed.companion();
    bed.expect_untouched("companion", &from_client(Ip::V4, OFF_VNI), Reason::Unbound);
}

#[test]
fn case_08_a_control_packet_is_passed_and_makes_a_companions_flow_suspect() {
    let Some(mut bed) = Bed::new("case 8") else { return };
    for ip in Ip::BOTH {
        for sender in SENDERS {
            let frame = relay_frame(client(ip), ip, &control(vni(ip), sender));
            bed.expect_untouched("control", &frame, Reason::RelayControl);
        }
        // Before the other end is known, too.
        let frame = relay_frame(client(ip), ip, &control(UNBOUND_VNI, SENDERS[0]));
        bed.expect_untouched("control", &frame, Reason::RelayControl);
    }
    assert_eq!(bed.statistics(slot(Ip::V4), Side::A).suspect_since, 0, "no companion");

    bed.companion();
    let data = from_client(Ip::V4, 1);
    let output = forwarded(&data, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    bed.expect("before", &data, Reason::Forwarded, &output);
    // From anywhere: it may be the end that moves.
    let frame = relay_frame(with_port(client(Ip::V4), 7777), Ip::V4, &control(1, SENDERS[1]));
    bed.expect_untouched("control", &frame, Reason::RelayControl);
    let suspect = bed.statistics(slot(Ip::V4), Side::A);
    assert!(suspect.suspect_since != 0);
    bed.expect_untouched("suspect", &data, Reason::Suspect);
    let back = relay_frame(peer(Ip::V4), Ip::V4, &flows::data(1));
    bed.expect_untouched("suspect both ways", &back, Reason::Suspect);
    let other = from_client(Ip::V6, vni(Ip::V6));
    let output6 = forwarded(&other, Ip::V6, &legs(Ip::V6, RELAY_PORT)[1]);
    bed.expect("another flow", &other, Reason::Forwarded, &output6);

    bed.set_statistics(slot(Ip::V4), Side::A, LegStatistics { suspect_since: 0, ..suspect });
    bed.expect("trusted again", &data, Reason::Forwarded, &output);
}

#[test]
fn a_companions_flow_that_is_held_is_passed_and_still_becomes_suspect() {
    let Some(mut bed) = Bed::new("a held flow") else { return };
    bed.companion();
    bed.expect_untouched("held", &from_client(Ip::V4, OFF_VNI), Reason::Unbound);
    assert_eq!(bed.statistics(OFF_VNI, Side::A).suspect_since, 0);
    let frame = relay_frame(client(Ip::V4), Ip::V4, &control(OFF_VNI, SENDERS[1]));
    bed.expect_untouched("control", &frame, Reason::RelayControl);
    assert!(bed.statistics(OFF_VNI, Side::A).suspect_since != 0);
    bed.expect_untouched("held", &from_client(Ip::V4, OFF_VNI), Reason::Unbound);
}

#[test]
fn a_companions_flows_are_forwarded_until_the_lease_ends() {
    let Some(mut bed) = Bed::new("the lease of a companion") else { return };
    let input = from_client(Ip::V4, 1);
    let output = forwarded(&input, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    bed.companion();
    // The coarse clock is at most a tick late.
    let now = derp_user::udp::now();
    bed.configure(|settings| settings.lease = now + 600_000_000_000);
    bed.expect("within the lease", &input, Reason::Forwarded, &output);
    let seen = bed.statistics(slot(Ip::V4), Side::A);
    bed.configure(|settings| settings.lease = now - 1_000_000_000);
    bed.expect_untouched("after it", &input, Reason::Lapsed);
    assert_eq!(bed.statistics(slot(Ip::V4), Side::A), seen, "nothing is counted");
    bed.configure(|settings| settings.lease = 0);
    bed.expect_untouched("without one", &input, Reason::Lapsed);
    bed.configure(|settings| settings.switches &= !Switches::COMPANION);
    bed.expect("without a companion", &input, Reason::Forwarded, &output);
}

#[test]
fn case_09_a_control_packet_that_is_none_is_dropped_and_changes_nothing() {
    let Some(mut bed) = Bed::new("case 9") else { return };
    for companion in [false, true] {
        if companion {
            bed.companion();
        }
        let good = control(1, SENDERS[0]);
        let mut magic = good.clone();
        magic[8 + 5] ^= 1;
        let mut protocol = good.clone();
        protocol[3] = 0x12;
        let cases = [
            ("159 bytes", good[..159].to_vec(), Reason::InvalidRelayControl),
            ("161 bytes", [&good[..], &[0]].concat(), Reason::InvalidRelayControl),
            ("only Geneve", good[..8].to_vec(), Reason::InvalidRelayControl),
            ("magic", magic, Reason::InvalidRelayControl),
            ("WireGuard", protocol, Reason::InvalidRelayControl),
            ("foreign sender", control(1, 7), Reason::UnknownSender),
            ("no sender", control(1, 0), Reason::UnknownSender),
            ("unknown VNI", control(13, SENDERS[0]), Reason::UnknownVni),
            ("VNI 0", control(0, 0), Reason::UnknownVni),
        ];
        for (what, payload, reason) in cases {
            bed.expect_untouched(what, &relay_frame(client(Ip::V4), Ip::V4, &payload), reason);
        }
        for side in Side::ALL {
            assert_eq!(bed.statistics(slot(Ip::V4), side), LegStatistics::default());
        }
    }
}

#[test]
fn control_packets_have_an_allowance_per_end_that_a_companion_still_sees() {
    let Some(mut bed) = Bed::new("control allowance") else { return };
    bed.configure(|settings| settings.control_rate = Rate::per_second(1, 2));
    let [a, b] = SENDERS.map(|it| relay_frame(client(Ip::V4), Ip::V4, &control(1, it)));
    bed.expect_untouched("first", &a, Reason::RelayControl);
    bed.expect_untouched("second", &a, Reason::RelayControl);
    bed.expect_untouched("third", &a, Reason::ControlOverRate);
    bed.expect_untouched("the other end", &b, Reason::RelayControl);
    bed.companion();
    bed.expect_untouched("over the rate", &a, Reason::ControlOverRate);
    assert!(
        bed.statistics(slot(Ip::V4), Side::A).suspect_since != 0,
        "it was passed, so it counts"
    );
}

#[test]
fn case_10_unusual_geneve_headers_are_passed() {
    let Some(bed) = Bed::new("case 10") else { return };
    for ip in Ip::BOTH {
        for (what, at, bit) in [
            ("version 1", 0, 0x40),
            ("an option", 0, 1),
            ("critical options", 1, 0x40),
            ("reserved bit", 1, 1),
            ("reserved byte", 7, 1),
        ] {
            let mut payload = data(vni(ip));
            payload[at] |= bit;
            let frame = relay_frame(client(ip), ip, &payload);
            bed.expect_untouched(what, &frame, Reason::UnusualGeneve);
        }
    }
}

#[test]
fn case_11_another_protocol_is_passed() {
    let Some(bed) = Bed::new("case 11") else { return };
    let frame = relay_frame(client(Ip::V4), Ip::V4, &geneve(0, 0x6558, 1, &[0; 40]));
    bed.expect_untouched("Ethernet in Geneve", &frame, Reason::UnusualGeneve);
}

#[test]
fn case_12_a_disco_ping_between_the_ends_is_data() {
    let Some(bed) = Bed::new("case 12") else { return };
    for ip in Ip::BOTH {
        let ping = [&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac][..], &[7; 118]].concat();
        let frame = relay_frame(client(ip), ip, &geneve(0, 0x7a11, vni(ip), &ping));
        let output = forwarded(&frame, ip, &legs(ip, RELAY_PORT)[1]);
        bed.expect("ping", &frame, Reason::Forwarded, &output);
    }
}

#[test]
fn case_13_fragments_are_passed() {
    let Some(bed) = Bed::new("case 13") else { return };
    for (what, bytes) in [("first", [0x20, 0]), ("later", [0, 8])] {
        let mut frame = from_client(Ip::V4, 1);
        frame[20..22].copy_from_slice(&bytes);
        fix_ip_checksum(&mut frame, Ip::V4);
        bed.expect_untouched(what, &frame, Reason::Fragment);
    }
}

#[test]
fn case_14_ip_options_and_extension_headers_are_passed() {
    let Some(bed) = Bed::new("case 14") else { return };
    let mut options = from_client(Ip::V4, 1);
    options.splice(34..34, [1, 1, 1, 0]);
    options[14] = 0x46;
    options[17] += 4;
    bed.expect_untouched("options", &options, Reason::Ipv4Options);
    let mut hop_by_hop = from_client(Ip::V6, vni(Ip::V6));
    hop_by_hop[20] = 0;
    hop_by_hop[19] += 8;
    hop_by_hop.splice(54..54, [17, 0, 1, 4, 0, 0, 0, 0]);
    bed.expect_untouched("hop-by-hop", &hop_by_hop, Reason::NotUdp);
}

#[test]
fn case_15_wrong_lengths_go_nowhere() {
    let Some(bed) = Bed::new("case 15") else { return };
    for ip in Ip::BOTH {
        let udp = ip.udp();
        for delta in [1_u8, 4, 255] {
            let mut frame = from_client(ip, vni(ip));
            frame[udp + 5] = frame[udp + 5].wrapping_add(delta);
            bed.expect_untouched("UDP length", &frame, Reason::LengthMismatch);
        }
        for short in 0..8 {
            let frame = relay_frame(client(ip), ip, &vec![7; short]);
            bed.expect_untouched("short payload", &frame, Reason::ShortPayload);
        }
        let whole = from_client(ip, vni(ip));
        for length in 14..whole.len() {
            let (action, got) = bed.kernel.test_run(&whole[..length]).expect("test run");
            assert_eq!((action, &got[..]), (2, &whole[..length]), "cut to {length}");
        }
    }
}

#[test]
fn case_16_merged_datagrams_are_passed() {
    let Some(mut bed) = Bed::new("case 16") else { return };
    for ip in Ip::BOTH {
        // Generic XDP sees them as one long packet with a checksum of nothing but the pseudo-header.
        let partial = |payload: &[u8]| {
            let mut frame = relay_frame(client(ip), ip, payload);
            let pseudo = [
                &frame[if ip == Ip::V4 { 26 } else { 22 }..ip.udp()],
                &[0, 17],
                &frame[ip.udp() + 4..ip.udp() + 6],
            ]
            .concat();
            let sum = packets::sum(&pseudo);
            frame[ip.udp() + 6..ip.udp() + 8].copy_from_slice(&sum.to_be_bytes());
            frame
        };
        let body = geneve(0, 0x7a12, vni(ip), &[9; 20_000]);
        // A linear frame of more than a page is more than `BPF_PROG_TEST_RUN` takes.
        bed.expect_untouched("3 kB", &relay_frame(client(ip), ip, &body[..3000]), Reason::TooBig);
        bed.expect_untouched("two small ones", &partial(&body[..1000]), Reason::InvalidUdpChecksum);
        // The whole 20 kB, on the host.
        let mut host = host::TestHost::new(bed.settings, SLOTS);
        for (address, kind) in bed::addresses() {
            host.addresses.insert(address, kind as u32);
        }
        host.interfaces.extend(bed::interfaces());
        flows::Plan::everything().apply(&mut host);
        let frame = relay_frame(client(ip), ip, &body);
        let mut buffer = frame.clone();
        let mut packet = derp_common::SlicePacket::new(&mut buffer, frame.len());
        assert_eq!(derp_common::decide(&mut packet, &host).reason, Reason::TooBig);
        assert_eq!(packet.bytes(), frame);
    }
    bed.companion();
    bed.expect_untouched(
        "companion",
        &relay_frame(client(Ip::V4), Ip::V4, &geneve(0, 0x7a12, 1, &[0; 1600])),
        Reason::TooBig,
    );
}

#[test]
fn case_17_a_used_up_hop_limit_is_passed() {
    let Some(bed) = Bed::new("case 17") else { return };
    for (ip, at) in [(Ip::V4, 22), (Ip::V6, 21)] {
        for hops in [0, 1] {
            let mut frame = from_client(ip, vni(ip));
            frame[at] = hops;
            fix_ip_checksum(&mut frame, ip);
            bed.expect_untouched("used up", &frame, Reason::HopLimit);
        }
        let mut frame = from_client(ip, vni(ip));
        frame[at] = 2;
        fix_ip_checksum(&mut frame, ip);
        let output = forwarded(&frame, ip, &legs(ip, RELAY_PORT)[1]);
        assert_eq!(output[at], 1);
        bed.expect("the last hop", &frame, Reason::Forwarded, &output);
    }
}

#[test]
fn case_18_transit_is_passed() {
    let Some(bed) = Bed::new("case 18") else { return };
    for ip in Ip::BOTH {
        let elsewhere = SocketAddr::new(peer(ip).ip(), RELAY_PORT);
        for payload in [data(vni(ip)), data(13), control(vni(ip), SENDERS[0]), vec![7; 3]] {
            let frame = udp_frame(client(ip), elsewhere, &payload);
            bed.expect_untouched("transit", &frame, Reason::NotLocal);
        }
        assert_eq!(bed.statistics(slot(ip), Side::A), LegStatistics::default());
        let other = SocketAddr::new(second_address(ip), RELAY_PORT);
        let frame = udp_frame(client(ip), other, &data(vni(ip)));
        bed.expect_untouched("another address of ours", &frame, Reason::OtherLocal);
    }
}

#[test]
fn case_19_other_macs_are_passed() {
    let Some(bed) = Bed::new("case 19") else { return };
    for ip in Ip::BOTH {
        for mac in [[0xff; 6], [1, 0, 0x5e, 0, 0, 1], CLIENT_MAC] {
            let mut frame = from_client(ip, vni(ip));
            frame[..6].copy_from_slice(&mac);
            bed.expect_untouched("another MAC", &frame, Reason::ForeignMac);
        }
    }
}

#[test]
fn case_20_vlan_tags_are_kept_or_rewritten_where_they_are_looked_into() {
    let Some(mut bed) = Bed::new("case 20") else { return };
    let tagged = |frame: &[u8], tci: u16| {
        let mut frame = frame.to_vec();
        frame.splice(12..12, [0x81, 0]);
        frame.splice(14..14, tci.to_be_bytes());
        frame
    };
    let plain = from_client(Ip::V4, VLAN_VNI);
    let mut to = legs(Ip::V4, RELAY_PORT)[1];
    let output = tagged(&forwarded(&plain, Ip::V4, &to), 0xa009);
    bed.expect("another VLAN", &tagged(&plain, 0xa007), Reason::Forwarded, &output);
    bed.expect("only a priority", &tagged(&plain, 0xa000), Reason::Forwarded, &output);
    bed.expect_untouched("no tag to write to", &plain, Reason::Vlan);
    let to_untagged = tagged(&from_client(Ip::V4, 1), 7);
    bed.expect_untouched("the tag would have to go", &to_untagged, Reason::Vlan);
    let priority = tagged(&from_client(Ip::V4, 1), 0xe000);
    let output = tagged(&forwarded(&from_client(Ip::V4, 1), Ip::V4, &to), 0xe000);
    bed.expect("the priority is kept", &priority, Reason::Forwarded, &output);

    to.vlan = 7;
    let [a, _] = legs(Ip::V4, RELAY_PORT);
    bed.apply(|plan| plan.geneve(VLAN_VNI, [Leg { vlan: 7, ..a }, to]));
    let output = tagged(&forwarded(&plain, Ip::V4, &to), 7);
    bed.expect("the same VLAN", &tagged(&plain, 7), Reason::Forwarded, &output);
    for ip in Ip::BOTH {
        let request = tagged(&frame(ip, &tailscale_request()), 0x6007);
        let output = tagged(&answer(ip, packets::CLIENT_PORT), 0x6007);
        bed.expect("STUN", &request, Reason::StunAnswered, &output);
    }
    let twice = tagged(&tagged(&plain, 7), 7);
    bed.expect_untouched("two tags", &twice, Reason::NotIp);
    bed.expect_untouched("cut", &tagged(&plain, 7)[..17], Reason::Malformed);

    bed.configure(|settings| settings.switches = 0);
    bed.expect_untouched("not looked into", &tagged(&plain, 7), Reason::Vlan);
}

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
fn case_25_one_packet_per_leg_and_interval_is_a_sample() {
    let Some(mut bed) = Bed::new("case 25") else { return };
    const INTERVAL: u64 = 30_000_000_000;
    bed.configure(|settings| settings.sample_interval = INTERVAL);
    let frames = [from_client(Ip::V4, 1), relay_frame(peer(Ip::V4), Ip::V4, &data(1))];
    let [to_a, to_b] = legs(Ip::V4, RELAY_PORT);
    for round in 0..3 {
        for (side, (input, to)) in Side::ALL.into_iter().zip(frames.iter().zip([to_b, to_a])) {
            bed.expect_untouched("sample", input, Reason::Sampled);
            let output = forwarded(input, Ip::V4, &to);
            for _ in 0..10 {
                bed.expect("the rest", input, Reason::Forwarded, &output);
            }
            // Instead of waiting: the last sample was taken that much earlier.
            let seen = bed.statistics(slot(Ip::V4), side);
            assert_eq!(seen.packets, 10 * (round + 1), "samples are userspace's to count");
            let earlier = LegStatistics { last_passed: seen.last_passed - INTERVAL, ..seen };
            bed.set_statistics(slot(Ip::V4), side, earlier);
        }
    }
}

#[test]
fn case_26_an_allowance_that_is_used_up_drops_that_legs_packets_only() {
    let Some(mut bed) = Bed::new("case 26") else { return };
    let [a, b] = legs(Ip::V4, RELAY_PORT);
    // A kibibyte per second, and half a second of it at once: 512 bytes, 12 packets of 40.
    let limited = Leg { nanoseconds_per_kibibyte: 1_000_000_000, burst_microseconds: 500_000, ..a };
    bed.apply(|plan| plan.geneve(1, [limited, b]));
    let input = from_client(Ip::V4, 1);
    let output = forwarded(&input, Ip::V4, &b);
    for number in 0..12 {
        bed.expect(&format!("packet {number}"), &input, Reason::Forwarded, &output);
    }
    // However long this has taken, the bucket is empty now.
    let seen = bed.statistics(slot(Ip::V4), Side::A);
    bed.set_statistics(slot(Ip::V4), Side::A, LegStatistics { bucket: u64::MAX >> 1, ..seen });
    for _ in 0..3 {
        bed.expect_untouched("over the rate", &input, Reason::OverRate);
    }
    let seen = bed.statistics(slot(Ip::V4), Side::A);
    assert_eq!((seen.packets, seen.bytes, seen.over_rate), (12, 480, 3));
    let back = relay_frame(peer(Ip::V4), Ip::V4, &data(1));
    bed.expect("the other leg", &back, Reason::Forwarded, &forwarded(&back, Ip::V4, &a));
    let other = from_client(Ip::V6, vni(Ip::V6));
    let to = legs(Ip::V6, RELAY_PORT)[1];
    bed.expect("another flow", &other, Reason::Forwarded, &forwarded(&other, Ip::V6, &to));
    bed.set_statistics(slot(Ip::V4), Side::A, LegStatistics { bucket: 0, ..seen });
    bed.expect("allowed again", &input, Reason::Forwarded, &output);
    bed.companion();
    bed.set_statistics(slot(Ip::V4), Side::A, LegStatistics { bucket: u64::MAX >> 1, ..seen });
    bed.expect_untouched("companion", &input, Reason::OverRate);
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

#[test]
fn case_29_stun_on_the_shared_port() {
    let Some(mut bed) = Bed::new("case 29") else { return };
    for ip in Ip::BOTH {
        let to = server(ip, RELAY_PORT);
        let input = udp_frame(client(ip), to, &tailscale_request());
        let mut output = answer(ip, packets::CLIENT_PORT);
        output[ip.udp()..ip.udp() + 2].copy_from_slice(&RELAY_PORT.to_be_bytes());
        fix_udp_checksum(&mut output, ip);
        bed.expect("request", &input, Reason::StunAnswered, &output);
        let response = success(&packets::TRANSACTION, ip.client(), 4242);
        let response = udp_frame(client(ip), to, &response);
        bed.expect_untouched("response", &response, Reason::NotBindingRequest);
        let port = udp_frame(client(ip), server(ip, WIREGUARD_PORT), &tailscale_request());
        bed.expect_untouched("where STUN is not served", &port, Reason::NotRelayed);

        bed.configure(|settings| settings.switches |= Switches::SHED_STUN);
        bed.expect_untouched("shed", &input, Reason::StunShed);
        bed.expect_untouched("response", &response, Reason::NotBindingRequest);
        let relayed = from_client(ip, vni(ip));
        let forwarded = forwarded(&relayed, ip, &legs(ip, RELAY_PORT)[1]);
        bed.expect("relayed meanwhile", &relayed, Reason::Forwarded, &forwarded);
        bed.configure(|settings| settings.switches &= !Switches::SHED_STUN);
        bed.expect("no longer shed", &input, Reason::StunAnswered, &output);
    }
}

#[test]
fn stun_has_an_allowance_per_ipv4_address_and_per_ipv6_network() {
    let Some(mut bed) = Bed::new("STUN allowance") else { return };
    bed.configure(|settings| settings.stun_rate = Rate::per_second(1, 3));
    for ip in Ip::BOTH {
        let from = |address: IpAddr, port| {
            let request = message(0x0001, &[]);
            udp_frame(SocketAddr::new(address, port), server(ip, packets::STUN_PORT), &request)
        };
        let run = |frame: &[u8]| bed.kernel.test_run(frame).expect("test run").0;
        let client = ip.client();
        for port in [1, 2, 3] {
            assert_eq!(run(&from(client, port)), 3, "{ip:?}: answered");
        }
        bed.expect_untouched("another port", &from(client, 4), Reason::StunOverRate);
        let (neighbour, is_answered) = match ip {
            Ip::V4 => ("198.51.100.11", true),
            Ip::V6 => ("2001:db8:a::11", false),
        };
        let action = if is_answered { 3 } else { 1 };
        assert_eq!(run(&from(neighbour.parse().expect("address"), 1)), action, "{ip:?} neighbour");
        let stranger = if ip == Ip::V4 { "192.0.2.7" } else { "2001:db8:a:1::10" };
        assert_eq!(run(&from(stranger.parse().expect("address"), 1)), 3, "{ip:?} stranger");
        // In the network of a client that has been answered, this host's own address still is none.
        bed.expect_untouched("ourselves", &from(ip.server(), 1), Reason::UnusableSource);
    }
}

#[test]
fn case_30_checksums_left_to_a_device_are_not_forwarded() {
    // The self-test at attach finds such an interface; here it does at least no harm.
    let Some(bed) = Bed::new("case 30") else { return };
    for ip in Ip::BOTH {
        let mut frame = from_client(ip, vni(ip));
        let udp = ip.udp();
        let addresses = if ip == Ip::V4 { 26 } else { 22 };
        let pseudo = [&frame[addresses..udp], &[0, 17], &frame[udp + 4..udp + 6]].concat();
        frame[udp + 6..udp + 8].copy_from_slice(&packets::sum(&pseudo).to_be_bytes());
        bed.expect_untouched("half a checksum", &frame, Reason::InvalidUdpChecksum);
    }
}

#[test]
fn wireguard_is_forwarded_by_source_and_index() {
    let Some(bed) = Bed::new("WireGuard flow") else { return };
    let ip = Ip::V6;
    let [a, b] = legs(ip, WIREGUARD_PORT);
    let to = server(ip, WIREGUARD_PORT);
    let frame = udp_frame(client(ip), to, &wireguard(INDEX));
    bed.expect("data", &frame, Reason::Forwarded, &forwarded(&frame, ip, &b));
    let back = udp_frame(peer(ip), to, &wireguard(0x0100_0000));
    bed.expect("back", &back, Reason::Forwarded, &forwarded(&back, ip, &a));
    let unknown = udp_frame(client(ip), to, &wireguard(7));
    bed.expect_untouched("another index", &unknown, Reason::UnknownSource);
    let stranger = SocketAddr::new(client(ip).ip(), 4242);
    let foreign = udp_frame(stranger, to, &wireguard(INDEX));
    bed.expect_untouched("case 48: a foreign source", &foreign, Reason::UnknownSource);
}

#[test]
fn regression_wireguard_data_that_is_not_padded_is_forwarded() {
    let Some(bed) = Bed::new("WireGuard without padding") else { return };
    let ip = Ip::V6;
    let [_, b] = legs(ip, WIREGUARD_PORT);
    let to = server(ip, WIREGUARD_PORT);
    for length in [32, 33, 47, 48] {
        let frame = udp_frame(client(ip), to, &wireguard(INDEX)[..length]);
        bed.expect(&format!("{length}"), &frame, Reason::Forwarded, &forwarded(&frame, ip, &b));
    }
}

#[test]
fn what_else_comes_to_a_wireguard_port_is_told_apart() {
    let Some(bed) = Bed::new("WireGuard messages") else { return };
    let message = |kind: u8, length: usize| {
        let mut message = vec![kind, 0, 0, 0];
        message.resize(length, 9);
        message
    };
    for ip in Ip::BOTH {
        for (kind, length) in [(1, 148), (2, 92), (3, 64), (4, 32)] {
            for length in [length - 1, length, length + 1] {
                let frame =
                    udp_frame(client(ip), server(ip, WIREGUARD_PORT), &message(kind, length));
                let reason = match (kind, length) {
                    (1, 148) | (2, 92) | (3, 64) => Reason::WireGuardHandshake,
                    (4, 32..) => Reason::UnknownSource,
                    _ => Reason::InvalidWireGuard,
                };
                bed.expect_untouched(&format!("type {kind}, {length} bytes"), &frame, reason);
            }
        }
        for (what, payload) in [("type 5", message(5, 48)), ("no WireGuard", vec![9; 48])] {
            let frame = udp_frame(client(ip), server(ip, WIREGUARD_PORT), &payload);
            bed.expect_untouched(what, &frame, Reason::NotRelayed);
        }
    }
}

#[test]
fn a_source_that_leads_to_another_flow_of_the_same_sender_forwards_nothing() {
    // What the hash may do while an element is used again (derp_common::flow::table).
    let Some(mut bed) = Bed::new("a stale source") else { return };
    let ip = Ip::V6;
    let [a, _] = legs(ip, WIREGUARD_PORT);
    let stale = source(&a, 7_u32.to_be());
    bed.apply(|plan| plan.sources.push((stale, source_value(WIREGUARD_SLOT, Side::A))));
    let frame = udp_frame(client(ip), server(ip, WIREGUARD_PORT), &wireguard(7));
    bed.expect_untouched("another index", &frame, Reason::UnknownSource);
}

#[test]
fn any_payload_of_a_known_source_is_forwarded_even_stun() {
    let Some(bed) = Bed::new("flow of any payload") else { return };
    let ip = Ip::V4;
    let [_, b] = legs(ip, ANY_PORT);
    let to = server(ip, ANY_PORT);
    for payload in [vec![], vec![7], data(1), tailscale_request(), vec![0xff; 1200]] {
        let frame = udp_frame(client(ip), to, &payload);
        bed.expect("anything", &frame, Reason::Forwarded, &forwarded(&frame, ip, &b));
    }
    assert_eq!(bed.statistics(ANY_SLOT, Side::A).packets, 5);
    let stranger = with_port(client(ip), 1);
    let unknown = udp_frame(stranger, to, &data(1));
    bed.expect_untouched("a stranger", &unknown, Reason::UnknownSource);
    let stun = udp_frame(stranger, to, &tailscale_request());
    assert_eq!(bed.kernel.test_run(&stun).expect("test run").0, 3, "a stranger's STUN");
}

#[test]
fn the_daemon_is_told_of_strangers_at_a_bounded_rate() {
    let Some(mut bed) = Bed::new("events") else { return };
    let ip = Ip::V4;
    let stranger = with_port(client(ip), 7777);
    let run = |bed: &Bed, frame: &[u8]| drop(bed.kernel.test_run(frame).expect("test run"));
    run(&bed, &relay_frame(stranger, ip, &data(1)));
    run(&bed, &udp_frame(stranger, server(ip, ANY_PORT), &[0; 9]));
    let other = SocketAddr::new(second_address(ip), RELAY_PORT);
    run(&bed, &udp_frame(client(ip), other, &data(1)));
    run(&bed, &from_client(ip, 13));
    let event = |reason, slot, source: SocketAddr, port: u16, vni| Event {
        source: Address::from(source.ip()),
        reason: reason as u32,
        slot,
        source_port: source.port().to_be(),
        local_port: port.to_be(),
        vni,
    };
    let expected = [
        event(Reason::UnknownLeg, 1, stranger, RELAY_PORT, 1),
        event(Reason::UnknownSource, Event::NO_SLOT, stranger, ANY_PORT, 0),
        event(Reason::OtherLocal, Event::NO_SLOT, client(ip), RELAY_PORT, 0),
    ];
    assert_eq!(bed.maps.take_events(), expected);

    let frame = relay_frame(stranger, ip, &data(1));
    let started = Instant::now();
    for _ in 0..2000 {
        run(&bed, &frame);
    }
    let most = 100 + usize::try_from(started.elapsed().as_millis()).expect("short") / 10 + 2;
    let told = bed.maps.take_events().len();
    assert!((90..=most).contains(&told), "{told} events of at most {most}");
    let seen = bed.counters()[&(derp_common::Family::Ipv4, Reason::UnknownLeg)].0;
    assert_eq!(seen, 2001, "all are counted");
}

#[test]
fn a_damaged_ip_header_goes_nowhere() {
    let Some(bed) = Bed::new("damaged header") else { return };
    let mut frame = from_client(Ip::V4, 1);
    frame[24] ^= 1;
    bed.expect_untouched("checksum", &frame, Reason::InvalidIpChecksum);
    // A damaged payload is for the other end to find.
    let mut frame = from_client(Ip::V4, 1);
    let mut output = forwarded(&frame, Ip::V4, &legs(Ip::V4, RELAY_PORT)[1]);
    let last = frame.len() - 1;
    frame[last] ^= 1;
    output[last] ^= 1;
    bed.expect("payload", &frame, Reason::Forwarded, &output);
    let mut sound = output.clone();
    fix_checksums(&mut sound, Ip::V4);
    assert_ne!(sound, output, "it is still recognisable as damaged");
}
