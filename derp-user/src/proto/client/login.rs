//! The client's side of the login: read ServerKey, seal ClientInfo, open ServerInfo
//! (reference sections 2.5 and 2.6).

use crypto_box::{Nonce, PublicKey, SalsaBox, aead::Aead};
use serde::{Deserialize, Serialize};

use crate::proto::{
    frame::{FrameType, HEADER_LENGTH, header, parse_header},
    keys::{KEY_LENGTH, NodePrivate, NodePublic},
    login::{ClientInfo, MAGIC, NONCE_LENGTH, PROTOCOL_VERSION, is_degenerate},
};

/// Legal payload lengths of ServerKey; what is behind magic and key is for the future.
const SERVER_KEY_LENGTHS: std::ops::RangeInclusive<usize> = MAGIC.len() + KEY_LENGTH..=1024;
/// Legal payload lengths of ServerInfo.
const SERVER_INFO_LENGTHS: std::ops::RangeInclusive<usize> = NONCE_LENGTH..=super::read::MAX_FRAME;

/// Why a server's side of the login cannot be accepted.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Another frame came where the login needs this one.
    #[error("a frame of type {found:#04x} instead of {expected:?}")]
    UnexpectedFrame {
        /// What the login needs now.
        expected: FrameType,
        /// The type byte that came.
        found: u8,
    },
    /// The frame cannot be this short or this long.
    #[error("{frame_type:?} of {length} bytes")]
    Length {
        /// Which frame.
        frame_type: FrameType,
        /// Its announced payload length in bytes.
        length: u32,
    },
    /// ServerKey does not begin with the magic of the protocol.
    #[error("the first frame lacks the magic of DERP")]
    Magic,
    /// The server's key is zero or of small order: anybody could have sealed the box.
    #[error("the server's public key is degenerate")]
    DegenerateKey,
    /// The server's key is not the one that its certificates announce.
    #[error("the server's public key is not the one in its certificates")]
    OtherKey,
    /// ClientInfo is too long to be sealed or sent.
    #[error("the description of this client is too long")]
    TooLong,
    /// ServerInfo was not sealed by the server's key for this client.
    #[error("the sealed ServerInfo does not open")]
    Seal,
    /// What was in the box is not the JSON object it must be.
    #[error("ServerInfo is malformed: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a server says of itself in ServerInfo.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct ServerInfo {
    /// Version of the protocol that it speaks.
    #[serde(default)]
    pub version: i64,
    /// Bytes per second, headers included, that the client is asked to stay below; 0 for no limit.
    #[serde(default, rename = "TokenBucketBytesPerSecond")]
    pub bytes_per_second: u64,
    /// Bytes that may be sent at once beyond that.
    #[serde(default, rename = "TokenBucketBytesBurst")]
    pub bytes_burst: u64,
}

/// Reads the ServerKey frame at the beginning of `bytes`: the key, and how many bytes the frame
/// takes. `None` while it is incomplete.
///
/// # Errors
///
/// As soon as it is clear that these are not the first bytes of a DERP session.
pub fn server_key(bytes: &[u8]) -> Result<Option<(NodePublic, usize)>, LoginError> {
    let Some(payload) = payload(bytes, FrameType::ServerKey, &SERVER_KEY_LENGTHS)? else {
        return Ok(None);
    };
    let rest = payload.strip_prefix(&MAGIC).ok_or(LoginError::Magic)?;
    let key = rest.first_chunk::<KEY_LENGTH>().ok_or(LoginError::Magic)?;
    if is_degenerate(key) {
        return Err(LoginError::DegenerateKey);
    }
    Ok(Some((NodePublic::from_bytes(*key), HEADER_LENGTH + payload.len())))
}

/// A ClientInfo frame, and the means to understand the answer.
pub struct LoginRequest {
    frame: Vec<u8>,
    sealed: SalsaBox,
}

