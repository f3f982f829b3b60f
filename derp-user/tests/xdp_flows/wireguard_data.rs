//! WireGuard messages, by source and index.

use super::*;

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
