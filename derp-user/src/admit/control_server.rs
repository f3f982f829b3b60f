//! `-allow-from-api`: the node keys that a control server knows. Without I/O.

use std::{collections::HashSet, fmt};

use hyper::{
    HeaderMap, Method, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue},
    http::uri::PathAndQuery,
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::web::Question;
use crate::proto::keys::{KeyError, NodePublic};

/// Longest list of nodes that is read: a node takes one or two kilobytes.
pub(super) const MAX_BODY: usize = 256 << 20;

/// The secret that opens the API. Wiped from memory when dropped, never printed.
#[derive(Clone)]
pub(super) struct Token(Zeroizing<String>);

impl Token {
    /// Takes the token out of the text of its file.
    ///
    /// # Errors
    ///
    /// In words, if there is none, or more than one word.
    pub(super) fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(text).map_err(|_| "not a text file")?.trim();
        match text {
            "" => Err("the file is empty"),
            text if text.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Ok(Self(Zeroizing::new(text.to_owned())))
            }
            _ => Err("a token is one word of ASCII characters"),
        }
    }
}

impl Token {
    /// Whether this is the secret of one of Tailscale's OAuth clients, which has to be exchanged for a
    /// token that opens the API.
    pub(super) fn is_client_secret(&self) -> bool {
        self.0.starts_with("tskey-client-")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token([redacted])")
    }
}

/// The request for the list of nodes.
pub(super) fn question(uri: &Uri, token: &Token) -> Question {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let text = Zeroizing::new(format!("Bearer {}", token.0.as_str()));
    if let Ok(mut value) = HeaderValue::from_str(&text) {
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Question { method: Method::GET, uri: uri.clone(), headers, body: bytes::Bytes::new() }
}

/// The request that exchanges a client's secret, at the server whose list `uri` is.
///
/// # Errors
///
/// In words, if the address has no server.
pub(super) fn exchange(uri: &Uri, secret: &Token) -> Result<Question, String> {
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("/api/v2/oauth/token"));
    let uri = Uri::from_parts(parts).map_err(|error| error.to_string())?;
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "client_credentials")
        // The secret names its client; Tailscale ignores what stands here.
        .append_pair("client_id", "derpd")
        .append_pair("client_secret", &secret.0)
        .finish();
    let mut headers = HeaderMap::new();
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    headers.insert(CONTENT_TYPE, form);
    Ok(Question { method: Method::POST, uri, headers, body: body.into() })
}

/// The token in the answer to [`exchange`].
///
/// # Errors
///
/// In words, without what the answer holds.
pub(super) fn exchanged(body: &[u8]) -> Result<Token, &'static str> {
    #[derive(Deserialize)]
    struct Grant {
        access_token: Zeroizing<String>,
    }
    let grant: Grant =
        serde_json::from_slice(body).map_err(|_| "the answer has no \"access_token\"")?;
    Token::parse(grant.access_token.as_bytes())
}

/// What the APIs answer, as far as it matters here: Tailscale `/api/v2/tailnet/-/devices`, Headscale
/// `/api/v1/node` and, before version 0.23, `/api/v1/machine`.
#[derive(Deserialize)]
struct Listing {
    #[serde(alias = "nodes", alias = "machines")]
    devices: Option<Vec<Device>>,
}

#[derive(Deserialize)]
struct Device {
    #[serde(rename = "nodeKey", alias = "node_key")]
    node_key: Option<String>,
    /// Tailscale: whether an administrator has approved the device.
    authorized: Option<bool>,
}

/// Why an answer of a control server is no list of nodes.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ListingError {
    #[error("the answer is no JSON: {0}")]
    Json(String),
    #[error("the answer has neither \"devices\" (Tailscale) nor \"nodes\" (Headscale)")]
    Shape,
    #[error("node {number} of the answer: {reason}")]
    Key { number: usize, reason: KeyError },
    #[error("the answer lists no node with a key, which is taken for a fault")]
    Empty,
}

