//! What the forwarder does with one datagram. Pure: the kernel program decides with the same functions.

use std::net::SocketAddr;

use derp_common::{
    Reason, Services, Settings, SlicePacket,
    flow::{Class, Datagram, Hop, Leg, Tables, find, identify, table::statistics_index},
};

use crate::{
    flow::socket_address,
    stun::{client::is_answer, is_one_host},
};

/// How a datagram came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Delivery {
    /// From whom, and to which address and port of this host.
    pub datagram: Datagram,
    /// TTL or hop limit; `None` when it is not known.
    pub hop_limit: Option<u8>,
}

/// How a datagram goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Forward {
    /// To whom.
    pub destination: SocketAddr,
    /// From which port of this host, and which address: the unspecified one where routing has to choose.
    pub source: SocketAddr,
    /// TTL or hop limit; `None` is the system's.
    pub hop_limit: Option<u8>,
    /// What it is, if there is something to learn from it: it arrived at another address of this host than
    /// its end is known to use.
    pub learn: Option<Class>,
}

/// What is done with a datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// It is a STUN message, for the responder.
    Stun,
    /// It is a STUN server's answer to a request from a relay port.
    StunAnswer,
    /// It goes to the other end of its flow, where it has been counted.
    Forward(Forward),
}

/// A datagram that is not served, and what it was taken for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// What it was taken for; `None` when it is nothing that is served on its port.
    pub class: Option<Class>,
}

/// Decides what is done at time `now` with a datagram, whose payload is `payload`, and accounts for it.
///
/// Sampling, which shows the kernel's packets to userspace, is over once they are here.
///
/// # Errors
///
/// The reason why the datagram is not served. Of those, [`Reason::RelayControl`] has a handler elsewhere.
pub fn decide<T: Tables>(
    payload: &mut [u8],
    delivery: &Delivery,
    tables: &T,
    settings: &Settings,
    now: u64,
) -> Result<Action, Refusal> {
    let datagram = &delivery.datagram;
    let because = |reason| Refusal { reason, class: None };
    if datagram.source_port == 0 {
        return Err(because(Reason::UnusableSource));
    }
    let services = settings.services(datagram.destination_port);
    if services == 0 {
        return Err(because(Reason::OtherPort));
    }
    if services & Services::GENEVE != 0 && is_answer(payload) {
        return Ok(Action::StunAnswer);
    }
    let length = payload.len();
    let class = identify(&SlicePacket::new(payload, length), 0, length, services, datagram, tables)
        .map_err(because)?;
    if class == Class::Stun {
        return Ok(Action::Stun);
    }
    if !is_one_host(datagram.destination.into()) {
        return Err(because(Reason::NotLocal));
    }
    let refuse = |reason| Refusal { reason, class: Some(class) };
    let hop = find(datagram, class, settings, tables, || now).map_err(refuse)?;
    let learn = (!hop.is_local_address(datagram)).then_some(class);
    let forward = Forward { learn, ..onward(&hop, delivery.hop_limit).map_err(refuse)? };
    let index = statistics_index(hop.slot, hop.side);
    let cells = tables.statistics(index).ok_or(refuse(Reason::UnknownVni))?;
    let settings = Settings { sample_interval: 0, ..*settings };
    cells.account(hop.from, &settings, length, now).map_err(refuse)?;
    Ok(Action::Forward(forward))
}

/// Finds the way to the hop's other end. The hop limit falls by one, so that whatever goes in circles, be
/// it between two relays or through their kernel programs, comes to an end.
fn onward(hop: &Hop<'_>, hop_limit: Option<u8>) -> Result<Forward, Reason> {
    let hop_limit = match hop_limit {
        Some(0 | 1) => return Err(Reason::HopLimit),
        Some(limit) => Some(limit - 1),
        None => None,
    };
    let Leg { remote, remote_port, local, local_port, .. } = *hop.to;
    Ok(Forward {
        destination: socket_address(remote, remote_port),
        source: socket_address(local, local_port),
        hop_limit,
        learn: None,
    })
}

#[cfg(test)]
mod tests {
    use derp_common::{
        Address, Port, Rate, Switches,
        flow::{
            Control, Leg, Side, Source,
            table::{leg_index, source_value},
        },
    };

    use proptest::prelude::*;

    use super::*;
    use crate::flow::{Change, Mirror};

