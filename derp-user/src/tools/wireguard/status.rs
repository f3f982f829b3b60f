//! `derpd wireguard status`.

use std::{fmt, net::IpAddr, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::time::timeout;

use super::WireGuardError;
use crate::{
    admit::web::{Question, Web},
    client::Trust,
    status::words,
    tools::runtime,
    wireguard::{Amount, PairView, PeerView, SessionView, StrangerView, WireGuardView},
};

/// Longest that asking may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is read.
const LONGEST: usize = 64 << 20;
/// Where a relay is that serves DERP in the usual way.
const DEFAULT: &str = "https://127.0.0.1";
/// Where the page is.
const PATH: &str = "/debug/wireguard";

/// Whom to ask, and how to show it.
#[derive(clap::Args, Clone, Debug)]
pub struct StatusArguments {
    /// The relay's address; http://127.0.0.1:PORT of one with -a :PORT. On this machine any certificate is taken
    #[arg(long, value_name = "URL", default_value = DEFAULT)]
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
    let is_default = arguments.url == DEFAULT;
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
    let answer = answer.map_err(|reason| {
        let hint =
            if is_default { ": does it listen elsewhere? Then --url says where" } else { "" };
        fault(format!("{reason}{hint}"))
    });
    let view = serde_json::from_slice(&answer?);
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
    #[cfg(test)]
    pub(super) const fn of(view: WireGuardView) -> Self {
        Self { view }
    }

    /// Returns the JSON of the page.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(&self.view).unwrap_or_default()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let WireGuardView { port, sessions, pending, messages, peers, pairs, strangers } =
            &self.view;
        let located = peers.iter().filter(|peer| peer.address.is_some()).count();
        writeln!(
            f,
            "UDP port {port}. Peers located: {located} of {}. Sessions: {sessions}. Initiations without an answer: {pending}.",
            peers.len()
        )?;
        let heads = [
            "NETWORK",
            "PEER",
            "WHERE",
            "HEARD OF",
            "HANDSHAKE",
            "SESSIONS",
            "PACKETS FROM IT",
            "TO IT",
        ];
        table(f, heads, peers.iter().map(peer))?;
        table(f, ["PAIR", "SESSIONS", "BEGAN", "LAST DATA", "BOTH WAYS"], pairs.iter().map(pair))?;
        table(f, ["STRANGER", "ASKS FOR", "MAY BE"], strangers.iter().map(stranger))?;
        let dropped = messages.dropped.iter().filter(|it| it.messages != 0);
        let dropped = dropped.map(|it| [it.reason.clone(), it.messages.to_string()]);
        table(f, ["DROPPED BECAUSE", "MESSAGES"], dropped)
    }
}

