//! The HTTP client that talks to the ACME server: only HTTPS, every request limited in time and length.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::AcmeError;
use crate::{
    admit::{in_words, web::retry_after},
    client::Trust,
};

/// Time for one request, its answer included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// No answer is anywhere near this long: chains have a few kilobytes.
const MAX_ANSWER: usize = 1 << 20;

/// A client that remembers when a server that refused something wants to be asked again.
#[derive(Clone)]
pub(super) struct Web {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    wish: Arc<Mutex<Option<SystemTime>>>,
}

impl Web {
    /// A client that accepts certificates as `trust` says.
    pub(super) fn new(trust: &Trust) -> Result<Self, AcmeError> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(trust.tls_config()?)
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { client, wish: Arc::default() })
    }

    /// When the server wants to be asked again, if it said so when it refused something since this was last called.
    pub(super) fn take_wish(&self) -> Option<SystemTime> {
        self.wish.lock().take()
    }
}

impl HttpClient for Web {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let Self { client, wish } = self.clone();
        Box::pin(async move {
            match timeout(REQUEST_TIMEOUT, exchange(&client, request)).await {
                Ok(Ok(response)) => {
                    if response.status().is_client_error() || response.status().is_server_error() {
                        *wish.lock() = retry_after(response.headers(), SystemTime::now());
                    }
                    Ok(response.into())
                }
                Ok(Err(reason)) => Err(Error::Other(reason.into())),
                Err(_elapsed) => Err(Error::Other(Box::new(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
                )))),
            }
        })
    }
}

async fn exchange(
    client: &Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    request: Request<BodyWrapper<Bytes>>,
) -> Result<Response<Full<Bytes>>, String> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| in_words(&error))?.to_bytes();
    let request = Request::from_parts(parts, Full::new(body));
    let (parts, body) =
        client.request(request).await.map_err(|error| in_words(&error))?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| in_words(&*error))?;
    Ok(Response::from_parts(parts, Full::new(body.to_bytes())))
}
