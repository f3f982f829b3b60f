//! Control packets, and a companion's flows.

use super::*;

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
