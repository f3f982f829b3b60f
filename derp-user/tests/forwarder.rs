//! The userspace forwarder over real sockets, on loopback and in namespaces.

#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/relay.rs"]
mod relay;

use std::{
    io::{ErrorKind, IoSlice},
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use derp_common::{Family, Rate, Reason, Services, Switches};
use derp_user::{
    forward::{ForwardError, Forwarder, ForwarderOptions, NOTICES, Notices},
    udp::{Inbox, Merging, Socket},
};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
    sockopt,
};
use tokio::sync::mpsc;

use crate::{
    netns::{CLIENT4, CLIENT6, Namespaces, SERVER4, SERVER6, run_in, spawn_in},
    packets::{message, success},
    relay::{PATIENCE, Relay, address, end, geneve},
};

const VNI: u32 = 0x0a_0005;
const SLOT: u32 = 5;

/// Receives one datagram.
fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = [0; 65_535];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram in time");
    (buffer[..length].to_vec(), from)
}

/// Asserts that nothing is there; whatever could be has been waited for.
fn assert_silence(socket: &UdpSocket) {
    socket.set_nonblocking(true).expect("nonblocking");
    let error = socket.recv_from(&mut [0; 100]).expect_err("nothing");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    socket.set_nonblocking(false).expect("blocking");
}

fn refused(relay: &Relay, family: Family, reason: Reason) -> u64 {
    relay.totals().count(family, reason).packets
}

