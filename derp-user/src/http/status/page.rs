//! The page as HTML.

use std::{fmt::Write as _, iter};

use super::assets::{CHARTS_SCRIPT, CHARTS_STYLE, MARK, SCRIPT, STYLE};
use crate::{
    http::{links, reply::escape},
    status::{
        CHARTS, Certificate, Client, ClientOrder, Flow, FlowEnd, Link, Status, figures, words,
    },
};

/// A certificate that ends within two weeks is worth a look: authorities whose certificates live longer have renewed
/// it by then.
const SOON: i64 = 14 * 86_400;
/// How often a browser without JavaScript comes back, in seconds.
const REFRESH: u32 = 5;

/// The whole page. With `key`, links to the page itself take it along.
pub(super) fn render(
    status: &Status,
    facts: &[(&'static str, String)],
    order: ClientOrder,
    key: Option<&str>,
) -> String {
    let mark = MARK.as_str();
    let name = if status.hostname.is_empty() { &status.machine } else { &status.hostname };
    let name = escape(name);
    let mut page = format!(
        "<!DOCTYPE html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name} &middot; derper debug</title>\n\
         <noscript><meta http-equiv=\"refresh\" content=\"{REFRESH}\"></noscript>\n\
         <link rel=\"stylesheet\" href=\"{}?{mark}\">\n\
         <link rel=\"stylesheet\" href=\"{}?{mark}\">\n\
         <script src=\"{}?{mark}\" defer></script>\n\
         <script src=\"{}?{mark}\" defer></script>\n\
         </head>\n\
         <body>\n\
         <header>\n\
         <h1>{name}</h1>\n\
         <p id=\"state\" role=\"status\">up {}</p>\n\
         </header>\n\
         <main>\n",
        CHARTS_STYLE.path,
        STYLE.path,
        CHARTS_SCRIPT.path,
        SCRIPT.path,
        words::duration(status.uptime_seconds),
    );
    section(&mut page, "figures", "", |page| tiles(page, status));
    charts(&mut page, status);
    section(&mut page, "clients", &clients_title(status), |page| clients(page, status, order, key));
    if !status.links.is_empty() {
        section(&mut page, "mesh", "Mesh links", |page| mesh(page, &status.links));
    }
    if status.flows.total > 0 {
        section(&mut page, "flows", &flows_title(status), |page| flows(page, &status.flows.shown));
    }
    if let Some(held) = &status.certificates {
        section(&mut page, "certificates", "Certificates", |page| certificates(page, held));
    }
    section(&mut page, "facts", "Server", |page| {
        page.push_str("<table class=\"facts\">\n");
        for (name, value) in
            facts.iter().map(|(name, value)| (*name, value.clone())).chain(data_plane(status))
        {
            let _ = writeln!(page, "<tr><th>{name}</th><td>{}</td></tr>", escape(&value));
        }
        page.push_str("</table>\n");
    });
    page.push_str("<nav>\n<h2>More</h2>\n");
    page.push_str(&links::list());
    page.push_str("</nav>\n</main>\n</body>\n</html>\n");
    page
}

/// A part of the page that the script puts a newer one in place of.
fn section(page: &mut String, id: &str, title: &str, content: impl FnOnce(&mut String)) {
    let _ = writeln!(page, "<section id=\"{id}\" data-live>");
    if !title.is_empty() {
        let _ = writeln!(page, "<h2>{title}</h2>");
    }
    content(page);
    page.push_str("</section>\n");
}

fn tiles(page: &mut String, status: &Status) {
    page.push_str("<dl class=\"tiles\">\n");
    for figure in figures(status) {
        let class = if figure.is_notable { " class=\"notable\"" } else { "" };
        let _ = writeln!(
            page,
            "<div{class}><dt>{}</dt><dd>{}</dd><dd class=\"note\">{}</dd></div>",
            figure.name, figure.value, figure.note
        );
    }
    page.push_str("</dl>\n");
}

/// The legends of the charts, with the newest values; the script draws the charts into them.
fn charts(page: &mut String, status: &Status) {
    page.push_str("<section id=\"charts\">\n");
    for chart in CHARTS {
        let _ = writeln!(
            page,
            "<figure data-unit=\"{}\">\n<figcaption>{}</figcaption>\n<ul class=\"legend\">",
            chart.unit.word(),
            chart.title
        );
        for (name, label) in chart.lines {
            let value = chart.unit.words(status.history.newest(name).into());
            let _ = writeln!(
                page,
                "<li data-series=\"{name}\"><span>{label}</span> <b>{value}</b></li>"
            );
        }
        page.push_str("</ul>\n<div class=\"plot\"></div>\n</figure>\n");
    }
    page.push_str("</section>\n");
}

fn clients_title(status: &Status) -> String {
    let (shown, total) = (status.clients.shown.len() as u64, status.clients.total);
    if shown < total {
        format!("Clients: the busiest {shown} of {total}")
    } else {
        format!("Clients: {total}")
    }
}

fn clients(page: &mut String, status: &Status, order: ClientOrder, key: Option<&str>) {
    if status.clients.shown.is_empty() {
        page.push_str("<p>None.</p>\n");
        return;
    }
    let sorted = |order: ClientOrder, label: &str| (label.to_owned(), Some(order));
    let plain = |label: &str| (label.to_owned(), None);
    let columns = [
        plain("Key"),
        plain("Address"),
        sorted(ClientOrder::Rate, "Rate"),
        sorted(ClientOrder::Received, "Received"),
        sorted(ClientOrder::Sent, "Sent"),
        sorted(ClientOrder::RoundTrip, "Round trip"),
        sorted(ClientOrder::Senders, "Senders"),
        plain("Connected"),
        plain("Home"),
    ];
    page.push_str("<table class=\"rows\">\n<thead><tr>");
    for (label, by) in &columns {
        let Some(by) = by else {
            let _ = write!(page, "<th>{label}</th>");
            continue;
        };
        if *by == order {
            let _ = write!(page, "<th aria-sort=\"descending\">{label}</th>");
        } else {
            let link = escape(&own_link(*by, key));
            let _ = write!(page, "<th><a href=\"{link}\">{label}</a></th>");
        }
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for client in &status.clients.shown {
        let labels = columns.iter().map(|(label, _)| label.as_str());
        row(page, labels.zip(client_cells(client)), client.is_waiting);
    }
    page.push_str("</tbody>\n</table>\n");
}

fn own_link(order: ClientOrder, key: Option<&str>) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("sort", order.word());
    if let Some(key) = key {
        query.append_pair("debugkey", key);
    }
    format!("/debug/?{}#clients", query.finish())
}

fn client_cells(client: &Client) -> [String; 9] {
    let rate = match (client.received_rate, client.sent_rate) {
        (Some(_), Some(_)) => words::bits(client.rate().into()),
        _ => "not known yet".to_owned(),
    };
    let waits = if client.is_waiting { ", packets wait" } else { "" };
    [
        client.key.clone(),
        client.address.clone(),
        format!("{rate}{waits}"),
        words::bytes(client.received_bytes),
        words::bytes(client.sent_bytes),
        format!("{:.1} ms", client.round_trip_milliseconds),
        client.senders.to_string(),
        words::duration(client.connected_seconds),
        if client.is_home { "yes" } else { "no" }.to_owned(),
    ]
}

fn mesh(page: &mut String, links: &[Link]) {
    let labels = [
        "Peer",
        "Address",
        "Link",
        "Server",
        "Clients",
        "Forwarded",
        "Lost",
        "Failures",
        "Last failure",
    ];
    table(page, &labels, links, |link| {
        let state = match link.address {
            Some(_) => format!("{} for {}", link.state, words::duration(link.seconds)),
            None => link.state.clone(),
        };
        let cells = [
            link.peer.clone(),
            link.address.clone().unwrap_or_default(),
            state,
            link.server_key.clone().unwrap_or_default(),
            link.clients.to_string(),
            format!(
                "{} packets, {}",
                words::number(link.forwarded_packets as f64),
                words::bytes(link.forwarded_bytes)
            ),
            link.dropped_packets.to_string(),
            link.failures.to_string(),
            link.fault.clone().unwrap_or_default(),
        ];
        (cells, ["down", "not found"].contains(&link.state.as_str()))
    });
}

fn flows_title(status: &Status) -> String {
    let (shown, flows) = (status.flows.shown.len() as u64, &status.flows);
    let which = if shown < flows.total {
        format!("the busiest {shown} of {}", flows.total)
    } else {
        flows.total.to_string()
    };
    format!("UDP flows: {which}, {} forwarding", flows.forwarding)
}

fn flows(page: &mut String, flows: &[Flow]) {
    let labels =
        ["Flow", "VNI", "State", "Rate", "Ends", "Kernel", "Userspace", "Over rate", "Heard of"];
    table(page, &labels, flows, |flow| {
        let [a, b] = &flow.ends;
        let both = |value: fn(&FlowEnd) -> u64| value(a).saturating_add(value(b));
        let amount = |packets, bytes| {
            format!(
                "{} packets, {}",
                words::number(both(packets) as f64),
                words::bytes(both(bytes))
            )
        };
        let rate = if flow.ends.iter().any(|end| end.rate.is_some()) {
            words::bits(flow.rate().into())
        } else {
            "not known yet".to_owned()
        };
        let ends = flow.ends.each_ref().map(|end| {
            let remote = end.remote.as_deref().unwrap_or("not known");
            format!("{remote} ({})", end.forwarder)
        });
        let heard = flow.ends.iter().filter_map(|end| end.last_seen_seconds).min();
        let cells = [
            flow.name.clone(),
            flow.vni.map(|vni| vni.to_string()).unwrap_or_default(),
            flow.state.clone(),
            rate,
            ends.join(", "),
            amount(|end| end.kernel_packets, |end| end.kernel_bytes),
            amount(|end| end.userspace_packets, |end| end.userspace_bytes),
            both(|end| end.dropped_over_rate).to_string(),
            heard.map_or_else(|| "never".to_owned(), |age| format!("{} ago", words::duration(age))),
        ];
        (cells, false)
    });
}

fn certificates(page: &mut String, certificates: &[Certificate]) {
    if certificates.is_empty() {
        page.push_str("<p class=\"notable\">There is none yet.</p>\n");
        return;
    }
    table(page, &["Name", "Valid until", "Left"], certificates, |certificate| {
        let left = words::duration(certificate.seconds_left.unsigned_abs());
        let left = if certificate.seconds_left < 0 { format!("ended {left} ago") } else { left };
        (
            [certificate.name.clone(), words::date(certificate.not_after), left],
            certificate.seconds_left < SOON,
        )
    });
}

fn data_plane(status: &Status) -> impl Iterator<Item = (&'static str, String)> {
    let interfaces = status.interfaces.iter().map(|it| format!("{} ({})", it.name, it.mode));
    let interfaces: Vec<_> = interfaces.collect();
    let text =
        if interfaces.is_empty() { "not attached".to_owned() } else { interfaces.join(", ") };
    iter::once(("XDP", text))
}

/// A table of `items`, of which `cells` makes the cells, and says whether somebody should look at the row.
fn table<T, const N: usize>(
    page: &mut String,
    labels: &[&str; N],
    items: &[T],
    cells: impl Fn(&T) -> ([String; N], bool),
) {
    page.push_str("<table class=\"rows\">\n<thead><tr>");
    for label in labels {
        let _ = write!(page, "<th>{label}</th>");
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for item in items {
        let (cells, is_notable) = cells(item);
        row(page, labels.iter().copied().zip(cells), is_notable);
    }
    page.push_str("</tbody>\n</table>\n");
}

/// On a narrow screen a row is a card, whose lines need their labels.
fn row<'a>(page: &mut String, cells: impl Iterator<Item = (&'a str, String)>, is_notable: bool) {
    page.push_str(if is_notable { "<tr class=\"notable\">" } else { "<tr>" });
    for (label, cell) in cells {
        let _ = write!(page, "<td data-label=\"{label}\">{}</td>", escape(&cell));
    }
    page.push_str("</tr>\n");
}