/// Writes rows below each other, with an empty line before; nothing if there are none.
fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    heads: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> fmt::Result {
    let rows: Vec<_> = [heads.map(str::to_owned)].into_iter().chain(rows).collect();
    if rows.len() == 1 {
        return Ok(());
    }
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    writeln!(f)?;
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn ago(seconds: u64) -> String {
    format!("{} ago", words::duration(seconds))
}

fn peer(peer: &PeerView) -> [String; 8] {
    let when = |seconds: Option<u64>| seconds.map_or_else(|| "never".to_owned(), ago);
    let amount = |it: &Amount| match it.packets {
        0 => "none".to_owned(),
        packets => format!("{packets} ({})", words::bytes(it.bytes)),
    };
    [
        peer.network.clone(),
        peer.label.clone(),
        place(peer),
        when(peer.heard_seconds),
        when(peer.handshake_seconds),
        peer.sessions.to_string(),
        amount(&peer.sent),
        amount(&peer.received),
    ]
}

fn place(peer: &PeerView) -> String {
    let known = match peer.address {
        Some(address) if peer.is_pinned => Some(format!("{address} (configured)")),
        Some(address) => Some(address.to_string()),
        None => None,
    };
    let perhaps = peer.candidates.iter().map(|candidate| format!("perhaps {candidate}"));
    let all: Vec<_> = known.into_iter().chain(perhaps).collect();
    if all.is_empty() { "not known".to_owned() } else { all.join(", ") }
}

/// What counts of a pair is its latest session.
fn pair(pair: &PairView) -> [String; 5] {
    let latest = pair.sessions.first();
    let time = |of: fn(&SessionView) -> u64| latest.map(|it| ago(of(it))).unwrap_or_default();
    let is_confirmed = latest.is_some_and(|it| it.is_confirmed);
    [
        pair.peers.join(" - "),
        pair.sessions.len().to_string(),
        time(|it| it.age_seconds),
        time(|it| it.idle_seconds),
        if is_confirmed { "yes" } else { "not yet" }.to_owned(),
    ]
}

fn stranger(stranger: &StrangerView) -> [String; 3] {
    let may_be = match stranger.may_be.as_slice() {
        [] => "nobody".to_owned(),
        names => names.join(" or "),
    };
    [stranger.address.to_string(), stranger.wants.join(", "), may_be]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_shown_below_its_heading() {
        let amount = serde_json::json!({"packets": 12, "bytes": 1480});
        let nothing = serde_json::json!({"packets": 0, "bytes": 0});
        let peer = |label: &str, address: Option<&str>, candidates: &[&str]| {
            serde_json::json!({
                "network": "home", "label": label, "public_key": "KEY=", "address": address,
                "is_pinned": label == "nas", "candidates": candidates, "partners": 2, "sessions": 1,
                "initiations": 1, "handshakes": 1, "handshake_seconds": address.map(|_| 62),
                "heard_seconds": null, "sent": amount, "received": nothing,
            })
        };
        let view = serde_json::json!({
            "port": 51820, "sessions": 1, "pending": 2,
            "messages": {
                "initiations": 1, "held": 0, "copies": 0, "responses": 1, "cookie_replies": 0, "roamed": 0,
                "dropped": [{"reason": "unknown_key", "messages": 7}, {"reason": "full", "messages": 0}],
            },
            "peers": [
                peer("nas", Some("192.0.2.1:51820"), &[]),
                peer("tv", Some("192.0.2.3:3"), &["192.0.2.4:4"]),
                peer("phone", None, &[]),
            ],
            "pairs": [{
                "peers": ["nas", "tv"],
                "sessions": [{
                    "initiator": "tv", "addresses": ["192.0.2.3:3", "192.0.2.1:51820"], "age_seconds": 75,
                    "idle_seconds": 4, "is_confirmed": true, "slot": 0,
                }],
            }],
            "strangers": [{"address": "192.0.2.9:9", "wants": ["tv"], "may_be": ["nas", "phone"]}],
        });
        let status = Status::of(serde_json::from_value(view).unwrap());
        assert_eq!(
            status.to_string(),
            "\
UDP port 51820. Peers located: 2 of 3. Sessions: 1. Initiations without an answer: 2.

NETWORK  PEER   WHERE                             HEARD OF  HANDSHAKE      SESSIONS  PACKETS FROM IT  TO IT
home     nas    192.0.2.1:51820 (configured)      never     1 min 2 s ago  1         12 (1.48 kB)     none
home     tv     192.0.2.3:3, perhaps 192.0.2.4:4  never     1 min 2 s ago  1         12 (1.48 kB)     none
home     phone  not known                         never     never          1         12 (1.48 kB)     none

PAIR      SESSIONS  BEGAN           LAST DATA  BOTH WAYS
nas - tv  1         1 min 15 s ago  4 s ago    yes

STRANGER     ASKS FOR  MAY BE
192.0.2.9:9  tv        nas or phone

DROPPED BECAUSE  MESSAGES
unknown_key      7
"
        );
        let nobody = Status::of(WireGuardView::default()).to_string();
        assert_eq!(nobody.lines().count(), 1, "{nobody}");
    }

    #[test]
    fn only_this_machine_is_trusted_without_a_certificate() {
        let is = |uri: &str| is_this_machine(&uri.parse().unwrap());
        assert!(is("https://127.0.0.1") && is("https://localhost:8443") && is("https://[::1]:1"));
        assert!(!is("https://relay.example.com") && !is("https://192.0.2.1"));
    }
}
