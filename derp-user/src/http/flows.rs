//! `/debug/flows`: the UDP flows, for people and for programs.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use hyper::{
    StatusCode,
    http::{header, request::Parts},
};

use super::{Reply, debug::uptime, reply};
use crate::flow::{CountView, EndView, FlowView, FlowsView, KindView, StateView};

/// Most flows on the page for people.
const MOST: usize = 500;

/// Answers with the page, or with JSON if that is asked for.
pub(super) fn respond(request: &Parts, mut view: FlowsView) -> Reply {
    if wants_json(request) {
        return reply::json(&view);
    }
    view.flows.sort_by(|one, other| (&one.name, one.slot).cmp(&(&other.name, other.slot)));
    reply::html(StatusCode::OK, reply::page("derpd flows", &page(&view)))
}

/// The format that the query asks for, if it does.
pub(super) fn format(request: &Parts) -> Option<String> {
    let query = request.uri.query().unwrap_or_default();
    let format = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "format");
    format.map(|(_, format)| format.into_owned())
}

/// Whether the query, or else the Accept header, asks for JSON.
pub(super) fn wants_json(request: &Parts) -> bool {
    if let Some(format) = format(request) {
        return format == "json";
    }
    let accept = request.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept
        .is_some_and(|accept| accept.contains("application/json") && !accept.contains("text/html"))
}

fn page(view: &FlowsView) -> String {
    let flows = &view.flows;
    let forwarding = flows.iter().filter(|flow| flow.state == StateView::Forwarding).count();
    let mut page = format!(
        "<h1>UDP flows</h1>\n\
         <p>{} flows, {forwarding} forwarding. <a href=\"/debug/flows?format=json\">As JSON</a></p>\n",
        flows.len()
    );
    if flows.is_empty() {
        return page;
    }
    if let Some(seconds) = view.counted_seconds {
        let _ = writeln!(page, "<p>Counted {seconds:.0} s ago.</p>");
    }
    page.push_str(
        "<table class=\"flows\">\n<tr><th>Flow</th><th>Of</th><th>VNI</th><th>State</th><th>End</th><th>Remote</th>\
         <th>Here</th><th>Forwarded to it by</th><th>From it: kernel</th><th>From it: userspace</th>\
         <th>Over rate</th><th>Last heard of</th></tr>\n",
    );
    for flow in flows.iter().take(MOST) {
        rows(&mut page, flow);
    }
    page.push_str("</table>\n");
    if flows.len() > MOST {
        let rest = flows.len() - MOST;
        let _ = writeln!(page, "<p class=\"notice\">{rest} more are only in the JSON.</p>");
    }
    page
}

fn rows(page: &mut String, flow: &FlowView) {
    let vni = match (flow.kind, flow.vni) {
        (KindView::Geneve, Some(vni)) => vni.to_string(),
        (KindView::WireGuard, _) => "WireGuard".to_owned(),
        (KindView::Geneve | KindView::Any, _) => "none".to_owned(),
    };
    let state = match flow.state {
        StateView::Forwarding => "forwarding",
        StateView::Learning => "learning",
        StateView::Unbound => "unbound",
        StateView::Held => "held",
    };
    let name = reply::escape(&flow.name);
    let source = flow.source.describe();
    let head = format!(
        "<td rowspan=\"2\" class=\"name\">{name}</td><td rowspan=\"2\">{source}</td><td rowspan=\"2\">{vni}</td>\
         <td rowspan=\"2\">{state}</td>"
    );
    let [a, b] = &flow.ends;
    let _ = writeln!(page, "<tr class=\"a\">{head}{}</tr>", cells("A", a));
    let _ = writeln!(page, "<tr>{}</tr>", cells("B", b));
}

fn cells(side: &str, end: &EndView) -> String {
    let remote = match (end.remote, end.is_learnt) {
        (Some(remote), true) => format!("{remote} (learnt)"),
        (Some(remote), false) => remote.to_string(),
        (None, _) if end.learn.is_empty() => "not known".to_owned(),
        (None, _) => format!("to be learnt from {}", end.learn.join(", ")),
    };
    let local = match end.local {
        Some(ip) => SocketAddr::new(ip, end.local_port).to_string(),
        None => format!("any, port {}", end.local_port),
    };
    let interface = end.interface.as_ref().map(|interface| format!(", {interface}"));
    let way = format!("{}{}", end.forwarder.describe(), interface.unwrap_or_default());
    let over_rate = end.kernel.dropped_over_rate.saturating_add(end.userspace.dropped_over_rate);
    let age = end.last_seen_seconds.map(|seconds| uptime(Duration::from_secs(seconds)));
    let cells = [
        side.to_owned(),
        remote,
        local,
        way,
        count(&end.kernel),
        count(&end.userspace),
        over_rate.to_string(),
        age.map_or_else(|| "never".to_owned(), |age| format!("{age} ago")),
    ];
    cells.iter().map(|cell| format!("<td>{}</td>", reply::escape(cell))).collect()
}

fn count(count: &CountView) -> String {
    amount(count.packets, count.bytes)
}

/// Returns packets and their bytes in words.
pub(super) fn amount(packets: u64, total: u64) -> String {
    match packets {
        0 => "nothing".to_owned(),
        _ => format!("{packets} packets, {}", bytes(total)),
    }
}

/// Returns a number of bytes with the unit that leaves one to four digits.
fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut number, mut unit) = (bytes, "B");
    for next in UNITS {
        if number < 10_000 {
            break;
        }
        (number, unit) = (number / 1000, next);
    }
    format!("{number} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_at_most_four_digits() {
        for (number, expected) in [
            (0, "0 B"),
            (9_999, "9999 B"),
            (10_000, "10 kB"),
            (12_345_678, "12 MB"),
            (u64::MAX, "18 EB"),
        ] {
            assert_eq!(bytes(number), expected);
        }
    }
}
