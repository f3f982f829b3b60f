//! What secures the connection to a control server: Noise IK, then records of at most 4,096 bytes (control-registration
//! reference, "What the node has to do", 3).
//!
//! ```text
//! initiation  0  2  protocol version     response  0  1  2 (3 for an error)   record  0  1  4
//!             2  1  1                              1  2  48                           1  2  length of the rest
//!             3  2  96                             3  32 ephemeral key                3     ciphertext, tag
//!             5  32 ephemeral key                  35 16 tag
//!             37 48 machine key, sealed
//!             85 16 tag
//! ```
//!
//! Integers are big-endian, also the counter in a record's nonce: in that the protocol departs from Noise, whose
//! ChaChaPoly has it little-endian. So `snow` does the handshake, in which every nonce is 0, and the records are ours.

use std::fmt;

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use snow::{Builder, HandshakeState};
use zeroize::Zeroizing;

use super::keys::{MachinePrivate, MachinePublic};

/// Version of the protocol, and of what this client understands (Tailscale's "capability version"). Peers take a node for
/// a relay from 121 on.
pub(super) const VERSION: u16 = 130;

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_BLAKE2s";
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const ERROR: u8 = 3;
const RECORD: u8 = 4;
/// Bytes before the contents of everything but the initiation.
pub(super) const HEADER_LENGTH: usize = 3;
pub(super) const INITIATION_LENGTH: usize = 101;
const INITIATION_HEADER_LENGTH: usize = 5;
pub(super) const RESPONSE_LENGTH: usize = 48;
/// Most bytes of a record with its header.
pub(super) const MAX_RECORD: usize = 4096;
const TAG_LENGTH: usize = 16;
/// Most bytes that fit in a record.
pub(super) const MAX_CONTENT: usize = MAX_RECORD - HEADER_LENGTH - TAG_LENGTH;
/// How much of a server's refusal is read and shown.
pub(super) const MAX_REFUSAL: usize = 256;

/// Why there is no secure connection, or no longer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum NoiseError {
    /// The keys cannot be used.
    #[error("the Noise handshake cannot begin: {0}")]
    Begin(String),
    /// The server refuses the handshake. Nobody vouches for the text.
    #[error("the server refuses the Noise handshake: {0:?}")]
    Refused(String),
    /// The answer to the handshake is something else.
    #[error(
        "the server does not answer the Noise handshake, but sends type {kind} with {length} bytes"
    )]
    NoResponse {
        /// Type of what came.
        kind: u8,
        /// Its length.
        length: usize,
    },
    /// The answer was not made with the key that the server says to have.
    #[error("the server's answer to the Noise handshake is not sealed with its key")]
    Response,
    /// Something that is no record.
    #[error("a Noise record has type {0}, not {wanted}", wanted = RECORD)]
    Type(u8),
    /// A record of a length that none has.
    #[error(
        "a Noise record has {0} bytes, but at least {least} and at most {most}",
        least = TAG_LENGTH,
        most = MAX_RECORD - HEADER_LENGTH
    )]
    Length(usize),
    /// A record that was changed on its way, or does not belong here.
    #[error("a Noise record cannot be opened")]
    Seal,
    /// As many records as can be.
    #[error("the Noise connection is used up")]
    Exhausted,
    /// The message before HTTP/2 is too long.
    #[error("the server's early payload has {0} bytes, but at most {most}", most = MAX_EARLY)]
    Early(u32),
}

/// A handshake that waits for the server's answer.
pub(super) struct Handshake(HandshakeState);

