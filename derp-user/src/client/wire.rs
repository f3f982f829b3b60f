//! What lies between DERP bytes and socket bytes of a client: TLS, or nothing. Without I/O.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error,
    client::UnbufferedClientConnection,
    pki_types::ServerName,
    unbuffered::{ConnectionState, UnbufferedStatus},
};

/// Most payload bytes of one TLS record (RFC 8446 section 5.1).
const RECORD_PAYLOAD: usize = 16 << 10;
/// Room that a TLS record needs beyond its payload: header, explicit nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;
/// Room for one encoded handshake record.
const HANDSHAKE_RECORD: usize = RECORD_PAYLOAD + 4 * RECORD_OVERHEAD;
/// Most ciphertext bytes of an incomplete record or handshake message that a connection keeps.
const MAX_INCOMPLETE: usize = 128 << 10;

/// Bytes on their way to a socket. Memory is written before it is read and kept when it is empty.
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
            (self.sent, self.filled) = (0, 0);
        }
    }

    fn extend(&mut self, bytes: &[u8]) {
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

/// Where a connection stands after [`Wire::receive`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// The TLS handshake needs more bytes from the server.
    Handshaking,
    /// Data may flow both ways.
    Established,
    /// The server has said that it will send nothing more.
    Ended,
}

/// One connection's TLS state.
pub(crate) struct Wire {
    layer: Layer,
    /// An incomplete record or handshake message. Bytes stay here until rustls has no more use for
    /// them: it remembers positions in them.
    incomplete: Vec<u8>,
    /// After an error the layer is left alone: what it remembers may be gone.
    failed: bool,
}

enum Layer {
    Plain,
    Tls { session: Box<UnbufferedClientConnection>, peer_closed: bool },
}

impl Wire {
    /// A wire that carries DERP bytes as they are.
    pub(crate) fn plain() -> Self {
        Self { layer: Layer::Plain, incomplete: Vec::new(), failed: false }
    }

    /// A wire at the beginning of a TLS handshake with the server `name`.
    pub(crate) fn tls(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        let session = Box::new(UnbufferedClientConnection::new(config, name)?);
        let layer = Layer::Tls { session, peer_closed: false };
        Ok(Self { layer, incomplete: Vec::new(), failed: false })
    }

    /// Ciphertext bytes kept from earlier reads. They must stand before the new ones in
    /// [`Self::receive`].
    pub(crate) fn incomplete(&self) -> &[u8] {
        &self.incomplete
    }

    /// Takes the socket bytes in `received`, which begin with [`Self::incomplete`]. Hands the DERP
    /// bytes to `data`, piece by piece, and appends to `outgoing` whatever TLS itself wants to say,
    /// an alert after an error included.
    pub(crate) fn receive(
        &mut self,
        received: &mut [u8],
        data: &mut dyn FnMut(&[u8]),
        outgoing: &mut Outgoing,
    ) -> Result<Phase, Error> {
        self.check()?;
        let result = match &mut self.layer {
            Layer::Plain => {
                data(received);
                Ok((received.len(), Phase::Established))
            }
            Layer::Tls { session, peer_closed } => {
                receive_tls(session, peer_closed, received, data, outgoing)
            }
        };
        let kept = result.and_then(|(consumed, phase)| {
            let rest = received.get(consumed..).unwrap_or_default();
            if rest.len() > MAX_INCOMPLETE {
                return Err(Error::General("a TLS message that never ends".to_owned()));
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

    /// Appends to `outgoing` the socket bytes that carry `pieces`, each in a TLS record of its own
    /// if it fits in one. `sealed` is told where in `outgoing` each of them ends.
    pub(crate) fn send<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = &'a [u8]>,
        outgoing: &mut Outgoing,
        mut sealed: impl FnMut(usize),
    ) -> Result<(), Error> {
        self.check()?;
        let Layer::Tls { session, peer_closed } = &mut self.layer else {
            for piece in pieces {
                outgoing.extend(piece);
                sealed(outgoing.filled);
            }
            return Ok(());
        };
        let result = loop {
            match session.process_tls_records(&mut self.incomplete).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    break pieces.into_iter().try_for_each(|piece| {
                        let records = piece.len() / RECORD_PAYLOAD + 2;
                        let room = outgoing.room(piece.len() + records * RECORD_OVERHEAD);
                        let length = traffic.encrypt(piece, room).map_err(general)?;
                        outgoing.filled += length;
                        sealed(outgoing.filled);
                        Ok(())
                    });
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    match data.encode(outgoing.room(HANDSHAKE_RECORD)) {
                        Ok(length) => outgoing.filled += length,
                        Err(error) => break Err(general(error)),
                    }
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::PeerClosed) => *peer_closed = true,
                Ok(_) => break Err(Error::HandshakeNotComplete),
                Err(error) => break Err(error),
            }
        };
        self.failed = result.is_err();
        result
    }

    /// Appends the farewell that tells the server that this end of stream is no accident.
    pub(crate) fn close(&mut self, outgoing: &mut Outgoing) {
        if self.failed {
            return;
        }
        if let Layer::Tls { session, .. } = &mut self.layer
            && let Ok(ConnectionState::WriteTraffic(mut traffic)) =
                session.process_tls_records(&mut self.incomplete).state
            && let Ok(length) = traffic.queue_close_notify(outgoing.room(RECORD_OVERHEAD))
        {
            outgoing.filled += length;
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.failed {
            return Err(Error::General("the connection has failed before".to_owned()));
        }
        Ok(())
    }
}

fn general(error: impl std::fmt::Display) -> Error {
    Error::General(error.to_string())
}

/// As [`Wire::receive`]; how many bytes are done with, and where the connection stands.
fn receive_tls(
    session: &mut UnbufferedClientConnection,
    peer_closed: &mut bool,
    received: &mut [u8],
    data: &mut dyn FnMut(&[u8]),
    outgoing: &mut Outgoing,
) -> Result<(usize, Phase), Error> {
    let mut consumed = 0;
    let phase = loop {
        let rest = received.get_mut(consumed..).unwrap_or_default();
        let UnbufferedStatus { discard, state } = session.process_tls_records(rest);
        let phase = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    data(record?.payload);
                }
                None
            }
            Ok(ConnectionState::EncodeTlsData(mut message)) => {
                let length = message.encode(outgoing.room(HANDSHAKE_RECORD)).map_err(general)?;
                outgoing.filled += length;
                None
            }
            Ok(ConnectionState::TransmitTlsData(transmit)) => {
                // Sent in order with everything else in `outgoing`.
                transmit.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                *peer_closed = true;
                None
            }
            Ok(ConnectionState::BlockedHandshake) => Some(Phase::Handshaking),
            Ok(ConnectionState::WriteTraffic(_)) => Some(Phase::Established),
            Ok(_) => Some(Phase::Ended),
            Err(error) => {
                let rest = received.get_mut(consumed + discard..).unwrap_or_default();
                if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
                    session.process_tls_records(rest).state
                    && let Ok(length) = alert.encode(outgoing.room(4 * RECORD_OVERHEAD))
                {
                    outgoing.filled += length;
                }
                return Err(error);
            }
        };
        consumed += discard;
        if let Some(phase) = phase {
            break phase;
        }
    };
    Ok((consumed, if *peer_closed { Phase::Ended } else { phase }))
}
