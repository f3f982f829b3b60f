//! DERP bytes as binary WebSocket messages (RFC 6455) over what another layer carries.
//!
//! Nothing of a message is kept until it is whole: its boundaries mean nothing here, so the bytes of
//! each frame go on as they come. That is why this is not tungstenite's `WebSocket`, which collects
//! messages; the format of the frames is tungstenite's.

mod decoder;

#[cfg(test)]
mod tests;

use tungstenite::protocol::frame::{
    FrameHeader,
    coding::{CloseCode, Control, Data, OpCode},
};

use self::decoder::Decoder;
pub(in crate::server) use self::decoder::WebSocketFault;
use super::{Layer, Outgoing, Phase, RECORD_PAYLOAD, SessionError, TransportError};
use crate::http::TlsVersion;

/// Most DERP bytes of one message: JavaScript clients on Go's library take 32 KiB at the most, and
/// with its header this fills two TLS records.
const MAX_MESSAGE_SENT: usize = 2 * RECORD_PAYLOAD - MESSAGE_HEADER;
/// Header of a message from the server that is longer than 125 bytes and shorter than 64 KiB.
const MESSAGE_HEADER: usize = 4;

/// A connection whose client speaks WebSocket, after the HTTP handshake.
pub(super) struct WebSocket {
    below: Layer,
    decoder: Decoder,
    /// The Close frame is on its way: nothing may follow.
    closed: bool,
}

impl WebSocket {
    /// A connection over `below`. The client's first bytes, `early`, are handled by the next
    /// [`Self::receive`].
    pub(super) fn new(below: Layer, early: Vec<u8>) -> Self {
        Self { below, decoder: Decoder::new(early), closed: false }
    }

    /// The same connection, over what `change` makes of the layer below.
    pub(super) fn over(
        self,
        change: impl FnOnce(Layer) -> Result<Layer, TransportError>,
    ) -> Result<Self, TransportError> {
        let Self { below, decoder, closed } = self;
        Ok(Self { below: change(below)?, decoder, closed })
    }

    /// Whether there is TLS.
    pub(super) fn tls_version(&self) -> Option<TlsVersion> {
        self.below.tls_version()
    }

    /// As [`Layer::receive`]. Pings and Close are answered; after an error, `outgoing` holds the Close
    /// frame that says why, and the farewell of the layer below.
    pub(super) fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Phase), TransportError> {
        let start = plain.len();
        plain.append(&mut self.decoder.take_incomplete());
        let result = self.below.receive(received, plain, outgoing);
        let mut answers = Vec::new();
        // Also after a failure: `plain` must hold DERP bytes and nothing else.
        let decoded = self.decoder.decode(plain, start, &mut answers);
        let (consumed, phase) = result?;
        let rest = received.get_mut(consumed..).unwrap_or_default();
        match decoded {
            Ok(Phase::Ended) => self.closed = true,
            Ok(Phase::Handshaking | Phase::Established) => {}
            Err(fault) => close_frame(&mut answers, fault.code(), &fault.to_string()),
        }
        if !answers.is_empty() {
            self.below.send(rest, &answers, outgoing)?;
        }
        match decoded {
            Ok(Phase::Ended) => Ok((consumed, Phase::Ended)),
            Ok(Phase::Handshaking | Phase::Established) => Ok((consumed, phase)),
            Err(fault) => {
                self.below.close(rest, outgoing);
                Err(fault.into())
            }
        }
    }

    /// As [`Layer::send`].
    pub(super) fn send(
        &mut self,
        incomplete: &mut [u8],
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        if self.closed {
            return Err(SessionError::NotEstablished.into());
        }
        let messages = plain.len() / MAX_MESSAGE_SENT + 1;
        let mut frames = Vec::with_capacity(plain.len() + messages * MESSAGE_HEADER);
        for message in plain.chunks(MAX_MESSAGE_SENT) {
            frame(&mut frames, OpCode::Data(Data::Binary), message);
        }
        self.below.send(incomplete, &frames, outgoing)
    }

    /// As [`Layer::close`].
    pub(super) fn close(&mut self, incomplete: &mut [u8], outgoing: &mut Outgoing) {
        if !self.closed {
            self.closed = true;
            let mut farewell = Vec::new();
            close_frame(&mut farewell, CloseCode::Normal, "");
            // If it cannot be sent, the peer sees the end of the stream instead.
            let _ = self.below.send(incomplete, &farewell, outgoing);
        }
        self.below.close(incomplete, outgoing);
    }
}

/// Appends a Close frame; `reason` has at most 123 bytes.
pub(in crate::server) fn close_frame(bytes: &mut Vec<u8>, code: CloseCode, reason: &str) {
    let payload = [&u16::from(code).to_be_bytes(), reason.as_bytes()].concat();
    frame(bytes, OpCode::Control(Control::Close), &payload);
}

/// Appends a whole frame, without mask, as servers send them.
fn frame(bytes: &mut Vec<u8>, opcode: OpCode, payload: &[u8]) {
    let header = FrameHeader { opcode, ..FrameHeader::default() };
    header.format(payload.len() as u64, bytes).expect("a vector takes everything");
    bytes.extend_from_slice(payload);
}
