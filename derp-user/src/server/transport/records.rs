//! TLS 1.3 records after the handshake (RFC 8446 section 5).
//!
//! rustls makes the handshake and derives every key; this module finds the records, has them sealed and
//! opened by [`Cipher`], and follows key updates. Compared with leaving that to a rustls session, a record
//! costs no queue and no allocation, and an idle connection keeps far less memory.

use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    SupportedCipherSuite, Tls13CipherSuite,
    client::{ClientConnectionData, UnbufferedClientConnection},
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
};

use super::{
    Outgoing, Phase, RECORD_PAYLOAD, SessionError, TransportError,
    cipher::{Cipher, HEADER_LENGTH, OpenFault},
};

/// Longest record: payload, content type, padding and tag (RFC 8446 section 5.2).
const MAX_CIPHERTEXT: usize = RECORD_PAYLOAD + 256;
/// Handshake type and length of KeyUpdate, the only message that a client may send now.
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
/// Handshake type of NewSessionTicket, the only other message that a server may send now.
const NEW_SESSION_TICKET: u8 = 4;
/// Type and length of a handshake message.
const MESSAGE_HEADER: usize = 4;
/// Longest NewSessionTicket that is waited for. Real ones have some hundred bytes.
const MAX_TICKET: usize = 16 << 10;
/// More key updates, or tickets, than this without data between them serve no purpose but to cost
/// time.
const MAX_IDLE_KEY_UPDATES: u32 = 32;
/// Nor do more than these in the time of so many bytes of data: each costs as much as many records, and one is due
/// after 16 million of those.
const MAX_KEY_UPDATES: u32 = 128;
const DATA_PER_KEY_UPDATES: usize = 64 << 10;
/// A write key is replaced this many records before its limit.
const KEY_MARGIN: u64 = 1024;

/// What a peer did that ends the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::server) enum RecordFault {
    #[error("a record of {0} bytes")]
    TooLong(usize),
    #[error("a record of a type that is not allowed now")]
    UnexpectedType,
    #[error("a record that does not open")]
    Seal,
    #[error("a handshake message other than those allowed now")]
    Handshake,
    #[error("too many key updates")]
    KeyUpdates,
    #[error("the peer's alert {0:?}")]
    Alert(AlertDescription),
}

impl RecordFault {
    /// What the peer is told; nothing if it said so itself.
    fn alert(self) -> Option<AlertDescription> {
        match self {
            Self::TooLong(_) => Some(AlertDescription::RecordOverflow),
            Self::UnexpectedType | Self::Handshake | Self::KeyUpdates => {
                Some(AlertDescription::UnexpectedMessage)
            }
            Self::Seal => Some(AlertDescription::BadRecordMac),
            Self::Alert(_) => None,
        }
    }
}

/// What derives new traffic keys.
enum Keys {
    OfServer(KernelConnection<ServerConnectionData>),
    OfClient(KernelConnection<ClientConnectionData>),
}

impl Keys {
    fn update_tx_secret(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::OfServer(keys) => keys.update_tx_secret(),
            Self::OfClient(keys) => keys.update_tx_secret(),
        }
    }

    fn update_rx_secret(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::OfServer(keys) => keys.update_rx_secret(),
            Self::OfClient(keys) => keys.update_rx_secret(),
        }
    }
}

/// The records of one established connection.
pub(in crate::server) struct Records {
    keys: Keys,
    suite: &'static Tls13CipherSuite,
    sealing: Cipher,
    opening: Cipher,
    /// The beginning of a handshake message that goes on in the next record.
    handshake: Vec<u8>,
    idle_key_updates: u32,
    /// Key updates, and bytes of data, since the latter last came to [`DATA_PER_KEY_UPDATES`].
    key_updates: u32,
    data: usize,
    /// The peer asked for a new write key.
    update_owed: bool,
    ended: bool,
}

impl Records {
    /// Takes over a session that has finished its handshake and has nothing left to send.
    pub(super) fn of_server(session: UnbufferedServerConnection) -> Result<Self, TransportError> {
        let (secrets, keys) = session.dangerous_into_kernel_connection()?;
        let suite = keys.negotiated_cipher_suite();
        Self::new(secrets, suite, Keys::OfServer(keys))
    }

