//! Samples, rates, STUN on the shared port, and what the daemon is told.

use super::*;

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
