//! Where the document comes from.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::time::timeout;

use super::{Arguments, TopError};
use crate::{
    admit::web::{Question, Web},
    client::Trust,
    files,
    status::Status,
};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest document that is read.
const MAX_DOCUMENT: usize = 2 << 20;
/// Where a relay of this machine may be: its plain port, its TLS port, and the port of `-dev`.
const LOCAL: [&str; 3] = ["http://127.0.0.1", "https://127.0.0.1", "http://127.0.0.1:3340"];

/// Asks a relay.
pub(super) struct Source {
    /// Each is asked in turn until one answers.
    places: Vec<Place>,
    rows: usize,
    key: Option<String>,
}

struct Place {
    /// As far as the host and port.
    base: String,
    web: Web,
}

impl Source {
    pub(super) fn new(arguments: &Arguments) -> Result<Self, TopError> {
        let trust = match &arguments.ca {
            Some(path) => Trust::Roots(path.clone()),
            None if arguments.insecure => Trust::Anything,
            None => Trust::System,
        };
        let places = match &arguments.url {
            Some(url) => vec![Place::new(base(url)?, &trust, arguments.ca.as_deref())?],
            None => {
                // The name in the certificate is not that of this address, and what answers there is on this machine.
                let place = |base: &str| Place::new(base.to_owned(), &Trust::Anything, None);
                LOCAL.into_iter().map(place).collect::<Result<_, _>>()?
            }
        };
        let key = arguments.key_file.as_deref().map(read_key).transpose()?;
        Ok(Self { places, rows: arguments.rows, key })
    }

    /// The text of the document. With `after`, run and time of the last sample that is known, only with later ones.
    pub(super) async fn ask(&self, after: Option<(u64, u64)>) -> Result<String, String> {
        let mut faults = Vec::new();
        for place in &self.places {
            let answer = timeout(PATIENCE, place.ask(self.rows, self.key.as_deref(), after)).await;
            match answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
                Ok(text) => return Ok(text),
                Err(fault) => faults.push(format!("{}: {fault}", place.base)),
            }
        }
        Err(faults.join("; "))
    }
}

impl Place {
    fn new(base: String, trust: &Trust, ca: Option<&Path>) -> Result<Self, TopError> {
        let uri = base
            .parse::<Uri>()
            .map_err(|_| TopError::Address { url: base.clone(), reason: "it cannot be parsed" })?;
        let web = Web::trusting(trust, "--ca", &uri).map_err(|error| match ca {
            Some(path) => {
                TopError::File { flag: "--ca", path: path.to_owned(), reason: error.to_string() }
            }
            None => TopError::Answer(error.to_string()),
        })?;
        Ok(Self { base, web })
    }

    async fn ask(
        &self,
        rows: usize,
        key: Option<&str>,
        after: Option<(u64, u64)>,
    ) -> Result<String, String> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("rows", &rows.to_string());
        if let Some((run, time)) = after {
            query.append_pair("run", &run.to_string());
            query.append_pair("after", &time.to_string());
        }
        if let Some(key) = key {
            query.append_pair("debugkey", key);
        }
        let uri = format!("{}/debug/status.json?{}", self.base, query.finish());
        let uri = uri.parse().map_err(|_| "the address cannot be parsed".to_owned())?;
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        let answer = self.web.ask(Question { method: Method::GET, uri, headers, body }).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::FORBIDDEN => {
                return Err("the relay does not let this machine see its debug pages".to_owned());
            }
            status => return Err(format!("HTTP status {}", status.as_u16())),
        }
        match answer.body(MAX_DOCUMENT).await? {
            (bytes, true) => String::from_utf8(bytes).map_err(|_| "it is no UTF-8 text".to_owned()),
            (_, false) => Err(format!("more than {MAX_DOCUMENT} bytes")),
        }
    }
}

/// Reads the document.
pub(super) fn read(text: &str) -> Result<Status, String> {
    let mut reader = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        format!(
            "the answer is no status of a derpd of this version: {}: {}",
            error.path(),
            error.inner()
        )
    })
}

/// Scheme, host and port of an address, as the command line has it.
fn base(url: &str) -> Result<String, TopError> {
    let fault = |reason| TopError::Address { url: url.to_owned(), reason };
    let text = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri = text.parse::<Uri>().map_err(|_| fault("it cannot be parsed"))?;
    let scheme = uri.scheme_str().unwrap_or_default();
    if !["http", "https"].contains(&scheme) {
        return Err(fault("it is neither http nor https"));
    }
    if !["", "/", "/debug", "/debug/", "/debug/status.json"].contains(&uri.path()) {
        return Err(fault("it has a path, which is always /debug/"));
    }
    if uri.query().is_some() {
        return Err(fault("it has a query; a key belongs into --key-file"));
    }
    match uri.authority() {
        Some(authority) if !authority.host().is_empty() && !authority.as_str().contains('@') => {
            Ok(format!("{scheme}://{authority}"))
        }
        Some(_) | None => Err(fault("it has no host")),
    }
}

fn read_key(path: &Path) -> Result<String, TopError> {
    let fault = |reason| TopError::File { flag: "--key-file", path: path.to_owned(), reason };
    let bytes = files::read_bounded(path).map_err(|error| fault(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| fault("it is no UTF-8 text".to_owned()))?;
    match text.trim() {
        "" => Err(fault("it is empty".to_owned())),
        key => Ok(key.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (url, expected) in [
            ("relay.example.com", "https://relay.example.com"),
            ("relay.example.com:8443", "https://relay.example.com:8443"),
            ("http://127.0.0.1:3340", "http://127.0.0.1:3340"),
            ("https://[::1]:443/debug/", "https://[::1]:443"),
        ] {
            assert_eq!(base(url).unwrap(), expected, "{url}");
        }
        for (url, reason) in [
            (
                "ftp://relay",
                "\"ftp://relay\" is no address of a relay: it is neither http nor https",
            ),
            ("https://relay/metrics", "which is always /debug/"),
            ("https://relay/?debugkey=a", "a key belongs into --key-file"),
            ("https://me@relay", "it has no host"),
            ("", "it cannot be parsed"),
            ("two words", "it cannot be parsed"),
        ] {
            let error = base(url).unwrap_err();
            assert!(error.to_string().contains(reason), "{url}: {error}");
            assert_eq!(error.exit_status(), 2);
        }
    }

    #[test]
    fn what_is_no_status_is_named() {
        let error = read("{\"run\":\"x\"}").unwrap_err();
        assert!(error.contains("no status of a derpd of this version: run:"), "{error}");
        assert!(read("<html>").is_err());
    }
}
