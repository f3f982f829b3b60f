//! The decision about a frame, on a host in memory: reference vectors, every reason, and what holds for any
//! frame. The loaded program is put to the same decisions in `derp-user/tests`.

#[path = "support/flows.rs"]
mod flows;
#[path = "support/fuzz.rs"]
mod fuzz;
#[path = "support/host.rs"]
mod host;
#[path = "../../derp-user/tests/support/packets.rs"]
mod packets;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use derp_common::{
    Address, Decision, Family, Host as _, Rate, Reason, Settings, Switches, Verdict,
    flow::{Control, Leg, Side, Tables as _, table::statistics_index},
    maps::Event,
};
use proptest::prelude::*;

use crate::{
    flows::{
        ANY_PORT, CLOSED_VNI, CROSS_VNI, INTERFACE, OFF_VNI, OTHER_INTERFACE, OTHER_MAC, Plan,
        RELAY_PORT, SENDERS, SLOTS, UNRESOLVED_VNI, VLAN_VNI, client, control, data, forwarded,
        legs, peer, redirected_vni, second_address, server, vni,
    },
    fuzz::{host, run_with_room},
    host::TestHost,
    packets::{
        Ip, SERVER_MAC, attribute, fix_ip_checksum, frame, message, tailscale_request, udp_frame,
        with_fingerprint,
    },
};

fn run(host: &TestHost, frame: &[u8]) -> (Decision, Vec<u8>) {
    run_with_room(host, frame, 64)
}

fn to_relay(from: SocketAddr, ip: Ip, payload: &[u8]) -> Vec<u8> {
    udp_frame(from, server(ip, RELAY_PORT), payload)
}

fn to_wireguard(payload: &[u8]) -> Vec<u8> {
    udp_frame(client(Ip::V4), server(Ip::V4, flows::WIREGUARD_PORT), payload)
}

fn from_client(ip: Ip, vni: u32) -> Vec<u8> {
    to_relay(client(ip), ip, &data(vni))
}

fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame.splice(12..12, [&[0x81, 0], &tci.to_be_bytes()[..]].concat());
    frame
}

#[test]
fn reference_vectors() {
    let mut host = host();
    let mut input = from_client(Ip::V4, 1);
    input[15] = 0;
    fix_ip_checksum(&mut input, Ip::V4);
    assert_eq!((&input[24..26], &input[40..42]), (&[0xc9, 0x35][..], &[0x24, 0x8d][..]));
    let (decision, output) = run(&host, &input);
    assert_eq!((decision.reason, decision.verdict), (Reason::Forwarded, Verdict::Transmit));
    assert_eq!((&output[24..26], &output[40..42]), (&[0x32, 0x5f][..], &[0x64, 0xf3][..]));
    assert_eq!(output[42..], input[42..]);

    let mut unchecked = input.clone();
    unchecked[40..42].fill(0);
    let (_, output) = run(&host, &unchecked);
    assert_eq!((&output[24..26], &output[40..42]), (&[0x32, 0x5f][..], &[0, 0][..]));

    let mut payload = data(1);
    payload[38..].copy_from_slice(&[0x7f, 0x0e]);
    let (_, output) = run(&host, &to_relay(client(Ip::V4), Ip::V4, &payload));
    assert_eq!(output[40..42], [0xff, 0xff]);

    let mut plan = Plan::default();
    plan.geneve(1, legs(Ip::V6, RELAY_PORT));
    plan.apply(&mut host);
    let input = from_client(Ip::V6, 1);
    assert_eq!(input[60..62], [0x2f, 0x40]);
    assert_eq!(run(&host, &input).1[60..62], [0x07, 0x6c]);
}

/// What has to be changed about a host.
type ChangeHost = fn(&mut TestHost);

