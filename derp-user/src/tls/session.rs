//! rustls sessions as bytes in and bytes out, the same for both ends of a connection. Without I/O.

use rustls::{
    Error, ProtocolVersion,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::CertificateDer,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};

/// Most payload bytes of one TLS record (RFC 8446 section 5.1).
pub(crate) const RECORD_PAYLOAD: usize = 16 << 10;
/// Room that a TLS record needs beyond its payload: header, explicit nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;
/// Room for one encoded handshake record.
const HANDSHAKE_RECORD: usize = RECORD_PAYLOAD + 4 * RECORD_OVERHEAD;
/// Most ciphertext bytes of an incomplete record or handshake message that a connection keeps.
pub(crate) const MAX_INCOMPLETE: usize = 128 << 10;

/// Why a session's bytes cannot be understood or produced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The peer broke TLS, or was refused by it.
    #[error(transparent)]
    Tls(#[from] Error),
    /// Application data was to be sent before the handshake ended or after the session failed.
    #[error("the connection cannot carry data now")]
    NotEstablished,
    /// A record could not be sealed.
    #[error(transparent)]
    Encrypt(#[from] EncryptError),
    /// A handshake message could not be written out.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The peer sends a message that never ends.
    #[error("a message of more than {MAX_INCOMPLETE} bytes")]
    TooLong,
}

impl From<SessionError> for Error {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Tls(error) => error,
            SessionError::NotEstablished
            | SessionError::Encrypt(_)
            | SessionError::Encode(_)
            | SessionError::TooLong => Self::General(error.to_string()),
        }
    }
}

/// Bytes on their way to a socket. Memory is written before it is read and kept when it is empty, so
/// making room costs nothing once it is large enough.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    filled: usize,
}

impl Outgoing {
    /// What has yet to be written to the socket.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.bytes.get(self.sent..self.filled).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sent == self.filled
    }

    /// Position behind the last byte, counted as [`Self::sent`] is.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes written to the socket since this was last empty.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Notes that the socket took `count` bytes.
    pub(crate) fn advance(&mut self, count: usize) {
        self.sent = self.filled.min(self.sent + count);
        if self.sent == self.filled {
            self.clear();
        }
    }

    /// Forgets the bytes but keeps the memory.
    pub(crate) fn clear(&mut self) {
        (self.sent, self.filled) = (0, 0);
    }

    /// Appends `bytes`.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }

    /// At least `length` writable bytes behind the filled ones.
    pub(crate) fn room(&mut self, length: usize) -> &mut [u8] {
        let needed = self.filled + length;
        if self.bytes.len() < needed {
            self.bytes.resize(needed, 0);
        }
        &mut self.bytes[self.filled..]
    }

    /// Notes that the first `count` bytes of the [`Self::room`] have been written.
    pub(crate) fn fill(&mut self, count: usize) {
        self.filled += count;
    }
}

/// Where a connection stands after some of its bytes have been received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// The TLS handshake needs more bytes from the peer.
    Handshaking,
    /// Application data may flow both ways.
    Established,
    /// The peer has said that it will send nothing more.
    Ended,
}

/// Ciphertext of an incomplete record or handshake message. It stays until TLS has no more use for it:
/// rustls remembers positions in it.
#[derive(Default)]
pub(crate) struct Incomplete(Vec<u8>);

impl Incomplete {
    /// The bytes, which must stand before the new ones when more is received.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be shown to a session that sends.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Keeps what of `received` was not consumed.
    ///
    /// # Errors
    ///
    /// If it is more than any honest peer leaves incomplete.
    pub(crate) fn keep(&mut self, received: &[u8], consumed: usize) -> Result<(), SessionError> {
        let rest = received.get(consumed..).unwrap_or_default();
        if rest.len() > MAX_INCOMPLETE {
            return Err(SessionError::TooLong);
        }
        if rest.is_empty() {
            // An idle connection keeps no memory for this.
            self.0 = Vec::new();
        } else {
            self.0.clear();
            self.0.extend_from_slice(rest);
        }
        Ok(())
    }
}

/// What rustls' two kinds of sessions have in common.
pub(crate) trait Unbuffered {
    /// What rustls keeps for this end.
    type Data;

    /// Goes on with the session, given the received bytes that it has not discarded yet.
    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// The version that has been agreed on, if one has.
    fn version(&self) -> Option<ProtocolVersion>;
}

impl Unbuffered for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn version(&self) -> Option<ProtocolVersion> {
        self.protocol_version()
    }
}

impl Unbuffered for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        received: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }

    fn version(&self) -> Option<ProtocolVersion> {
        self.protocol_version()
    }
}

