//! Flows for the packet tests, and what becomes of a packet of one, by plain code of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use derp_common::{
    Address, Port, Services, Settings, Switches,
    flow::{
        Control, Leg, Side, Source,
        table::{Senders, leg_index, source_value, wireguard_sender},
    },
};

use crate::{
    host::TestHost,
    packets::{
        CLIENT_MAC, CLIENT_PORT, Ip, SERVER_MAC, STUN_PORT, fix_ip_checksum, fix_udp_checksum,
    },
};

/// Slots of the tables in the tests.
pub(crate) const SLOTS: u32 = 16;
/// STUN and Geneve.
pub(crate) const RELAY_PORT: u16 = 40_000;
/// WireGuard.
pub(crate) const WIREGUARD_PORT: u16 = 51_820;
/// Anything, and STUN.
pub(crate) const ANY_PORT: u16 = 5000;

/// The interface of the server that frames come in by.
pub(crate) const INTERFACE: u32 = 1;
/// Another one, which frames can be redirected to.
pub(crate) const OTHER_INTERFACE: u32 = 77;
/// A third one, which they cannot be redirected to.
pub(crate) const CLOSED_INTERFACE: u32 = 78;
/// MAC of the other interface.
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x11];
/// MAC of whoever is the next hop towards side B.
pub(crate) const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x03];

pub(crate) const PEER_PORT: u16 = 51820;
pub(crate) const PEER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x20);

/// VNI of the flow between client and peer.
pub(crate) const fn vni(ip: Ip) -> u32 {
    match ip {
        Ip::V4 => 1,
        Ip::V6 => 0x12_3402,
    }
}

/// VNI of a flow from an IPv4 client to the IPv6 peer.
pub(crate) const CROSS_VNI: u32 = 3;
/// VNI of a flow that leaves by the other interface, per family.
pub(crate) const fn redirected_vni(ip: Ip) -> u32 {
    match ip {
        Ip::V4 => 4,
        Ip::V6 => 5,
    }
}
/// VNI of a flow one end of which has not been seen.
pub(crate) const UNBOUND_VNI: u32 = 6;
/// VNI of a flow the way to whose other end is not known.
pub(crate) const UNRESOLVED_VNI: u32 = 7;
/// VNI of a flow that is switched off.
pub(crate) const OFF_VNI: u32 = 8;
/// VNI of a flow that leaves in VLAN 9, and has VLAN 7 on the other side.
pub(crate) const VLAN_VNI: u32 = 9;
/// VNI of a flow that would leave by an interface that takes no frames from others.
pub(crate) const CLOSED_VNI: u32 = 10;
/// The slot of the flow of any payload.
pub(crate) const ANY_SLOT: u32 = 11;
/// The slot of the WireGuard flow.
pub(crate) const WIREGUARD_SLOT: u32 = 12;
/// WireGuard's receiver index in packets from the client.
pub(crate) const INDEX: u32 = 0xddcc_bbaa;

/// First bytes of the disco keys of both ends.
pub(crate) const SENDERS: Senders =
    [u64::from_ne_bytes(*b"disco--A"), u64::from_ne_bytes(*b"disco--B")];

