//! Answers to the control server's question whether this node is there (Tailscale's `tailcfg.PingRequest`).

use std::time::Duration;

use bytes::Bytes;
use hyper::{HeaderMap, Method, Uri, header::CONTENT_TYPE, header::HeaderValue};
use tokio::{task::JoinSet, time::timeout};

use super::{control::Requests, request::PingResponse, response::PingRequest};
use crate::{
    admit::web::{Question, Web, is_web_address},
    client::Trust,
};

/// Time for an answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Most answers that are on their way.
const MOST: usize = 4;
/// Most kinds of one ping that are answered.
const MOST_KINDS: usize = 4;
/// The answer to a request for one of the node's own pages. It has none.
const NO_PAGE: &[u8] = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n";

/// Answers pings.
pub(super) struct Pings {
    trust: Trust,
    last: String,
    answers: JoinSet<Result<(), String>>,
}

impl Pings {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, last: String::new(), answers: JoinSet::new() }
    }

    /// Begins to answer, unless this very ping was the last one, or as many answers as may be are on their way.
    pub(super) fn answer(&mut self, ping: PingRequest, requests: &Requests) {
        if ping.url.is_empty() || ping.url == self.last || self.answers.len() >= MOST {
            return;
        }
        self.last.clone_from(&ping.url);
        let (requests, trust) = (requests.clone(), self.trust.clone());
        self.answers.spawn(async move {
            timeout(LIMIT, answer(&ping, &requests, &trust))
                .await
                .unwrap_or_else(|_| Err(format!("{} takes longer than {LIMIT:?}", ping.url)))
        });
    }

    /// Waits for an answer to be given, and returns whether it was. Waits for ever if there is none.
    pub(super) async fn answered(&mut self) -> bool {
        match self.answers.join_next().await {
            Some(Ok(Ok(()))) => true,
            Some(Ok(Err(error))) => {
                tracing::debug!("a ping of the control server was not answered: {error}");
                false
            }
            Some(Err(_)) => false,
            None => std::future::pending().await,
        }
    }
}

async fn answer(ping: &PingRequest, requests: &Requests, trust: &Trust) -> Result<(), String> {
    let uri: Uri = ping.url.parse().map_err(|_| "its address is none".to_owned())?;
    if ping.types == "c2n" {
        return over_noise(requests, Method::POST, &uri, Bytes::from_static(NO_PAGE)).await;
    }
    if ping.types.is_empty() {
        return send(ping, requests, trust, Method::HEAD, uri, Bytes::new()).await;
    }
    for kind in ping.types.split(',').take(MOST_KINDS) {
        let error = "derpd does not send such pings";
        let answer = PingResponse { kind, ip: &ping.ip, error };
        let body = serde_json::to_vec(&answer).map_err(|error| error.to_string())?;
        send(ping, requests, trust, Method::POST, uri.clone(), body.into()).await?;
    }
    Ok(())
}

async fn send(
    ping: &PingRequest,
    requests: &Requests,
    trust: &Trust,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Result<(), String> {
    if ping.url_is_noise {
        return over_noise(requests, method, &uri, body).await;
    }
    if !is_web_address(&uri) {
        return Err(format!("{uri} is no HTTP address"));
    }
    let web = Web::trusting(trust, "control_url", &uri).map_err(|error| error.to_string())?;
    let headers =
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    web.ask(Question { method, uri, headers, body }).await.map(|_| ())
}

/// Over the connection to the server, whatever host the address names.
async fn over_noise(
    requests: &Requests,
    method: Method,
    uri: &Uri,
    body: Bytes,
) -> Result<(), String> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    requests.send_to(method, path, body).await.map(|_| ())
}
