//! `/debug/mesh`: the links to the other servers of the region, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use hyper::{StatusCode, http::request::Parts};

use super::{Reply, debug::uptime, flows, reply};
use crate::metrics::{AddressView, MeshView, PeerView};

/// Answers with the page, or with JSON if that is asked for.
pub(super) fn respond(request: &Parts, mesh: &MeshView) -> Reply {
    if flows::wants_json(request) {
        return reply::json(mesh);
    }
    reply::html(StatusCode::OK, reply::page("derpd mesh", &page(mesh)))
}

/// Says in a few words how the mesh is, for the index.
pub(super) fn summary(mesh: &MeshView) -> String {
    if mesh.peers.is_empty() {
        return "none".to_owned();
    }
    let (up, wanted) = mesh.links();
    format!("{up} of {wanted} links up")
}

fn page(mesh: &MeshView) -> String {
    let mut page = format!(
        "<h1>Mesh</h1>\n\
         <p>{}. <a href=\"/debug/mesh?format=json\">As JSON</a></p>\n",
        summary(mesh)
    );
    if mesh.peers.is_empty() {
        return page;
    }
    page.push_str(
        "<table class=\"flows\">\n<tr><th>Peer</th><th>Address</th><th>Link</th><th>For</th><th>Server</th>\
         <th>Links made</th><th>Failures</th><th>Last failure</th><th>Clients</th><th>Forwarded</th>\
         <th>Lost</th></tr>\n",
    );
    for peer in &mesh.peers {
        rows(&mut page, peer);
    }
    page.push_str("</table>\n");
    page
}

fn rows(page: &mut String, peer: &PeerView) {
    let name = reply::escape(&peer.name);
    if let Some(fault) = &peer.look_up_fault {
        let fault = reply::escape(fault);
        let _ = writeln!(
            page,
            "<tr><td class=\"name\">{name}</td><td colspan=\"10\">{fault}</td></tr>"
        );
    }
    for address in &peer.addresses {
        let cells: String =
            cells(address).iter().map(|cell| format!("<td>{}</td>", reply::escape(cell))).collect();
        let _ = writeln!(page, "<tr><td class=\"name\">{name}</td>{cells}</tr>");
    }
}

fn cells(address: &AddressView) -> [String; 10] {
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
    [
        address.address.to_string(),
        address.state.label().to_owned(),
        uptime(Duration::from_secs(address.seconds)),
        or_none(&address.server_key),
        address.connects.to_string(),
        address.failures.to_string(),
        or_none(&address.last_failure),
        address.clients.to_string(),
        flows::amount(address.forwarded_packets, address.forwarded_bytes),
        address.dropped_packets.to_string(),
    ]
}
