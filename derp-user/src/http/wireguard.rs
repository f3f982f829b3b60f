//! `/debug/wireguard`: the WireGuard relay, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use hyper::{StatusCode, http::request::Parts};

use super::{Reply, debug::uptime, flows, reply};
use crate::wireguard::{PairView, PeerView, SessionView, StrangerView, WireGuardView};

/// Most pairs on the page for people.
const MOST: usize = 500;

/// Answers with the page, or with JSON if that is asked for.
pub(super) fn respond(request: &Parts, view: &WireGuardView) -> Reply {
    if flows::wants_json(request) {
        return reply::json(view);
    }
    reply::html(StatusCode::OK, reply::page("derpd WireGuard", &page(view)))
}

fn page(view: &WireGuardView) -> String {
    let located = view.peers.iter().filter(|peer| peer.address.is_some()).count();
    let mut page = format!(
        "<h1>WireGuard</h1>\n\
         <p>UDP port {}. {located} of {} peers located, {} sessions, {} initiations wait. \
         <a href=\"/debug/wireguard?format=json\">As JSON</a></p>\n",
        view.port,
        view.peers.len(),
        view.sessions,
        view.pending
    );
    let heads = [
        "Peer",
        "Network",
        "Key",
        "Where",
        "Partners",
        "Sessions",
        "Handshakes",
        "Last handshake",
        "Last heard of",
        "From it",
        "To it",
    ];
    table(&mut page, &heads, view.peers.iter().map(peer));
    if !view.pairs.is_empty() {
        page.push_str("<h2>Pairs</h2>\n");
        let heads = ["Pair", "Sessions, latest first"];
        table(&mut page, &heads, view.pairs.iter().take(MOST).map(pair));
    }
    if !view.strangers.is_empty() {
        page.push_str("<h2>Strangers</h2>\n<p>Sources that have asked for a peer and that no answer has named yet.</p>\n");
        let heads = ["Source", "Has asked for", "May be"];
        table(&mut page, &heads, view.strangers.iter().map(stranger));
    }
    let dropped = view.messages.dropped.iter().filter(|dropped| dropped.messages != 0);
    let dropped: Vec<_> =
        dropped.map(|dropped| vec![dropped.reason.clone(), dropped.messages.to_string()]).collect();
    if !dropped.is_empty() {
        page.push_str("<h2>Dropped</h2>\n");
        table(&mut page, &["Reason", "Messages"], dropped.into_iter());
    }
    page
}

fn table(page: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    page.push_str("<table class=\"flows\">\n<tr>");
    for head in heads {
        let _ = write!(page, "<th>{head}</th>");
    }
    page.push_str("</tr>\n");
    for row in rows {
        let cells: String =
            row.iter().map(|cell| format!("<td>{}</td>", reply::escape(cell))).collect();
        let _ = writeln!(page, "<tr>{cells}</tr>");
    }
    page.push_str("</table>\n");
}

fn peer(peer: &PeerView) -> Vec<String> {
    let ago = |seconds: Option<u64>| {
        seconds.map_or_else(
            || "never".to_owned(),
            |seconds| format!("{} ago", uptime(Duration::from_secs(seconds))),
        )
    };
    let place = match (peer.address, peer.is_pinned) {
        (Some(address), true) => format!("{address} (pinned)"),
        (Some(address), false) => address.to_string(),
        (None, _) => "not known".to_owned(),
    };
    let others: String = peer.candidates.iter().map(|other| format!(", perhaps {other}")).collect();
    vec![
        peer.label.clone(),
        peer.network.clone(),
        peer.public_key.clone(),
        format!("{place}{others}"),
        peer.partners.to_string(),
        peer.sessions.to_string(),
        peer.handshakes.to_string(),
        ago(peer.handshake_seconds),
        ago(peer.heard_seconds),
        flows::amount(peer.sent.packets, peer.sent.bytes),
        flows::amount(peer.received.packets, peer.received.bytes),
    ]
}

fn pair(pair: &PairView) -> Vec<String> {
    let sessions: Vec<_> = pair.sessions.iter().map(session).collect();
    vec![pair.peers.join(" - "), sessions.join("; ")]
}

fn session(session: &SessionView) -> String {
    let [initiator, responder] = session.addresses;
    format!(
        "by {}, {initiator} to {responder}, {} old, idle for {}, {}",
        session.initiator,
        uptime(Duration::from_secs(session.age_seconds)),
        uptime(Duration::from_secs(session.idle_seconds)),
        if session.is_confirmed { "data both ways" } else { "no data both ways yet" }
    )
}

fn stranger(stranger: &StrangerView) -> Vec<String> {
    vec![stranger.address.to_string(), stranger.wants.join(", "), stranger.may_be.join(", ")]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view() -> WireGuardView {
        let amount = json!({"packets": 3, "bytes": 4000});
        let value = json!({
            "port": 51820, "sessions": 1, "pending": 2,
            "messages": {
                "initiations": 1, "held": 0, "copies": 0, "responses": 1, "cookie_replies": 0, "roamed": 0,
                "dropped": [
                    {"reason": "unknown_key", "messages": 7}, {"reason": "replayed", "messages": 0},
                ],
            },
            "peers": [{
                "network": "home", "label": "<nas>", "public_key": "KEY=", "address": "192.0.2.1:1",
                "is_pinned": true, "candidates": ["192.0.2.2:2"], "partners": 1, "sessions": 1,
                "initiations": 1, "handshakes": 1, "handshake_seconds": 61, "heard_seconds": null,
                "sent": amount, "received": amount,
            }],
            "pairs": [{
                "peers": ["<nas>", "tv"],
                "sessions": [{
                    "initiator": "tv", "addresses": ["192.0.2.3:3", "192.0.2.1:1"], "age_seconds": 5,
                    "idle_seconds": 0, "is_confirmed": false, "slot": 0,
                }],
            }],
            "strangers": [{"address": "192.0.2.9:9", "wants": ["tv"], "may_be": ["a", "b"]}],
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn everything_is_shown_and_nothing_is_markup() {
        let page = page(&view());
        for text in [
            "1 of 1 peers located, 1 sessions, 2 initiations wait",
            "&lt;nas&gt;",
            "192.0.2.1:1 (pinned), perhaps 192.0.2.2:2",
            "1 min 1 s ago",
            "never",
            "by tv, 192.0.2.3:3 to 192.0.2.1:1, 5 s old, idle for 0 s, no data both ways yet",
            "<td>192.0.2.9:9</td><td>tv</td><td>a, b</td>",
            "<td>unknown_key</td><td>7</td>",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("<nas>") && !page.contains("replayed"), "{page}");
    }

    #[test]
    fn what_was_never_there_has_no_table() {
        let page = page(&WireGuardView::default());
        assert!(page.contains("0 of 0 peers") && !page.contains("<h2>"), "{page}");
    }
}