#[test]
fn packets_go_both_ways_within_and_across_families() {
    for (ip_a, ip_b) in
        [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")]
    {
        let relay = Relay::start(Services::GENEVE, &Notices::default());
        let (a, b) = (end(ip_a), end(ip_b));
        relay.flow(SLOT, VNI, [(address(&a), ip_a), (address(&b), ip_b)]);
        for length in [0, 1, 64, 1400, 8000] {
            let data = geneve(VNI, &vec![0x5a; length]);
            a.send_to(&data, relay.at(ip_a)).expect("send");
            assert_eq!(receive(&b), (data.clone(), relay.at(ip_b)), "{ip_a} to {ip_b}");
            b.send_to(&data, relay.at(ip_b)).expect("send");
            assert_eq!(receive(&a), (data, relay.at(ip_a)), "{ip_b} to {ip_a}");
        }
        relay.wait_until("ten were forwarded", |totals| {
            totals.forwarded().iter().map(|(_, _, count)| count.packets).sum::<u64>() == 10
        });
        let name = |ip: &str| if ip.contains(':') { "udp6" } else { "udp4" };
        let totals = relay.totals();
        for (from, to) in [(ip_a, ip_b), (ip_b, ip_a)] {
            let ways = totals.forwarded();
            let way = ways.iter().find(|way| (way.0, way.1) == (name(from), name(to)));
            assert!(way.is_some_and(|way| way.2.packets >= 5), "{from} to {to}: {ways:?}");
        }
    }
}

#[test]
fn each_end_hears_from_the_address_it_sends_to() {
    let (strangers, mut told) = mpsc::channel(NOTICES);
    let notices = Notices { strangers: Some(strangers), ..Notices::default() };
    let relay = Relay::start(Services::GENEVE, &notices);
    let (a, b) = (end("127.0.0.1"), end("127.0.0.1"));
    relay.flow(SLOT, VNI, [(address(&a), "127.0.0.7"), (address(&b), "127.0.0.8")]);
    let data = geneve(VNI, b"sealed");
    a.send_to(&data, relay.at("127.0.0.7")).expect("send");
    assert_eq!(receive(&b).1, relay.at("127.0.0.8"));
    b.send_to(&data, relay.at("127.0.0.8")).expect("send");
    assert_eq!(receive(&a).1, relay.at("127.0.0.7"));

    // Another address of this host will do, and is there to be learnt.
    a.send_to(&data, relay.at("127.0.0.8")).expect("send");
    assert_eq!(receive(&b).1, relay.at("127.0.0.8"));
    let stranger = told.try_recv().expect("told");
    assert_eq!(stranger.reason, Reason::OtherLocal);
}

#[test]
fn flows_of_any_payload_are_known_by_their_source() {
    let relay = Relay::start(Services::ANY, &Notices::default());
    let (a, b) = (end("127.0.0.1"), end("127.0.0.1"));
    relay.flow(SLOT, 0, [(address(&a), "127.0.0.1"), (address(&b), "127.0.0.1")]);
    for data in [&b""[..], b"\x07", b"hello"] {
        a.send_to(data, relay.at("127.0.0.1")).expect("send");
        assert_eq!(receive(&b).0, data);
    }
}

#[test]
fn nobody_else_is_forwarded_and_the_flow_control_is_told() {
    let (strangers, mut told) = mpsc::channel(NOTICES);
    let notices = Notices { strangers: Some(strangers), ..Notices::default() };
    let relay = Relay::start(Services::GENEVE, &notices);
    let (a, b, stranger) = (end("127.0.0.1"), end("127.0.0.1"), end("127.0.0.1"));
    relay.flow(SLOT, VNI, [(address(&a), "127.0.0.1"), (address(&b), "127.0.0.1")]);
    let to = relay.at("127.0.0.1");
    stranger.send_to(&geneve(VNI, b"mine"), to).expect("send");
    a.send_to(&geneve(VNI + 1, b"another flow"), to).expect("send");
    a.send_to(&[7], to).expect("send");
    a.send_to(&geneve(VNI, b"last"), to).expect("send");
    assert_eq!(receive(&b).0, geneve(VNI, b"last"));
    assert_silence(&b);
    for reason in [Reason::UnknownLeg, Reason::UnknownVni, Reason::ShortPayload] {
        assert_eq!(refused(&relay, Family::Ipv4, reason), 1, "{reason:?}");
    }
    let notice = told.try_recv().expect("a notice");
    assert_eq!(notice.reason, Reason::UnknownLeg);
    assert_eq!(u16::from_be(notice.datagram.source_port), address(&stranger).port());
    assert!(told.try_recv().is_err(), "an unknown VNI is of no interest");
}

#[test]
fn control_packets_reach_their_handler_which_answers_from_the_relays_port() {
    let (control, mut told) = mpsc::channel(NOTICES);
    let notices = Notices { control: Some(control), ..Notices::default() };
    let relay = Relay::start(Services::GENEVE, &notices);
    let (a, b) = (end("127.0.0.1"), end("127.0.0.1"));
    relay.flow(SLOT, VNI, [(address(&a), "127.0.0.7"), (address(&b), "127.0.0.1")]);
    relay.senders(SLOT, [0x0101_0101_0101_0101, 0]);
    let mut bind = geneve(VNI, &[1; 152]);
    (bind[1], bind[3]) = (0x80, 0x11);
    bind[8..14].copy_from_slice(&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]);
    a.send_to(&bind, relay.at("127.0.0.7")).expect("send");
    let packet = told.blocking_recv().expect("a packet");
    assert_eq!((packet.vni, &*packet.payload), (VNI, &bind[..]));
    let local = SocketAddr::new(packet.datagram.destination.into(), relay.port);
    relay.outlet.send(local, address(&a), b"challenge").expect("send");
    assert_eq!(receive(&a), (b"challenge".to_vec(), relay.at("127.0.0.7")));
    let nowhere = SocketAddr::new(local.ip(), 1);
    let error = relay.outlet.send(nowhere, address(&a), b"").expect_err("no such port");
    assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
}

/// Sends one run of datagrams with one system call, as the kernel would merge them on the way.
fn send_run(socket: &UdpSocket, run: &[u8], segment: u16, to: SocketAddr) {
    let controls = [ControlMessage::UdpGsoSegments(&segment)];
    let to = SockaddrStorage::from(to);
    let slices = [IoSlice::new(run)];
    sendmsg(socket.as_raw_fd(), &slices, &controls, MsgFlags::empty(), Some(&to)).expect("send");
}

