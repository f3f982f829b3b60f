//! Data of flows: what is forwarded, dropped, or left to userspace.

use super::*;

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
