//! The HTTP client with which sources of admission are asked.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use super::AdmitError;
use crate::client::Trust;

/// Most redirects that are followed; as many as Go's client follows.
const MAX_REDIRECTS: usize = 10;

/// A request that may have to be sent several times.
#[derive(Clone)]
pub(crate) struct Question {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl fmt::Debug for Question {
    /// Shows neither headers nor body: there may be secrets in them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Question({} {})", self.method, self.uri)
    }
}

/// The head of an answer, whose body is still to be read.
pub(crate) struct Answer(Response<Incoming>);

/// A client for HTTP and HTTPS that keeps connections for the next question.
#[derive(Clone)]
pub(crate) struct Web {
    client: Arc<Client<HttpsConnector<HttpConnector>, Full<Bytes>>>,
}

impl Web {
    /// A client that trusts the certificate authorities of this system.
    ///
    /// # Errors
    ///
    /// If there are none, and the address that `flag` names is an HTTPS one.
    pub(crate) fn new(flag: &'static str, uri: &Uri) -> Result<Self, AdmitError> {
        Self::trusting(&Trust::System, flag, uri)
    }

    /// A client that trusts whom `trust` says.
    ///
    /// # Errors
    ///
    /// If that is nobody, and the address that `flag` names is an HTTPS one.
    pub(crate) fn trusting(
        trust: &Trust,
        flag: &'static str,
        uri: &Uri,
    ) -> Result<Self, AdmitError> {
        let tls = match trust.tls_config() {
            Err(error) if uri.scheme_str() == Some("https") => {
                return Err(AdmitError::NoRoots { flag, reason: error.to_string() });
            }
            Err(_) => trusting_nobody(),
            Ok(tls) => tls,
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(4)
            .build(connector);
        Ok(Self { client: Arc::new(client) })
    }

    /// Asks, and follows redirects as Go's client does. The caller limits the time, and runs this
    /// on the control runtime, to which connections that are kept belong.
    ///
    /// # Errors
    ///
    /// In words, if no answer came.
    pub(crate) async fn ask(&self, mut question: Question) -> Result<Answer, String> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(Full::new(question.body.clone()));
            *request.method_mut() = question.method.clone();
            *request.uri_mut() = question.uri.clone();
            *request.headers_mut() = question.headers.clone();
            request.headers_mut().insert(
                USER_AGENT,
                HeaderValue::from_static(concat!("derpd/", env!("CARGO_PKG_VERSION"))),
            );
            let answer = self.client.request(request).await.map_err(|error| in_words(&error))?;
            match next(&question, answer.status(), answer.headers())? {
                Some(redirected) => question = redirected,
                None => return Ok(Answer(answer)),
            }
        }
        Err(format!("more than {MAX_REDIRECTS} redirects"))
    }
}

impl Answer {
    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// The first `limit` bytes of the body, and whether these are all.
    ///
    /// # Errors
    ///
    /// In words, if the connection breaks.
    pub(crate) async fn body(mut self, limit: usize) -> Result<(Vec<u8>, bool), String> {
        read_body(self.0.body_mut(), limit).await
    }
}

/// The settings of a client that only talks plain HTTP.
fn trusting_nobody() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// The first `limit` bytes of a body, and whether these are all.
pub(crate) async fn read_body(
    body: &mut Incoming,
    limit: usize,
) -> Result<(Vec<u8>, bool), String> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| in_words(&error))?.into_data() else { continue };
        let room = limit - bytes.len();
        if data.len() > room {
            bytes.extend_from_slice(&data[..room]);
            return Ok((bytes, false));
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, true))
}

/// What to ask next, if the answer to `question` is a redirect. Without I/O.
fn next(
    question: &Question,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Option<Question>, String> {
    let keeps_method = match status {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => false,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        _ => return Ok(None),
    };
    let Some(location) = headers.get(LOCATION) else { return Ok(None) };
    let uri = location
        .to_str()
        .ok()
        .and_then(|location| resolve(&question.uri, location))
        .ok_or_else(|| format!("a redirect to {location:?}, which is no HTTP address"))?;
    let mut redirected = Question { uri, ..question.clone() };
    if !keeps_method && question.method != Method::HEAD {
        redirected.method = Method::GET;
        redirected.body = Bytes::new();
    }
    // A secret for one server is not for another.
    if redirected.uri.authority() != question.uri.authority()
        || redirected.uri.scheme() != question.uri.scheme()
    {
        redirected.headers.remove(AUTHORIZATION);
    }
    Ok(Some(redirected))
}

/// The address that `location` means on the page `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let directory = base.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    text.parse().ok().filter(is_web_address)
}

/// Whether an address is an absolute one of HTTP or HTTPS.
pub(crate) fn is_web_address(uri: &Uri) -> bool {
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.host().is_some_and(|host| !host.is_empty())
}

/// When to ask again (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<SystemTime> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => now.checked_add(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok(),
    }
}

/// An error with its causes: hyper's own words alone say little.
pub(crate) fn in_words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(uri: &'static str) -> Question {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("secret"))]);
        let body = Bytes::from_static(b"{}");
        Question { method: Method::POST, uri: Uri::from_static(uri), headers, body }
    }

    fn redirect(status: u16, location: &'static str) -> Result<Option<Question>, String> {
        let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(location))]);
        next(&question("https://a.test/x/y"), StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn redirects_are_followed_as_go_does() {
        for (status, method, body) in [
            (301, Method::GET, &b""[..]),
            (302, Method::GET, b""),
            (303, Method::GET, b""),
            (307, Method::POST, b"{}"),
            (308, Method::POST, b"{}"),
        ] {
            let next = redirect(status, "/z").unwrap().unwrap();
            assert_eq!((next.method, &next.body[..]), (method, body), "{status}");
            assert_eq!(next.uri, "https://a.test/z");
        }
        for status in [200, 300, 304, 404] {
            assert!(redirect(status, "/z").unwrap().is_none(), "{status}");
        }
    }

    #[test]
    fn a_secret_stays_with_its_server() {
        for (location, uri, keeps) in [
            ("z?q", "https://a.test/x/z?q", true),
            ("https://a.test/z", "https://a.test/z", true),
            ("http://a.test/z", "http://a.test/z", false),
            ("//b.test/z", "https://b.test/z", false),
            ("https://a.test:444/", "https://a.test:444/", false),
        ] {
            let next = redirect(302, location).unwrap().unwrap();
            assert_eq!(next.uri, uri);
            assert_eq!(next.headers.contains_key(AUTHORIZATION), keeps, "{location}");
        }
        for location in ["ftp://a.test/", "https://", "file:///etc/passwd", "http:///x"] {
            let error = redirect(302, location).unwrap_err();
            assert!(error.contains("no HTTP address"), "{error}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_700);
        let at = |text: &'static str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(text))]);
            retry_after(&headers, now).map(|at| at.duration_since(now).unwrap().as_secs())
        };
        assert_eq!(at("120"), Some(120));
        assert_eq!(at("Sun, 06 Nov 1994 08:49:37 GMT"), Some(77));
        for text in ["", "soon", "-1", "18446744073709551615"] {
            assert_eq!(at(text), None, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