#[test]
fn merged_datagrams_keep_their_boundaries_and_their_order() {
    for merging in [Merging::On, Merging::Off] {
        let relay = Relay::start_with(Services::GENEVE, &Notices::default(), merging, 1, 0);
        let (a, b) = (end("127.0.0.1"), end("127.0.0.1"));
        relay.flow(SLOT, VNI, [(address(&a), "127.0.0.1"), (address(&b), "127.0.0.1")]);
        let to = relay.at("127.0.0.1");
        for segment in [9_usize, 512, 1400] {
            // Whole ones, and a shorter one behind them; a packet of nobody in between.
            let count = (60_000 / segment).min(40);
            let datagrams: Vec<_> = (0..count)
                .map(|number| {
                    let vni = if number == 7 { VNI + 1 } else { VNI };
                    let mut datagram = geneve(vni, &vec![number as u8; segment - 8]);
                    datagram.truncate(if number + 1 == count { segment - 1 } else { segment });
                    datagram
                })
                .collect();
            send_run(&a, &datagrams.concat(), segment as u16, to);
            for (number, datagram) in datagrams.iter().enumerate() {
                if number != 7 {
                    assert_eq!(receive(&b).0, *datagram, "{merging:?}, {segment}, {number}");
                }
            }
        }
        assert_silence(&b);
        assert_eq!(refused(&relay, Family::Ipv4, Reason::UnknownVni), 3);
    }
}

#[test]
fn a_burst_of_many_flows_arrives_whole_and_in_order() {
    const FLOWS: u32 = 64;
    const EACH: u32 = 50;
    for threads in [1, 2] {
        let notices = Notices::default();
        let relay = Relay::start_with(Services::GENEVE, &notices, Merging::On, threads, 0);
        let pairs: Vec<_> = (0..FLOWS).map(|_| (end("::1"), end("127.0.0.1"))).collect();
        for (slot, (a, b)) in pairs.iter().enumerate() {
            let ends = [(address(a), "::1"), (address(b), "127.0.0.1")];
            relay.flow(slot as u32, slot as u32 + 128, ends);
        }
        for number in 0..EACH {
            for (slot, (a, _)) in pairs.iter().enumerate() {
                let length = 4 + (number as usize * 37 + slot) % 700;
                let mut payload = vec![slot as u8; length];
                payload[..4].copy_from_slice(&number.to_be_bytes());
                a.send_to(&geneve(slot as u32 + 128, &payload), relay.at("::1")).expect("send");
            }
        }
        for (slot, (_, b)) in pairs.iter().enumerate() {
            for number in 0..EACH {
                let (data, from) = receive(b);
                assert_eq!(data[8..12], number.to_be_bytes(), "flow {slot}");
                assert_eq!(data.len(), 12 + (number as usize * 37 + slot) % 700);
                assert_eq!(from, relay.at("127.0.0.1"));
            }
        }
    }
}

/// Receives the TTL or hop limit, and the traffic class, of the next datagram.
#[expect(clippy::wildcard_enum_match_arm, reason = "others are not asked for")]
fn headers(socket: &UdpSocket) -> (i32, u8) {
    let mut space = nix::cmsg_space!(libc::c_int, libc::c_int);
    let (mut limit, mut class) = (0, 0);
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut [],
        Some(&mut space),
        MsgFlags::empty(),
    );
    for control in received.expect("receive").cmsgs().expect("room") {
        match control {
            ControlMessageOwned::Ipv4Ttl(it) | ControlMessageOwned::Ipv6HopLimit(it) => limit = it,
            ControlMessageOwned::Ipv4Tos(it) => class = it,
            ControlMessageOwned::Ipv6TClass(it) => class = it as u8,
            _ => {}
        }
    }
    (limit, class)
}

