//! What lies between DERP bytes and socket bytes: TLS or nothing, and WebSocket or not. Without I/O.

mod cipher;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod records;
mod websocket;

#[cfg(test)]
mod tests;

use std::{mem, sync::Arc};

use rustls::{
    ServerConfig, client::UnbufferedClientConnection, server::UnbufferedServerConnection,
};

pub(super) use self::{
    records::RecordFault,
    websocket::{WebSocketFault, close_frame},
};
use self::{records::Records, websocket::WebSocket};
pub(super) use crate::tls::session::{Outgoing, Phase};
use crate::{
    client::wire::Wire,
    http::TlsVersion,
    tls::{
        ACME_TLS_PROTOCOL,
        session::{Incomplete, RECORD_PAYLOAD, Session, SessionError},
    },
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
    /// The client broke WebSocket.
    #[error("WebSocket: {0}")]
    WebSocket(#[from] WebSocketFault),
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
    /// WebSocket messages over any of the others.
    WebSocket(Box<WebSocket>),
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
        self.layer.tls_version()
    }

    /// From now on, DERP bytes are in WebSocket messages. The client has already sent the socket's bytes
    /// `early` behind its request; the next [`Self::receive`] handles them, too.
    pub(super) fn begin_websocket(&mut self, early: Vec<u8>) {
        let below = mem::replace(&mut self.layer, Layer::Plain);
        self.layer = Layer::WebSocket(Box::new(WebSocket::new(below, early)));
    }

    /// Whether an authority has only come to check a name (RFC 8737); known when the handshake is over.
    pub(super) fn is_validation(&self) -> bool {
        match &self.layer {
            Layer::Session(session) => session.alpn_protocol() == Some(ACME_TLS_PROTOCOL),
            Layer::Plain | Layer::ClientSession(_) | Layer::Records(_) | Layer::WebSocket(_) => {
                false
            }
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
        Ok(Self { layer: layer.establish()?, incomplete, failed })
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
        let result = self.layer.receive(received, plain, outgoing);
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
        self.layer.send(self.incomplete.bytes_mut(), plain, outgoing)
    }

    /// Appends the farewell that tells the peer that this end of stream is no accident.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        if !self.failed {
            self.layer.close(self.incomplete.bytes_mut(), outgoing);
        }
    }
}

impl Layer {
    fn tls_version(&self) -> Option<TlsVersion> {
        match self {
            Self::Plain => None,
            Self::Session(session) => Some(session.version().into()),
            Self::ClientSession(session) => Some(session.version().into()),
            Self::Records(_) => Some(TlsVersion::V13),
            Self::WebSocket(websocket) => websocket.tls_version(),
        }
    }

    /// As [`Transport::establish`].
    fn establish(self) -> Result<Self, TransportError> {
        Ok(match self {
            Self::Session(session) if session.is_tls13() => {
                Self::Records(Box::new(Records::of_server(session.into_rustls())?))
            }
            Self::ClientSession(session) if session.is_tls13() => {
                Self::Records(Box::new(Records::of_client(session.into_rustls())?))
            }
            Self::WebSocket(websocket) => {
                Self::WebSocket(Box::new(websocket.over(Self::establish)?))
            }
            unchanged @ (Self::Plain
            | Self::Session(_)
            | Self::ClientSession(_)
            | Self::Records(_)) => unchanged,
        })
    }

    /// As [`Transport::receive`]; how many of the bytes in `received` are done with.
    fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Phase), TransportError> {
        match self {
            Self::Plain => {
                plain.extend_from_slice(received);
                Ok((received.len(), Phase::Established))
            }
            Self::Session(session) => {
                Ok(session.receive(received, |data| plain.extend_from_slice(data), outgoing)?)
            }
            Self::ClientSession(session) => {
                Ok(session.receive(received, |data| plain.extend_from_slice(data), outgoing)?)
            }
            Self::Records(records) => records.receive(received, plain, outgoing),
            Self::WebSocket(websocket) => websocket.receive(received, plain, outgoing),
        }
    }

    /// As [`Transport::send`]; `incomplete` are the received bytes that are not done with.
    fn send(
        &mut self,
        incomplete: &mut [u8],
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        match self {
            Self::Plain => {
                outgoing.extend(plain);
                Ok(())
            }
            Self::Session(session) => Ok(session.send(incomplete, [plain], outgoing, |_| {})?),
            Self::ClientSession(session) => {
                Ok(session.send(incomplete, [plain], outgoing, |_| {})?)
            }
            Self::Records(records) => records.send(plain, outgoing),
            Self::WebSocket(websocket) => websocket.send(incomplete, plain, outgoing),
        }
    }

    /// As [`Transport::close`]; `incomplete` as for [`Self::send`].
    fn close(&mut self, incomplete: &mut [u8], outgoing: &mut Outgoing) {
        match self {
            Self::Plain => {}
            Self::Session(session) => session.close(incomplete, outgoing),
            Self::ClientSession(session) => session.close(incomplete, outgoing),
            Self::Records(records) => records.close(outgoing),
            Self::WebSocket(websocket) => websocket.close(incomplete, outgoing),
        }
    }
}