/// A frame for every reason, and how the host has to be changed for it.
fn every_reason() -> Vec<(Reason, ChangeHost, Vec<u8>)> {
    let none: ChangeHost = |_| ();
    let v4 = Ip::V4;
    let edit = |at: usize, value: u8| {
        let mut frame = from_client(v4, 1);
        frame[at] = value;
        fix_ip_checksum(&mut frame, v4);
        frame
    };
    let stun = |message: &[u8]| frame(v4, message);
    let mut options = from_client(v4, 1);
    options.splice(34..34, [1, 1, 1, 0]);
    options[14] = 0x46;
    let mut checksum = from_client(v4, 1);
    checksum[24] ^= 1;
    let mut damaged = stun(&tailscale_request());
    damaged[40] ^= 1;
    let mut fingerprint = tailscale_request();
    fingerprint[39] ^= 1;
    let control_from = |sender| to_relay(client(v4), v4, &control(1, sender));
    let stranger = SocketAddr::new(client(v4).ip(), 1);
    vec![
        (Reason::NotIp, none, edit(12, 0x09)),
        (Reason::Malformed, none, from_client(v4, 1)[..30].to_vec()),
        (Reason::Ipv4Options, none, options),
        (Reason::Fragment, none, edit(20, 0x20)),
        (Reason::NotUdp, none, edit(23, 6)),
        (Reason::Unconfigured, |host| host.settings.version = 0, from_client(v4, 1)),
        (Reason::OtherPort, none, udp_frame(client(v4), server(v4, 9), &[0; 9])),
        (Reason::LengthMismatch, none, [&from_client(v4, 1)[..], &[0]].concat()),
        (Reason::InvalidIpChecksum, none, checksum),
        (Reason::ForeignMac, none, edit(0, 0x06)),
        (
            Reason::NotLocal,
            none,
            udp_frame(client(v4), SocketAddr::new(peer(v4).ip(), RELAY_PORT), &data(1)),
        ),
        (Reason::UnusableSource, none, to_relay(server(v4, 1), v4, &data(1))),
        (Reason::InvalidUdpChecksum, none, damaged),
        (Reason::NotStun, none, stun(b"something else, long enough")),
        (Reason::NotBindingRequest, none, stun(&message(0x0101, &[]))),
        (Reason::InvalidStunLength, none, stun(&message(1, &[vec![0; 2]]))),
        (Reason::StunTooLong, none, stun(&message(1, &[attribute(0x8022, &[0; 200])]))),
        (Reason::UnknownAttribute, none, stun(&message(1, &[attribute(3, &[0; 4])]))),
        (Reason::InvalidFingerprint, none, stun(&fingerprint)),
        (Reason::StunAnswered, none, stun(&with_fingerprint(message(1, &[])))),
        (
            Reason::StunShed,
            |host| host.settings.switches |= Switches::SHED_STUN,
            stun(&tailscale_request()),
        ),
        (
            Reason::StunOverRate,
            |host| {
                host.settings.stun_rate = Rate::per_second(1, 1);
                run(host, &frame(Ip::V4, &tailscale_request()));
            },
            stun(&tailscale_request()),
        ),
        (Reason::Vlan, |host| host.settings.switches = 0, tagged(&from_client(v4, 1), 7)),
        (Reason::ShortPayload, none, to_relay(client(v4), v4, &[7])),
        (
            Reason::NotRelayed,
            none,
            udp_frame(client(v4), server(v4, flows::WIREGUARD_PORT), &[9; 40]),
        ),
        (Reason::WireGuardHandshake, none, to_wireguard(&[&[3, 0, 0, 0][..], &[9; 60]].concat())),
        (Reason::InvalidWireGuard, none, to_wireguard(&[&[1, 0, 0, 0][..], &[9; 60]].concat())),
        (Reason::UnusualGeneve, none, to_relay(client(v4), v4, &[0x40; 40])),
        (Reason::RelayControl, none, control_from(SENDERS[0])),
        (Reason::InvalidRelayControl, none, to_relay(client(v4), v4, &control(1, 1)[..100])),
        (Reason::UnknownSender, none, control_from(1)),
        (
            Reason::ControlOverRate,
            |host| {
                host.settings.control_rate = Rate::per_second(1, 1);
                run(host, &to_relay(client(Ip::V4), Ip::V4, &control(1, SENDERS[0])));
            },
            control_from(SENDERS[0]),
        ),
        (Reason::UnknownVni, none, from_client(v4, 13)),
        (Reason::UnknownLeg, none, to_relay(stranger, v4, &data(1))),
        (Reason::Unbound, none, from_client(v4, OFF_VNI)),
        (
            Reason::Binding,
            |host| {
                host.settings.control_rate = Rate::per_second(1, 1);
                let index = statistics_index(OFF_VNI, Side::A);
                let cells = host.statistics(index).expect("statistics");
                assert!(cells.admits_control(&host.settings, host.now()));
            },
            from_client(v4, OFF_VNI),
        ),
        (
            Reason::Learning,
            |host| {
                let learning = Control::learning(OFF_VNI, 0);
                host.controls.insert(OFF_VNI, learning);
            },
            from_client(v4, OFF_VNI),
        ),
        (
            Reason::OtherLocal,
            none,
            udp_frame(client(v4), SocketAddr::new(second_address(v4), RELAY_PORT), &data(1)),
        ),
        (Reason::UnknownSource, none, udp_frame(stranger, server(v4, ANY_PORT), &[0; 9])),
        (Reason::HopLimit, none, edit(22, 1)),
        (Reason::Unresolved, none, from_client(v4, UNRESOLVED_VNI)),
        (Reason::CrossFamily, none, from_client(v4, CROSS_VNI)),
        (Reason::TooBig, none, to_relay(client(v4), v4, &[&data(1)[..], &[0; 1500]].concat())),
        (
            Reason::Suspect,
            |host| {
                host.settings.switches |= Switches::COMPANION;
                host.settings.lease = u64::MAX;
                run(host, &to_relay(client(Ip::V4), Ip::V4, &control(1, SENDERS[0])));
            },
            from_client(v4, 1),
        ),
        (
            Reason::Lapsed,
            |host| {
                host.settings.switches |= Switches::COMPANION;
                host.settings.lease = 1;
            },
            from_client(v4, 1),
        ),
        (Reason::Sampled, |host| host.settings.sample_interval = 1, from_client(v4, 1)),
        (
            Reason::OverRate,
            |host| {
                let index = derp_common::flow::table::leg_index(1, 0, Side::A);
                let leg = host.legs.get_mut(&index).expect("leg");
                leg.nanoseconds_per_kibibyte = u32::MAX;
            },
            from_client(v4, 1),
        ),
        (Reason::Forwarded, none, from_client(v4, 1)),
        (Reason::Redirected, none, from_client(v4, redirected_vni(v4))),
    ]
}

