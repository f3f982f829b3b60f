//! The HTTP half of a WebSocket handshake (RFC 6455 section 4.2). Any `Origin` may connect, and no
//! extension is ever agreed on: packets do not compress, and Safari's compression is broken.

use hyper::{
    HeaderMap, Method, StatusCode, Version,
    http::{HeaderName, HeaderValue, header, request::Parts},
};
use tungstenite::handshake::derive_accept_key;

use super::{Reply, reply};

/// What clients must ask for (RFC 6455 section 4.1).
const VERSION: &str = "13";
/// The one subprotocol.
const PROTOCOL: &str = "derp";

/// A WebSocket client's good request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Handshake {
    accept: String,
    /// The subprotocol as the client spells it, if it is DERP.
    protocol: Option<String>,
}

/// Why no WebSocket can come of a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    NoUpgrade,
    Method,
    Version,
    Key,
}

impl Fault {
    /// What the client is told.
    pub(super) fn reply(self) -> Reply {
        let (status, message, hints) = match self {
            Self::NoUpgrade => (
                StatusCode::UPGRADE_REQUIRED,
                "WebSocket needs HTTP/1.1 and \"Connection: Upgrade\"",
                &[(header::CONNECTION, "Upgrade"), (header::UPGRADE, "websocket")][..],
            ),
            Self::Method => {
                (StatusCode::METHOD_NOT_ALLOWED, "WebSocket needs the method GET", &[][..])
            }
            Self::Version => (
                StatusCode::BAD_REQUEST,
                "only version 13 of WebSocket is supported",
                &[(header::SEC_WEBSOCKET_VERSION, VERSION)][..],
            ),
            Self::Key => (
                StatusCode::BAD_REQUEST,
                "WebSocket needs one Sec-WebSocket-Key: 16 bytes in base64",
                &[][..],
            ),
        };
        let mut reply = reply::text(status, message);
        for (name, value) in hints {
            reply.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        reply
    }
}

impl Handshake {
    /// Checks a request.
    pub(super) fn of(request: &Parts) -> Result<Self, Fault> {
        let headers = &request.headers;
        let connection = tokens(headers, &header::CONNECTION);
        if request.version < Version::HTTP_11
            || !connection.iter().any(|token| token.eq_ignore_ascii_case("upgrade"))
        {
            return Err(Fault::NoUpgrade);
        }
        if request.method != Method::GET {
            return Err(Fault::Method);
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != VERSION) {
            return Err(Fault::Version);
        }
        let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else { return Err(Fault::Key) };
        let key = key.as_bytes().trim_ascii();
        if !is_key(key) {
            return Err(Fault::Key);
        }
        let protocol = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL)
            .into_iter()
            .find(|token| token.eq_ignore_ascii_case(PROTOCOL))
            .map(str::to_owned);
        Ok(Self { accept: derive_accept_key(key), protocol })
    }

    /// Whether the client asked for the subprotocol, and not just for something with `derp` in its name.
    pub fn speaks_derp(&self) -> bool {
        self.protocol.is_some()
    }

    /// The response that begins the connection.
    pub fn response(&self) -> Vec<u8> {
        let protocol = match &self.protocol {
            Some(protocol) => format!("Sec-WebSocket-Protocol: {protocol}\r\n"),
            None => String::new(),
        };
        format!(
            "HTTP/1.1 101 Switching Protocols\r\n\
             Upgrade: websocket\r\n\
             Connection: Upgrade\r\n\
             Sec-WebSocket-Accept: {}\r\n\
             {protocol}\r\n",
            self.accept
        )
        .into_bytes()
    }
}

/// The elements of a header that is a list; none of a value that is not ASCII.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).collect()
}

