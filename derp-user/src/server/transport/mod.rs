//! What lies between DERP bytes and socket bytes: TLS, or nothing. Without I/O.

mod cipher;
mod handshake;
mod records;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::{
    ServerConfig,
    unbuffered::{EncodeError, EncryptError},
};

pub(super) use self::records::RecordFault;
use self::{handshake::TlsSession, records::Records};

/// Most payload bytes of one TLS record (RFC 8446 section 5.1).
const RECORD_PAYLOAD: usize = 16 << 10;
/// Most ciphertext bytes of an incomplete record or handshake message that a connection keeps.
const MAX_INCOMPLETE: usize = 128 << 10;

/// Why a connection's bytes cannot be understood or produced.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// The peer broke TLS in the handshake, or was refused by it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The peer broke TLS after the handshake.
    #[error("TLS: {0}")]
    Record(#[from] RecordFault),
    /// Application data was to be sent before the handshake ended or after the connection failed.
    #[error("TLS: the connection cannot carry data now")]
    NotEstablished,
    /// A TLS 1.2 record could not be sealed.
    #[error("TLS: {0}")]
    Encrypt(#[from] EncryptError),
    /// The cipher refused its key, or to seal a record.
    #[error("TLS: the cipher failed")]
    Seal,
    /// A handshake message could not be written out.
    #[error("TLS: {0}")]
    Encode(#[from] EncodeError),
    /// The peer sends a message that never ends.
    #[error("TLS: a message of more than {MAX_INCOMPLETE} bytes")]
    TooLong,
}

/// A byte buffer that is only ever extended in place: its memory is written before it is read, so
/// making room costs nothing once it is large enough.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    filled: usize,
}

impl Outgoing {
    /// The bytes written since the last [`Self::clear`].
    pub(super) fn filled(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// Forgets the bytes but keeps the memory.
    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// Appends `bytes`.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }

    /// At least `length` writable bytes behind the filled ones.
    fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.filled + length;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.filled..]
    }
}

/// Where a connection stands after [`Transport::receive`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// The TLS handshake needs more bytes from the peer.
    Handshaking,
    /// Application data may flow both ways.
    Established,
    /// The peer has said that it will send nothing more.
    Ended,
}

/// One connection's transport state.
pub(super) struct Transport {
    layer: Layer,
    /// An incomplete record or handshake message. Bytes stay here until the layer has no more use
    /// for them: rustls remembers positions in them.
    incomplete: Vec<u8>,
    /// After an error the layer is left alone: what it remembers may be gone.
    failed: bool,
}

enum Layer {
    /// DERP bytes are socket bytes.
    Plain,
    /// A TLS handshake; afterwards, a TLS 1.2 connection.
    Session(Box<TlsSession>),
    /// An established TLS 1.3 connection.
    Records(Box<Records>),
}

impl Transport {
    /// A transport that carries DERP bytes as they are.
    pub(super) fn plain() -> Self {
        Self::new(Layer::Plain)
    }

    /// A transport that waits for a TLS ClientHello.
    pub(super) fn tls(config: Arc<ServerConfig>) -> Result<Self, TransportError> {
        Ok(Self::new(Layer::Session(Box::new(TlsSession::new(config)?))))
    }

    fn new(layer: Layer) -> Self {
        Self { layer, incomplete: Vec::new(), failed: false }
    }

    /// Whether there is TLS.
    pub(super) fn is_tls(&self) -> bool {
        !matches!(self.layer, Layer::Plain)
    }

    /// Reduces a TLS 1.3 connection whose handshake is over, and whose every byte for the peer has
    /// been taken from it, to what its records need.
    ///
    /// # Errors
    ///
    /// If the handshake is not over.
    pub(super) fn establish(self) -> Result<Self, TransportError> {
        let Self { layer, incomplete, failed } = self;
        let layer = match layer {
            Layer::Session(session) if session.is_tls13() => {
                Layer::Records(Box::new(session.into_records()?))
            }
            unchanged @ (Layer::Plain | Layer::Session(_) | Layer::Records(_)) => unchanged,
        };
        Ok(Self { layer, incomplete, failed })
    }

    /// Ciphertext bytes kept from earlier reads. They must stand before the new ones in
    /// [`Self::receive`].
    pub(super) fn incomplete(&self) -> &[u8] {
        &self.incomplete
    }

    /// Takes the socket bytes in `received`, which begin with [`Self::incomplete`]. Appends the DERP
    /// bytes to `plain`, and to `outgoing` whatever the transport itself wants to send, an alert
    /// after an error included.
    pub(super) fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<Phase, TransportError> {
        if self.failed {
            return Err(TransportError::NotEstablished);
        }
        let result = match &mut self.layer {
            Layer::Plain => {
                plain.extend_from_slice(received);
                Ok((received.len(), Phase::Established))
            }
            Layer::Session(session) => session.receive(received, plain, outgoing),
            Layer::Records(records) => records.receive(received, plain, outgoing),
        };
        let kept = result.and_then(|(consumed, phase)| {
            let rest = received.get(consumed..).unwrap_or_default();
            if rest.len() > MAX_INCOMPLETE {
                return Err(TransportError::TooLong);
            }
            if rest.is_empty() {
                // An idle connection keeps no memory for this.
                self.incomplete = Vec::new();
            } else {
                self.incomplete.clear();
                self.incomplete.extend_from_slice(rest);
            }
            Ok(phase)
        });
        self.failed = kept.is_err();
        kept
    }

    /// Appends to `outgoing` the socket bytes that carry the DERP bytes in `plain`.
    pub(super) fn send(
        &mut self,
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        if self.failed {
            return Err(TransportError::NotEstablished);
        }
        match &mut self.layer {
            Layer::Plain => {
                outgoing.extend(plain);
                Ok(())
            }
            Layer::Session(session) => session.send(&mut self.incomplete, plain, outgoing),
            Layer::Records(records) => records.send(plain, outgoing),
        }
    }

    /// Appends the farewell that tells the peer that this end of stream is no accident.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        match &mut self.layer {
            _ if self.failed => {}
            Layer::Plain => {}
            Layer::Session(session) => session.close(&mut self.incomplete, outgoing),
            Layer::Records(records) => records.close(outgoing),
        }
    }
}
