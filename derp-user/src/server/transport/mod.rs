//! What lies between DERP bytes and socket bytes: TLS, or nothing. Without I/O.

mod cipher;
mod records;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::{
    ServerConfig, client::UnbufferedClientConnection, server::UnbufferedServerConnection,
};

pub(super) use self::records::RecordFault;
use self::records::Records;
pub(super) use crate::tls::session::{Outgoing, Phase};
use crate::{
    client::wire::Wire,
    http::TlsVersion,
    tls::session::{Incomplete, RECORD_PAYLOAD, Session, SessionError},
};

/// Why a connection's bytes cannot be understood or produced.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    /// The session failed, or was refused.
    #[error("TLS: {0}")]
    Session(#[from] SessionError),
    /// The peer broke TLS after the handshake.
    #[error("TLS: {0}")]
    Record(#[from] RecordFault),
    /// The cipher refused its key, or to seal a record.
    #[error("TLS: the cipher failed")]
    Seal,
}

impl From<rustls::Error> for TransportError {
    fn from(error: rustls::Error) -> Self {
        SessionError::from(error).into()
    }
}

/// One connection's transport state.
pub(super) struct Transport {
    layer: Layer,
    incomplete: Incomplete,
    /// After an error the layer is left alone: what it remembers may be gone.
    failed: bool,
}

enum Layer {
    /// DERP bytes are socket bytes.
    Plain,
    /// A TLS handshake; afterwards, a TLS 1.2 connection.
    Session(Box<Session<UnbufferedServerConnection>>),
    /// The same, where this server is the client.
    ClientSession(Box<Session<UnbufferedClientConnection>>),
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
        let rustls = UnbufferedServerConnection::new(config)?;
        Ok(Self::new(Layer::Session(Box::new(Session::new(rustls)))))
    }

    /// Takes over a connection that this server opened as a client, and whose handshake is over.
    pub(super) fn of_client(wire: Wire) -> Result<Self, TransportError> {
        let (session, incomplete) = wire.into_session()?;
        let layer = session.map_or(Layer::Plain, Layer::ClientSession);
        Self { layer, incomplete, failed: false }.establish()
    }

    fn new(layer: Layer) -> Self {
        Self { layer, incomplete: Incomplete::default(), failed: false }
    }

    /// The version of TLS that has been agreed on; `None` if there is no TLS.
    pub(super) fn tls_version(&self) -> Option<TlsVersion> {
        match &self.layer {
            Layer::Plain => None,
            Layer::Session(session) => Some(session.version().into()),
            Layer::ClientSession(session) => Some(session.version().into()),
            Layer::Records(_) => Some(TlsVersion::V13),
        }
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
                Layer::Records(Box::new(Records::of_server(session.into_rustls())?))
            }
            Layer::ClientSession(session) if session.is_tls13() => {
                Layer::Records(Box::new(Records::of_client(session.into_rustls())?))
            }
            unchanged @ (Layer::Plain
            | Layer::Session(_)
            | Layer::ClientSession(_)
            | Layer::Records(_)) => unchanged,
        };
        Ok(Self { layer, incomplete, failed })
    }

    /// Ciphertext bytes kept from earlier reads. They must stand before the new ones in
    /// [`Self::receive`].
    pub(super) fn incomplete(&self) -> &[u8] {
        self.incomplete.bytes()
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
            return Err(SessionError::NotEstablished.into());
        }
        let result = match &mut self.layer {
            Layer::Plain => {
                plain.extend_from_slice(received);
                Ok((received.len(), Phase::Established))
            }
            Layer::Session(session) => session
                .receive(received, |data| plain.extend_from_slice(data), outgoing)
                .map_err(TransportError::from),
            Layer::ClientSession(session) => session
                .receive(received, |data| plain.extend_from_slice(data), outgoing)
                .map_err(TransportError::from),
            Layer::Records(records) => records.receive(received, plain, outgoing),
        };
        let kept = result.and_then(|(consumed, phase)| {
            self.incomplete.keep(received, consumed)?;
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
            return Err(SessionError::NotEstablished.into());
        }
        match &mut self.layer {
            Layer::Plain => {
                outgoing.extend(plain);
                Ok(())
            }
            Layer::Session(session) => {
                Ok(session.send(self.incomplete.bytes_mut(), [plain], outgoing, |_| {})?)
            }
            Layer::ClientSession(session) => {
                Ok(session.send(self.incomplete.bytes_mut(), [plain], outgoing, |_| {})?)
            }
            Layer::Records(records) => records.send(plain, outgoing),
        }
    }

    /// Appends the farewell that tells the peer that this end of stream is no accident.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        match &mut self.layer {
            _ if self.failed => {}
            Layer::Plain => {}
            Layer::Session(session) => session.close(self.incomplete.bytes_mut(), outgoing),
            Layer::ClientSession(session) => session.close(self.incomplete.bytes_mut(), outgoing),
            Layer::Records(records) => records.close(outgoing),
        }
    }
}
