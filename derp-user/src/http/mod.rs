//! Everything the server says in plain HTTP: probes, the captive portal answer, the home page, the debug pages
//! and the port-80 listener. Requests that upgrade to DERP leave this module untouched.
//!
//! [`Site::respond`] is a pure function of request and origin; [`serve_connection`] puts it on connections.

mod access;
mod body;
mod bootstrap;
mod debug;
mod flows;
#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod fuzz;
mod home;
mod links;
mod mesh;
mod path;
mod peer_relay;
mod reply;
mod serve;
mod status;
mod tls_requests;
mod upgrade;
mod websocket;
mod wireguard;

use std::{net::SocketAddr, sync::Arc, time::Instant};

pub use access::{AccessError, DebugAccess};
pub use body::Body;
pub use bootstrap::{
    BootstrapCounts, BootstrapDns, Lookup, NameList, Names, NamesError, SystemDns,
};
use bytes::Bytes;
pub use home::{Home, HomeError};
use hyper::{
    Method, Response, StatusCode, Version,
    http::{HeaderValue, header, request::Parts},
};
use parking_lot::RwLock;
pub use serve::{Outcome, serve_connection, serve_port80};
pub use tls_requests::{TlsRequest, TlsRequests, TlsVersion};
use tokio::sync::mpsc;
pub use upgrade::{Entry, Upgrade};
pub use websocket::Handshake;

use crate::{
    flow::FlowsView,
    metrics::MeshView,
    peer_relay::PeerRelayView,
    quiet::Quiet,
    status::{Since, Status},
    wireguard::WireGuardView,
};

/// A whole response; every page here but the traffic stream fits in memory.
pub type Reply = Response<Body>;

/// Where a request came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Address of the client's end of the connection.
    pub remote: SocketAddr,
    /// Which listener accepted it.
    pub listener: Listener,
}

/// The listeners that serve pages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Listener {
    /// The listener of `-a`, with or without TLS.
    Main {
        /// Which TLS it speaks with this client, if it does.
        tls: Option<TlsVersion>,
    },
    /// The plain listener of `-http-port`, which mostly redirects to HTTPS.
    Port80,
}

/// The key authorization for a token (RFC 8555 section 8.3).
pub type AcmeChallenge = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What the pages show and where live values come from.
pub struct Settings {
    /// What unmatched paths show at first.
    pub home: Home,
    /// Whether `/derp` relays; if not, it says so with status 404.
    pub derp_enabled: bool,
    /// Value of `-hostname`, for the debug index.
    pub hostname: String,
    /// Name of the machine, for the debug index.
    pub machine: String,
    /// Version of the program, for the debug index.
    pub version: &'static str,
    /// Whether a mesh key is set, for the debug index.
    pub has_mesh_key: Box<dyn Fn() -> bool + Send + Sync>,
    /// Says in words who may use the relay, for the debug index.
    pub admission: Box<dyn Fn() -> String + Send + Sync>,
    /// The names that `/bootstrap-dns` tells.
    pub bootstrap: Arc<BootstrapDns>,
    /// Who may see `/debug/`.
    pub access: DebugAccess,
    /// Answers an authority that checks the name of this server, where certificates come by ACME.
    pub acme_challenge: Option<AcmeChallenge>,
    /// When the process started.
    pub started: Instant,
    /// Renders the metrics.
    pub varz: Box<dyn Fn() -> String + Send + Sync>,
    /// Renders them as JSON.
    pub vars: Box<dyn Fn() -> String + Send + Sync>,
    /// Requests by version of TLS.
    pub tls_requests: TlsRequests,
    /// Begins a stream of each client's traffic, unless enough people look at one.
    pub traffic: Box<dyn Fn() -> Option<mpsc::Receiver<Bytes>> + Send + Sync>,
    /// Returns the UDP flows.
    pub flows: Box<dyn Fn() -> FlowsView + Send + Sync>,
    /// Returns the peer relay, if there is one.
    pub peer_relay: Box<dyn Fn() -> Option<PeerRelayView> + Send + Sync>,
    /// Returns the WireGuard relay, if there is one.
    pub wireguard: Box<dyn Fn() -> Option<WireGuardView> + Send + Sync>,
    /// Returns what the links to the other servers of the region are doing.
    pub mesh: Box<dyn Fn() -> MeshView + Send + Sync>,
    /// Returns how the relay is doing, with the samples that are asked for.
    pub status: Box<dyn Fn(Since) -> Status + Send + Sync>,
    /// Checks that the server's tables agree with each other, or says where they do not.
    pub check: Box<dyn Fn() -> Result<(), String> + Send + Sync>,
}

/// The pages of one server.
pub struct Site {
    settings: Settings,
    /// What unmatched paths show now.
    home: RwLock<Home>,
    /// Lines about strange upgrades, which anybody can ask for.
    strange_upgrades: Quiet,
}

/// Largest challenge of a captive portal check that is answered.
const MAX_CHALLENGE: usize = 64;
/// Where an authority looks for the answers to its challenges.
const ACME_PATH: &str = "/.well-known/acme-challenge/";
/// Path of the style sheet; the pages' own security policy forbids styles inside the page.
const STYLE_PATH: &str = "/derpd.css";

impl Site {
    /// Makes a site.
    pub fn new(settings: Settings) -> Self {
        Self {
            home: RwLock::new(settings.home.clone()),
            settings,
            strange_upgrades: Quiet::default(),
        }
    }