    const VNI: u32 = 0x05_0003;
    const SLOT: u32 = 3;
    const NOW: u64 = 5_000_000_000;
    const A: &str = "198.51.100.10:41641";
    const B: &str = "192.0.2.20:51820";
    const LOCAL_A: &str = "203.0.113.1:40000";
    const LOCAL_B: &str = "203.0.113.2:40000";
    const ANY_PORT: u16 = 40001;
    const SENDER: u64 = 0x0102_0304_0506_0708;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("test address")
    }

    fn leg(remote: &str, local: &str) -> Leg {
        let (remote, local) = (address(remote), address(local));
        Leg {
            remote: Address::from(remote.ip()),
            local: Address::from(local.ip()),
            remote_port: remote.port().to_be(),
            local_port: local.port().to_be(),
            ..Leg::UNBOUND
        }
    }

    fn settings() -> Settings {
        let mut settings = Settings::new(0);
        let port = |number: u16, services| Port { number: number.to_be(), services };
        settings.ports[0] = port(40000, Services::GENEVE | Services::STUN);
        settings.ports[1] = port(ANY_PORT, Services::ANY);
        settings.slot_mask = 15;
        settings
    }

    fn tables(a: Leg, b: Leg) -> Mirror {
        let mut mirror = Mirror::new(16);
        mirror.change(&Change::Leg { index: leg_index(SLOT, 0, Side::A), leg: a });
        mirror.change(&Change::Leg { index: leg_index(SLOT, 0, Side::B), leg: b });
        mirror.change(&Change::Senders { slot: SLOT, senders: [SENDER, 0] });
        mirror.change(&Change::Control { slot: SLOT, control: Control::forward(VNI, 0) });
        mirror
    }

    fn both() -> Mirror {
        tables(leg(A, LOCAL_A), leg(B, LOCAL_B))
    }

    fn geneve(vni: u32, flags: u8) -> Vec<u8> {
        let [_, high, middle, low] = vni.to_be_bytes();
        [&[0, flags, 0x7a, 0x12, high, middle, low, 0][..], b"sealed"].concat()
    }

    fn delivery(from: &str, to: &str) -> Delivery {
        let (from, to) = (address(from), address(to));
        let datagram = Datagram {
            source: Address::from(from.ip()),
            destination: Address::from(to.ip()),
            source_port: from.port().to_be(),
            destination_port: to.port().to_be(),
        };
        Delivery { datagram, hop_limit: Some(57) }
    }

    fn run(tables: &Mirror, payload: &[u8], from: &str, to: &str) -> Result<Action, Reason> {
        let mut payload = payload.to_vec();
        let decided = decide(&mut payload, &delivery(from, to), tables, &settings(), NOW);
        decided.map_err(|refusal| refusal.reason)
    }

    fn forward(destination: &str, source: &str) -> Result<Action, Reason> {
        Ok(Action::Forward(Forward {
            destination: address(destination),
            source: address(source),
            hop_limit: Some(56),
            learn: None,
        }))
    }

    #[test]
    fn a_packet_goes_to_the_other_end_from_its_local_address() {
        let tables = both();
        let data = geneve(VNI, 0);
        assert_eq!(run(&tables, &data, A, LOCAL_A), forward(B, LOCAL_B));
        assert_eq!(run(&tables, &data, B, LOCAL_B), forward(A, LOCAL_A));
        let statistics = |side| tables.statistics(statistics_index(SLOT, side)).unwrap().read();
        assert_eq!((statistics(Side::A).packets, statistics(Side::A).bytes), (1, 14));
        assert_eq!(statistics(Side::B).last_seen, NOW);
    }

    fn learn(decided: Result<Action, Reason>) -> Option<Class> {
        match decided {
            Ok(Action::Forward(forward)) => forward.learn,
            Ok(Action::Stun | Action::StunAnswer) | Err(_) => None,
        }
    }

    #[test]
    fn what_arrives_at_another_address_of_this_host_is_forwarded_and_learnt_from() {
        let tables = both();
        let Ok(Action::Forward(found)) = run(&tables, &geneve(VNI, 0), A, LOCAL_B) else {
            panic!("not forwarded");
        };
        assert_eq!((found.destination, found.source), (address(B), address(LOCAL_B)));
        assert_eq!(found.learn, Some(Class::Geneve { vni: VNI }));
    }

    #[test]
    fn routing_chooses_where_the_local_address_is_not_known() {
        for (remote, source) in [(B, "0.0.0.0:40000"), ("[2001:db8:b::20]:51820", "[::]:40000")] {
            let tables = tables(leg(A, LOCAL_A), leg(remote, source));
            let data = geneve(VNI, 0);
            assert_eq!(run(&tables, &data, A, LOCAL_A), forward(remote, source));
            let Ok(Action::Forward(back)) = run(&tables, &data, remote, LOCAL_B) else {
                panic!("not forwarded");
            };
            assert_eq!(back.learn, Some(Class::Geneve { vni: VNI }), "its address is to be learnt");
        }
    }

    #[test]
    fn case_24_the_ends_may_be_of_different_families() {
        let tables = tables(leg("[2001:db8:a::10]:41641", "[2001:db8::1]:40000"), leg(B, LOCAL_B));
        let data = geneve(VNI, 0);
        let answer = run(&tables, &data, "[2001:db8:a::10]:41641", "[2001:db8::1]:40000");
        assert_eq!(answer, forward(B, LOCAL_B));
        let back = run(&tables, &data, B, LOCAL_B);
        assert_eq!(back, forward("[2001:db8:a::10]:41641", "[2001:db8::1]:40000"));
    }

    #[test]
    fn nobody_else_is_forwarded() {
        let tables = both();
        let data = geneve(VNI, 0);
        let cases = [
            ("another VNI", geneve(VNI + 1, 0), A, LOCAL_A, Reason::UnknownVni),
            ("another generation", geneve(VNI + 0x01_0000, 0), A, LOCAL_A, Reason::UnknownVni),
            ("another port", data.clone(), "198.51.100.10:41642", LOCAL_A, Reason::UnknownLeg),
            ("another host", data.clone(), "198.51.100.11:41641", LOCAL_A, Reason::UnknownLeg),
            ("a group", data.clone(), A, "224.0.0.1:40000", Reason::NotLocal),
            ("no port", data.clone(), "198.51.100.10:0", LOCAL_A, Reason::UnusableSource),
            ("a port of nobody", data.clone(), A, "203.0.113.1:9", Reason::OtherPort),
            ("a reserved bit", geneve(VNI, 1), A, LOCAL_A, Reason::UnusualGeneve),
            ("a control packet", geneve(VNI, 0x80), A, LOCAL_A, Reason::InvalidRelayControl),
        ];
        for (what, payload, from, to, reason) in cases {
            assert_eq!(run(&tables, &payload, from, to), Err(reason), "{what}");
        }
        let statistics = tables.statistics(statistics_index(SLOT, Side::A)).unwrap().read();
        assert_eq!((statistics.packets, statistics.last_seen), (0, 0));
    }

    #[test]
    fn case_7_one_end_alone_forwards_nothing() {
        let unbound = Leg { remote_port: 0, ..leg(B, LOCAL_B) };
        let tables = tables(leg(A, LOCAL_A), unbound);
        assert_eq!(run(&tables, &geneve(VNI, 0), A, LOCAL_A), Err(Reason::Unbound));
    }

    #[test]
    fn regression_what_comes_right_behind_a_control_packet_is_shown_to_whoever_binds() {
        let tables = tables(leg(A, LOCAL_A), Leg { remote_port: 0, ..leg(B, LOCAL_B) });
        let settings = Settings { control_rate: Rate::per_second(10, 20), ..settings() };
        let cells = tables.statistics(statistics_index(SLOT, Side::B)).unwrap();
        assert!(cells.admits_control(&settings, NOW));
        let at = |from, now| {
            let decided =
                decide(&mut geneve(VNI, 0), &delivery(from, LOCAL_A), &tables, &settings, now);
            decided.map_err(|refusal| refusal.reason)
        };
        assert_eq!(at(A, NOW), Err(Reason::Unbound), "it is from the end that is bound");
        assert_eq!(at(B, NOW + 50_000_000), Err(Reason::Binding));
        assert_eq!(at(B, NOW + 200_000_000), Err(Reason::UnknownLeg));
    }

    #[test]
    fn case_15_one_byte_07_is_dropped() {
        assert_eq!(run(&both(), &[7], A, LOCAL_A), Err(Reason::ShortPayload));
        assert_eq!(run(&both(), &[], A, LOCAL_A), Err(Reason::ShortPayload));
    }

    #[test]
    fn case_17_a_used_up_hop_limit_ends_the_way() {
        let tables = both();
        for (limit, left) in
            [(Some(0), None), (Some(1), None), (Some(2), Some(Some(1))), (None, Some(None))]
        {
            let delivery = Delivery { hop_limit: limit, ..delivery(A, LOCAL_A) };
            let decided = decide(&mut geneve(VNI, 0), &delivery, &tables, &settings(), NOW);
            match decided {
                Ok(Action::Forward(forward)) => assert_eq!(Some(forward.hop_limit), left),
                Ok(Action::Stun | Action::StunAnswer) => panic!("no STUN"),
                Err(refusal) => assert_eq!((refusal.reason, left), (Reason::HopLimit, None)),
            }
        }
        // What ends here has not been counted as forwarded.
        assert_eq!(tables.statistics(statistics_index(SLOT, Side::A)).unwrap().read().packets, 2);
    }

    #[test]
    fn case_25_what_userspace_sees_as_a_sample_is_forwarded() {
        let settings = Settings { sample_interval: 1, ..settings() };
        let tables = both();
        let delivery = delivery(A, LOCAL_A);
        for _ in 0..3 {
            let decided = decide(&mut geneve(VNI, 0), &delivery, &tables, &settings, NOW);
            assert!(matches!(decided, Ok(Action::Forward(_))), "{decided:?}");
        }
    }

    #[test]
    fn case_26_an_end_over_its_rate_is_dropped_and_the_other_is_not() {
        let limited = Leg {
            nanoseconds_per_kibibyte: 1_000_000_000,
            burst_microseconds: 20_000,
            ..leg(A, LOCAL_A)
        };
        let tables = tables(limited, leg(B, LOCAL_B));
        let data = geneve(VNI, 0);
        assert_eq!(run(&tables, &data, A, LOCAL_A), forward(B, LOCAL_B));
        assert_eq!(run(&tables, &data, A, LOCAL_A), Err(Reason::OverRate));
        assert_eq!(run(&tables, &data, B, LOCAL_B), forward(A, LOCAL_A));
    }

    #[test]
    fn case_28_a_freed_slot_forwards_nothing() {
        let mut tables = both();
        tables.change(&Change::Control { slot: SLOT, control: Control::off(VNI) });
        assert_eq!(run(&tables, &geneve(VNI, 0), A, LOCAL_A), Err(Reason::Unbound));
        tables
            .change(&Change::Control { slot: SLOT, control: Control::forward(VNI + 0x1_0000, 0) });
        assert_eq!(run(&tables, &geneve(VNI, 0), A, LOCAL_A), Err(Reason::UnknownVni));
    }

    #[test]
    fn case_29_stun_on_a_shared_port_goes_to_the_responder() {
        let request = b"\x00\x01\x00\x00\x21\x12\xa4\x42transaction!";
        assert_eq!(run(&both(), request, A, LOCAL_A), Ok(Action::Stun));
        let any = format!("203.0.113.1:{ANY_PORT}");
        assert_eq!(run(&both(), request, A, &any), Err(Reason::UnknownSource));
        let answer = b"\x01\x01\x00\x00\x21\x12\xa4\x42transaction!";
        assert_eq!(run(&both(), answer, A, LOCAL_A), Ok(Action::StunAnswer));
        assert_eq!(run(&both(), answer, A, &any), Err(Reason::UnknownSource));
        let other = b"\x01\x11\x00\x00\x21\x12\xa4\x42transaction!";
        assert_eq!(run(&both(), other, A, LOCAL_A), Ok(Action::Stun), "no success");
    }

    #[test]
    fn anything_of_a_known_source_is_forwarded_on_a_port_for_anything() {
        let (local_a, local_b) = ("203.0.113.1:40001", "203.0.113.2:40001");
        let mut tables = tables(leg(A, local_a), leg(B, local_b));
        tables.change(&Change::Control { slot: SLOT, control: Control::forward(0, 0) });
        let source = Source {
            address: delivery(A, local_a).datagram.source,
            port: 41641_u16.to_be(),
            local_port: ANY_PORT.to_be(),
            index: 0,
        };
        assert_eq!(run(&tables, b"hi", A, local_a), Err(Reason::UnknownSource));
        tables.change(&Change::InsertSource { source, value: source_value(SLOT, Side::A) });
        assert_eq!(run(&tables, b"hi", A, local_a), forward(B, local_b));
        assert_eq!(run(&tables, b"", A, local_a), forward(B, local_b));
        let class = Class::Known { value: source_value(SLOT, Side::A) };
        assert_eq!(learn(run(&tables, b"hi", A, local_b)), Some(class));
    }

    #[test]
    fn case_8_control_packets_of_known_senders_are_told_apart_and_limited() {
        let mut control = vec![0; 160];
        control[..8].copy_from_slice(&geneve(VNI, 0x80)[..8]);
        control[3] = 0x11;
        control[8..14].copy_from_slice(&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac]);
        control[14..22].copy_from_slice(&SENDER.to_ne_bytes());
        let tables = both();
        let mut settings = settings();
        settings.control_rate = Rate::per_second(1, 1);
        settings.switches = Switches::VLAN;
        let delivery = delivery("192.0.2.99:1", LOCAL_A);
        let mut ask =
            || decide(&mut control, &delivery, &tables, &settings, NOW).map_err(|it| it.reason);
        assert_eq!(ask(), Err(Reason::RelayControl));
        assert_eq!(ask(), Err(Reason::ControlOverRate));
        control[14] ^= 1;
        let decided = decide(&mut control, &delivery, &tables, &settings, NOW);
        assert_eq!(decided.unwrap_err().reason, Reason::UnknownSender);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_only_an_end_is_forwarded(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            like_geneve: bool,
            host in 0_u8..20,
            port in 0_u16..4,
        ) {
            if like_geneve && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&geneve(VNI, 0)[..8]);
            }
            let from = format!("198.51.100.{host}:{}", 41640 + port);
            let decided = run(&both(), &bytes, &from, LOCAL_A);
            if matches!(decided, Ok(Action::Forward(_))) {
                prop_assert_eq!(from, A);
            }
        }
    }
}