pub(crate) fn halves(mac: [u8; 6]) -> [u16; 3] {
    let [a, b, c, d, e, f] = mac;
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

/// A leg of a server at `local` that leads to `remote` without a VLAN.
pub(crate) fn leg(remote: SocketAddr, local: SocketAddr, next_hop: [u8; 6]) -> Leg {
    Leg {
        remote: Address::from(remote.ip()),
        local: Address::from(local.ip()),
        remote_port: remote.port().to_be(),
        local_port: local.port().to_be(),
        interface: INTERFACE,
        source_mac: halves(SERVER_MAC),
        destination_mac: halves(next_hop),
        mtu: 1500,
        vlan: 0,
        nanoseconds_per_kibibyte: 0,
        burst_microseconds: 0,
    }
}

pub(crate) fn client(ip: Ip) -> SocketAddr {
    SocketAddr::new(ip.client(), CLIENT_PORT)
}

pub(crate) fn peer(ip: Ip) -> SocketAddr {
    let address: IpAddr = match ip {
        Ip::V4 => PEER4.into(),
        Ip::V6 => PEER6.into(),
    };
    SocketAddr::new(address, PEER_PORT)
}

pub(crate) fn server(ip: Ip, port: u16) -> SocketAddr {
    SocketAddr::new(ip.server(), port)
}

/// Both legs of a flow between client and peer through this port.
pub(crate) fn legs(ip: Ip, port: u16) -> [Leg; 2] {
    [leg(client(ip), server(ip, port), CLIENT_MAC), leg(peer(ip), server(ip, port), ROUTER_MAC)]
}

/// What is to be in the tables.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) legs: Vec<(u32, Leg)>,
    pub(crate) controls: Vec<(u32, Control)>,
    pub(crate) senders: Vec<(u32, Senders)>,
    pub(crate) sources: Vec<(Source, u32)>,
}

impl Plan {
    /// Adds a Geneve flow, in the slot that its VNI leads to.
    pub(crate) fn geneve(&mut self, vni: u32, legs: [Leg; 2]) {
        let slot = vni & (SLOTS - 1);
        self.slot(slot, Control::forward(vni, 0), legs);
        self.senders.push((slot, SENDERS));
    }

    fn slot(&mut self, slot: u32, control: Control, legs: [Leg; 2]) {
        for (side, leg) in Side::ALL.into_iter().zip(legs) {
            self.legs.push((leg_index(slot, control.copy(), side), leg));
        }
        self.controls.push((slot, control));
    }

    /// Adds a flow that is known by its senders.
    pub(crate) fn by_source(&mut self, slot: u32, indexes: [u32; 2], legs: [Leg; 2]) {
        self.slot(slot, Control::forward(0, 1), legs);
        for ((side, leg), index) in Side::ALL.into_iter().zip(legs).zip(indexes) {
            self.sources.push((source(&leg, index), source_value(slot, side)));
        }
        if indexes != [0; 2] {
            self.senders.push((slot, indexes.map(wireguard_sender)));
        }
    }

    /// One flow of each sort.
    pub(crate) fn everything() -> Self {
        let mut plan = Self::default();
        for ip in Ip::BOTH {
            let [a, b] = legs(ip, RELAY_PORT);
            plan.geneve(vni(ip), [a, b]);
            let other = Leg {
                interface: OTHER_INTERFACE,
                source_mac: halves(OTHER_MAC),
                local: Address::from(second_address(ip)),
                ..b
            };
            plan.geneve(redirected_vni(ip), [a, other]);
        }
        let [a, b] = legs(Ip::V4, RELAY_PORT);
        let [_, b6] = legs(Ip::V6, RELAY_PORT);
        plan.geneve(CROSS_VNI, [a, b6]);
        plan.geneve(UNBOUND_VNI, [a, Leg { remote_port: 0, ..b }]);
        plan.geneve(UNRESOLVED_VNI, [a, Leg { interface: 0, ..b }]);
        plan.geneve(OFF_VNI, [a, b]);
        plan.controls.push((OFF_VNI, Control::off(OFF_VNI)));
        plan.geneve(VLAN_VNI, [Leg { vlan: 7, ..a }, Leg { vlan: 9, ..b }]);
        plan.geneve(CLOSED_VNI, [a, Leg { interface: CLOSED_INTERFACE, ..b }]);
        plan.by_source(ANY_SLOT, [0, 0], legs(Ip::V4, ANY_PORT));
        plan.by_source(WIREGUARD_SLOT, [INDEX.to_be(), 1], legs(Ip::V6, WIREGUARD_PORT));
        plan
    }