/// The keys of the nodes in an answer. Nodes that have no key yet, or that nobody has approved, are
/// left out.
///
/// # Errors
///
/// If any of it is not as it should be. Then nothing of it counts.
pub(super) fn parse(body: &[u8]) -> Result<HashSet<NodePublic>, ListingError> {
    let listing: Listing =
        serde_json::from_slice(body).map_err(|error| ListingError::Json(error.to_string()))?;
    let devices = listing.devices.ok_or(ListingError::Shape)?;
    let mut keys = HashSet::with_capacity(devices.len());
    for (index, device) in devices.iter().enumerate() {
        let text = device.node_key.as_deref().unwrap_or_default();
        if text.is_empty() || device.authorized == Some(false) {
            continue;
        }
        let key: NodePublic =
            text.parse().map_err(|reason| ListingError::Key { number: index + 1, reason })?;
        if !key.is_zero() {
            keys.insert(key);
        }
    }
    // An empty tailnet needs no relay; an empty answer would disconnect everybody.
    if keys.is_empty() { Err(ListingError::Empty) } else { Ok(keys) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> NodePublic {
        NodePublic::from_bytes([byte; 32])
    }

    #[test]
    fn tailscale_lists_devices() {
        let body = format!(
            r#"{{"devices":[
                {{"addresses":["100.64.0.1"],"id":"1","nodeKey":"{}","authorized":true,"expires":"2026-01-01T00:00:00Z"}},
                {{"id":"2","nodeKey":"{}","authorized":false}},
                {{"id":"3","nodeKey":"","isExternal":true}},
                {{"id":"4","nodeKey":"{}"}}]}}"#,
            key(1),
            key(2),
            key(3)
        );
        assert_eq!(parse(body.as_bytes()), Ok(HashSet::from([key(1), key(3)])));
    }

    #[test]
    fn headscale_lists_nodes_or_machines() {
        for name in ["nodes", "machines"] {
            let body = format!(
                r#"{{"{name}":[{{"id":"1","machineKey":"mkey:{}","nodeKey":"{}","discoKey":"discokey:00","name":"a","user":{{"id":"1"}},"expiry":null,"online":true}}]}}"#,
                "00".repeat(32),
                key(9)
            );
            assert_eq!(parse(body.as_bytes()), Ok(HashSet::from([key(9)])));
        }
    }

    #[test]
    fn other_answers_are_faults() {
        let bad = format!(r#"{{"nodes":[{{"nodeKey":"{}"}},{{"nodeKey":"mkey:1"}}]}}"#, key(1));
        assert_eq!(
            parse(bad.as_bytes()).unwrap_err().to_string(),
            "node 2 of the answer: a key must start with \"nodekey:\""
        );
        for body in ["{\"message\":\"Unauthorized\"}", "{}", "{\"devices\":null}"] {
            assert_eq!(parse(body.as_bytes()), Err(ListingError::Shape), "{body}");
        }
        for body in ["", "[]", "<html>", "{\"nodes\":{}}", "{\"nodes\":[{\"nodeKey\":1}]}"] {
            assert!(matches!(parse(body.as_bytes()), Err(ListingError::Json(_))), "{body}");
        }
        assert_eq!(parse(b"{\"nodes\":[]}"), Err(ListingError::Empty));
    }

    #[test]
    fn a_token_is_one_word_that_is_never_shown() {
        let token = Token::parse(b" tskey-api-1 \n").unwrap();
        assert_eq!(format!("{token:?}"), "Token([redacted])");
        let question = question(&Uri::from_static("https://a.test/api/v1/node"), &token);
        assert_eq!(question.headers[AUTHORIZATION], "Bearer tskey-api-1");
        assert!(!format!("{question:?}").contains("tskey"));
        for text in [&b""[..], b"\n", b"a b", b"\xff", "schl\u{fc}ssel".as_bytes()] {
            assert!(Token::parse(text).is_err());
        }
    }

    #[test]
    fn a_clients_secret_is_exchanged_where_the_list_is() {
        let secret = Token::parse(b"tskey-client-k1-s&2").unwrap();
        assert!(secret.is_client_secret());
        assert!(!Token::parse(b"tskey-api-1").unwrap().is_client_secret());
        let uri = Uri::from_static("https://api.test:1/api/v2/tailnet/-/devices?fields=default");
        let question = exchange(&uri, &secret).unwrap();
        assert_eq!(question.uri, "https://api.test:1/api/v2/oauth/token");
        assert_eq!(
            question.body,
            "grant_type=client_credentials&client_id=derpd&client_secret=tskey-client-k1-s%262"
        );
        assert!(!format!("{question:?}").contains("k1"));
        let token = exchanged(br#"{"access_token":"abc","token_type":"Bearer"}"#).unwrap();
        assert_eq!(token.0.as_str(), "abc");
        for body in [&b"{}"[..], b"", b"{\"access_token\":7}", b"{\"access_token\":\"\"}"] {
            assert!(exchanged(body).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(body in "\\PC{0,100}") {
            let _ = parse(body.as_bytes());
        }
    }
}
