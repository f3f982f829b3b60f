//! What `benches/instructions.rs` counts of the server's inside. No part of the library's interface.

use std::{io, sync::Arc};

use rustls::ServerConfig;

use super::transport::{Outgoing, Transport};

/// One connection's TLS as the server has it: bytes in, bytes out.
pub struct Tls {
    transport: Transport,
    plain: Vec<u8>,
    outgoing: Outgoing,
}

impl Tls {
    /// A connection whose client must begin a handshake.
    ///
    /// # Errors
    ///
    /// If the configuration cannot be used.
    pub fn accept(config: Arc<ServerConfig>) -> io::Result<Self> {
        let transport = Transport::tls(config).map_err(io::Error::other)?;
        Ok(Self { transport, plain: Vec::new(), outgoing: Outgoing::default() })
    }

    /// Reduces the connection to its records, as the server does when a session begins.
    ///
    /// # Errors
    ///
    /// If the handshake is not over.
    pub fn establish(self) -> io::Result<Self> {
        let transport = self.transport.establish().map_err(io::Error::other)?;
        Ok(Self { transport, ..self })
    }

    /// Takes whole records; the data in them, and what the handshake answers.
    ///
    /// # Errors
    ///
    /// If the records are not what the client may send now.
    pub fn receive(&mut self, records: &mut [u8]) -> io::Result<(&[u8], &[u8])> {
        let Self { transport, plain, outgoing } = self;
        plain.clear();
        outgoing.clear();
        transport.receive(records, plain, outgoing).map_err(io::Error::other)?;
        Ok((plain, outgoing.unsent()))
    }

    /// The records that carry `plain`.
    ///
    /// # Errors
    ///
    /// If the connection cannot carry data now.
    pub fn send(&mut self, plain: &[u8]) -> io::Result<&[u8]> {
        self.outgoing.clear();
        self.transport.send(plain, &mut self.outgoing).map_err(io::Error::other)?;
        Ok(self.outgoing.unsent())
    }
}
