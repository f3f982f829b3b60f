//! Any frame, on a host that serves everything.

use std::net::IpAddr;

use derp_common::{Address, AddressKind, Decision, Interface, SlicePacket, Verdict, decide};

use crate::{
    flows::{self, INTERFACE, OTHER_INTERFACE, OTHER_MAC, Plan, SLOTS, second_address},
    host::TestHost,
    packets::{Ip, SERVER_MAC, SERVER4, SERVER6, fix_ip_checksum},
};

/// A host with flows of every kind.
pub(crate) fn host() -> TestHost {
    let mut host = TestHost::new(flows::settings(), SLOTS);
    for ip in [IpAddr::from(SERVER4), SERVER6.into()] {
        host.addresses.insert(Address::from(ip), AddressKind::Unicast as u32);
    }
    for ip in Ip::BOTH {
        let address = Address::from(second_address(ip));
        host.addresses.insert(address, AddressKind::Unicast as u32);
    }
    host.interfaces.insert(INTERFACE, Interface::new(SERVER_MAC));
    let target = Interface { is_redirect_target: 1, ..Interface::new(OTHER_MAC) };
    host.interfaces.insert(OTHER_INTERFACE, target);
    Plan::everything().apply(&mut host);
    host
}

/// Decides about a frame with this much room behind it; returns what has become of it, too.
pub(crate) fn run_with_room(host: &TestHost, frame: &[u8], room: usize) -> (Decision, Vec<u8>) {
    let mut buffer = frame.to_vec();
    buffer.resize(frame.len() + room, 0);
    let mut packet = SlicePacket::new(&mut buffer, frame.len());
    let decision = decide(&mut packet, host);
    (decision, packet.bytes().to_vec())
}

/// The frame that the fuzzer's bytes stand for. The first byte tells how much of it is put right, so that what lies
/// behind the first checks is reached, and how much room there is behind it.
pub(crate) fn frame(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (&how, rest) = bytes.split_first()?;
    let mut frame = rest.to_vec();
    if how & 1 != 0
        && let Some(place) = frame.get_mut(..6)
    {
        place.copy_from_slice(&SERVER_MAC);
    }
    if how & 2 != 0 && frame.len() >= 34 {
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        let total = u16::try_from(frame.len() - 14).unwrap_or(u16::MAX);
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        fix_ip_checksum(&mut frame, Ip::V4);
    }
    Some((frame, usize::from(how >> 2)))
}

/// Decides about a frame. Nothing that is passed on or dropped is changed; what is sent is a whole frame.
pub(crate) fn packet(bytes: &[u8]) {
    let Some((frame, room)) = frame(bytes) else { return };
    let host = host();
    let (decision, output) = run_with_room(&host, &frame, room);
    match decision.verdict {
        Verdict::Pass | Verdict::Drop => assert_eq!(output, frame),
        Verdict::Transmit | Verdict::Redirect => assert!(output.len() >= 42, "{output:?}"),
        Verdict::Aborted => panic!("broken off half way: {decision:?}"),
    }
}