#[test]
fn every_reason_can_be_reached_and_only_what_is_sent_is_changed() {
    let mut reached = BTreeSet::new();
    for (reason, change, frame) in every_reason() {
        for companion in [false, true] {
            let mut host = host();
            change(&mut host);
            if companion {
                host.settings.switches |= Switches::COMPANION;
                host.settings.lease = if reason == Reason::Lapsed { 1 } else { u64::MAX };
            }
            // Another process sees what comes too early anyway.
            let is_early = reason == Reason::Binding;
            let reason = if is_early && companion { Reason::Unbound } else { reason };
            let (decision, output) = run(&host, &frame);
            assert_eq!(decision.reason, reason, "{frame:02x?}");
            let is_dropped = reason.verdict() == Verdict::Drop;
            let verdict = if is_dropped && companion { Verdict::Pass } else { reason.verdict() };
            assert_eq!(decision.verdict, verdict, "{reason:?}");
            let sent = matches!(verdict, Verdict::Transmit | Verdict::Redirect);
            assert_eq!(output != frame, sent, "{reason:?}");
            let interface = if reason == Reason::Redirected { OTHER_INTERFACE } else { 0 };
            assert_eq!(decision.interface, interface, "{reason:?}");
        }
        reached.insert(reason);
    }
    let (decision, _) = run_with_room(&host(), &frame(Ip::V4, &message(1, &[])), 0);
    reached.insert(decision.reason);
    let missing: Vec<_> = Reason::ALL.iter().filter(|reason| !reached.contains(reason)).collect();
    assert_eq!(missing, [&Reason::RewriteFailed], "cannot happen unless the program is wrong");
    assert!(reached.contains(&Reason::NoTailroom));
}

