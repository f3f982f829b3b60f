//! The login: ServerKey, ClientInfo, ServerInfo (reference sections 2.5 and 2.6).

use std::fmt;

use crypto_box::{Nonce, PublicKey, SalsaBox, aead::Aead};
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};

use super::{
    frame::{FrameType, HEADER_LENGTH, header, parse_header},
    keys::{KEY_LENGTH, MeshKey, NodePrivate, NodePublic},
};

/// "DERP" and U+1F511, the first bytes of every session.
pub(super) const MAGIC: [u8; 8] = *b"DERP\xf0\x9f\x94\x91";
/// The version of the protocol; the only one that servers speak.
pub const PROTOCOL_VERSION: u8 = 2;
/// Bytes of a box's random nonce.
pub const NONCE_LENGTH: usize = 24;
/// Legal payload lengths of ClientInfo.
pub(super) const CLIENT_INFO_LENGTHS: std::ops::RangeInclusive<usize> =
    KEY_LENGTH + NONCE_LENGTH..=256 << 10;

/// Why a login fails. Each closes the connection.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The first frame is not ClientInfo.
    #[error("the first frame has type {0:#04x}, not ClientInfo")]
    FirstFrame(u8),
    /// ClientInfo is shorter than key and nonce, or longer than 256 KiB.
    #[error("ClientInfo of {0} bytes")]
    Length(u32),
    /// The client's key is zero or of small order: anybody could have sealed the box.
    #[error("the client's public key is degenerate")]
    DegenerateKey,
    /// The box was not sealed for this server with the key that the client claims.
    #[error("the sealed ClientInfo does not open")]
    Seal,
    /// What was in the box is not the JSON object it must be.
    #[error("ClientInfo is malformed: {0}")]
    Json(#[from] serde_json::Error),
}

/// What a client says of itself in ClientInfo.
#[derive(Debug, Default)]
pub struct ClientInfo {
    /// The mesh key, if the client claims one. Not compared with anything here.
    pub mesh_key: Option<MeshKey>,
    /// The client only measures.
    pub is_prober: bool,
    /// The client's name for the program it belongs to, for display.
    pub app_name: String,
}

/// The ServerKey frame, header included.
pub fn server_key(key: &NodePublic) -> Vec<u8> {
    let mut bytes = header(FrameType::ServerKey, (MAGIC.len() + KEY_LENGTH) as u32).to_vec();
    bytes.extend(MAGIC);
    bytes.extend(key.as_bytes());
    bytes
}

/// How much of a ClientInfo frame `bytes` holds.
#[derive(Debug, Eq, PartialEq)]
pub enum Progress {
    /// More bytes are needed.
    Incomplete,
    /// The frame, header included, takes this many bytes.
    Complete(usize),
}

/// Checks whether `bytes` begin with a whole ClientInfo frame.
///
/// # Errors
///
/// As soon as the header shows that they never will.
pub fn client_info_progress(bytes: &[u8]) -> Result<Progress, LoginError> {
    let Some((type_byte, length)) = parse_header(bytes) else { return Ok(Progress::Incomplete) };
    if type_byte != FrameType::ClientInfo as u8 {
        return Err(LoginError::FirstFrame(type_byte));
    }
    match usize::try_from(length) {
        Ok(whole) if CLIENT_INFO_LENGTHS.contains(&whole) => {
            let end = HEADER_LENGTH + whole;
            Ok(if bytes.len() < end { Progress::Incomplete } else { Progress::Complete(end) })
        }
        Ok(_) | Err(_) => Err(LoginError::Length(length)),
    }
}

/// A client that proved possession of its key, and the means to answer it.
pub struct LoggedIn {
    /// The proven key.
    pub key: NodePublic,
    /// What the client said of itself.
    pub info: ClientInfo,
    sealed: SalsaBox,
}