    /// The same, for a session in which this server is the client.
    pub(super) fn of_client(session: UnbufferedClientConnection) -> Result<Self, TransportError> {
        let (secrets, keys) = session.dangerous_into_kernel_connection()?;
        let suite = keys.negotiated_cipher_suite();
        Self::new(secrets, suite, Keys::OfClient(keys))
    }

    fn new(
        secrets: ExtractedSecrets,
        suite: SupportedCipherSuite,
        keys: Keys,
    ) -> Result<Self, TransportError> {
        let SupportedCipherSuite::Tls13(suite) = suite else {
            return Err(SessionError::NotEstablished.into());
        };
        Ok(Self {
            keys,
            suite,
            sealing: Cipher::new(secrets.tx)?,
            opening: Cipher::new(secrets.rx)?,
            handshake: Vec::new(),
            idle_key_updates: 0,
            key_updates: 0,
            data: 0,
            update_owed: false,
            ended: false,
        })
    }

    /// Opens the records in `received` and appends their data to `plain`; how many bytes they took.
    /// After an error, `outgoing` holds the alert for the peer.
    pub(super) fn receive(
        &mut self,
        received: &mut [u8],
        plain: &mut Vec<u8>,
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Phase), TransportError> {
        let mut at = 0;
        while !self.ended {
            let Some(&[content_type, _, _, high, low]) = received[at..].first_chunk() else {
                break;
            };
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length > MAX_CIPHERTEXT {
                return Err(self.refuse(RecordFault::TooLong(length), outgoing));
            }
            let start = at + HEADER_LENGTH;
            let Some(record) = received.get_mut(start..start + length) else { break };
            if let Err(fault) = self.open(ContentType::from(content_type), record, plain)? {
                return Err(self.refuse(fault, outgoing));
            }
            at = start + length;
        }
        Ok((at, if self.ended { Phase::Ended } else { Phase::Established }))
    }

    /// Appends the records that carry `plain` to `outgoing`.
    pub(super) fn send(
        &mut self,
        plain: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        let limit = self.suite.common.confidentiality_limit.saturating_sub(KEY_MARGIN);
        if self.update_owed || self.sealing.number() >= limit {
            self.update_owed = false;
            let update = [&KEY_UPDATE[..], &[0]].concat();
            self.sealing.seal(ContentType::Handshake, &update, outgoing)?;
            self.sealing = Cipher::new(self.keys.update_tx_secret()?)?;
        }
        plain
            .chunks(RECORD_PAYLOAD)
            .try_for_each(|chunk| self.sealing.seal(ContentType::ApplicationData, chunk, outgoing))
    }

