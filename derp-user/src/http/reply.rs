//! Ways to build a response.

use bytes::Bytes;
use hyper::{
    Method, StatusCode,
    http::{HeaderName, HeaderValue, header},
};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Body, Reply, STYLE_PATH};

/// The headers of everything a browser may display.
const BROWSER_HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        header::STRICT_TRANSPORT_SECURITY,
        HeaderValue::from_static("max-age=63072000; includeSubDomains"),
    ),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; \
             block-all-mixed-content; object-src 'none'",
        ),
    ),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
];

/// An HTML page around `main`, in the style of all pages.
pub(super) fn page(title: &str, main: &str) -> String {
    format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n\
         <link rel=\"stylesheet\" href=\"{STYLE_PATH}\">\n\
         </head>\n\
         <body>\n\
         <main>\n\
         {main}\
         </main>\n\
         </body>\n\
         </html>\n"
    )
}

/// A plain text message, with the line end that curl users are glad of.
pub(super) fn text(status: StatusCode, message: &str) -> Reply {
    exact_text(status, format!("{message}\n"))
}

/// A plain text that monitors may compare as a whole.
pub(super) fn exact_text(status: StatusCode, text: String) -> Reply {
    let mut response = with_body(status, "text/plain; charset=utf-8", Bytes::from(text));
    response
        .headers_mut()
        .insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An HTML page.
pub(super) fn html(status: StatusCode, page: String) -> Reply {
    with_body(status, "text/html; charset=utf-8", Bytes::from(page))
}

/// A file of a page, which browsers may keep for a day.
pub(super) fn asset(content_type: &'static str, text: &'static str) -> Reply {
    let mut response = with_body(StatusCode::OK, content_type, Bytes::from_static(text.as_bytes()));
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=86400"));
    response
}

/// Metrics in the Prometheus text format.
pub(super) fn metrics(metrics: String) -> Reply {
    with_body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", Bytes::from(metrics))
}

/// A text that goes on until its source or its reader ends it.
pub(super) fn text_stream(pieces: mpsc::Receiver<Bytes>) -> Reply {
    with_any_body(StatusCode::OK, "text/plain; charset=utf-8", Body::Stream(pieces))
}

/// A JSON document that is rendered already.
pub(super) fn json_text(text: String) -> Reply {
    with_body(StatusCode::OK, "application/json; charset=utf-8", Bytes::from(text))
}

/// A JSON document.
pub(super) fn json(document: &impl Serialize) -> Reply {
    match serde_json::to_string(document) {
        Ok(text) => with_body(StatusCode::OK, "application/json", Bytes::from(text + "\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

/// Sends the client to `location`; a location that no header can hold is a bad request. Only who has asked for a page
/// gets one to click on.
pub(super) fn redirect(method: &Method, status: StatusCode, location: &str) -> Reply {
    let Ok(value) = HeaderValue::try_from(location) else {
        return text(StatusCode::BAD_REQUEST, "malformed request target");
    };
    let mut response = if [Method::GET, Method::HEAD].contains(method) {
        let (link, reason) = (escape(location), status.canonical_reason().unwrap_or("Moved"));
        html(status, format!("<a href=\"{link}\">{reason}</a>\n"))
    } else {
        let mut response = Reply::default();
        *response.status_mut() = status;
        response
    };
    response.headers_mut().insert(header::LOCATION, value);
    response
}

/// Adds the headers of everything a browser may display.
pub(super) fn browser(mut response: Reply) -> Reply {
    for (name, value) in BROWSER_HEADERS {
        response.headers_mut().insert(name, value);
    }
    response
}

/// `text` with the characters replaced that mean something in HTML.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

fn with_body(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    with_any_body(status, content_type, body.into())
}

fn with_any_body(status: StatusCode, content_type: &'static str, body: Body) -> Reply {
    let mut response = Reply::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
