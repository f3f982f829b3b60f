//! One direction of an established TLS 1.3 connection: sealing and opening records with one key
//! (RFC 8446 sections 5.2 and 5.3). No record costs an allocation.

use aws_lc_rs::{
    aead::{
        AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, Nonce,
        UnboundKey,
    },
    error::Unspecified,
};
use rustls::{ConnectionTrafficSecrets, ContentType, crypto::cipher};

use super::{Outgoing, RECORD_PAYLOAD, SessionError, TransportError};

/// Type, legacy version and length.
pub(super) const HEADER_LENGTH: usize = 5;
/// Every cipher of TLS 1.3 that rustls negotiates ends its records with a tag of this length.
const TAG_LENGTH: usize = MAX_TAG_LEN;
/// What a record is longer than its content: header, content type, tag.
const OVERHEAD: usize = HEADER_LENGTH + 1 + TAG_LENGTH;

/// Why a record cannot be opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OpenFault {
    /// It was not sealed with this key under this number.
    Seal,
    /// Its content is longer than a record's may be.
    TooLong,
    /// There is nothing but padding in it.
    NoType,
}

/// A traffic key and the number of records that it has served.
pub(super) struct Cipher {
    key: LessSafeKey,
    iv: cipher::Iv,
    number: u64,
}

impl Cipher {
    /// A cipher whose key has served `number` records.
    pub(super) fn new(
        (number, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, TransportError> {
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            // The enum may grow with rustls.
            _ => return Err(SessionError::NotEstablished.into()),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| TransportError::Seal)?;
        Ok(Self { key: LessSafeKey::new(key), iv, number })
    }

    /// How many records the key has served.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Pretends that the key has served `number` records.
    #[cfg(test)]
    pub(super) fn skip_to(&mut self, number: u64) {
        self.number = number;
    }

    /// Appends the record that carries `content`, at most [`RECORD_PAYLOAD`] bytes.
    pub(super) fn seal(
        &mut self,
        content_type: ContentType,
        content: &[u8],
        outgoing: &mut Outgoing,
    ) -> Result<(), TransportError> {
        let room = outgoing.room(content.len() + OVERHEAD);
        let (header, rest) = room.split_at_mut(HEADER_LENGTH);
        let (body, rest) = rest.split_at_mut(content.len());
        let (end, _) = rest.split_at_mut(1 + TAG_LENGTH);
        let aad = cipher::make_tls13_aad(body.len() + end.len());
        header.copy_from_slice(&aad);
        self.key
            .seal_out_of_place_scatter(
                self.nonce(),
                Aad::from(aad),
                content,
                body,
                &[u8::from(content_type)],
                end,
            )
            .map_err(|Unspecified| TransportError::Seal)?;
        self.number += 1;
        outgoing.fill(content.len() + OVERHEAD);
        Ok(())
    }

    /// Opens in place what followed a record's header: the type and the content.
    pub(super) fn open<'a>(
        &mut self,
        record: &'a mut [u8],
    ) -> Result<(ContentType, &'a [u8]), OpenFault> {
        let aad = Aad::from(cipher::make_tls13_aad(record.len()));
        let opened =
            self.key.open_in_place(self.nonce(), aad, record).map_err(|_| OpenFault::Seal)?;
        self.number += 1;
        if opened.len() > RECORD_PAYLOAD + 1 {
            return Err(OpenFault::TooLong);
        }
        let end = opened.iter().rposition(|&byte| byte != 0).ok_or(OpenFault::NoType)?;
        let (content, rest) = opened.split_at(end);
        let content_type = rest.first().ok_or(OpenFault::NoType)?;
        Ok((ContentType::from(*content_type), content))
    }

    fn nonce(&self) -> Nonce {
        let cipher::Nonce(bytes) = cipher::Nonce::new(&self.iv, self.number);
        Nonce::assume_unique_for_key(bytes)
    }
}
