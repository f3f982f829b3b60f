//! `derpd wireguard status`.

use std::{fmt, net::IpAddr, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::time::timeout;

use super::WireGuardError;
use crate::{
    admit::web::{Question, Web},
    client::Trust,
    tools::runtime,
    wireguard::{PeerView, WireGuardView},
};

/// Longest that asking may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const LONGEST: usize = 64 << 20;
/// Where the page is.
const PATH: &str = "/debug/wireguard";

/// Whom to ask, and how to show it.
#[derive(clap::Args, Clone, Debug)]
pub struct StatusArguments {
    /// The relay's address. Of a relay on this machine any certificate is taken
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1")]
    pub url: String,
    /// Print the JSON of /debug/wireguard
    #[arg(long)]
    pub json: bool,
}

/// The relay as it said it was.
#[derive(Clone, Debug)]
pub struct Status {
    view: WireGuardView,
}

/// Asks the relay.
///
/// # Errors
///
/// When there is no answer, or another one than a relay gives.
pub fn status(arguments: &StatusArguments) -> Result<Status, WireGuardError> {
    let fault = |reason: String| WireGuardError::Ask { url: arguments.url.clone(), reason };
    let base: Uri = arguments.url.parse().map_err(|_| fault("it is no address".to_owned()))?;
    let (Some("http" | "https"), Some(authority)) = (base.scheme_str(), base.authority()) else {
        return Err(fault("it must begin with http:// or https://".to_owned()));
    };
    let scheme = base.scheme_str().unwrap_or_default();
    let uri = format!("{scheme}://{authority}{PATH}?format=json");
    let uri: Uri = uri.parse().map_err(|_| fault("it is no address".to_owned()))?;
    let trust = if is_this_machine(&uri) { Trust::Anything } else { Trust::System };
    let answer = runtime()?.block_on(async {
        let asked = timeout(PATIENCE, ask(&trust, uri)).await;
        asked.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")))
    });
    let view = serde_json::from_slice(&answer.map_err(fault)?);
    Ok(Status { view: view.map_err(|error| fault(format!("an answer of another form: {error}")))? })
}

async fn ask(trust: &Trust, uri: Uri) -> Result<Vec<u8>, String> {
    let web = Web::trusting(trust, "url", &uri).map_err(|error| error.to_string())?;
    let (headers, body) = (HeaderMap::new(), Bytes::new());
    let answer = web.ask(Question { method: Method::GET, uri, headers, body }).await?;
    let status = answer.status();
    let (body, is_whole) = answer.body(LONGEST).await?;
    match status {
        StatusCode::OK if is_whole => Ok(body),
        StatusCode::OK => Err("too long an answer".to_owned()),
        _ => {
            let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
            Err(format!("HTTP status {}: {}", status.as_u16(), text.trim()))
        }
    }
}

fn is_this_machine(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || ip.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

impl Status {
    /// Returns the JSON of the page.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.view).unwrap_or_default()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WireGuardView { port, sessions, pending, messages, peers, strangers, .. } = &self.view;
        let located = peers.iter().filter(|peer| peer.address.is_some()).count();
        writeln!(
            f,
            "UDP port {port}: {located} of {} peers located, {sessions} sessions, {pending} initiations wait",
            peers.len()
        )?;
        let width = |text: fn(&PeerView) -> usize| peers.iter().map(text).max().unwrap_or(0);
        let (networks, labels) = (width(|it| it.network.len()), width(|it| it.label.len()));
        for peer in peers {
            write!(f, "{:networks$}  {:labels$}  {}", peer.network, peer.label, place(peer))?;
            match peer.heard_seconds {
                Some(seconds) => write!(f, ", heard of {seconds} s ago")?,
                None => write!(f, ", never heard of")?,
            }
            writeln!(
                f,
                ", {} sessions, {} handshakes, {} packets from it, {} to it",
                peer.sessions, peer.handshakes, peer.sent.packets, peer.received.packets
            )?;
        }
        for stranger in strangers {
            writeln!(
                f,
                "{} asks for {} and may be {}",
                stranger.address,
                stranger.wants.join(", "),
                if stranger.may_be.is_empty() {
                    "nobody".to_owned()
                } else {
                    stranger.may_be.join(" or ")
                }
            )?;
        }
        for dropped in messages.dropped.iter().filter(|it| it.messages != 0) {
            writeln!(f, "dropped: {} ({})", dropped.messages, dropped.reason)?;
        }
        Ok(())
    }
}

fn place(peer: &PeerView) -> String {
    match (peer.address, peer.candidates.as_slice()) {
        (Some(address), _) if peer.is_pinned => format!("{address} (pinned)"),
        (Some(address), _) => address.to_string(),
        (None, [candidate, ..]) => format!("perhaps {candidate}"),
        (None, []) => "not known".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_trusted_without_a_certificate() {
        let is = |uri: &str| is_this_machine(&uri.parse().unwrap());
        assert!(is("https://127.0.0.1") && is("https://localhost:8443") && is("https://[::1]:1"));
        assert!(!is("https://relay.example.com") && !is("https://192.0.2.1"));
    }
}
