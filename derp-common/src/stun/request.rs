//! Recognises a Binding request (RFC 8489 sections 5, 6.3.1 and 14).

use super::{
    ATTRIBUTE_HEADER, BINDING_REQUEST, Crc, FINGERPRINT, FINGERPRINT_XOR, HEADER, MAGIC_COOKIE, crc,
};
use crate::{checksum::Sum, packet::Packet, reason::Reason};

/// Longest message the kernel program looks at; requests in use have 20 to about 100 bytes.
pub const KERNEL_MAX: usize = 128;

/// Most attributes the kernel program looks at; requests in use have at most four.
pub const KERNEL_ATTRIBUTES: usize = 8;

/// One bit per comprehension-required attribute of RFC 8489 (section 18.3), all below 0x40: a server
/// without credentials understands and ignores them.
const KNOWN: u64 = 1 << 0x01 // MAPPED-ADDRESS
    | 1 << 0x06 // USERNAME
    | 1 << 0x08 // MESSAGE-INTEGRITY
    | 1 << 0x09 // ERROR-CODE
    | 1 << 0x0a // UNKNOWN-ATTRIBUTES
    | 1 << 0x14 // REALM
    | 1 << 0x15 // NONCE
    | 1 << 0x1c // MESSAGE-INTEGRITY-SHA256
    | 1 << 0x1d // PASSWORD-ALGORITHM
    | 1 << 0x1e // USERHASH
    | 1 << 0x20; // XOR-MAPPED-ADDRESS

/// Tells whether a request with this attribute has to be refused: it must be understood
/// (below 0x8000) and is not.
#[inline(always)]
const fn is_unknown(attribute: u16) -> bool {
    attribute < 0x8000 && (attribute >= 64 || KNOWN >> attribute & 1 == 0)
}

/// Checks that the `length` bytes at `at` are one well-formed Binding request of at most `MAX` bytes
/// and `ATTRIBUTES` attributes, and returns their sum for the UDP checksum.
///
/// The length in the header must be that of the message, and the attributes must tile it exactly.
/// FINGERPRINT may be absent; if present it must be right and last. For each attribute that has to be
/// known and is not, `unknown` decides whether the check goes on.
///
/// # Errors
///
/// The reason why this is no request to answer.
#[inline(always)]
pub fn check<const MAX: usize, const ATTRIBUTES: usize, P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
    unknown: impl FnMut(u16) -> Result<(), Reason>,
) -> Result<Sum, Reason> {
    check_header::<MAX, P>(packet, at, length)?;
    check_body::<MAX, ATTRIBUTES, P>(packet, at, length, unknown)
}

/// The rest of [`check`], after [`check_header`].
///
/// # Errors
///
/// As [`check`].
#[inline(always)]
pub fn check_body<const MAX: usize, const ATTRIBUTES: usize, P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
    unknown: impl FnMut(u16) -> Result<(), Reason>,
) -> Result<Sum, Reason> {
    let has_fingerprint = check_attributes::<MAX, ATTRIBUTES, P>(packet, at, length, unknown)?;
    let digest = digest::<MAX, P>(packet, at, length)?;
    if has_fingerprint && digest.last != (digest.crc.finish() ^ FINGERPRINT_XOR).to_be_bytes() {
        return Err(Reason::InvalidFingerprint);
    }
    Ok(digest.sum)
}

/// Bytes of the request that Tailscale's clients send, of which nothing varies but the transaction id and
/// FINGERPRINT's value: SOFTWARE, "tailnode", and FINGERPRINT.
pub const USUAL_LENGTH: usize = 40;

/// That request with zeroes for what varies.
const USUAL: [u8; USUAL_LENGTH] =
    *b"\x00\x01\x00\x14\x21\x12\xa4\x42\0\0\0\0\0\0\0\0\0\0\0\0\x80\x22\x00\x08tailnode\x80\x28\x00\x04\0\0\0\0";

/// The CRC over it.
const USUAL_CRC: u32 = crc::of(USUAL.split_at(USUAL_LENGTH - 8).0);

/// The sum over it.
const USUAL_SUM: Sum = {
    let mut sum = Sum::ZERO;
    let mut at = 0;
    while at < USUAL_LENGTH {
        sum = sum.half(u16::from_ne_bytes([USUAL[at], USUAL[at + 1]]));
        at += 2;
    }
    sum
};

/// Eight bytes of it.
const fn usual(at: usize) -> [u8; 8] {
    match USUAL.split_at(at).1.first_chunk() {
        Some(bytes) => *bytes,
        None => [0; 8],
    }
}

/// Tells whether the [`USUAL_LENGTH`] bytes at `at` are that request, as far as it does not vary.
#[inline(always)]
pub fn is_usual<P: Packet>(packet: &P, at: usize) -> bool {
    let [Some(a), Some(b), Some(c)] = [0, 20, 28].map(|it| packet.read(at + it)) else {
        return false;
    };
    // One comparison: three would be three ways on for the verifier to follow.
    let differs =
        |found: [u8; 8], wanted: [u8; 8]| u64::from_ne_bytes(found) ^ u64::from_ne_bytes(wanted);
    differs(a, const { usual(0) })
        | differs(b, const { usual(20) })
        | differs(c, const { usual(28) })
        == 0
}

