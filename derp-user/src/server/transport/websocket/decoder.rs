//! The frames of a WebSocket client, taken apart in place (RFC 6455 section 5). Without I/O.

use std::{io::Cursor, mem};

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use super::{Phase, frame};

/// Longest message that is taken, though none of it is kept. derper takes 32 KiB, which is less than the
/// packets that it relays.
const MAX_MESSAGE: usize = 1 << 20;
/// Longest payload of a control frame (RFC 6455 section 5.5).
const MAX_CONTROL: usize = 125;

/// What a client did that ends the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::server) enum WebSocketFault {
    #[error("a frame that is not masked")]
    Unmasked,
    #[error("a frame with a reserved bit or type")]
    Reserved,
    #[error("a control frame in pieces or of more than {MAX_CONTROL} bytes")]
    Control,
    #[error("a close frame with a malformed status")]
    Close,
    #[error("a message within another one")]
    Nested,
    #[error("the continuation of no message")]
    Continuation,
    #[error("a text message")]
    Text,
    #[error("a message of more than {MAX_MESSAGE} bytes")]
    TooLong,
}

impl WebSocketFault {
    /// What the client is told.
    pub(super) fn code(self) -> CloseCode {
        match self {
            Self::Unmasked
            | Self::Reserved
            | Self::Control
            | Self::Close
            | Self::Nested
            | Self::Continuation => CloseCode::Protocol,
            Self::Text => CloseCode::Unsupported,
            Self::TooLong => CloseCode::Size,
        }
    }
}

/// Where a client's stream of frames stands.
#[derive(Debug)]
pub(super) struct Decoder {
    /// A header or a control frame whose rest has yet to come.
    incomplete: Vec<u8>,
    /// Bytes that the data frame at hand still has.
    left: usize,
    /// Their mask, beginning with what the next byte is masked with.
    mask: [u8; 4],
    /// The length so far of a message that goes on in another frame.
    message: Option<usize>,
}

/// What stands where a frame may begin.
enum Next {
    /// A whole control frame, or the header of a data frame: so many bytes.
    Done(usize),
    /// The frame behind which nothing counts.
    Close,
    Incomplete,
}

impl Decoder {
    /// A decoder whose first bytes have come already.
    pub(super) fn new(early: Vec<u8>) -> Self {
        Self { incomplete: early, left: 0, mask: [0; 4], message: None }
    }

    /// What the next [`Self::decode`] must begin with.
    pub(super) fn take_incomplete(&mut self) -> Vec<u8> {
        mem::take(&mut self.incomplete)
    }

    /// Replaces the frames in `bytes` from `start` on by the data in them, and appends to `answers` what
    /// they call for: Pong, Close. What follows a Close frame or a fault is dropped.
    pub(super) fn decode(
        &mut self,
        bytes: &mut Vec<u8>,
        start: usize,
        answers: &mut Vec<u8>,
    ) -> Result<Phase, WebSocketFault> {
        let (mut read, mut written) = (start, start);
        let result = loop {
            let count = self.left.min(bytes.len() - read);
            bytes.copy_within(read..read + count, written);
            self.unmask(&mut bytes[written..written + count]);
            self.left -= count;
            read += count;
            written += count;
            if self.left > 0 {
                break Ok(Phase::Established);
            }
            match self.next_frame(&mut bytes[read..], answers) {
                Ok(Next::Done(length)) => read += length,
                Ok(Next::Close) => break Ok(Phase::Ended),
                Ok(Next::Incomplete) => {
                    self.incomplete = bytes[read..].to_vec();
                    break Ok(Phase::Established);
                }
                Err(fault) => break Err(fault),
            }
        };
        bytes.truncate(written);
        result
    }

    fn next_frame(
        &mut self,
        bytes: &mut [u8],
        answers: &mut Vec<u8>,
    ) -> Result<Next, WebSocketFault> {
        let mut cursor = Cursor::new(&*bytes);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| WebSocketFault::Reserved)?;
        let Some((header, length)) = parsed else { return Ok(Next::Incomplete) };
        let header_length = header.len(length);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return Err(WebSocketFault::Reserved);
        }
        self.mask = header.mask.ok_or(WebSocketFault::Unmasked)?;
        let control = match header.opcode {
            OpCode::Control(control) => control,
            OpCode::Data(data) => {
                self.begin_data(data, header.is_final, length)?;
                return Ok(Next::Done(header_length));
            }
        };
        if length > MAX_CONTROL || !header.is_final {
            return Err(WebSocketFault::Control);
        }
        let end = header_length + length;
        let Some(payload) = bytes.get_mut(header_length..end) else {
            return Ok(Next::Incomplete);
        };
        self.unmask(payload);
        match control {
            Control::Close => {
                let status = status(payload)?;
                frame(answers, OpCode::Control(Control::Close), status);
                Ok(Next::Close)
            }
            Control::Ping => {
                frame(answers, OpCode::Control(Control::Pong), payload);
                Ok(Next::Done(end))
            }
            Control::Pong => Ok(Next::Done(end)),
            Control::Reserved(_) => Err(WebSocketFault::Reserved),
        }
    }

    /// Notes the beginning of a data frame.
    fn begin_data(
        &mut self,
        data: Data,
        is_final: bool,
        length: usize,
    ) -> Result<(), WebSocketFault> {
        let before = match (data, self.message.take()) {
            (Data::Binary, None) => 0,
            (Data::Continue, Some(before)) => before,
            (Data::Continue, None) => return Err(WebSocketFault::Continuation),
            (Data::Text, None) => return Err(WebSocketFault::Text),
            (Data::Binary | Data::Text, Some(_)) => return Err(WebSocketFault::Nested),
            (Data::Reserved(_), _) => return Err(WebSocketFault::Reserved),
        };
        let message = before.saturating_add(length);
        if message > MAX_MESSAGE {
            return Err(WebSocketFault::TooLong);
        }
        self.message = (!is_final).then_some(message);
        self.left = length;
        Ok(())
    }

    /// Takes the mask off the next bytes.
    fn unmask(&mut self, bytes: &mut [u8]) {
        let mask = u32::from_ne_bytes(self.mask);
        let (words, rest) = bytes.as_chunks_mut();
        for word in words {
            *word = (u32::from_ne_bytes(*word) ^ mask).to_ne_bytes();
        }
        for (byte, mask) in rest.iter_mut().zip(self.mask) {
            *byte ^= mask;
        }
        self.mask.rotate_left(rest.len());
    }
}

/// The status in a Close frame's payload, which is sent back: two bytes or none.
fn status(payload: &[u8]) -> Result<&[u8], WebSocketFault> {
    match payload {
        [] => Ok(&[]),
        [high, low, ..] if CloseCode::from(u16::from_be_bytes([*high, *low])).is_allowed() => {
            Ok(&payload[..2])
        }
        _ => Err(WebSocketFault::Close),
    }
}
