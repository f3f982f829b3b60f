//! Frames for the packet tests, built and checked by plain code of their own: nothing here shares a line
//! with the code under test.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(crate) const STUN_PORT: u16 = 3478;
pub(crate) const CLIENT_PORT: u16 = 41641;
pub(crate) const SERVER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub(crate) const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
pub(crate) const SERVER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(crate) const CLIENT4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub(crate) const BROADCAST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 255);
pub(crate) const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);
pub(crate) const TRANSACTION: [u8; 12] = *b"transaction!";

pub(crate) const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const ETH: usize = 14;
const UDP: usize = 8;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ip {
    V4,
    V6,
}

impl Ip {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn header(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    /// Where the UDP header begins.
    pub(crate) fn udp(self) -> usize {
        ETH + self.header()
    }

    /// Where the STUN message begins.
    pub(crate) fn stun(self) -> usize {
        self.udp() + UDP
    }

    pub(crate) fn client(self) -> IpAddr {
        match self {
            Self::V4 => CLIENT4.into(),
            Self::V6 => CLIENT6.into(),
        }
    }

    pub(crate) fn server(self) -> IpAddr {
        match self {
            Self::V4 => SERVER4.into(),
            Self::V6 => SERVER6.into(),
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// One STUN attribute, padded.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).expect("test attribute");
    let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A STUN message with these attributes.
pub(crate) fn message(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    let body = attributes.concat();
    let length = u16::try_from(body.len()).expect("test message");
    let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend_from_slice(&COOKIE);
    bytes.extend_from_slice(&TRANSACTION);
    bytes.extend_from_slice(&body);
    bytes
}

/// Appends FINGERPRINT to a message (RFC 8489 section 14.7).
pub(crate) fn with_fingerprint(mut message: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(message.len() - 20 + 8).expect("test message");
    message[2..4].copy_from_slice(&length.to_be_bytes());
    let fingerprint = crc32(&message) ^ 0x5354_554e;
    message.extend(attribute(0x8028, &fingerprint.to_be_bytes()));
    message
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

/// The 40 bytes every Tailscale client sends.
pub(crate) fn tailscale_request() -> Vec<u8> {
    with_fingerprint(message(0x0001, &[attribute(0x8022, b"tailnode")]))
}

/// The answer to a request from this address, as a client expects it.
pub(crate) fn success(transaction: &[u8], from: IpAddr, port: u16) -> Vec<u8> {
    let address = octets(from);
    let mask: Vec<u8> = COOKIE.iter().chain(transaction).copied().collect();
    let family = if address.len() == 4 { 1 } else { 2 };
    let [port_high, port_low] = (port ^ 0x2112).to_be_bytes();
    let mut value = vec![0, family, port_high, port_low];
    value.extend(address.iter().zip(&mask).map(|(byte, mask)| byte ^ mask));
    let mut answer = message(0x0101, &[attribute(0x0020, &value)]);
    answer[8..20].copy_from_slice(transaction);
    answer
}

/// A frame from client to server with this UDP payload and all checksums right.
pub(crate) fn frame(ip: Ip, payload: &[u8]) -> Vec<u8> {
    let from = SocketAddr::new(ip.client(), CLIENT_PORT);
    udp_frame(from, SocketAddr::new(ip.server(), STUN_PORT), payload)
}

/// A frame from the client's MAC to the server's with this UDP payload and all checksums right.
pub(crate) fn udp_frame(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ip = if from.is_ipv4() { Ip::V4 } else { Ip::V6 };
    let ethertype: [u8; 2] = if ip == Ip::V4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let udp_length = u16::try_from(UDP + payload.len()).expect("test frame");
    let mut frame = [&SERVER_MAC[..], &CLIENT_MAC, &ethertype].concat();
    match ip {
        Ip::V4 => {
            let [high, low] = (udp_length + 20).to_be_bytes();
            frame.extend([0x45, 0x28, high, low, 0x12, 0x34, 0x40, 0, 57, 17, 0, 0]);
        }
        Ip::V6 => {
            let [high, low] = udp_length.to_be_bytes();
            frame.extend([0x62, 0x81, 0x23, 0x45, high, low, 17, 57]);
        }
    }
    frame.extend(octets(from.ip()));
    frame.extend(octets(to.ip()));
    frame.extend(from.port().to_be_bytes());
    frame.extend(to.port().to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend_from_slice(payload);
    fix_checksums(&mut frame, ip);
    frame
}

/// The frame that answers [`frame`] when its payload is a request with [`TRANSACTION`].
pub(crate) fn answer(ip: Ip, port: u16) -> Vec<u8> {
    answer_to(ip, port, TRANSACTION)
}

/// Like [`answer`] for any transaction id.
pub(crate) fn answer_to(ip: Ip, port: u16, transaction: [u8; 12]) -> Vec<u8> {
    let mut answer = frame(ip, &success(&transaction, ip.client(), port));
    answer[..6].copy_from_slice(&CLIENT_MAC);
    answer[6..12].copy_from_slice(&SERVER_MAC);
    let (source, length) = match ip {
        Ip::V4 => {
            answer[ETH + 1] = 0;
            answer[ETH + 4..ETH + 9].copy_from_slice(&[0, 0, 0x40, 0, 64]);
            (ETH + 12, 4)
        }
        Ip::V6 => {
            answer[ETH..ETH + 4].copy_from_slice(&[0x60, 0, 0, 0]);
            answer[ETH + 7] = 64;
            (ETH + 8, 16)
        }
    };
    answer[source..source + length].copy_from_slice(&octets(ip.server()));
    answer[source + length..source + 2 * length].copy_from_slice(&octets(ip.client()));
    let udp = ip.udp();
    answer[udp..udp + 2].copy_from_slice(&STUN_PORT.to_be_bytes());
    answer[udp + 2..udp + 4].copy_from_slice(&port.to_be_bytes());
    fix_checksums(&mut answer, ip);
    answer
}

/// Makes the checksums of a frame right, as far as its lengths allow.
pub(crate) fn fix_checksums(frame: &mut [u8], ip: Ip) {
    fix_ip_checksum(frame, ip);
    fix_udp_checksum(frame, ip);
}

pub(crate) fn fix_ip_checksum(frame: &mut [u8], ip: Ip) {
    if ip == Ip::V4 && frame.len() >= ETH + 20 {
        frame[ETH + 10..ETH + 12].fill(0);
        let checksum = !sum(&frame[ETH..ETH + 20]);
        frame[ETH + 10..ETH + 12].copy_from_slice(&checksum.to_be_bytes());
    }
}

pub(crate) fn fix_udp_checksum(frame: &mut [u8], ip: Ip) {
    let udp = ip.udp();
    if frame.len() < udp + UDP {
        return;
    }
    frame[udp + 6..udp + 8].fill(0);
    let addresses = match ip {
        Ip::V4 => &frame[ETH + 12..udp],
        Ip::V6 => &frame[ETH + 8..udp],
    };
    let length = &frame[udp + 4..udp + 6];
    let covered = [addresses, &[0, 17], length, &frame[udp..]].concat();
    let checksum = match !sum(&covered) {
        0 => 0xffff,
        checksum => checksum,
    };
    frame[udp + 6..udp + 8].copy_from_slice(&checksum.to_be_bytes());
}

/// The Internet checksum before its complement.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