    /// Counts a request, which is being served as long as the result lives.
    pub fn begin(&self, origin: &Origin) -> Option<TlsRequest> {
        match origin.listener {
            Listener::Main { tls } => tls.map(|version| self.settings.tls_requests.begin(version)),
            Listener::Port80 => None,
        }
    }

    /// Answers one request.
    pub fn respond(&self, request: &Parts, origin: &Origin) -> Reply {
        let _request = self.begin(origin);
        if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
            return reply::text(StatusCode::BAD_REQUEST, "missing required Host header");
        }
        let path = request.uri.path();
        if request.method == Method::OPTIONS && path == "*" {
            return Reply::default();
        }
        if request.method != Method::CONNECT
            && let Some(location) = path::redirect(path, request.uri.query())
        {
            return reply::redirect(&request.method, StatusCode::TEMPORARY_REDIRECT, &location);
        }
        match origin.listener {
            Listener::Main { .. } => self.respond_main(request, origin),
            Listener::Port80 => self.respond_port80(request, origin),
        }
    }

    /// How this request, on the main listener, begins a DERP connection, if it does.
    fn entry(&self, request: &Parts) -> Option<Entry> {
        if !self.settings.derp_enabled || request.uri.path() != "/derp" {
            return None;
        }
        match Upgrade::of(&request.headers) {
            Upgrade::Derp => Some(Entry::Derp),
            Upgrade::WebSocket => Handshake::of(request).ok().map(Entry::WebSocket),
            Upgrade::Absent | Upgrade::Other(_) => None,
        }
    }

    fn respond_main(&self, request: &Parts, origin: &Origin) -> Reply {
        if request.method == Method::CONNECT {
            return reply::text(StatusCode::FORBIDDEN, "CONNECT not enabled");
        }
        let path = request.uri.path();
        match path {
            "/derp" if !self.settings.derp_enabled => {
                reply::text(StatusCode::NOT_FOUND, "derp server disabled")
            }
            "/derp" => upgrade::refusal(request, origin.remote, &self.strange_upgrades),
            "/derp/probe" | "/derp/latency-check" => probe(&request.method),
            "/generate_204" => generate_204(request),
            "/bootstrap-dns" => self.bootstrap_dns(request, origin),
            "/robots.txt" => {
                reply::browser(reply::text(StatusCode::OK, "User-agent: *\nDisallow: /"))
            }
            STYLE_PATH => reply::browser(reply::asset("text/css; charset=utf-8", home::STYLE)),
            _ if path.starts_with("/debug/") => self.debug(request, origin),
            _ => self.home(request, origin),
        }
    }

    /// `/bootstrap-dns`: always a success, so that clients ask the next server only if a name is missing.
    fn bootstrap_dns(&self, request: &Parts, origin: &Origin) -> Reply {
        let coin = || getrandom::u32().is_ok_and(|number| number % 2 == 0);
        let from = origin.remote.ip();
        let body = self.settings.bootstrap.answer(request.uri.query(), from, coin);
        let mut response = reply::browser(Reply::new(Body::from(body)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // Clients come from everywhere, once: a connection kept open is wasted.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }

    /// The port-80 listener serves what must work without TLS and sends everything else to HTTPS.
    fn respond_port80(&self, request: &Parts, origin: &Origin) -> Reply {
        let path = request.uri.path();
        if path == "/generate_204" {
            return generate_204(request);
        }
        if let (Some(challenge), Some(token)) =
            (&self.settings.acme_challenge, path.strip_prefix(ACME_PATH))
        {
            return match challenge(token) {
                Some(answer) => reply::exact_text(StatusCode::OK, answer),
                None => reply::text(StatusCode::NOT_FOUND, "no such challenge"),
            };
        }
        if path.starts_with("/debug") {
            return self.respond_main(request, origin);
        }
        let host = request.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        match (&request.method, host) {
            (&Method::GET | &Method::HEAD, Some(host)) => {
                let target = match request.uri.path_and_query() {
                    Some(target) if target.as_str() != "/" => target.as_str(),
                    Some(_) | None if self.settings.access.allows(request, origin) => "/debug/",
                    Some(_) | None => "/",
                };
                reply::redirect(
                    &request.method,
                    StatusCode::FOUND,
                    &format!("https://{host}{target}"),
                )
            }
            _ => reply::text(StatusCode::BAD_REQUEST, "Use HTTPS"),
        }
    }
}

/// `/derp/probe` and `/derp/latency-check`: browsers and netcheck measure how long the answer takes.
fn probe(method: &Method) -> Reply {
    if method != Method::GET && method != Method::HEAD {
        return reply::text(StatusCode::METHOD_NOT_ALLOWED, "bogus probe method");
    }
    let mut response = Reply::default();
    response
        .headers_mut()
        .insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    response
}

/// `/generate_204`: tells clients that no captive portal stands between them and the server. The echoed
/// challenge proves that the answer is not a portal's imitation.
fn generate_204(request: &Parts) -> Reply {
    let mut response = Reply::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate, no-transform, max-age=0"),
    );
    let challenge = request
        .headers
        .get("x-tailscale-challenge")
        .and_then(|challenge| challenge.to_str().ok())
        .filter(|challenge| is_challenge(challenge));
    if let Some(challenge) = challenge
        && let Ok(answer) = HeaderValue::try_from(format!("response {challenge}"))
    {
        headers.insert("x-tailscale-response", answer);
    }
    response
}

fn is_challenge(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    !text.is_empty() && text.len() <= MAX_CHALLENGE && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests;