#[test]
fn a_leg_that_is_reached_by_another_interface_still_needs_the_macs_to_be_right() {
    let mut host = host();
    let frame = from_client(Ip::V4, 1);
    host.ingress = OTHER_INTERFACE;
    assert_eq!(run(&host, &frame).0.reason, Reason::ForeignMac);
    let mut frame = frame;
    frame[..6].copy_from_slice(&OTHER_MAC);
    // Out by interface 1 then, which takes no frames from others yet.
    assert_eq!(run(&host, &frame).0.reason, Reason::Unresolved);
    host.interfaces.get_mut(&INTERFACE).expect("interface").is_redirect_target = 1;
    let (decision, _) = run(&host, &frame);
    assert_eq!((decision.reason, decision.interface), (Reason::Redirected, INTERFACE));
}

#[test]
fn events_are_few_and_say_who() {
    let host = host();
    let stranger = SocketAddr::new(client(Ip::V4).ip(), 1);
    let frame = to_relay(stranger, Ip::V4, &data(1));
    for _ in 0..1000 {
        run(&host, &frame);
    }
    let events = host.events.borrow().len();
    assert_eq!(events, 100);
    host.wait(1_000_000_000);
    run(&host, &frame);
    let last = *host.events.borrow().last().expect("an event");
    let expected = Event {
        source: Address::from(stranger.ip()),
        reason: Reason::UnknownLeg as u32,
        slot: 1,
        source_port: 1_u16.to_be(),
        local_port: RELAY_PORT.to_be(),
        vni: 1,
    };
    assert_eq!(last, expected);
}

#[test]
fn time_gives_stun_its_allowance_back() {
    let mut host = host();
    host.settings.stun_rate = Rate::per_second(10, 2);
    let request = frame(Ip::V6, &tailscale_request());
    let ask = || run(&host, &request).0.reason;
    let reasons = [ask(), ask(), ask()];
    assert_eq!(reasons, [Reason::StunAnswered, Reason::StunAnswered, Reason::StunOverRate]);
    host.wait(100_000_000);
    assert_eq!(run(&host, &request).0.reason, Reason::StunAnswered);
    assert_eq!(run(&host, &request).0.reason, Reason::StunOverRate);
}

fn any_ip() -> impl Strategy<Value = Ip> {
    prop_oneof![Just(Ip::V4), Just(Ip::V6)]
}