impl Handshake {
    /// Begins a handshake; returns the message to send, too.
    pub(super) fn begin(
        machine: &MachinePrivate,
        server: &MachinePublic,
    ) -> Result<(Self, [u8; INITIATION_LENGTH]), NoiseError> {
        let fault = |error: snow::Error| NoiseError::Begin(error.to_string());
        let secret = machine.secret_bytes();
        let prologue = prologue(VERSION);
        let mut state = Builder::new(PATTERN.parse().map_err(fault)?)
            .local_private_key(secret.as_slice())
            .and_then(|builder| builder.remote_public_key(server.as_bytes()))
            .and_then(|builder| builder.prologue(prologue.as_bytes()))
            .and_then(Builder::build_initiator)
            .map_err(fault)?;
        let mut message = [0; INITIATION_LENGTH];
        let (head, body) = message.split_at_mut(INITIATION_HEADER_LENGTH);
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        head[..2].copy_from_slice(&VERSION.to_be_bytes());
        head[2] = INITIATION;
        head[3..].copy_from_slice(&length.to_be_bytes());
        let written = state.write_message(&[], body).map_err(fault)?;
        debug_assert_eq!(written, body.len());
        Ok((Self(state), message))
    }

    /// Ends it with what the server's response has after its header.
    pub(super) fn finish(
        mut self,
        response: &[u8; RESPONSE_LENGTH],
    ) -> Result<(Sealer, Incoming), NoiseError> {
        let mut payload = [0; RESPONSE_LENGTH];
        self.0.read_message(response, &mut payload).map_err(|_| NoiseError::Response)?;
        let (sending, receiving) = self.0.dangerously_get_raw_split();
        let (sending, receiving) = (Zeroizing::new(sending), Zeroizing::new(receiving));
        Ok((Sealer::new(&sending), Incoming::new(&receiving)))
    }
}

/// What is mixed into the handshake first.
pub(super) fn prologue(version: u16) -> String {
    format!("Tailscale Control Protocol v{version}")
}

/// What the header of the answer to an initiation says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    /// The response of [`RESPONSE_LENGTH`] bytes follows.
    Response,
    /// So many bytes of text follow.
    Refusal(usize),
}

/// Reads the header of the answer to an initiation.
pub(super) fn answer([kind, high, low]: [u8; HEADER_LENGTH]) -> Result<Answer, NoiseError> {
    let length = usize::from(u16::from_be_bytes([high, low]));
    match kind {
        RESPONSE if length == RESPONSE_LENGTH => Ok(Answer::Response),
        ERROR => Ok(Answer::Refusal(length)),
        _ => Err(NoiseError::NoResponse { kind, length }),
    }
}

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    let key = UnboundKey::new(&CHACHA20_POLY1305, key);
    LessSafeKey::new(key.expect("the key is as long as the cipher's"))
}

/// Counts nonces. The last number there is stays unused, as in the reference.
struct Counter(u64);

impl Counter {
    fn next(&mut self) -> Result<Nonce, NoiseError> {
        let number = self.0;
        self.0 = number.checked_add(1).ok_or(NoiseError::Exhausted)?;
        let mut nonce = [0; NONCE_LEN];
        nonce[4..].copy_from_slice(&number.to_be_bytes());
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what is sent.
pub(super) struct Sealer {
    cipher: LessSafeKey,
    counter: Counter,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { cipher: cipher(key), counter: Counter(0) }
    }

    /// Appends one record to `records` with the first bytes of `content`, and returns how many.
    pub(super) fn seal(
        &mut self,
        content: &[u8],
        records: &mut Vec<u8>,
    ) -> Result<usize, NoiseError> {
        let content = content.get(..MAX_CONTENT).unwrap_or(content);
        let sealed = u16::try_from(content.len() + TAG_LENGTH).unwrap_or(u16::MAX);
        let nonce = self.counter.next()?;
        let start = records.len() + HEADER_LENGTH;
        records.push(RECORD);
        records.extend(sealed.to_be_bytes());
        records.extend(content);
        let body = records.get_mut(start..).unwrap_or_default();
        let tag = self.cipher.seal_in_place_separate_tag(nonce, Aad::empty(), body);
        records.extend(tag.map_err(|_| NoiseError::Seal)?.as_ref());
        Ok(content.len())
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer([redacted])")
    }
}

/// The record that is being received, and what opens it.
pub(super) struct Incoming {
    cipher: LessSafeKey,
    counter: Counter,
    buffer: Box<[u8; MAX_RECORD]>,
    filled: usize,
    /// Bytes of the record, as far as is known.
    wanted: usize,
}

impl Incoming {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let buffer = Box::new([0; MAX_RECORD]);
        let cipher = cipher(key);
        Self { cipher, counter: Counter(0), buffer, filled: 0, wanted: HEADER_LENGTH }
    }

