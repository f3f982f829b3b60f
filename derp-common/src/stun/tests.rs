use core::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::{Address, Family, Packet as _, Reason, SlicePacket};

/// RFC 5769 section 2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME,
/// MESSAGE-INTEGRITY and FINGERPRINT.
const SAMPLE_REQUEST: [u8; 108] = *b"\
    \x00\x01\x00\x58\x21\x12\xa4\x42\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae\
    \x80\x22\x00\x10STUN test client\
    \x00\x24\x00\x04\x6e\x00\x01\xff\
    \x80\x29\x00\x08\x93\x2f\xf9\xb1\x51\x26\x3b\x36\
    \x00\x06\x00\x09evtj:h6vY   \
    \x00\x08\x00\x14\x9a\xea\xa7\x0c\xbf\xd8\xcb\x56\x78\x1e\xf2\xb5\xb2\xd3\xf2\x49\xc1\xb5\x71\xa2\
    \x80\x28\x00\x04\xe5\x7a\x3b\xcf";

/// Checks a message, and returns the attributes that were not known.
fn check(message: &[u8]) -> Result<Vec<u16>, Reason> {
    let mut bytes = message.to_vec();
    let packet = SlicePacket::new(&mut bytes, message.len());
    let mut unknown = Vec::new();
    request::check::<1500, 64, _>(&packet, 0, message.len(), |kind| {
        unknown.push(kind);
        Ok(())
    })?;
    Ok(unknown)
}

/// Answers a request from this address and port.
fn answer(request: &[u8], address: &str, port: u16) -> Vec<u8> {
    let address: IpAddr = address.parse().expect("test address");
    let family = if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
    let mut buffer = request.to_vec();
    buffer.resize(64, 0xee);
    let mut packet = SlicePacket::new(&mut buffer, response::len(family));
    response::write(&mut packet, 0, family, &address.into(), port.to_be()).expect("room");
    packet.bytes().to_vec()
}

#[test]
fn rfc_5769_sample_request_is_intact_and_asks_for_ice() {
    // PRIORITY must be understood and is ICE's, not a server's.
    assert_eq!(check(&SAMPLE_REQUEST), Ok(vec![0x0024]));
}

#[test]
fn rfc_5769_sample_answers() {
    // Sections 2.2 and 2.3 carry SOFTWARE and credentials, too; compared is XOR-MAPPED-ADDRESS.
    let ipv4 = answer(&SAMPLE_REQUEST, "192.0.2.1", 32853);
    assert_eq!(ipv4[..4], [1, 1, 0, 12]);
    assert_eq!(ipv4[4..20], SAMPLE_REQUEST[4..20]);
    assert_eq!(ipv4[20..], *b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43");
    let ipv6 = answer(&SAMPLE_REQUEST, "2001:db8:1234:5678:11:2233:4455:6677", 32853);
    assert_eq!(ipv6[..4], [1, 1, 0, 24]);
    assert_eq!(
        ipv6[20..],
        *b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9"
    );
}

#[test]
fn any_bit_flip_that_leaves_the_attributes_in_place_is_noticed() {
    let attribute_headers = [20..24, 40..44, 48..52, 60..64, 76..80, 100..104];
    for bit in 0..SAMPLE_REQUEST.len() * 8 {
        let byte = bit / 8;
        // A flip in here can make FINGERPRINT part of another attribute, and that is no error.
        if attribute_headers.iter().any(|header| header.contains(&byte)) {
            continue;
        }
        let mut damaged = SAMPLE_REQUEST;
        damaged[byte] ^= 1 << (bit % 8);
        assert!(check(&damaged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_request_cut_anywhere_is_refused() {
    for length in 0..SAMPLE_REQUEST.len() {
        assert!(check(&SAMPLE_REQUEST[..length]).is_err(), "{length} bytes");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = check(&bytes);
    }

    #[test]
    fn no_attributes_panic(
        body in proptest::collection::vec(any::<u8>(), 0..200),
        length in proptest::option::of(any::<u16>()),
    ) {
        let length = length.unwrap_or(body.len() as u16);
        let head = [[0, 1], length.to_be_bytes()].concat();
        let _ = check(&[&head[..], &MAGIC_COOKIE, &[7; 12], &body].concat());
    }

    #[test]
    fn the_answer_tells_the_client_its_address(address: IpAddr, port: u16, id: [u8; 12]) {
        let address = address.to_canonical();
        let mut request = SAMPLE_REQUEST;
        request[8..20].copy_from_slice(&id);
        let answer = answer(&request, &address.to_string(), port);
        let mask = [&MAGIC_COOKIE[..], &id].concat();
        let told: Vec<u8> = answer[28..].iter().zip(&mask).map(|(a, b)| a ^ b).collect();
        let expected = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        prop_assert_eq!(told, expected);
        prop_assert_eq!(u16::from_be_bytes([answer[26], answer[27]]) ^ 0x2112, port);
        prop_assert_eq!(answer.len(), 20 + usize::from(answer[3]));
    }

    #[test]
    fn the_sum_is_that_of_the_bytes(id: [u8; 12], port: u16) {
        let mut request = SAMPLE_REQUEST;
        request[8..20].copy_from_slice(&id);
        let mut packet = SlicePacket::new(&mut request, 32);
        let address = Address::v4(0x0102_0304);
        let sum = response::write(&mut packet, 0, Family::Ipv4, &address, port).expect("room");
        let expected = (0..8).fold(crate::checksum::Sum::ZERO, |sum, word| {
            sum.word(packet.word(word * 4).expect("inside"))
        });
        prop_assert_eq!(sum.fold(), expected.fold());
    }
}
