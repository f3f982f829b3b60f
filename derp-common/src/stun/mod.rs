//! STUN (RFC 8489) as far as a server needs it that tells clients their address and nothing else.
//!
//! ```text
//! 0   type (2), length of what follows the header (2)
//! 4   magic cookie
//! 8   transaction id (12)
//! 20  attributes: type (2), length (2), value, padding to a multiple of 4
//! ```

mod crc;
pub mod request;
pub mod response;

pub use self::crc::Crc;

/// Bytes of the message header.
pub const HEADER: usize = 20;
/// Bytes of an attribute's type and length.
pub const ATTRIBUTE_HEADER: usize = 4;
/// What every message has at offset 4.
pub const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// Message type of a Binding request.
pub const BINDING_REQUEST: u16 = 0x0001;
/// Message type of the answer to one.
pub const BINDING_SUCCESS: u16 = 0x0101;
/// Message type of a refusal of one.
pub const BINDING_ERROR: u16 = 0x0111;

/// Attribute: why a request was refused.
pub const ERROR_CODE: u16 = 0x0009;
/// Attribute: which attributes were not known.
pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
/// Attribute: the client's address, XORed with the cookie and transaction id.
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Attribute: name of the client's software.
pub const SOFTWARE: u16 = 0x8022;
/// Attribute: CRC of everything before it.
pub const FINGERPRINT: u16 = 0x8028;

/// What the CRC in a FINGERPRINT is XORed with, "STUN" (RFC 8489 section 14.7).
pub const FINGERPRINT_XOR: u32 = 0x5354_554e;

#[cfg(test)]
mod tests;
