//! How a client wants its DERP session, and the response that begins it (reference sections 2.3 to
//! 2.5). Without I/O.

use hyper::HeaderMap;

use crate::{
    http::Entry,
    proto::{keys::NodePublic, login::PROTOCOL_VERSION},
};

/// What the headers of an upgrade request say about the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Options {
    /// The client knows the server's key already and wants no HTTP response.
    pub(super) fast_start: bool,
    /// The client would rather be on another node of the region.
    pub(super) not_ideal: bool,
}

impl Options {
    /// Reads the headers. A browser, which cannot set any, has no wishes.
    pub(super) fn of(entry: &Entry, headers: &HeaderMap) -> Self {
        match entry {
            Entry::Derp => Self {
                fast_start: headers.get("Derp-Fast-Start").is_some_and(|value| value == "1"),
                not_ideal: headers.get("Ideal-Node").is_some_and(|value| !value.is_empty()),
            },
            Entry::WebSocket(_) => Self { fast_start: false, not_ideal: false },
        }
    }
}

/// The response that begins a session without fast start.
pub(super) fn response(own_key: &NodePublic) -> Vec<u8> {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\n\
         Upgrade: DERP\r\n\
         Connection: Upgrade\r\n\
         Derp-Version: {PROTOCOL_VERSION}\r\n\
         Derp-Public-Key: {}\r\n\r\n",
        own_key.to_hex()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn options_need_their_exact_values() {
        let options = |name: &'static str, value| {
            let headers = HeaderMap::from_iter([(
                hyper::header::HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_static(value),
            )]);
            let Options { fast_start, not_ideal } = Options::of(&Entry::Derp, &headers);
            (fast_start, not_ideal)
        };
        assert_eq!(options("Derp-Fast-Start", "1"), (true, false));
        assert_eq!(options("derp-fast-start", "true"), (false, false));
        assert_eq!(options("Ideal-Node", "derp1a"), (false, true));
        assert_eq!(options("Ideal-Node", ""), (false, false));
    }

    #[test]
    fn case_04_the_four_headers_in_order() {
        let text = String::from_utf8(response(&NodePublic::from_bytes([0xab; 32]))).unwrap();
        let expected = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\
                        Derp-Version: 2\r\nDerp-Public-Key: ";
        assert_eq!(text, format!("{expected}{}\r\n\r\n", "ab".repeat(32)));
    }
}
