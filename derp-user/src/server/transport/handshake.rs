//! A rustls session as bytes in and bytes out: the handshake of every TLS connection, and the whole
//! life of a TLS 1.2 one.

use std::sync::Arc;

use rustls::{
    ProtocolVersion, ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, UnbufferedStatus},
};

use super::{Outgoing, Phase, RECORD_PAYLOAD, TransportError, records::Records};

/// Room that a TLS record needs beyond its payload: header, explicit nonce or content type, tag.
const RECORD_OVERHEAD: usize = 64;
/// Room for one encoded handshake record.
const HANDSHAKE_RECORD: usize = RECORD_PAYLOAD + 4 * RECORD_OVERHEAD;

/// A TLS session. While a handshake message is split over records, rustls remembers positions in the
/// received bytes, so every call must be shown those that it has not taken yet; and after an error
/// none may follow.
pub(super) struct TlsSession {
    rustls: UnbufferedServerConnection,
    peer_closed: bool,
}

impl TlsSession {
    pub(super) fn new(config: Arc<ServerConfig>) -> Result<Self, TransportError> {
        Ok(Self { rustls: UnbufferedServerConnection::new(config)?, peer_closed: false })
    }

    pub(super) fn is_tls13(&self) -> bool {
        self.rustls.protocol_version() == Some(ProtocolVersion::TLSv1_3)
    }

    pub(super) fn into_records(self) -> Result<Records, TransportError> {
        Records::new(self.rustls)
    }

    /// As [`super::Transport::receive`]; how many bytes are done with, and where the session stands.
    pub(super) fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Phase), TransportError> {
        let mut consumed = 0;
        let phase = loop {
            let UnbufferedStatus { discard, state } =
                self.rustls.process_tls_records(&mut received[consumed..]);
            let phase = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        plain.extend_from_slice(record?.payload);
                    }
                    None
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    outgoing.filled += data.encode(outgoing.room(HANDSHAKE_RECORD))?;
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
                    self.take_alert(&mut received[consumed + discard..], outgoing);
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

    /// As [`super::Transport::send`]; `incomplete` are the received bytes not taken yet.
    pub(super) fn send(
        &mut self,
        incomplete: &mut [u8],
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        loop {
            match self.rustls.process_tls_records(incomplete).state? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let records = plain.len() / RECORD_PAYLOAD + 1;
                    let room = outgoing.room(plain.len() + records * RECORD_OVERHEAD);
                    outgoing.filled += traffic.encrypt(plain, room)?;
                    return Ok(());
                }
                ConnectionState::EncodeTlsData(mut data) => {
                    outgoing.filled += data.encode(outgoing.room(HANDSHAKE_RECORD))?;
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

    /// As [`super::Transport::close`]; `incomplete` are the received bytes not taken yet.
    pub(super) fn close(&mut self, incomplete: &mut [u8], outgoing: &mut Outgoing) {
        if let Ok(ConnectionState::WriteTraffic(mut traffic)) =
            self.rustls.process_tls_records(incomplete).state
            && let Ok(written) = traffic.queue_close_notify(outgoing.room(RECORD_OVERHEAD))
        {
            outgoing.filled += written;
        }
    }

    /// After a failure, the session still holds the alert that tells the peer why.
    fn take_alert(&mut self, rest: &mut [u8], outgoing: &mut Outgoing) {
        if let Ok(ConnectionState::EncodeTlsData(mut alert)) =
            self.rustls.process_tls_records(rest).state
            && let Ok(written) = alert.encode(outgoing.room(4 * RECORD_OVERHEAD))
        {
            outgoing.filled += written;
        }
    }
}