proptest! {
    #[test]
    fn what_is_forwarded_is_what_a_router_would_send(
        ip in any_ip(),
        body in proptest::collection::vec(any::<u8>(), 0..1300),
        hops in 2u8..,
        back: bool,
        vlan in proptest::option::of(any::<u16>()),
    ) {
        let mut host = host();
        let mut flow = legs(ip, RELAY_PORT);
        let tag = vlan.map(|tci| (tci, if tci & 0xfff == 0 { 0 } else { 9 }));
        for leg in &mut flow {
            leg.vlan = tag.map_or(0, |(_, vlan)| vlan);
        }
        let mut plan = Plan::default();
        plan.geneve(vni(ip), flow);
        plan.apply(&mut host);
        let [a, b] = flow;
        let (from, to, side): (_, Leg, _) =
            if back { (peer(ip), a, Side::B) } else { (client(ip), b, Side::A) };
        let payload = flows::geneve(0, 0x7a12, vni(ip), &body);
        let mut input = to_relay(from, ip, &payload);
        input[if ip == Ip::V4 { 22 } else { 21 }] = hops;
        fix_ip_checksum(&mut input, ip);
        let mut expected = forwarded(&input, ip, &to);
        if let Some((tci, vlan)) = tag {
            input = tagged(&input, tci);
            expected = tagged(&expected, tci & 0xf000 | vlan);
        }
        let (decision, output) = run_with_room(&host, &input, 0);
        prop_assert_eq!(decision.reason, Reason::Forwarded);
        prop_assert_eq!(output, expected);
        let seen = host.statistics_of(statistics_index(vni(ip) & (SLOTS - 1), side));
        prop_assert_eq!((seen.packets, seen.bytes), (1, payload.len() as u64));
    }

    #[test]
    fn a_tag_changes_nothing_but_places(
        ip in any_ip(),
        vni in prop_oneof![Just(1), Just(0x12_3402), Just(VLAN_VNI), Just(CLOSED_VNI), any::<u32>()],
        flip in proptest::option::of((14usize..80, any::<u8>())),
    ) {
        let mut frame = from_client(ip, vni);
        if let Some((at, value)) = flip {
            frame[at] = value;
        }
        let (plain, plain_output) = run(&host(), &frame);
        let (priority, output) = run(&host(), &tagged(&frame, 0xe000));
        if plain.reason != Reason::Vlan && priority.reason != Reason::Vlan && vni != VLAN_VNI {
            prop_assert_eq!(plain, priority);
            prop_assert_eq!(tagged(&plain_output, 0xe000), output);
        }
    }

    #[test]
    fn no_bytes_panic_or_are_changed_and_passed(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ethertype in prop_oneof![Just([8, 0]), Just([0x86, 0xdd]), Just([0x81, 0])],
    ) {
        let mut bytes = bytes;
        if let Some(place) = bytes.get_mut(12..14) {
            place.copy_from_slice(&ethertype);
        }
        if let Some(place) = bytes.get_mut(..6) {
            place.copy_from_slice(&SERVER_MAC);
        }
        let (decision, output) = run(&host(), &bytes);
        if matches!(decision.verdict, Verdict::Pass | Verdict::Drop) {
            prop_assert_eq!(output, bytes);
        }
    }

    #[test]
    fn whoever_is_neither_end_moves_nothing(ip in any_ip(), port in 1u16.., octet in 11u8..200) {
        let host = host();
        let from = match ip {
            Ip::V4 => IpAddr::from([198, 51, 100, octet]),
            Ip::V6 => IpAddr::from([0x2001, 0xdb8, 0xa, 0, 0, 0, 0, u16::from(octet) + 0x20]),
        };
        let frame = to_relay(SocketAddr::new(from, port), ip, &data(vni(ip)));
        let (decision, _) = run(&host, &frame);
        prop_assert_eq!(decision.reason, Reason::UnknownLeg);
        prop_assert_eq!(decision.family, if ip == Ip::V4 { Family::Ipv4 } else { Family::Ipv6 });
        for side in Side::ALL {
            let index = statistics_index(vni(ip) & (SLOTS - 1), side);
            prop_assert_eq!(host.statistics_of(index), Default::default());
        }
    }
}

#[test]
fn settings_of_another_version_serve_nobody() {
    let mut host = host();
    host.settings = Settings { version: Settings::VERSION + 1, ..host.settings };
    assert_eq!(run(&host, &frame(Ip::V4, &tailscale_request())).0.reason, Reason::Unconfigured);
    assert_eq!(run(&host, &tagged(&from_client(Ip::V4, 1), 7)).0.reason, Reason::Vlan);
}

#[test]
fn the_corpus_of_the_fuzzer_is_run_again() {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/packet");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().collect();
    assert!(!files.is_empty());
    // Miri takes seconds for each.
    let step = if cfg!(miri) { 20 } else { 1 };
    for file in files.into_iter().step_by(step) {
        fuzz::packet(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
