//! `/debug/peer-relay`: the peer relay and its sessions, for people and for programs.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hyper::{StatusCode, http::request::Parts};

use super::{Reply, debug::uptime, flows, reply};
use crate::peer_relay::{
    ClientView, DerpView, EndpointState, Mapping, PeerRelayView, SessionView, TailscaleSessions,
};

/// Most sessions on the page for people.
const MOST: usize = 500;
/// The value of `format` that asks for what a tailscaled would say.
const TAILSCALE: &str = "tailscale";

/// Answers with the page, or with JSON if that is asked for.
pub(super) fn respond(request: &Parts, view: Option<PeerRelayView>) -> Reply {
    if flows::format(request).as_deref() == Some(TAILSCALE) {
        return reply::json(&TailscaleSessions::from(&view.unwrap_or_default()));
    }
    if flows::wants_json(request) {
        return reply::json(&view);
    }
    let page = match view {
        Some(view) => page(&view),
        None => {
            "<h1>Peer relay</h1>\n<p>None: [peer_relay] of the configuration file makes one.</p>\n"
                .to_owned()
        }
    };
    reply::html(StatusCode::OK, reply::page("derpd peer relay", &page))
}

fn page(view: &PeerRelayView) -> String {
    let is_open = |session: &&SessionView| session.state == EndpointState::Open;
    let open = view.sessions.iter().filter(is_open).count();
    let mut page = format!(
        "<h1>Peer relay</h1>\n\
         <p>{} endpoints, {open} open. <a href=\"/debug/peer-relay?format=json\">As JSON</a>, and as \
         <a href=\"/debug/peer-relay?format={TAILSCALE}\"><code>tailscale debug peer-relay-sessions</code></a> \
         has them.</p>\n<table>\n",
        view.sessions.len()
    );
    for (name, value) in facts(view) {
        let value = reply::escape(&value);
        let _ = writeln!(page, "<tr><th>{name}</th><td>{value}</td></tr>");
    }
    page.push_str("</table>\n");
    if view.sessions.is_empty() {
        return page;
    }
    if let Some(seconds) = view.counted_seconds {
        let _ = writeln!(page, "<p>Counted {seconds:.0} s ago.</p>");
    }
    page.push_str(
        "<table class=\"flows\">\n<tr><th>VNI</th><th>State</th><th>Age</th><th>Client</th><th>Remote</th>\
         <th>Here</th><th>Forwarded to it by</th><th>From it: kernel</th><th>From it: userspace</th>\
         <th>Last heard of</th></tr>\n",
    );
    for session in view.sessions.iter().take(MOST) {
        rows(&mut page, session);
    }
    page.push_str("</table>\n");
    if view.sessions.len() > MOST {
        let rest = view.sessions.len() - MOST;
        let _ = writeln!(page, "<p class=\"notice\">{rest} more are only in the JSON.</p>");
    }
    page
}

fn facts(view: &PeerRelayView) -> [(&'static str, String); 14] {
    let limits = &view.limits;
    let forwarded = |plane| {
        let (packets, bytes) = view.forwarded.get(plane).copied().unwrap_or_default();
        flows::amount(packets, bytes)
    };
    [
        ("Node", view.node_key.clone()),
        ("Disco key", view.disco_key.clone()),
        ("UDP port", view.port.to_string()),
        ("May ask for endpoints", view.allow.clone()),
        ("Clients are told", list(&view.addresses, SocketAddr::to_string)),
        ("STUN servers see", list(&view.mappings, mapping)),
        ("The cloud's metadata says", list(&view.cloud, IpAddr::to_string)),
        ("Also a client of", list(&view.derp, derp)),
        (
            "Most endpoints",
            format!("{}, {} of one node", limits.endpoints, limits.endpoints_per_node),
        ),
        ("Requests", counts(&view.requests)),
        ("Handshake messages", counts(&view.handshakes)),
        ("Endpoints ended", counts(&view.ended)),
        ("Forwarded in the kernel", forwarded("kernel")),
        ("Forwarded in userspace", forwarded("userspace")),
    ]
}

fn list<T>(items: &[T], text: impl Fn(&T) -> String) -> String {
    if items.is_empty() {
        return "nothing".to_owned();
    }
    items.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn mapping(mapping: &Mapping) -> String {
    format!("{} (says {})", mapping.seen, mapping.server)
}

fn derp(derp: &DerpView) -> String {
    let time = uptime(Duration::from_secs(derp.seconds));
    match (&derp.fault, derp.is_connected) {
        (_, true) => format!("{} (for {time})", derp.server),
        (None, false) => format!("{} (not yet connected)", derp.server),
        (Some(fault), false) => format!("{} (not for {time}: {fault})", derp.server),
    }
}

fn counts(counts: &BTreeMap<&'static str, u64>) -> String {
    let counts: Vec<_> = counts.iter().filter(|(_, count)| **count != 0).collect();
    if counts.is_empty() {
        return "none".to_owned();
    }
    let words = |(label, count): &(&&str, &u64)| format!("{count} {}", label.replace('_', " "));
    counts.iter().map(words).collect::<Vec<_>>().join(", ")
}

fn rows(page: &mut String, session: &SessionView) {
    let age = uptime(Duration::from_secs(session.age_seconds));
    let node = reply::escape(&session.node);
    let head = format!(
        "<td rowspan=\"2\" title=\"{node}\">{}</td><td rowspan=\"2\">{}</td><td rowspan=\"2\">{age}</td>",
        session.vni,
        session.state.label()
    );
    let [first, second] = &session.clients;
    let _ = writeln!(page, "<tr class=\"a\">{head}{}</tr>", cells(first));
    let _ = writeln!(page, "<tr>{}</tr>", cells(second));
}

fn cells(client: &ClientView) -> String {
    let end = &client.end;
    let remote = end.remote.map_or_else(|| "not bound".to_owned(), |remote| remote.to_string());
    let local = end.local.map(|ip| SocketAddr::new(ip, end.local_port).to_string());
    let interface = end.interface.as_ref().map(|interface| format!(", {interface}"));
    let age = end.last_seen_seconds.map(|seconds| uptime(Duration::from_secs(seconds)));
    let cells = [
        client.disco.clone(),
        remote,
        local.unwrap_or_else(|| format!("any, port {}", end.local_port)),
        format!("{}{}", end.forwarder.describe(), interface.unwrap_or_default()),
        flows::amount(end.kernel.packets, end.kernel.bytes),
        flows::amount(end.userspace.packets, end.userspace.bytes),
        age.map_or_else(|| "never".to_owned(), |age| format!("{age} ago")),
    ];
    cells.iter().map(|cell| format!("<td>{}</td>", reply::escape(cell))).collect()
}
