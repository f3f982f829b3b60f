//! Messages as Tailscale's own code writes them, by `tests/interop/relayvectors`.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::peer_relay::disco::{
    AllocateRequest, AllocateResponse, DiscoPrivate, DiscoPublic, EndpointRecord, Envelope,
    Handshake, Message, seal,
};

const VECTORS: &str = include_str!("vectors.txt");

fn public(fill: u8) -> DiscoPublic {
    DiscoPublic::from_bytes([fill; 32])
}

/// The messages that the generator writes, by the name it gives them.
fn messages() -> BTreeMap<&'static str, Message> {
    let handshake =
        Handshake { vni: 0x123456, generation: 0x01020304, remote: public(3), challenge: [4; 32] };
    let addresses: [SocketAddr; 2] =
        ["192.0.2.1:40000", "[2001:db8::1]:40001"].map(|address| address.parse().unwrap());
    let endpoint = EndpointRecord {
        server: public(5),
        clients: [public(6), public(7)],
        lamport_id: 0x0102030405060708,
        vni: 0xfedcba,
        bind_lifetime: 30_000_000_000,
        steady_state_lifetime: 300_000_000_000,
        addresses: addresses.to_vec(),
    };
    let request = AllocateRequest { clients: [public(8), public(9)], generation: 0x0a0b0c0d };
    let response = AllocateResponse { generation: 0x0e0f1011, endpoint: endpoint.clone() };
    BTreeMap::from([
        ("bind", Message::Bind(handshake)),
        ("challenge", Message::Challenge(handshake)),
        ("answer", Message::Answer(handshake)),
        ("via", Message::CallMeMaybeVia(endpoint)),
        ("request", Message::AllocateRequest(request)),
        ("response", Message::AllocateResponse(response)),
    ])
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits.map(|it| u8::from_str_radix(std::str::from_utf8(it).unwrap(), 16).unwrap()).collect()
}

#[test]
fn messages_and_packets_of_the_reference_are_read_and_written_byte_for_byte() {
    let (a, b) = (DiscoPrivate::from_random([1; 32]), DiscoPrivate::from_random([2; 32]));
    let mut messages = messages();
    for line in VECTORS.lines() {
        let [name, text, packet] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let message = messages.remove(name).expect(name);
        let (text, packet) = (bytes(text), bytes(packet));
        assert_eq!(Message::decode(&text).as_ref(), Ok(&message), "{name}");
        assert_eq!(message.encode(), text, "{name}");

        let envelope = Envelope::parse(&packet).expect(name);
        assert_eq!(envelope.sender, a.public(), "{name}");
        assert_eq!(envelope.open(&b.shared(&a.public())), Some(text), "{name}");
        let nonce = packet[38..62].try_into().unwrap();
        let mut ours = Vec::new();
        seal(&mut ours, &a.public(), &a.shared(&b.public()), &nonce, &message);
        assert_eq!(ours, packet, "{name}");
    }
    assert!(messages.is_empty(), "without a vector: {messages:?}");
}