#[test]
fn the_hop_limit_falls_and_the_traffic_class_stays() {
    const CLASS: i32 = 0xb8 | 1;
    for (ip_a, ip_b) in [("127.0.0.1", "::1"), ("::1", "127.0.0.1")] {
        let relay = Relay::start(Services::GENEVE, &Notices::default());
        let (a, b) = (end(ip_a), end(ip_b));
        relay.flow(SLOT, VNI, [(address(&a), ip_a), (address(&b), ip_b)]);
        if ip_a.contains(':') {
            setsockopt(&a, sockopt::Ipv6Ttl, &9).expect("hop limit");
            setsockopt(&a, sockopt::Ipv6TClass, &CLASS).expect("class");
            setsockopt(&b, sockopt::Ipv4RecvTtl, &true).expect("option");
            setsockopt(&b, sockopt::IpRecvTos, &true).expect("option");
        } else {
            setsockopt(&a, sockopt::Ipv4Ttl, &9).expect("hop limit");
            setsockopt(&a, sockopt::Ipv4Tos, &CLASS).expect("class");
            setsockopt(&b, sockopt::Ipv6RecvHopLimit, &true).expect("option");
            setsockopt(&b, sockopt::Ipv6RecvTClass, &true).expect("option");
        }
        a.send_to(&geneve(VNI, b"sealed"), relay.at(ip_a)).expect("send");
        assert_eq!(headers(&b), (8, CLASS as u8), "{ip_a} to {ip_b}");
    }
}

#[test]
fn case_17_a_packet_with_hop_limit_1_is_not_forwarded() {
    let relay = Relay::start(Services::GENEVE, &Notices::default());
    let (a, b) = (end("127.0.0.1"), end("127.0.0.1"));
    relay.flow(SLOT, VNI, [(address(&a), "127.0.0.1"), (address(&b), "127.0.0.1")]);
    setsockopt(&a, sockopt::Ipv4Ttl, &1).expect("TTL");
    a.send_to(&geneve(VNI, b"sealed"), relay.at("127.0.0.1")).expect("send");
    relay.wait_until("the TTL", |it| it.count(Family::Ipv4, Reason::HopLimit).packets == 1);
    assert_silence(&b);
}

/// Two relays that send to each other, as a mistake in two configurations could have it.
#[test]
fn regression_a_circle_of_relays_comes_to_an_end() {
    let (one, two) = (
        Relay::start(Services::ANY, &Notices::default()),
        Relay::start(Services::ANY, &Notices::default()),
    );
    let (here, there) = ("127.0.0.1", "127.0.0.2");
    for (relay, other) in [(&one, &two), (&two, &one)] {
        relay.flow(SLOT, 0, [(other.at(here), here), (other.at(there), there)]);
    }
    one.outlet.send(one.at(here), two.at(here), b"round and round").expect("send");
    let ended = |relay: &Relay| refused(relay, Family::Ipv4, Reason::HopLimit);
    let deadline = std::time::Instant::now() + PATIENCE;
    while ended(&one) + ended(&two) == 0 {
        assert!(std::time::Instant::now() < deadline, "still going round");
        thread::sleep(Duration::from_millis(1));
    }
    let forwarded = |relay: &Relay| refused(relay, Family::Ipv4, Reason::Forwarded);
    assert!((2..=255).contains(&(forwarded(&one) + forwarded(&two))));
}

#[test]
fn case_29_stun_is_answered_on_the_shared_port_within_limits() {
    let relay = Relay::start(Services::GENEVE | Services::STUN, &Notices::default());
    let request = message(1, &[]);
    for ip in ["127.0.0.1", "127.0.0.9", "::1"] {
        let client = end(if ip == "::1" { ip } else { "127.0.0.1" });
        client.send_to(&request, relay.at(ip)).expect("send");
        let mapped = address(&client);
        let expected = success(&packets::TRANSACTION, mapped.ip(), mapped.port());
        assert_eq!(receive(&client), (expected, relay.at(ip)));
    }
    assert_eq!(relay.responder.counters().families(), [("ipv4", 2), ("ipv6", 1)]);

    let client = end("127.0.0.1");
    let ask = |expected: Reason| {
        let before = refused(&relay, Family::Ipv4, expected);
        client.send_to(&request, relay.at("127.0.0.1")).expect("send");
        relay.wait_until(expected.label(), |totals| {
            totals.count(Family::Ipv4, expected).packets == before + 1
        });
    };
    relay.settings.update(|settings| settings.switches |= Switches::SHED_STUN);
    ask(Reason::StunShed);
    relay.settings.update(|settings| {
        settings.switches = 0;
        settings.stun_rate = Rate { interval: u64::MAX / 4, burst: u64::MAX / 4 };
    });
    ask(Reason::StunAnswered);
    ask(Reason::StunOverRate);
    assert_eq!(receive(&client).0.len(), 32);
    assert_silence(&client);
    let success = relay.responder.counters().requests()[3];
    assert_eq!(success, ("success", 4));
}