    /// Where the next bytes go, as many as are wanted.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..self.wanted).unwrap_or_default()
    }

    /// Whether no record has begun.
    pub(super) fn is_idle(&self) -> bool {
        self.filled == 0
    }

    /// Takes note that so many bytes of [`Self::space`] were filled, and returns what was in the record if that
    /// completes it.
    pub(super) fn advance(&mut self, count: usize) -> Result<Option<&[u8]>, NoiseError> {
        self.filled = self.filled.saturating_add(count).min(self.wanted);
        if self.filled < self.wanted {
            return Ok(None);
        }
        if self.wanted == HEADER_LENGTH {
            let [kind, high, low, ..] = *self.buffer;
            if kind != RECORD {
                return Err(NoiseError::Type(kind));
            }
            let length = usize::from(u16::from_be_bytes([high, low]));
            if !(TAG_LENGTH..=MAX_RECORD - HEADER_LENGTH).contains(&length) {
                return Err(NoiseError::Length(length));
            }
            self.wanted = HEADER_LENGTH + length;
            return Ok(None);
        }
        let nonce = self.counter.next()?;
        let sealed = self.buffer.get_mut(HEADER_LENGTH..self.wanted).unwrap_or_default();
        (self.filled, self.wanted) = (0, HEADER_LENGTH);
        let opened = self.cipher.open_in_place(nonce, Aad::empty(), sealed);
        opened.map(|content| Some(&*content)).map_err(|_| NoiseError::Seal)
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Incoming([redacted])")
    }
}

/// Magic of the message that may come before HTTP/2, with its length as long as the header of an HTTP/2 frame.
const EARLY_MAGIC: [u8; 5] = *b"\xff\xff\xffTS";
const EARLY_HEAD: usize = 9;
/// Most bytes of that message; it has about a hundred.
const MAX_EARLY: u32 = 1 << 20;

/// Leaves out the message that a server may send before HTTP/2. It says with which key a node could prove to own its
/// own, which nobody asks for yet.
#[derive(Debug)]
pub(super) enum Early {
    /// So many bytes of the head have come.
    Head([u8; EARLY_HEAD], usize),
    /// So many bytes are still to be left out.
    Skip(u32),
    /// All is HTTP/2 from here on.
    Over,
}

impl Default for Early {
    fn default() -> Self {
        Self::Head([0; EARLY_HEAD], 0)
    }
}

impl Early {
    /// Appends to `http` what of `content` is HTTP/2.
    pub(super) fn strip(
        &mut self,
        mut content: &[u8],
        http: &mut Vec<u8>,
    ) -> Result<(), NoiseError> {
        if let Self::Head(head, filled) = self {
            let count = content.len().min(EARLY_HEAD - *filled);
            let (taken, rest) = content.split_at(count);
            head.iter_mut().skip(*filled).zip(taken).for_each(|(place, byte)| *place = *byte);
            *filled += count;
            content = rest;
            if *filled < EARLY_HEAD {
                return Ok(());
            }
            let [m0, m1, m2, m3, m4, length @ ..] = *head;
            if [m0, m1, m2, m3, m4] == EARLY_MAGIC {
                let length = u32::from_be_bytes(length);
                if length > MAX_EARLY {
                    return Err(NoiseError::Early(length));
                }
                *self = Self::Skip(length);
            } else {
                http.extend(*head);
                *self = Self::Over;
            }
        }
        if let Self::Skip(left) = self {
            let count = usize::try_from(*left).unwrap_or(usize::MAX).min(content.len());
            *left -= u32::try_from(count).unwrap_or(*left);
            content = content.get(count..).unwrap_or_default();
            if *left > 0 {
                return Ok(());
            }
            *self = Self::Over;
        }
        http.extend(content);
        Ok(())
    }
}