impl Session<UnbufferedClientConnection> {
    /// The server's certificates as far as it has shown them, its own first.
    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        self.rustls.peer_certificates().unwrap_or_default()
    }
}

/// A TLS session. While a handshake message is split over records, rustls remembers positions in the
/// received bytes, so every call must be shown those that it has not taken yet; and after an error
/// none may follow.
pub(crate) struct Session<C> {
    rustls: C,
    peer_closed: bool,
}

impl Session<UnbufferedServerConnection> {
    /// The application protocol that has been agreed on, if one has.
    pub(crate) fn alpn_protocol(&self) -> Option<&[u8]> {
        self.rustls.alpn_protocol()
    }
}

impl<C: Unbuffered> Session<C> {
    /// A session at the beginning of its handshake.
    pub(crate) fn new(rustls: C) -> Self {
        Self { rustls, peer_closed: false }
    }

    /// Takes the socket bytes in `received`, all that have not been consumed yet. Hands the application's
    /// bytes to `data`, piece by piece, and appends to `outgoing` whatever TLS itself wants to say, an
    /// alert after an error included. Returns how many bytes are done with, and where the session stands.
    pub(crate) fn receive(
        &mut self,
        received: &mut [u8],
        mut data: impl FnMut(&[u8]),
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Phase), SessionError> {
        let mut consumed = 0;
        let phase = loop {
            let rest = received.get_mut(consumed..).unwrap_or_default();
            let UnbufferedStatus { discard, state } = self.rustls.process(rest);
            let phase = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        data(record?.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut message)) => {
                    let length = message.encode(outgoing.room(HANDSHAKE_RECORD))?;
                    outgoing.fill(length);
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
                    let rest = received.get_mut(consumed + discard..).unwrap_or_default();
                    self.take_alert(rest, outgoing);
                    return Err(error.into());
                }
            };
            consumed += discard;
            if let Some(phase) = phase {
                break phase;
            }
        };
        Ok((consumed, if self.peer_closed { Phase::Ended } else { phase }))
    }

    /// Appends to `outgoing` the records that carry `pieces`, each in one of its own if it fits;
    /// `sealed` is told where in `outgoing` each of them ends. `incomplete` are the received bytes not
    /// consumed yet.
    pub(crate) fn send<'a>(
        &mut self,
        incomplete: &mut [u8],
        pieces: impl IntoIterator<Item = &'a [u8]>,
        outgoing: &mut Outgoing,
        mut sealed: impl FnMut(usize),
    ) -> Result<(), SessionError> {
        loop {
            match self.rustls.process(incomplete).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    return pieces.into_iter().try_for_each(|piece| {
                        // Fragments may be shorter than a record may be long.
                        let records = piece.len() / RECORD_PAYLOAD + 2;
                        let room = outgoing.room(piece.len() + records * RECORD_OVERHEAD);
                        let length = traffic.encrypt(piece, room)?;
                        outgoing.fill(length);
                        sealed(outgoing.filled());
                        Ok(())
                    });
                }
                ConnectionState::EncodeTlsData(mut message) => {
                    let length = message.encode(outgoing.room(HANDSHAKE_RECORD))?;
                    outgoing.fill(length);
                }
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.peer_closed = true,
                ConnectionState::ReadTraffic(_)
                | ConnectionState::ReadEarlyData(_)
                | ConnectionState::BlockedHandshake
                | ConnectionState::Closed
                | _ => return Err(SessionError::NotEstablished),
            }
        }
    }

    /// Appends the farewell that tells the peer that this end of stream is no accident. `incomplete`
    /// are the received bytes not consumed yet.
    pub(crate) fn close(&mut self, incomplete: &mut [u8], outgoing: &mut Outgoing) {
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.rustls.process(incomplete).state
            && let Ok(length) = traffic.queue_close_notify(outgoing.room(RECORD_OVERHEAD))
        {
            outgoing.fill(length);
        }
    }

    /// After a failure, the session still holds the alert that tells the peer why.
    fn take_alert(&mut self, rest: &mut [u8], outgoing: &mut Outgoing) {
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) = self.rustls.process(rest).state
            && let Ok(length) = alert.encode(outgoing.room(4 * RECORD_OVERHEAD))
        {
            outgoing.fill(length);
        }
    }

    /// Tells whether TLS 1.3 has been agreed on.
    pub(crate) fn is_tls13(&self) -> bool {
        self.version() == Some(ProtocolVersion::TLSv1_3)
    }

    /// The version that has been agreed on, if one has.
    pub(crate) fn version(&self) -> Option<ProtocolVersion> {
        self.rustls.version()
    }

    /// Gives up the session for what rustls knows of it.
    pub(crate) fn into_rustls(self) -> C {
        self.rustls
    }
}