#[test]
fn send_errors_are_counted_and_stop_nothing() {
    let relay = Relay::start(Services::ANY, &Notices::default());
    let (a, b, c) = (end("127.0.0.1"), end("127.0.0.1"), end("127.0.0.1"));
    let local = "127.0.0.1";
    // No route leads there from the loopback address; and the last address is not ours.
    let nowhere: SocketAddr = "[2001:db8::1]:9".parse().unwrap();
    relay.flow(1, 0, [(address(&a), local), (nowhere, "2001:db8::2")]);
    relay.flow(2, 0, [(address(&b), local), (address(&c), "192.0.2.77")]);
    let to = relay.at(local);
    for _ in 0..100 {
        a.send_to(b"lost", to).expect("send");
        b.send_to(b"lost", to).expect("send");
        send_run(&b, &[1; 30], 10, to);
    }
    let failures = || relay.totals().send_failures().iter().map(|it| it.1).sum::<u64>();
    relay.wait_until("500 failures", |_| failures() == 500);
    relay.flow(2, 0, [(address(&b), local), (address(&c), local)]);
    b.send_to(b"still here", to).expect("send");
    assert_eq!(receive(&c).0, b"still here");
}

#[test]
fn what_finds_the_receive_buffer_full_is_counted() {
    let socket = Socket::bind("127.0.0.1:0".parse().expect("address"), Merging::Off);
    let socket = socket.expect("bind");
    setsockopt(&socket, sockopt::RcvBuf, &4096).expect("a small buffer");
    let sender = end("127.0.0.1");
    let mut inbox = Inbox::new();
    let mut received = 0;
    for round in 1..=3 {
        for _ in 0..100 {
            sender.send_to(&[7; 1000], socket.local_address()).expect("send");
        }
        while let Ok(count) = socket.receive(&mut inbox, 8) {
            received += count as u64;
        }
        assert!(received < 100 * round, "the buffer is too large for this test");
    }
    // The kernel tells with the next one.
    sender.send_to(&[7; 1000], socket.local_address()).expect("send");
    received += socket.receive(&mut inbox, 8).expect("it has room") as u64;
    assert_eq!(received + u64::from(socket.take_overruns()), 301);
    assert_eq!(socket.take_overruns(), 0);
}

#[test]
fn what_the_relay_says_itself_is_counted() {
    let relay = Relay::start(Services::GENEVE, &Notices::default());
    let end = end("127.0.0.1");
    let from = relay.at("127.0.0.1");
    relay.outlet.send(from, address(&end), b"hello").expect("sent");
    assert_eq!(receive(&end).0, b"hello");
    let too_long = [0; 65_508];
    relay.outlet.send(from, address(&end), &too_long).expect_err("longer than a datagram");
    let totals = relay.totals();
    assert_eq!(totals.own, 1);
    assert!(totals.send_failures().contains(&("too_long", 1)), "{totals:?}");
}

#[test]
fn a_port_in_use_is_an_error_that_names_it_even_with_several_threads() {
    let relay = Relay::start_with(Services::ANY, &Notices::default(), Merging::On, 2, 0);
    let options = ForwarderOptions {
        host: None,
        ports: vec![relay.port],
        threads: 2.try_into().unwrap(),
        merging: Merging::On,
    };
    let error = Forwarder::bind(&options).err().expect("an error");
    assert!(matches!(error, ForwardError::InUse { .. }));
    assert!(error.to_string().contains(&format!("0.0.0.0:{}", relay.port)), "{error}");
}

/// Two namespaces, or why there are none.
fn namespaces(test: &str) -> Option<Namespaces> {
    match Namespaces::create() {
        Ok(namespaces) => Some(namespaces),
        Err(reason) => {
            println!("skipped: {test}: {reason}");
            None
        }
    }
}