impl LoginRequest {
    /// Seals `info` from the owner of `key` to `server`, with `nonce`, which must be random.
    ///
    /// # Errors
    ///
    /// If `info` is too long for the frame.
    pub fn new(
        key: &NodePrivate,
        server: &NodePublic,
        info: &ClientInfo,
        nonce: [u8; NONCE_LENGTH],
    ) -> Result<Self, LoginError> {
        let sealed = SalsaBox::new(&PublicKey::from_bytes(*server.as_bytes()), &key.secret());
        let text = serde_json::to_vec(&WireInfo::from(info))?;
        let boxed = sealed
            .encrypt(Nonce::from_slice(&nonce), text.as_slice())
            .map_err(|_| LoginError::TooLong)?;
        let length = KEY_LENGTH + NONCE_LENGTH + boxed.len();
        if !crate::proto::login::CLIENT_INFO_LENGTHS.contains(&length) {
            return Err(LoginError::TooLong);
        }
        let length = u32::try_from(length).map_err(|_| LoginError::TooLong)?;
        let mut frame = header(FrameType::ClientInfo, length).to_vec();
        frame.extend(key.public().as_bytes());
        frame.extend(nonce);
        frame.extend(boxed);
        Ok(Self { frame, sealed })
    }

    /// The ClientInfo frame, header included.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Reads the ServerInfo frame at the beginning of `bytes`: what it says, and how many bytes the
    /// frame takes. `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// If this is another frame, or not from the server that the request was sealed for.
    pub fn server_info(&self, bytes: &[u8]) -> Result<Option<(ServerInfo, usize)>, LoginError> {
        let Some(payload) = payload(bytes, FrameType::ServerInfo, &SERVER_INFO_LENGTHS)? else {
            return Ok(None);
        };
        let (nonce, boxed) = payload.split_first_chunk::<NONCE_LENGTH>().ok_or(LoginError::Seal)?;
        let text =
            self.sealed.decrypt(Nonce::from_slice(nonce), boxed).map_err(|_| LoginError::Seal)?;
        Ok(Some((serde_json::from_slice(&text)?, HEADER_LENGTH + payload.len())))
    }
}

/// The payload of the frame at the beginning of `bytes`, which must be of this type and length.
fn payload<'a>(
    bytes: &'a [u8],
    expected: FrameType,
    lengths: &std::ops::RangeInclusive<usize>,
) -> Result<Option<&'a [u8]>, LoginError> {
    let Some((found, length)) = parse_header(bytes) else { return Ok(None) };
    if found != expected as u8 {
        return Err(LoginError::UnexpectedFrame { expected, found });
    }
    match usize::try_from(length) {
        Ok(whole) if lengths.contains(&whole) => {
            Ok(bytes.get(HEADER_LENGTH..HEADER_LENGTH + whole))
        }
        Ok(_) | Err(_) => Err(LoginError::Length { frame_type: expected, length }),
    }
}

/// [`ClientInfo`] under its names on the wire. The order of the fields is Go's.
#[derive(Serialize)]
struct WireInfo<'a> {
    #[serde(rename = "meshKey", skip_serializing_if = "Option::is_none")]
    mesh_key: Option<String>,
    version: u8,
    #[serde(rename = "CanAckPings")]
    can_ack_pings: bool,
    #[serde(rename = "IsProber", skip_serializing_if = "std::ops::Not::not")]
    is_prober: bool,
    #[serde(rename = "AppName", skip_serializing_if = "str::is_empty")]
    app_name: &'a str,
}

