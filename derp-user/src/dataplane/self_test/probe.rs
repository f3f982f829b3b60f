//! A STUN request from nobody to this host, for trials.

use std::net::IpAddr;

use derp_common::{
    Address, Family,
    checksum::Sum,
    stun::{BINDING_REQUEST, HEADER, MAGIC_COOKIE, SOFTWARE},
    udp,
};

/// Documentation addresses (RFC 5737, RFC 3849), which no host has.
const NOBODY: [IpAddr; 4] = [
    IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 77)),
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 77)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x77)),
];
/// The source port; the discard service's.
const PORT: u16 = 9;
/// With this much of SOFTWARE, neither family's answer is longer than the request.
const NAME: &[u8; 20] = b"derpd's self-test   ";

/// Makes the frame, as `own_mac` would send it to itself: whatever is sent back for it goes no further than
/// the next switch or host, which drops it as misdirected.
///
/// `port` is big-endian. Returns `None` when every address of nobody's is one of this host's.
pub(super) fn frame(
    own_mac: [u8; 6],
    own: IpAddr,
    port: u16,
    locals: &[IpAddr],
) -> Option<Vec<u8>> {
    let from =
        NOBODY.into_iter().find(|it| it.is_ipv4() == own.is_ipv4() && !locals.contains(it))?;
    let message = request();
    let length = u16::try_from(udp::LEN + message.len()).ok()?;
    let mut frame = [own_mac, own_mac].concat();
    match (from, own) {
        (IpAddr::V4(from), IpAddr::V4(own)) => {
            frame.extend([0x08, 0x00]);
            let [high, low] = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, udp::PROTOCOL, 0, 0];
            header.extend(from.octets());
            header.extend(own.octets());
            let checksum = sum(&header).checksum().to_ne_bytes();
            header[10..12].copy_from_slice(&checksum);
            frame.extend(header);
        }
        (IpAddr::V6(from), IpAddr::V6(own)) => {
            let [high, low] = length.to_be_bytes();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, udp::PROTOCOL, 64]);
            frame.extend(from.octets());
            frame.extend(own.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    let mut datagram = Vec::from(PORT.to_be_bytes());
    datagram.extend(port.to_ne_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(message);
    let family = if own.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let addresses = Address::from(from).sum(family).plus(Address::from(own).sum(family));
    let pseudo_header = addresses.number(length).number(u16::from(udp::PROTOCOL));
    let checksum = sum(&datagram).plus(pseudo_header).udp_checksum().to_ne_bytes();
    datagram[6..8].copy_from_slice(&checksum);
    frame.extend(datagram);
    Some(frame)
}

fn request() -> Vec<u8> {
    let length = [0, NAME.len() as u8];
    let mut message = Vec::with_capacity(HEADER + 4 + NAME.len());
    message.extend(BINDING_REQUEST.to_be_bytes());
    message.extend([0, 4 + NAME.len() as u8]);
    message.extend(MAGIC_COOKIE);
    message.extend(b"derpd-probe!");
    message.extend(SOFTWARE.to_be_bytes());
    message.extend(length);
    message.extend(NAME);
    message
}

/// Sums an even number of bytes.
fn sum(bytes: &[u8]) -> Sum {
    bytes
        .chunks_exact(2)
        .fold(Sum::ZERO, |sum, pair| sum.half(u16::from_ne_bytes([pair[0], pair[1]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// The ones' complement sum, by hand.
    fn folded(bytes: &[u8]) -> u32 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
        let sum: u32 = words.sum();
        (sum & 0xffff) + (sum >> 16)
    }

    #[test]
    fn lengths_and_checksums_are_right_in_both_families() {
        for (own, ip) in [("192.0.2.77", 20), ("203.0.113.1", 20), ("2001:db8::77", 40)] {
            let own: IpAddr = own.parse().expect("address");
            let frame = frame(MAC, own, 3478_u16.to_be(), &[own]).expect("a frame");
            assert_eq!(frame[..12], [MAC, MAC].concat());
            let (header, datagram) = frame[14..].split_at(ip);
            if ip == 20 {
                assert_eq!(folded(header), 0xffff, "{own}");
                assert_eq!(header[2..4], ((20 + datagram.len()) as u16).to_be_bytes());
            } else {
                assert_eq!(header[4..6], (datagram.len() as u16).to_be_bytes());
            }
            let addresses = if ip == 20 { &header[12..] } else { &header[8..] };
            let [high, low] = (datagram.len() as u16).to_be_bytes();
            let summed = [addresses, &[0, 17, high, low], datagram].concat();
            assert_eq!(folded(&summed), 0xffff, "{own}");
            assert_eq!(datagram[..6], [0, 9, 0x0d, 0x96, high, low]);
            assert_eq!(datagram.len() - 8 - 20, usize::from(datagram[11]), "STUN's own length");
        }
    }

    #[test]
    fn there_is_none_when_nobody_is_somebody() {
        let own = "203.0.113.1".parse().expect("address");
        assert!(frame(MAC, own, 1, &NOBODY).is_none());
    }
}