#[test]
fn case_24_a_cross_family_pair_over_veth() {
    let Some(namespaces) = namespaces("cross-family pair over veth") else { return };
    let relay = run_in(&namespaces.server, || {
        Relay::start_with(Services::GENEVE, &Notices::default(), Merging::On, 1, 40_000)
    });
    let (a, b) = run_in(&namespaces.client, || (end(CLIENT4), end(CLIENT6)));
    relay.flow(SLOT, VNI, [(address(&a), SERVER4), (address(&b), SERVER6)]);
    let data = geneve(VNI, &[0x5a; 1400]);
    a.send_to(&data, relay.at(SERVER4)).expect("send");
    assert_eq!(receive(&b), (data.clone(), relay.at(SERVER6)));
    b.send_to(&data, relay.at(SERVER6)).expect("send");
    assert_eq!(receive(&a), (data, relay.at(SERVER4)));
}

/// The way to one end has a smaller MTU than the way from the other: runs of datagrams cannot go out as
/// one then, but they go out.
#[test]
fn datagrams_beyond_the_mtu_are_fragmented() {
    let Some(namespaces) = namespaces("MTU") else { return };
    namespaces.server_ip(&format!("link set {} mtu 1300", netns::SERVER_INTERFACE));
    let relay = run_in(&namespaces.server, || {
        Relay::start_with(Services::ANY, &Notices::default(), Merging::On, 1, 40_000)
    });
    let a = run_in(&namespaces.server, || end("127.0.0.1"));
    for (slot, client, server) in [(1, CLIENT4, SERVER4), (2, CLIENT6, SERVER6)] {
        let b = run_in(&namespaces.client, move || end(client));
        relay.flow(slot, 0, [(address(&a), "127.0.0.1"), (address(&b), server)]);
        for round in 0..3_u8 {
            let run: Vec<_> = (0..20).flat_map(|number| vec![number + round; 1400]).collect();
            send_run(&a, &run, 1400, relay.at("127.0.0.1"));
            let mut received: Vec<_> = (0..20).map(|_| receive(&b).0).collect();
            // Fragments may be put together in another order than they were sent.
            received.sort();
            assert!(received.concat() == run, "{client}, round {round}");
        }
        // What can be sent as one still is: the socket has not given up on it.
        let run = vec![9; 12_000];
        send_run(&a, &run, 1200, relay.at("127.0.0.1"));
        let received: Vec<_> = (0..10).map(|_| receive(&b).0.len()).collect();
        assert_eq!(received, [1200; 10]);
    }
    assert_eq!(relay.totals().send_failures().iter().map(|it| it.1).sum::<u64>(), 0);
}

#[test]
fn an_end_that_is_gone_and_a_link_that_is_down_stop_nothing() {
    let Some(namespaces) = namespaces("an end that is gone") else { return };
    let relay = run_in(&namespaces.server, || {
        Relay::start_with(Services::ANY, &Notices::default(), Merging::On, 1, 40_000)
    });
    let a = run_in(&namespaces.server, || end("127.0.0.1"));
    let b = run_in(&namespaces.client, || end(CLIENT4));
    let gone: SocketAddr = format!("{CLIENT4}:9").parse().unwrap();
    let to = relay.at("127.0.0.1");
    // Nobody listens: the client's host says so.
    relay.flow(1, 0, [(address(&a), "127.0.0.1"), (gone, SERVER4)]);
    for _ in 0..10 {
        a.send_to(b"anybody?", to).expect("send");
        thread::sleep(Duration::from_millis(1));
    }
    let down = format!("link set {} down", netns::SERVER_INTERFACE);
    namespaces.server_ip(&down);
    relay.flow(1, 0, [(address(&a), "127.0.0.1"), (address(&b), SERVER4)]);
    for _ in 0..10 {
        a.send_to(b"lost", to).expect("send");
    }
    relay.wait_until("failures", |it| it.send_failures().iter().any(|it| it.1 >= 10));
    namespaces.server_ip(&format!("link set {} up", netns::SERVER_INTERFACE));
    let receiver = spawn_in(&namespaces.client, move || receive(&b).0);
    while !receiver.is_finished() {
        a.send_to(b"back", to).expect("send");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(receiver.join().unwrap(), b"back");
}
