//! The pages that the debug index leads to. A new page is one more line of [`PAGES`].

use std::fmt::Write as _;

/// A page below `/debug/`.
struct Page {
    path: &'static str,
    name: &'static str,
    /// What the name leaves open, behind it in the list.
    what: &'static str,
    /// Where the same is as JSON, if it is.
    json: Option<&'static str>,
}

/// Every page that the index leads to, in its order.
const PAGES: [Page; 8] = [
    Page {
        path: "/debug/status.json",
        name: "This page",
        what: " as JSON, for <code>derpd top</code> and scripts",
        json: None,
    },
    Page {
        path: "/debug/varz",
        name: "Metrics",
        what: " in the Prometheus text format, and those of derper",
        json: Some("/debug/vars"),
    },
    Page {
        path: "/debug/check",
        name: "Consistency check",
        what: " of the connection tables",
        json: None,
    },
    Page {
        path: "/debug/traffic",
        name: "Traffic",
        what: " of each client, every two seconds",
        json: None,
    },
    Page {
        path: "/debug/flows",
        name: "UDP flows",
        what: ", also",
        json: Some("/debug/flows?format=json"),
    },
    Page {
        path: "/debug/peer-relay",
        name: "Peer relay",
        what: ", also",
        json: Some("/debug/peer-relay?format=json"),
    },
    Page {
        path: "/debug/wireguard",
        name: "WireGuard",
        what: ", also",
        json: Some("/debug/wireguard?format=json"),
    },
    Page {
        path: "/debug/mesh",
        name: "Mesh",
        what: ", also",
        json: Some("/debug/mesh?format=json"),
    },
];

/// The list of them, as HTML.
pub(super) fn list() -> String {
    let mut list = "<ul>\n".to_owned();
    for Page { path, name, what, json } in PAGES {
        let json = json.map(|json| format!(" <a href=\"{json}\">as JSON</a>")).unwrap_or_default();
        let _ = writeln!(list, "<li><a href=\"{path}\">{name}</a>{what}{json}</li>");
    }
    list.push_str("</ul>\n");
    list
}
