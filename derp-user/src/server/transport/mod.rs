//! What lies between DERP bytes and socket bytes: TLS, or nothing. Without I/O.

use std::sync::Arc;

use rustls::{
    ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};

/// Room that a TLS record needs beyond its payload: header, explicit nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;
/// Most payload bytes of one TLS record (RFC 8446 section 5.1).
const RECORD_PAYLOAD: usize = 16 << 10;
/// Most ciphertext bytes of an incomplete record or handshake message that a connection keeps.
const MAX_INCOMPLETE: usize = 128 << 10;

/// Why a connection's bytes cannot be understood or produced.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// The peer broke TLS, or was refused by it.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// Application data was to be sent before the handshake ended or after the connection closed.
    #[error("TLS: the connection cannot carry data now")]
    NotEstablished,
    /// The cipher refused to encrypt, as it does when its key is used up.
    #[error("TLS: {0}")]
    Encrypt(#[from] EncryptError),
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
pub(super) enum Transport {
    /// DERP bytes are socket bytes.
    Plain,
    /// DERP bytes travel in TLS records.
    Tls(Box<Tls>),
}

/// A TLS session and the ciphertext it cannot use yet.
pub(super) struct Tls {
    session: UnbufferedServerConnection,
    /// An incomplete record. Kept with the session, because the session remembers positions in it
    /// while a handshake message is split over records: every call must see these bytes.
    incomplete: Vec<u8>,
    peer_closed: bool,
    /// After an error the session is left alone: it may remember positions in bytes that are gone.
    failed: bool,
}

impl Transport {
    /// A transport that waits for a TLS ClientHello.
    pub(super) fn tls(config: Arc<ServerConfig>) -> Result<Self, TransportError> {
        let session = UnbufferedServerConnection::new(config)?;
        Ok(Self::Tls(Box::new(Tls {
            session,
            incomplete: Vec::new(),
            peer_closed: false,
            failed: false,
        })))
    }

    /// Ciphertext bytes kept from earlier reads. They must stand before the new ones in
    /// [`Self::receive`].
    pub(super) fn incomplete(&self) -> &[u8] {
        match self {
            Self::Plain => &[],
            Self::Tls(tls) => &tls.incomplete,
        }
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
        match self {
            Self::Plain => {
                plain.extend_from_slice(received);
                Ok(Phase::Established)
            }
            Self::Tls(tls) => tls.receive(received, plain, outgoing),
        }
    }

    /// Appends to `outgoing` the socket bytes that carry the DERP bytes in `plain`.
    pub(super) fn send(
        &mut self,
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        match self {
            Self::Plain => {
                outgoing.extend(plain);
                Ok(())
            }
            Self::Tls(tls) => tls.send(plain, outgoing),
        }
    }

    /// Appends the farewell that tells the peer that this end of stream is no accident.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        let Self::Tls(tls) = self else { return };
        if tls.failed {
            return;
        }
        let status = tls.session.process_tls_records(&mut tls.incomplete);
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state
            && let Ok(written) = traffic.queue_close_notify(outgoing.room(RECORD_OVERHEAD))
        {
            outgoing.filled += written;
        }
    }
}

impl Tls {
    fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<Phase, TransportError> {
        if self.failed {
            return Err(TransportError::NotEstablished);
        }
        let mut consumed = 0;
        let phase = loop {
            let UnbufferedStatus { discard, state } =
                self.session.process_tls_records(&mut received[consumed..]);
            let phase = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        plain.extend_from_slice(record?.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    let room = outgoing.room(RECORD_PAYLOAD + 4 * RECORD_OVERHEAD);
                    outgoing.filled += data.encode(room)?;
                    None
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    // Sent in order with everything else in `outgoing`.
                    transmit.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => Some(Phase::Handshaking),
                Ok(ConnectionState::WriteTraffic(_)) => Some(Phase::Established),
                Ok(_) => Some(Phase::Ended),
                Err(error) => {
                    self.failed = true;
                    self.take_alert(&mut received[consumed + discard..], outgoing);
                    return Err(error.into());
                }
            };
            consumed += discard;
            if let Some(phase) = phase {
                break phase;
            }
        };
        self.keep(&received[consumed..])?;
        Ok(if self.peer_closed { Phase::Ended } else { phase })
    }

    fn send(&mut self, plain: &[u8], outgoing: &mut Outgoing) -> Result<(), TransportError> {
        if self.failed {
            return Err(TransportError::NotEstablished);
        }
        loop {
            match self.session.process_tls_records(&mut self.incomplete).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let records = plain.len() / RECORD_PAYLOAD + 1;
                    let room = outgoing.room(plain.len() + records * RECORD_OVERHEAD);
                    outgoing.filled += traffic.encrypt(plain, room)?;
                    return Ok(());
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    let room = outgoing.room(RECORD_PAYLOAD + 4 * RECORD_OVERHEAD);
                    outgoing.filled += data.encode(room)?;
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed
                | _ => return Err(TransportError::NotEstablished),
            }
        }
    }

    /// After a failure, the session still holds the alert that tells the peer why.
    fn take_alert(&mut self, rest: &mut [u8], outgoing: &mut Outgoing) {
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.session.process_tls_records(rest).state
            && let Ok(written) = alert.encode(outgoing.room(4 * RECORD_OVERHEAD))
        {
            outgoing.filled += written;
        }
    }

    /// Keeps the bytes that are no whole record; an idle connection keeps no memory for them.
    fn keep(&mut self, rest: &[u8]) -> Result<(), TransportError> {
        if rest.len() > MAX_INCOMPLETE {
            self.failed = true;
            return Err(TransportError::TooLong);
        }
        if rest.is_empty() {
            self.incomplete = Vec::new();
        } else {
            self.incomplete.clear();
            self.incomplete.extend_from_slice(rest);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