/// Checks the rest of a request of which [`is_usual`] is true, and returns its sum for the UDP checksum: as
/// [`check`], in half the time.
///
/// # Errors
///
/// [`Reason::InvalidFingerprint`].
#[inline(always)]
pub fn check_usual<P: Packet>(packet: &P, at: usize) -> Result<Sum, Reason> {
    let cut = Reason::InvalidStunLength;
    let first: [u8; 8] = packet.read(at + 8).ok_or(cut)?;
    let last: [u8; 4] = packet.read(at + 16).ok_or(cut)?;
    let stored = packet.word(at + 36).ok_or(cut)?;
    let crc = USUAL_CRC ^ crc::of_transaction(first, last);
    if stored != (crc ^ FINGERPRINT_XOR).to_be() {
        return Err(Reason::InvalidFingerprint);
    }
    Ok(add_pair(USUAL_SUM, first).word(u32::from_ne_bytes(last)).word(stored))
}

/// Checks the header only, which tells what kind of message it is and whether it may be long enough.
///
/// # Errors
///
/// The reason why this is no request to answer.
#[inline(always)]
pub fn check_header<const MAX: usize, P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
) -> Result<(), Reason> {
    let short = Reason::NotStun;
    if length < HEADER {
        return Err(short);
    }
    let [kind_high, kind_low, length_high, length_low] = packet.read(at).ok_or(short)?;
    let cookie: [u8; 4] = packet.read(at + 4).ok_or(short)?;
    if cookie != MAGIC_COOKIE || kind_high & 0xc0 != 0 {
        return Err(Reason::NotStun);
    }
    if u16::from_be_bytes([kind_high, kind_low]) != BINDING_REQUEST {
        return Err(Reason::NotBindingRequest);
    }
    let declared = usize::from(u16::from_be_bytes([length_high, length_low]));
    if declared != length - HEADER || declared % 4 != 0 {
        return Err(Reason::InvalidStunLength);
    }
    if length > MAX { Err(Reason::StunTooLong) } else { Ok(()) }
}

/// Goes from attribute to attribute, and tells whether the last one is a FINGERPRINT.
#[inline(always)]
fn check_attributes<const MAX: usize, const ATTRIBUTES: usize, P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
    mut unknown: impl FnMut(u16) -> Result<(), Reason>,
) -> Result<bool, Reason> {
    let mut next = HEADER;
    for _ in 0..ATTRIBUTES {
        if next >= length {
            return Ok(false);
        }
        let [kind_high, kind_low, value_high, value_low] =
            packet.read_anywhere(at + next).ok_or(Reason::InvalidStunLength)?;
        let kind = u16::from_be_bytes([kind_high, kind_low]);
        let value = usize::from(u16::from_be_bytes([value_high, value_low]));
        // The comparison with a constant is for verifiers before Linux 6.8, which learn no bounds
        // from one variable about another.
        if value > MAX {
            return Err(Reason::InvalidStunLength);
        }
        // `next_multiple_of` would branch, and double what the verifier follows with each attribute.
        next += ATTRIBUTE_HEADER + ((value + 3) & !3);
        if next > length {
            return Err(Reason::InvalidStunLength);
        }
        if is_unknown(kind) {
            unknown(kind)?;
        }
        if kind == FINGERPRINT {
            let is_last = value == 4 && next == length;
            return if is_last { Ok(true) } else { Err(Reason::InvalidFingerprint) };
        }
    }
    if next == length { Ok(false) } else { Err(Reason::StunTooLong) }
}

/// What is computed over all bytes of a message.
struct Digest {
    /// Sum of all words.
    sum: Sum,
    /// CRC of all but the last two words, which would be FINGERPRINT.
    crc: Crc,
    /// The last word, FINGERPRINT's value if it has one.
    last: [u8; 4],
}

/// Computes everything in one pass, apart from the attributes: every offset is then a constant to the
/// kernel's verifier, which else would follow each combination of message and attribute length.
///
/// The length is a multiple of four, and at least the header's.
#[inline(always)]
fn digest<const MAX: usize, P: Packet>(
    packet: &P,
    at: usize,
    length: usize,
) -> Result<Digest, Reason> {
    let cut = Reason::InvalidStunLength;
    let (mut sum, mut crc) = (Sum::ZERO, Crc::START);
    let mut offset = 0;
    // What comes before the last two words, two words at a step, and then the one that may be left.
    while offset + 16 <= MAX && offset + 16 <= length {
        let pair: [u8; 8] = packet.read_anywhere(at + offset).ok_or(cut)?;
        sum = add_pair(sum, pair);
        crc = crc.pair(pair);
        offset += 8;
    }
    if offset + 12 <= length {
        let word = packet.read_anywhere(at + offset).ok_or(cut)?;
        sum = sum.word(u32::from_ne_bytes(word));
        crc = crc.word(word);
        offset += 4;
    }
    let pair: [u8; 8] = packet.read_anywhere(at + offset).ok_or(cut)?;
    let [_, _, _, _, last @ ..] = pair;
    Ok(Digest { sum: add_pair(sum, pair), crc, last })
}

#[inline(always)]
const fn add_pair(sum: Sum, [a, b, c, d, e, f, g, h]: [u8; 8]) -> Sum {
    sum.word(u32::from_ne_bytes([a, b, c, d])).word(u32::from_ne_bytes([e, f, g, h]))
}