impl<'a> From<&'a ClientInfo> for WireInfo<'a> {
    fn from(info: &'a ClientInfo) -> Self {
        let mesh_key = info.mesh_key.as_ref().filter(|key| !key.is_zero());
        Self {
            mesh_key: mesh_key.map(|key| key.to_secret_text()),
            version: PROTOCOL_VERSION,
            can_ack_pings: true,
            is_prober: info.is_prober,
            app_name: &info.app_name,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::login;

    fn client() -> NodePrivate {
        NodePrivate::from_random([5; 32])
    }

    fn server() -> NodePrivate {
        NodePrivate::from_random([9; 32])
    }

    fn request(info: &ClientInfo) -> LoginRequest {
        LoginRequest::new(&client(), &server().public(), info, [3; NONCE_LENGTH]).unwrap()
    }

    #[test]
    fn server_key_is_read_with_what_the_future_adds() {
        let mut frame = login::server_key(&server().public());
        assert_eq!(server_key(&frame).unwrap(), Some((server().public(), 45)));
        for end in 0..frame.len() {
            assert_eq!(server_key(&frame[..end]).unwrap(), None, "{end}");
        }
        frame[4] += 2;
        frame.extend([0xee; 7]);
        assert_eq!(server_key(&frame).unwrap(), Some((server().public(), 47)));
    }

    #[test]
    fn other_first_bytes_are_refused() {
        let frame = login::server_key(&server().public());
        let with = |at: usize, byte: u8| {
            let mut frame = frame.clone();
            frame[at] = byte;
            server_key(&frame)
        };
        assert!(matches!(with(0, b'H'), Err(LoginError::UnexpectedFrame { found: b'H', .. })));
        assert!(matches!(with(4, 39), Err(LoginError::Length { length: 39, .. })));
        assert!(matches!(with(3, 5), Err(LoginError::Length { length: 1320, .. })));
        assert!(matches!(with(5, b'd'), Err(LoginError::Magic)));
        let zero = login::server_key(&NodePublic::from_bytes([0; KEY_LENGTH]));
        assert!(matches!(server_key(&zero), Err(LoginError::DegenerateKey)));
    }

    #[test]
    fn both_halves_understand_each_other() {
        let info = ClientInfo {
            mesh_key: Some("ab".repeat(32).parse().unwrap()),
            is_prober: true,
            app_name: "derpd \"bench\"".to_owned(),
        };
        let request = request(&info);
        let logged_in =
            login::open_client_info(&server(), &request.frame()[HEADER_LENGTH..]).unwrap();
        assert_eq!(logged_in.key, client().public());
        assert_eq!(logged_in.info.mesh_key, info.mesh_key);
        assert!(logged_in.info.is_prober);
        assert_eq!(logged_in.info.app_name, info.app_name);

        let answer = logged_in.server_info([1; NONCE_LENGTH], None);
        for end in 0..answer.len() {
            assert_eq!(request.server_info(&answer[..end]).unwrap(), None, "{end}");
        }
        let expected = ServerInfo { version: 2, bytes_per_second: 0, bytes_burst: 0 };
        assert_eq!(request.server_info(&answer).unwrap(), Some((expected, answer.len())));
        let mut damaged = answer;
        *damaged.last_mut().unwrap() ^= 1;
        assert!(matches!(request.server_info(&damaged), Err(LoginError::Seal)));
    }

    #[test]
    fn only_what_is_set_is_said() {
        let text = |info: &ClientInfo| serde_json::to_string(&WireInfo::from(info)).unwrap();
        assert_eq!(text(&ClientInfo::default()), r#"{"version":2,"CanAckPings":true}"#);
        let zero = ClientInfo { mesh_key: "00".repeat(32).parse().ok(), ..ClientInfo::default() };
        assert_eq!(text(&zero), r#"{"version":2,"CanAckPings":true}"#);
    }

    #[test]
    fn a_description_that_no_server_takes_is_not_sent() {
        let info = ClientInfo { app_name: "a".repeat(256 << 10), ..ClientInfo::default() };
        let request = LoginRequest::new(&client(), &server().public(), &info, [3; NONCE_LENGTH]);
        assert!(matches!(request, Err(LoginError::TooLong)));
    }

    #[test]
    fn the_limits_of_a_server_are_read() {
        let text =
            r#"{"version":2,"TokenBucketBytesPerSecond":7,"TokenBucketBytesBurst":9,"x":[]}"#;
        let info: ServerInfo = serde_json::from_str(text).unwrap();
        assert_eq!(info, ServerInfo { version: 2, bytes_per_second: 7, bytes_burst: 9 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = server_key(&bytes);
            let _ = request(&ClientInfo::default()).server_info(&bytes);
        }

        #[test]
        fn any_sealed_text_is_judged(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            let request = request(&ClientInfo::default());
            let nonce = [1; NONCE_LENGTH];
            let boxed = request.sealed.encrypt(&Nonce::from(nonce), text.as_slice()).unwrap();
            let length = u32::try_from(NONCE_LENGTH + boxed.len()).unwrap();
            let frame = [&header(FrameType::ServerInfo, length)[..], &nonce, &boxed].concat();
            let _ = request.server_info(&frame);
        }
    }
}