    /// Writes it to the tables of a host in memory.
    pub(crate) fn apply(&self, host: &mut TestHost) {
        host.legs.extend(self.legs.iter().copied());
        host.controls.extend(self.controls.iter().copied());
        host.senders.extend(self.senders.iter().copied());
        host.sources.extend(self.sources.iter().copied());
    }
}

/// The server's address on the other interface.
pub(crate) fn second_address(ip: Ip) -> IpAddr {
    match ip {
        Ip::V4 => Ipv4Addr::new(203, 0, 113, 9).into(),
        Ip::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(),
    }
}

/// The key of a leg's sender.
pub(crate) fn source(leg: &Leg, index: u32) -> Source {
    Source { address: leg.remote, port: leg.remote_port, local_port: leg.local_port, index }
}

/// The settings all of this needs.
pub(crate) fn settings() -> Settings {
    let port = |number: u16, services| Port { number: number.to_be(), services };
    Settings {
        switches: Switches::VLAN,
        slot_mask: SLOTS - 1,
        ports: [
            port(STUN_PORT, Services::STUN),
            port(RELAY_PORT, Services::STUN | Services::GENEVE),
            port(WIREGUARD_PORT, Services::WIREGUARD),
            port(ANY_PORT, Services::ANY | Services::STUN),
        ],
        ..Settings::new(STUN_PORT)
    }
}

/// A Geneve packet as Tailscale sends it: this second byte, protocol and VNI.
pub(crate) fn geneve(flags: u8, protocol: u16, vni: u32, body: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    let [protocol_high, protocol_low] = protocol.to_be_bytes();
    [&[0, flags, protocol_high, protocol_low, high, middle, low, 0], body].concat()
}

/// WireGuard data in Geneve: the payload of the reference vectors, of this VNI.
pub(crate) fn data(vni: u32) -> Vec<u8> {
    let body: Vec<u8> = [4, 0, 0, 0].into_iter().chain(0..0x1c).collect();
    geneve(0, 0x7a12, vni, &body)
}

/// A message of the relay handshake, by the holder of this key.
pub(crate) fn control(vni: u32, sender: u64) -> Vec<u8> {
    let mut body = [&[0x54, 0x53, 0xf0, 0x9f, 0x92, 0xac][..], &sender.to_ne_bytes()].concat();
    body.resize(152, 0xee);
    geneve(0x80, 0x7a11, vni, &body)
}

/// A WireGuard data packet for this receiver index.
pub(crate) fn wireguard(index: u32) -> Vec<u8> {
    let mut message = [&[4, 0, 0, 0][..], &index.to_be_bytes()].concat();
    message.resize(48, 0x77);
    message
}

/// What a router with a leg like this makes of a frame without a tag.
pub(crate) fn forwarded(frame: &[u8], ip: Ip, to: &Leg) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let bytes = |mac: [u16; 3]| mac.map(u16::to_ne_bytes).concat();
    frame[..6].copy_from_slice(&bytes(to.destination_mac));
    frame[6..12].copy_from_slice(&bytes(to.source_mac));
    let (hops, addresses, length) = match ip {
        Ip::V4 => (22, 26, 4),
        Ip::V6 => (21, 22, 16),
    };
    frame[hops] -= 1;
    let octets = |address: Address| match IpAddr::from(address) {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    frame[addresses..addresses + length].copy_from_slice(&octets(to.local));
    frame[addresses + length..addresses + 2 * length].copy_from_slice(&octets(to.remote));
    let udp = ip.udp();
    frame[udp..udp + 2].copy_from_slice(&to.local_port.to_ne_bytes());
    frame[udp + 2..udp + 4].copy_from_slice(&to.remote_port.to_ne_bytes());
    fix_ip_checksum(&mut frame, ip);
    if frame[udp + 6..udp + 8] != [0, 0] {
        fix_udp_checksum(&mut frame, ip);
    }
    frame
}
