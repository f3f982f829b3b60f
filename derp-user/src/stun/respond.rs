//! What the server says to one datagram. Pure: bytes in, bytes out.

use std::net::{IpAddr, SocketAddr};

use derp_common::{
    Address, Family, Reason, SlicePacket,
    stun::{
        BINDING_ERROR, ERROR_CODE, HEADER, UNKNOWN_ATTRIBUTES,
        request::{self},
        response,
    },
};

/// Longest datagram that is looked at.
pub(super) const DATAGRAM_MAX: usize = 1500;
/// Most attributes a request may have.
const ATTRIBUTES_MAX: usize = 64;
/// Most unknown attributes a refusal lists.
const LISTED_MAX: usize = 8;
/// Longest answer: a refusal that lists the most.
pub(super) const REPLY_MAX: usize = HEADER + 8 + 4 + 2 * LISTED_MAX;

/// Writes the answer to `datagram` into `reply` and returns its length.
///
/// A Binding request gets the client's address. One with attributes that have to be understood and are
/// not gets error 420 (RFC 8489 section 6.3.1); its reason phrase is empty, so that nobody gains much by
/// having refusals sent to somebody else.
///
/// # Errors
///
/// The reason why the datagram gets no answer.
pub(super) fn respond(
    datagram: &mut [u8],
    from: SocketAddr,
    reply: &mut [u8; REPLY_MAX],
) -> Result<usize, Reason> {
    let length = datagram.len();
    let mut unknown = Unknown::default();
    let packet = SlicePacket::new(datagram, length);
    request::check::<DATAGRAM_MAX, ATTRIBUTES_MAX, _>(&packet, 0, length, |kind| {
        unknown.add(kind);
        Ok(())
    })?;
    if from.port() == 0 {
        return Err(Reason::UnusableSource);
    }
    // Cookie and transaction id are the request's.
    let head = packet.bytes().get(..HEADER).ok_or(Reason::NotStun)?;
    reply.get_mut(..HEADER).ok_or(Reason::RewriteFailed)?.copy_from_slice(head);
    let written = match unknown.list() {
        [] => write_success(reply, from),
        unknown => write_refusal(reply, unknown),
    };
    written.ok_or(Reason::RewriteFailed)
}

fn write_success(reply: &mut [u8], from: SocketAddr) -> Option<usize> {
    // A client on an IPv4 socket is never told an IPv6-family address.
    let ip = from.ip().to_canonical();
    let family = match ip {
        IpAddr::V4(_) => Family::Ipv4,
        IpAddr::V6(_) => Family::Ipv6,
    };
    let length = response::len(family);
    let mut packet = SlicePacket::new(reply, length);
    response::write(&mut packet, 0, family, &Address::from(ip), from.port().to_be())?;
    Some(length)
}

fn write_refusal(reply: &mut [u8], unknown: &[u16]) -> Option<usize> {
    let list: Vec<u8> = unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
    let mut body = Vec::with_capacity(REPLY_MAX - HEADER);
    body.extend(ERROR_CODE.to_be_bytes());
    // Length 4, two reserved bytes, class 4, number 20 (RFC 8489 section 14.8).
    body.extend([0, 4, 0, 0, 4, 20]);
    body.extend(UNKNOWN_ATTRIBUTES.to_be_bytes());
    body.extend(u16::try_from(list.len()).ok()?.to_be_bytes());
    body.extend(list);
    body.resize(body.len().next_multiple_of(4), 0);
    let length = u16::try_from(body.len()).ok()?;
    reply.get_mut(..2)?.copy_from_slice(&BINDING_ERROR.to_be_bytes());
    reply.get_mut(2..4)?.copy_from_slice(&length.to_be_bytes());
    reply.get_mut(HEADER..HEADER + body.len())?.copy_from_slice(&body);
    Some(HEADER + body.len())
}

/// The first few attributes that were not known.
#[derive(Default)]
struct Unknown {
    kinds: [u16; LISTED_MAX],
    count: usize,
}

impl Unknown {
    fn add(&mut self, kind: u16) {
        if let Some(place) = self.kinds.get_mut(self.count) {
            *place = kind;
            self.count += 1;
        }
    }

    fn list(&self) -> &[u16] {
        self.kinds.get(..self.count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEAD: [u8; HEADER] = *b"\x00\x01\x00\x00\x21\x12\xa4\x42transaction!";
    const FROM: &str = "192.0.2.1:32853";

    fn request(attributes: &[u8]) -> Vec<u8> {
        let mut request = [&HEAD[..], attributes].concat();
        request[2..4].copy_from_slice(&(attributes.len() as u16).to_be_bytes());
        request
    }

    fn answer(mut datagram: Vec<u8>, from: &str) -> Result<Vec<u8>, Reason> {
        let mut reply = [0xee; REPLY_MAX];
        let from = from.parse().expect("test address");
        let length = respond(&mut datagram, from, &mut reply)?;
        Ok(reply[..length].to_vec())
    }

    #[test]
    fn a_client_is_told_its_address() {
        let answer = answer(request(&[]), FROM).expect("an answer");
        assert_eq!(answer[..8], *b"\x01\x01\x00\x0c\x21\x12\xa4\x42");
        assert_eq!(answer[20..], *b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43");
    }

    #[test]
    fn a_v4_mapped_client_is_told_its_ipv4_address() {
        let mapped = answer(request(&[]), "[::ffff:192.0.2.1]:32853");
        assert_eq!(mapped, answer(request(&[]), FROM));
    }

    #[test]
    fn unknown_required_attributes_are_refused_by_name() {
        let attributes = b"\x00\x24\x00\x04\x00\x00\x00\x00\x00\x03\x00\x01\x00\x00\x00\x00";
        let answer = answer(request(attributes), FROM).expect("a refusal");
        assert_eq!(answer[..8], *b"\x01\x11\x00\x10\x21\x12\xa4\x42");
        assert_eq!(answer[8..20], *b"transaction!");
        assert_eq!(answer[20..28], *b"\x00\x09\x00\x04\x00\x00\x04\x14");
        assert_eq!(answer[28..], *b"\x00\x0a\x00\x04\x00\x24\x00\x03");
    }

    #[test]
    fn a_refusal_lists_a_bounded_number() {
        let attributes = b"\x00\x24\x00\x00".repeat(60);
        let answer = answer(request(&attributes), FROM).expect("a refusal");
        assert_eq!(answer.len(), REPLY_MAX);
    }

    #[test]
    fn nothing_else_is_answered() {
        for (what, datagram) in [
            ("an answer", [b"\x01\x01", &HEAD[2..]].concat()),
            ("an error", [b"\x01\x11", &HEAD[2..]].concat()),
            ("classic STUN", [&HEAD[..4], b"\x01", &HEAD[5..]].concat()),
            ("nothing", Vec::new()),
        ] {
            assert!(answer(datagram, FROM).is_err(), "{what}");
        }
        assert_eq!(answer(request(&[]), "192.0.2.1:0"), Err(Reason::UnusableSource));
    }

    proptest! {
        #[test]
        fn an_answer_is_never_answered(
            body in proptest::collection::vec(any::<[u8; 4]>(), 0..20),
            port: u16,
        ) {
            let from = format!("192.0.2.1:{port}");
            if let Ok(reply) = answer(request(&body.concat()), &from) {
                prop_assert!(reply.len() <= REPLY_MAX);
                prop_assert!(answer(reply, &from).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = answer(bytes, FROM);
        }
    }
}