/// Whether this is 16 bytes in base64: 22 digits and the padding.
fn is_key(text: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    matches!(text.strip_suffix(b"=="), Some(digits) if digits.len() == 22 && digits.iter().all(is_digit))
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    /// The headers of RFC 6455 section 1.3, some of them replaced or, with an empty value, left out.
    fn request(method: &str, version: Version, changes: &[(&str, &str)]) -> Parts {
        let mut headers = vec![
            ("Host", "relay"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("Origin", "http://example.com"),
            ("Sec-WebSocket-Protocol", "derp"),
            ("Sec-WebSocket-Version", "13"),
        ];
        headers.retain(|(name, _)| !changes.iter().any(|(changed, _)| changed == name));
        headers.extend(changes.iter().filter(|(_, value)| !value.is_empty()));
        let builder = Request::builder().method(method).version(version).uri("/derp");
        let builder =
            headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        builder.body(()).unwrap().into_parts().0
    }

    fn status(method: &str, version: Version, changes: &[(&str, &str)]) -> u16 {
        match Handshake::of(&request(method, version, changes)) {
            Ok(_) => 101,
            Err(fault) => fault.reply().status().as_u16(),
        }
    }

    /// The key and its answer are those of RFC 6455 section 1.3.
    #[test]
    fn case_18_the_response_names_the_subprotocol() {
        let good = Handshake::of(&request("GET", Version::HTTP_11, &[])).unwrap();
        assert!(good.speaks_derp());
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                        Connection: Upgrade\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
        let text = String::from_utf8(good.response()).unwrap();
        assert_eq!(text, format!("{expected}Sec-WebSocket-Protocol: derp\r\n\r\n"));

        let other = request("GET", Version::HTTP_11, &[("Sec-WebSocket-Protocol", "xderp")]);
        let other = Handshake::of(&other).unwrap();
        assert!(!other.speaks_derp());
        assert_eq!(String::from_utf8(other.response()).unwrap(), format!("{expected}\r\n"));
    }

    #[test]
    fn the_subprotocol_is_one_of_a_list_in_any_case() {
        for (value, expected) in [
            ("derp", Some("derp")),
            ("chat, DERP ", Some("DERP")),
            ("derp2", None),
            ("chat derp", None),
        ] {
            let request = request("GET", Version::HTTP_11, &[("Sec-WebSocket-Protocol", value)]);
            assert_eq!(Handshake::of(&request).unwrap().protocol.as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn requests_are_refused_with_the_statuses_of_the_reference() {
        use Version as V;
        let key = "Sec-WebSocket-Key";
        for (method, version, changes, expected) in [
            ("GET", V::HTTP_11, &[][..], 101),
            ("GET", V::HTTP_11, &[("Connection", "keep-alive, upgrade")], 101),
            ("GET", V::HTTP_11, &[("Origin", "null")], 101),
            ("GET", V::HTTP_11, &[("Origin", "")], 101),
            ("GET", V::HTTP_11, &[("Sec-WebSocket-Extensions", "permessage-deflate")], 101),
            ("GET", V::HTTP_10, &[], 426),
            ("GET", V::HTTP_11, &[("Connection", "close")], 426),
            ("GET", V::HTTP_11, &[("Connection", "")], 426),
            ("POST", V::HTTP_11, &[], 405),
            ("HEAD", V::HTTP_11, &[], 405),
            ("GET", V::HTTP_11, &[("Sec-WebSocket-Version", "8")], 400),
            ("GET", V::HTTP_11, &[("Sec-WebSocket-Version", "")], 400),
            ("GET", V::HTTP_11, &[(key, "")], 400),
            ("GET", V::HTTP_11, &[(key, "dGhlIHNhbXBsZSBub25jZQ")], 400),
            ("GET", V::HTTP_11, &[(key, "dGhlIHNhbXBsZSBub25jZ===")], 400),
            ("GET", V::HTTP_11, &[(key, "dGhlIHNhbXBsZSBub25jZS4=")], 400),
            (
                "GET",
                V::HTTP_11,
                &[(key, "dGhlIHNhbXBsZSBub25jZQ=="), (key, "dGhlIHNhbXBsZSBub25jZQ==")],
                400,
            ),
        ] {
            assert_eq!(
                status(method, version, changes),
                expected,
                "{method} {version:?} {changes:?}"
            );
        }
        assert_eq!(Fault::NoUpgrade.reply().headers()["upgrade"], "websocket");
        assert_eq!(Fault::Version.reply().headers()["sec-websocket-version"], "13");
    }
}
