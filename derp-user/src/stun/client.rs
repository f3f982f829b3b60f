//! What a STUN client says and hears (RFC 8489): bytes only.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use derp_common::stun::{
    ATTRIBUTE_HEADER, BINDING_REQUEST, BINDING_SUCCESS, Crc, FINGERPRINT, FINGERPRINT_XOR, HEADER,
    MAGIC_COOKIE, SOFTWARE, XOR_MAPPED_ADDRESS,
};

/// Bytes of a transaction id.
const TRANSACTION: usize = 12;
/// What derper wants to read in SOFTWARE; it answers nobody else.
const NAME: [u8; 8] = *b"tailnode";

/// What names one request.
pub(crate) type Transaction = [u8; TRANSACTION];

/// A Binding request as Tailscale's clients send it.
pub(crate) fn request(transaction: &Transaction) -> Vec<u8> {
    let [kind, software, fingerprint] =
        [BINDING_REQUEST, SOFTWARE, FINGERPRINT].map(u16::to_be_bytes);
    let length = |length: usize| (length as u16).to_be_bytes();
    let attributes = 2 * ATTRIBUTE_HEADER + NAME.len() + 4;
    let mut message = [&kind, &length(attributes), &MAGIC_COOKIE[..], transaction].concat();
    message.extend([software, length(NAME.len())].concat());
    message.extend(NAME);
    let words = message.chunks_exact(4);
    let crc = words.fold(Crc::START, |crc, word| crc.word([word[0], word[1], word[2], word[3]]));
    message.extend([fingerprint, length(4)].concat());
    message.extend((crc.finish() ^ FINGERPRINT_XOR).to_be_bytes());
    message
}

/// What an answer says: which request it answers, and the address.
pub(crate) fn answer(message: &[u8]) -> Option<(Transaction, SocketAddr)> {
    let (head, mut rest) = message.split_at_checked(HEADER)?;
    if !is_answer(head) {
        return None;
    }
    let transaction: Transaction = head.get(8..)?.try_into().ok()?;
    loop {
        let (attribute, after) = rest.split_first_chunk::<ATTRIBUTE_HEADER>()?;
        let [kind_high, kind_low, high, low] = *attribute;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if u16::from_be_bytes([kind_high, kind_low]) == XOR_MAPPED_ADDRESS {
            return Some((transaction, unmasked(after.get(..length)?, &transaction)?));
        }
        rest = after.get(length.next_multiple_of(4)..)?;
    }
}

/// Takes the mask of cookie and transaction off an address (RFC 8489 section 14.2).
fn unmasked(value: &[u8], transaction: &Transaction) -> Option<SocketAddr> {
    let ([_, family, port @ ..], masked) = value.split_first_chunk::<4>()?;
    let mask = MAGIC_COOKIE.iter().chain(transaction);
    let bytes: Vec<u8> = masked.iter().zip(mask).map(|(byte, mask)| byte ^ mask).collect();
    let port = u16::from_be_bytes([port[0] ^ MAGIC_COOKIE[0], port[1] ^ MAGIC_COOKIE[1]]);
    let ip: IpAddr = match family {
        1 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        2 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// Tells whether a datagram is an answer to a Binding request, by its head.
pub(crate) fn is_answer(message: &[u8]) -> bool {
    let kind = message.get(..2) == Some(BINDING_SUCCESS.to_be_bytes().as_slice());
    kind && message.get(4..8) == Some(MAGIC_COOKIE.as_slice())
}

/// A transaction id that nobody can guess.
///
/// # Errors
///
/// When the system has no random numbers.
pub(crate) fn random_transaction() -> io::Result<Transaction> {
    let mut transaction = [0; TRANSACTION];
    getrandom::fill(&mut transaction).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(transaction)
}

#[cfg(test)]
mod tests {
    use derp_common::{Reason, SlicePacket, stun::request::check};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_what_the_server_takes() {
        let mut message = request(&[7; TRANSACTION]);
        assert_eq!(message.len(), 40);
        let judged = |message: &mut [u8]| {
            let length = message.len();
            check::<128, 8, _>(&SlicePacket::new(message, length), 0, length, |_| Ok(())).map(drop)
        };
        assert_eq!(judged(&mut message), Ok(()));
        message[25] ^= 1;
        assert_eq!(judged(&mut message), Err(Reason::InvalidFingerprint));
    }

    /// RFC 5769 sections 2.2 and 2.3, without what stands before and behind the address.
    #[test]
    fn answers_are_read() {
        let transaction = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
        let head = [b"\x01\x01\x00\x14", &MAGIC_COOKIE[..], &transaction].concat();
        let software = b"\x80\x22\x00\x03abc\x00";
        let ipv4 = b"\x00\x20\x00\x08\x00\x01\xa1\x47\xe1\x12\xa6\x43";
        let message = [&head[..], software, ipv4].concat();
        let expected = (transaction, "192.0.2.1:32853".parse().unwrap());
        assert_eq!(answer(&message), Some(expected));
        let ipv6 = b"\x00\x20\x00\x14\x00\x02\xa1\x47\x01\x13\xa9\xfa\xa5\xd3\xf1\x79\xbc\x25\xf4\xb5\xbe\xd2\xb9\xd9";
        let message = [&head[..], ipv6].concat();
        let expected = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
        assert_eq!(answer(&message), Some((transaction, expected)));
        for end in 0..message.len() {
            assert_eq!(answer(&message[..end]), None, "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = answer(&body);
            let _ = answer(&[&b"\x01\x01\x00\x00\x21\x12\xa4\x42"[..], &[0; 12], &body].concat());
        }
    }
}
