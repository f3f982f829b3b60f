//! Ethernet, IP and UDP headers that are damaged, unusual or not for us.

use super::*;

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