/// Opens the payload of a ClientInfo frame.
///
/// # Errors
///
/// Every reason to close the connection.
pub fn open_client_info(server: &NodePrivate, payload: &[u8]) -> Result<LoggedIn, LoginError> {
    let too_short = || LoginError::Length(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    let (key, rest) = payload.split_first_chunk::<KEY_LENGTH>().ok_or_else(too_short)?;
    let (nonce, sealed_info) = rest.split_first_chunk::<NONCE_LENGTH>().ok_or_else(too_short)?;
    if is_degenerate(key) {
        return Err(LoginError::DegenerateKey);
    }
    let sealed = SalsaBox::new(&PublicKey::from_bytes(*key), &server.secret());
    let text =
        sealed.decrypt(Nonce::from_slice(nonce), sealed_info).map_err(|_| LoginError::Seal)?;
    let info = serde_json::from_slice::<Option<ClientInfo>>(&text)?.unwrap_or_default();
    Ok(LoggedIn { key: NodePublic::from_bytes(*key), info, sealed })
}

impl LoggedIn {
    /// The ServerInfo frame, header included, sealed with `nonce`, which must be random. With
    /// `token_bucket`, bytes per second and burst, it asks the client to drop what it would send beyond.
    pub fn server_info(
        &self,
        nonce: [u8; NONCE_LENGTH],
        token_bucket: Option<(u64, u64)>,
    ) -> Vec<u8> {
        let limits = token_bucket.map(|(rate, burst)| {
            format!(",\"TokenBucketBytesPerSecond\":{rate},\"TokenBucketBytesBurst\":{burst}")
        });
        let limits = limits.unwrap_or_default();
        let text = format!("{{\"version\":{PROTOCOL_VERSION}{limits}}}");
        let sealed = self
            .sealed
            .encrypt(Nonce::from_slice(&nonce), text.as_bytes())
            .expect("a text of a few bytes is within the cipher's limit");
        let mut bytes =
            header(FrameType::ServerInfo, (NONCE_LENGTH + sealed.len()) as u32).to_vec();
        bytes.extend(nonce);
        bytes.extend(sealed);
        bytes
    }
}

/// Whether a Diffie-Hellman with this key gives a secret that everybody knows: the points of small
/// order on Curve25519 and its twist, in every encoding below 2^255 (RFC 7748 section 6.1).
pub(crate) fn is_degenerate(key: &[u8; KEY_LENGTH]) -> bool {
    const ORDER_8: [[u8; KEY_LENGTH]; 2] = [
        *b"\xe0\xeb\x7a\x7c\x3b\x41\xb8\xae\x16\x56\xe3\xfa\xf1\x9f\xc4\x6a\xda\x09\x8d\xeb\x9c\x32\xb1\xfd\x86\x62\x05\x16\x5f\x49\xb8\x00",
        *b"\x5f\x9c\x95\xbc\xa3\x50\x8c\x24\xb1\xd0\xb1\x55\x9c\x83\xef\x5b\x04\x44\x5c\xc4\x58\x1c\x8e\x86\xd8\x22\x4e\xdd\xd0\x9f\x11\x57",
    ];
    let mut key = *key;
    // The top bit is not part of the number.
    key[KEY_LENGTH - 1] &= 0x7f;
    let [first, middle @ .., last] = key;
    // 0 and 1; p - 1, p and p + 1 with p = 2^255 - 19.
    let zero_or_one = first <= 1 && last == 0 && middle == [0; 30];
    let around_the_prime = (0xec..=0xee).contains(&first) && last == 0x7f && middle == [0xff; 30];
    zero_or_one || around_the_prime || ORDER_8.contains(&key)
}

/// Field names match in any case, unknown ones are ignored, the last of several wins, `null` leaves
/// a field as it is: what Go's decoder does with this object. `mesh_key`, which the Rust client
/// sends with a value that is no key, is therefore an unknown field and must stay one.
impl<'de> Deserialize<'de> for ClientInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = ClientInfo;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a ClientInfo object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ClientInfo, A::Error> {
                let mut info = ClientInfo::default();
                while let Some(mut name) = map.next_key::<String>()? {
                    name.make_ascii_lowercase();
                    match name.as_str() {
                        "meshkey" => {
                            let key =
                                map.next_value::<String>()?.parse().map_err(de::Error::custom)?;
                            info.mesh_key = Some(key);
                        }
                        "version" => {
                            map.next_value::<Option<i64>>()?;
                        }
                        "canackpings" => {
                            map.next_value::<Option<bool>>()?;
                        }
                        "isprober" => {
                            info.is_prober =
                                map.next_value::<Option<bool>>()?.unwrap_or(info.is_prober);
                        }
                        "appname" => {
                            if let Some(app_name) = map.next_value::<Option<String>>()? {
                                info.app_name = app_name;
                            }
                        }
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(info)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server() -> NodePrivate {
        NodePrivate::from_random([9; 32])
    }

    fn client() -> NodePrivate {
        NodePrivate::from_random([5; 32])
    }

    fn seal(text: &[u8]) -> Vec<u8> {
        let public = PublicKey::from_bytes(*server().public().as_bytes());
        let nonce = [3; NONCE_LENGTH];
        let sealed =
            SalsaBox::new(&public, &client().secret()).encrypt(&Nonce::from(nonce), text).unwrap();
        [&client().public().as_bytes()[..], &nonce, &sealed].concat()
    }

    fn login(text: &str) -> Result<ClientInfo, LoginError> {
        open_client_info(&server(), &seal(text.as_bytes())).map(|logged_in| logged_in.info)
    }

    #[test]
    fn server_key_frame_is_as_the_reference_writes_it() {
        let frame = server_key(&NodePublic::from_bytes([7; 32]));
        assert_eq!(frame[..5], [1, 0, 0, 0, 40]);
        assert_eq!(frame[5..13], [0x44, 0x45, 0x52, 0x50, 0xf0, 0x9f, 0x94, 0x91]);
        assert_eq!(frame[13..], [7; 32]);
    }

    #[test]
    fn case_17_server_info_is_53_bytes_and_opens() {
        let logged_in = open_client_info(&server(), &seal(b"{}")).unwrap();
        assert_eq!(logged_in.key, client().public());
        let frame = logged_in.server_info([1; NONCE_LENGTH], None);
        assert_eq!(frame[..5], [3, 0, 0, 0, 53]);
        let public = PublicKey::from_bytes(*server().public().as_bytes());
        let text = SalsaBox::new(&public, &client().secret())
            .decrypt(Nonce::from_slice(&frame[5..29]), &frame[29..])
            .unwrap();
        assert_eq!(text, b"{\"version\":2}");

        let frame = logged_in.server_info([1; NONCE_LENGTH], Some((1000, 65568)));
        let text = SalsaBox::new(&public, &client().secret())
            .decrypt(Nonce::from_slice(&frame[5..29]), &frame[29..])
            .unwrap();
        let announced: &[u8] =
            b"{\"version\":2,\"TokenBucketBytesPerSecond\":1000,\"TokenBucketBytesBurst\":65568}";
        assert_eq!(text, announced);
    }

    #[test]
    fn names_match_in_any_case_and_the_last_wins() {
        let key = "ab".repeat(32);
        let info = login(&format!(
            "{{\"Version\":5,\"meshKey\":\"{}\",\"MESHKEY\":\"{key}\",\"isPROBER\":true,\"other\":[{{}}]}}",
            "cd".repeat(32)
        ))
        .unwrap();
        assert_eq!(info.mesh_key, Some(key.parse().unwrap()));
        assert!(info.is_prober);
    }

    #[test]
    fn case_14_mesh_key_values() {
        for bad in ["\"abc\"", "\"\"", "null", "7"] {
            assert!(login(&format!("{{\"meshKey\":{bad}}}")).is_err(), "{bad}");
        }
        assert!(login("{\"mesh_key\":\"none\"}").unwrap().mesh_key.is_none());
        assert!(login("null").is_ok());
        assert!(login("{} {}").is_err());
        assert!(login("[]").is_err());
        assert!(login("{\"isProber\":1}").is_err());
    }

    #[test]
    fn a_box_for_another_server_does_not_open() {
        let other = NodePrivate::from_random([8; 32]);
        assert!(matches!(open_client_info(&other, &seal(b"{}")), Err(LoginError::Seal)));
    }

    #[test]
    fn lengths_are_known_from_the_header() {
        let head = |length: u32| header(FrameType::ClientInfo, length);
        assert!(matches!(client_info_progress(&head(55)), Err(LoginError::Length(55))));
        assert!(matches!(client_info_progress(&head(262_145)), Err(LoginError::Length(262_145))));
        assert_eq!(client_info_progress(&head(262_144)).unwrap(), Progress::Incomplete);
        assert_eq!(client_info_progress(&head(56)[..4]).unwrap(), Progress::Incomplete);
        assert_eq!(
            client_info_progress(&[&head(56)[..], &[0; 60]].concat()).unwrap(),
            Progress::Complete(61)
        );
        assert!(matches!(client_info_progress(&[4, 0, 0, 0, 56]), Err(LoginError::FirstFrame(4))));
    }

    /// Independent witness for the list: a secret that a Diffie-Hellman does not contribute to.
    #[test]
    fn degenerate_keys_are_those_that_contribute_nothing() {
        let contributes = |key: [u8; 32]| {
            x25519_dalek::StaticSecret::from([77; 32])
                .diffie_hellman(&x25519_dalek::PublicKey::from(key))
                .was_contributory()
        };
        let little = |low: u8, fill: u8, high: u8| {
            let mut key = [fill; 32];
            key[0] = low;
            key[31] = high;
            key
        };
        for high in [0, 0x80] {
            for low in 0..4 {
                let key = little(low, 0, high);
                assert_eq!(is_degenerate(&key), !contributes(key), "{key:?}");
            }
            for low in 0xe8..=0xff {
                let key = little(low, 0xff, 0x7f | high);
                assert_eq!(is_degenerate(&key), !contributes(key), "{key:?}");
            }
        }
        let order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
        let other = "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157";
        for text in [order_8, other] {
            let key = *format!("nodekey:{text}").parse::<NodePublic>().unwrap().as_bytes();
            assert!(is_degenerate(&key) && !contributes(key));
        }
    }

    proptest! {
        #[test]
        fn any_payload_is_refused_or_opened(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open_client_info(&server(), &payload).is_err());
        }

        #[test]
        fn any_text_in_the_box_is_refused_or_read(text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = login(&text);
            let _ = open_client_info(&server(), &seal(&bytes));
        }
    }
}
