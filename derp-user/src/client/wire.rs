//! What lies between DERP bytes and socket bytes of a client: TLS, or nothing. Without I/O.

use std::sync::Arc;

use rustls::{
    ClientConfig, Error, ProtocolVersion,
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
};

use crate::tls::session::{Incomplete, Session, SessionError};
pub(crate) use crate::tls::session::{Outgoing, Phase};

/// One connection's TLS state.
pub(crate) struct Wire {
    layer: Layer,
    incomplete: Incomplete,
    /// After an error the layer is left alone: what it remembers may be gone.
    failed: bool,
}

/// A client's TLS session.
pub(crate) type TlsSession = Box<Session<UnbufferedClientConnection>>;

enum Layer {
    Plain,
    Tls(TlsSession),
}

impl Wire {
    /// A wire that carries DERP bytes as they are.
    pub(crate) fn plain() -> Self {
        Self { layer: Layer::Plain, incomplete: Incomplete::default(), failed: false }
    }

    /// A wire at the beginning of a TLS handshake with the server `name`.
    pub(crate) fn tls(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        let rustls = UnbufferedClientConnection::new(config, name)?;
        let layer = Layer::Tls(Box::new(Session::new(rustls)));
        Ok(Self { layer, incomplete: Incomplete::default(), failed: false })
    }

    /// The version of TLS that was agreed on, once it was.
    pub(crate) fn tls_version(&self) -> Option<ProtocolVersion> {
        match &self.layer {
            Layer::Plain => None,
            Layer::Tls(session) => session.version(),
        }
    }

    /// The certificates that the server has shown, its own first.
    pub(crate) fn certificates(&self) -> Vec<CertificateDer<'static>> {
        match &self.layer {
            Layer::Plain => Vec::new(),
            Layer::Tls(session) => session.certificates().to_vec(),
        }
    }

    /// What goes on when something else takes over the connection: its TLS session, if it has one, and
    /// the ciphertext kept from earlier reads.
    ///
    /// # Errors
    ///
    /// If it has failed.
    pub(crate) fn into_session(self) -> Result<(Option<TlsSession>, Incomplete), Error> {
        self.check()?;
        let session = match self.layer {
            Layer::Plain => None,
            Layer::Tls(session) => Some(session),
        };
        Ok((session, self.incomplete))
    }

    /// Ciphertext bytes kept from earlier reads. They must stand before the new ones in
    /// [`Self::receive`].
    pub(crate) fn incomplete(&self) -> &[u8] {
        self.incomplete.bytes()
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
            Layer::Tls(session) => session.receive(received, data, outgoing),
        };
        let kept = result.and_then(|(consumed, phase)| {
            self.incomplete.keep(received, consumed)?;
            Ok(phase)
        });
        self.failed = kept.is_err();
        Ok(kept?)
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
        let Layer::Tls(session) = &mut self.layer else {
            for piece in pieces {
                outgoing.extend(piece);
                sealed(outgoing.filled());
            }
            return Ok(());
        };
        let result = session.send(self.incomplete.bytes_mut(), pieces, outgoing, sealed);
        self.failed = result.is_err();
        Ok(result?)
    }

    /// Appends the farewell that tells the server that this end of stream is no accident.
    pub(crate) fn close(&mut self, outgoing: &mut Outgoing) {
        if self.failed {
            return;
        }
        if let Layer::Tls(session) = &mut self.layer {
            session.close(self.incomplete.bytes_mut(), outgoing);
        }
    }

    fn check(&self) -> Result<(), Error> {
        if self.failed {
            return Err(SessionError::NotEstablished.into());
        }
        Ok(())
    }
}