    /// Appends the farewell to `outgoing`.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        self.say(AlertDescription::CloseNotify, outgoing);
    }

    /// Opens one record in place and acts on it. The outer error is ours, the inner one the peer's.
    fn open(
        &mut self,
        content_type: ContentType,
        record: &mut [u8],
        plain: &mut Vec<u8>,
    ) -> Result<Result<(), RecordFault>, TransportError> {
        if content_type != ContentType::ApplicationData {
            return Ok(Err(RecordFault::UnexpectedType));
        }
        let record_length = record.len();
        let (content_type, content) = match self.opening.open(record) {
            Ok(opened) => opened,
            Err(OpenFault::Seal) => return Ok(Err(RecordFault::Seal)),
            Err(OpenFault::TooLong) => return Ok(Err(RecordFault::TooLong(record_length))),
            Err(OpenFault::NoType) => return Ok(Err(RecordFault::UnexpectedType)),
        };
        if content_type == ContentType::Handshake {
            return self.open_handshake(content);
        }
        if !self.handshake.is_empty() {
            return Ok(Err(RecordFault::UnexpectedType));
        }
        Ok(match (content_type, content) {
            (ContentType::ApplicationData, data) => {
                self.idle_key_updates = 0;
                self.data += data.len();
                if self.data >= DATA_PER_KEY_UPDATES {
                    (self.key_updates, self.data) = (0, 0);
                }
                plain.extend_from_slice(data);
                Ok(())
            }
            (ContentType::Alert, &[_level, description]) => {
                let alert = AlertDescription::from(description);
                self.ended = alert == AlertDescription::CloseNotify;
                // User_canceled announces the close_notify that follows.
                if self.ended || alert == AlertDescription::UserCanceled {
                    Ok(())
                } else {
                    Err(RecordFault::Alert(alert))
                }
            }
            _ => Err(RecordFault::UnexpectedType),
        })
    }

    /// Collects a handshake message, which may be split over records, and follows a KeyUpdate. It
    /// must end its record: what comes next is under the new key.
    fn open_handshake(
        &mut self,
        content: &[u8],
    ) -> Result<Result<(), RecordFault>, TransportError> {
        const WHOLE: usize = KEY_UPDATE.len() + 1;
        self.handshake.extend_from_slice(content);
        if matches!(self.keys, Keys::OfClient(_))
            && self.handshake.first() == Some(&NEW_SESSION_TICKET)
        {
            return Ok(self.skip_tickets());
        }
        let seen = self.handshake.len().min(KEY_UPDATE.len());
        if content.is_empty()
            || self.handshake[..seen] != KEY_UPDATE[..seen]
            || self.handshake.len() > WHOLE
        {
            return Ok(Err(RecordFault::Handshake));
        }
        let Some(request) = self.handshake.get(KEY_UPDATE.len()).copied() else {
            return Ok(Ok(()));
        };
        if request > 1 {
            return Ok(Err(RecordFault::Handshake));
        }
        self.handshake = Vec::new();
        self.idle_key_updates += 1;
        self.key_updates += 1;
        if self.idle_key_updates > MAX_IDLE_KEY_UPDATES || self.key_updates > MAX_KEY_UPDATES {
            return Ok(Err(RecordFault::KeyUpdates));
        }
        self.opening = Cipher::new(self.keys.update_rx_secret()?)?;
        self.update_owed |= request == 1;
        Ok(Ok(()))
    }

    /// Drops the tickets at the beginning of what was collected: sessions are never resumed. What
    /// follows them in the same record, or the rest of an incomplete one, is judged when it comes.
    fn skip_tickets(&mut self) -> Result<(), RecordFault> {
        while let Some(&[NEW_SESSION_TICKET, high, middle, low]) = self.handshake.first_chunk() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            if length > MAX_TICKET {
                return Err(RecordFault::Handshake);
            }
            if self.handshake.len() < MESSAGE_HEADER + length {
                return Ok(());
            }
            self.handshake.drain(..MESSAGE_HEADER + length);
            self.idle_key_updates += 1;
            if self.idle_key_updates > MAX_IDLE_KEY_UPDATES {
                return Err(RecordFault::KeyUpdates);
            }
        }
        match self.handshake.first() {
            None => {
                self.handshake = Vec::new();
                Ok(())
            }
            Some(&NEW_SESSION_TICKET) => Ok(()),
            // Nobody sends anything else behind a ticket in one record.
            Some(_) => Err(RecordFault::Handshake),
        }
    }

    fn refuse(&mut self, fault: RecordFault, outgoing: &mut Outgoing) -> TransportError {
        if let Some(alert) = fault.alert() {
            self.say(alert, outgoing);
        }
        TransportError::Record(fault)
    }

    /// Appends an alert. If it cannot be sealed, the peer sees the end of the stream instead.
    fn say(&mut self, alert: AlertDescription, outgoing: &mut Outgoing) {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        let level = if alert == AlertDescription::CloseNotify { WARNING } else { FATAL };
        let _ = self.sealing.seal(ContentType::Alert, &[level, u8::from(alert)], outgoing);
    }
}

#[cfg(test)]
impl Records {
    /// Pretends that the write key has nearly reached its limit, and returns the limit.
    pub(super) fn skip_to_the_last_records_of_the_write_key(&mut self) -> u64 {
        let limit = self.suite.common.confidentiality_limit;
        self.sealing.skip_to(limit - KEY_MARGIN);
        limit
    }
}
