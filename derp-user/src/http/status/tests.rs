use hyper::Request;

use super::*;
use crate::status::{Certificate, Client, Clients, Flow, FlowEnd, Flows, Interface, Link};

fn request(target: &str) -> Parts {
    Request::builder().uri(target).body(()).unwrap().into_parts().0
}

fn wish(target: &str) -> Result<Wish, String> {
    Wish::of(&request(target), Since::Everything)
}

fn client(key: &str, rates: Option<f32>, round_trip_milliseconds: f64) -> Client {
    Client {
        key: key.to_owned(),
        address: "192.0.2.7:4711".to_owned(),
        received_bytes: 12_345,
        sent_bytes: 2_000_000,
        received_rate: rates,
        sent_rate: rates,
        round_trip_milliseconds,
        connected_seconds: 61,
        is_home: true,
        senders: 3,
        is_waiting: rates == Some(0.0),
    }
}

fn end(remote: Option<&str>, rate: Option<f32>) -> FlowEnd {
    FlowEnd {
        remote: remote.map(str::to_owned),
        forwarder: "kernel".to_owned(),
        kernel_packets: 1000,
        kernel_bytes: 1_200_000,
        userspace_packets: 1,
        userspace_bytes: 64,
        dropped_over_rate: 5,
        rate,
        last_seen_seconds: remote.map(|_| 4),
    }
}

fn some_status() -> Status {
    let link = |address: Option<&str>, state: &str, fault: Option<&str>| Link {
        peer: "b.example".to_owned(),
        address: address.map(str::to_owned),
        state: state.to_owned(),
        seconds: 61,
        server_key: None,
        clients: 12,
        forwarded_packets: 3,
        forwarded_bytes: 400,
        dropped_packets: 4,
        failures: 1,
        fault: fault.map(str::to_owned),
    };
    Status {
        hostname: "<relay>.example".to_owned(),
        uptime_seconds: 7300,
        interfaces: vec![Interface { name: "eth0".to_owned(), mode: "native".to_owned() }],
        certificates: Some(vec![
            Certificate { name: "old".to_owned(), not_after: 900, seconds_left: -3600 },
            Certificate {
                name: "new".to_owned(),
                not_after: 1_900_000_000,
                seconds_left: SOON + 1,
            },
        ]),
        links: vec![
            link(Some("192.0.2.1:443"), "up", None),
            link(None, "not found", Some("<no> such name")),
        ],
        clients: Clients {
            total: 3,
            home: 2,
            shown: vec![client("[fast]", Some(125_000.0), 1.0), client("[slow]", None, 250.0)],
        },
        flows: Flows {
            total: 1,
            forwarding: 1,
            shown: vec![Flow {
                name: "<a> to b".to_owned(),
                vni: Some(7),
                state: "forwarding".to_owned(),
                ends: [end(Some("198.51.100.1:1"), Some(125.0)), end(None, None)],
            }],
        },
        ..Status::default()
    }
}

const SOON: i64 = 14 * 86_400;

fn render(status: &Status, key: Option<&str>) -> String {
    let facts = [("Version", "1.2.3".to_owned()), ("Admission", "open: <all>".to_owned())];
    page::render(status, &facts, ClientOrder::default(), key)
}

#[test]
fn the_query_says_what_is_wished_for() {
    let all =
        Wish { since: Since::Everything, rows: MOST_ROWS, order: ClientOrder::Rate, key: None };
    assert_eq!(wish("/debug/status.json"), Ok(all.clone()));
    assert_eq!(wish("/debug/status.json?rows=1000000&other=x"), Ok(all.clone()));
    let target = "/debug/status.json?run=5&after=7&rows=0&sort=rtt&debugkey=a%26b";
    let expected = Wish {
        since: Since::After { run: 5, time: 7 },
        rows: 0,
        order: ClientOrder::RoundTrip,
        key: Some("a&b".to_owned()),
    };
    assert_eq!(wish(target), Ok(expected));
    for (query, fault) in [
        ("rows=-1", "rows: \"-1\" is not a whole number"),
        ("run=1&after=1.5", "after: \"1.5\" is not a whole number"),
        ("run=1", "run and after belong together: both are of an earlier answer"),
        ("after=1", "run and after belong together: both are of an earlier answer"),
        (
            "sort=size",
            "sort: \"size\" is no order of clients: rate, received, sent, rtt or senders",
        ),
    ] {
        assert_eq!(wish(&format!("/debug/status.json?{query}")), Err(fault.to_owned()), "{query}");
        for respond in [
            document(&request(&format!("/debug/status.json?{query}")), |_| panic!("not asked")),
            index(&request(&format!("/debug/?{query}")), &[], |_| panic!("not asked")),
        ] {
            assert_eq!(respond.status(), StatusCode::BAD_REQUEST);
        }
    }
}

#[test]
fn rows_are_sorted_and_cut() {
    let keys = |target: &str| {
        let status = wish(target).unwrap().apply(some_status());
        status.clients.shown.into_iter().map(|client| client.key).collect::<Vec<_>>()
    };
    assert_eq!(keys("/debug/status.json"), ["[fast]", "[slow]"]);
    assert_eq!(keys("/debug/status.json?sort=rtt&rows=1"), ["[slow]"]);
    let none = wish("/debug/status.json?rows=0").unwrap().apply(some_status());
    assert!(none.clients.shown.is_empty() && none.flows.shown.is_empty());
    assert_eq!((none.clients.total, none.flows.total), (3, 1));
}

#[test]
fn the_page_has_everything_without_its_script() {
    let page = render(&some_status(), None);
    for part in [
        "<h1>&lt;relay&gt;.example</h1>",
        "up 2 h 1 min",
        "Clients: the busiest 2 of 3",
        "<td data-label=\"Rate\">2.00 Mbit/s</td>",
        "<td data-label=\"Rate\">not known yet</td>",
        "<td data-label=\"Round trip\">250.0 ms</td>",
        "<td data-label=\"Received\">12.3 kB</td>",
        "<th aria-sort=\"descending\">Rate</th>",
        "<a href=\"/debug/?sort=rtt#clients\">Round trip</a>",
        "up for 1 min 1 s",
        "<tr class=\"notable\"><td data-label=\"Peer\">b.example</td>",
        "&lt;no&gt; such name",
        "UDP flows: 1, 1 forwarding",
        "198.51.100.1:1 (kernel), not known (kernel)",
        "2.00 k packets, 2.40 MB",
        "<tr class=\"notable\"><td data-label=\"Name\">old</td>",
        "ended 1 h 0 min ago",
        "<tr><td data-label=\"Name\">new</td>",
        "14 d 0 h",
        "<th>Admission</th><td>open: &lt;all&gt;</td>",
        "<th>XDP</th><td>eth0 (native)</td>",
        "<dt>To clients</dt><dd>0 bit/s</dd>",
        "<li data-series=\"stun_kernel\"><span>kernel</span> <b>0/s</b></li>",
        "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>",
        "href=\"/debug/varz\"",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    // The security policy of the page allows neither.
    assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains("<script>"));
    assert!(!page.contains("<relay>") && !page.contains("<a> to b"));
}

#[test]
fn what_there_is_none_of_has_no_table() {
    let page = render(&Status::default(), None);
    assert!(page.contains("Clients: 0") && page.contains("<p>None.</p>"), "{page}");
    for absent in ["Mesh links", "UDP flows: ", "Certificates"] {
        assert!(!page.contains(&format!("<h2>{absent}")), "{absent}");
    }
    assert!(page.contains("<th>XDP</th><td>not attached</td>"));
    let waiting = Status { certificates: Some(vec![]), ..Status::default() };
    assert!(render(&waiting, None).contains("There is none yet."));
}

#[test]
fn links_to_the_page_itself_take_the_key_along() {
    let page = render(&some_status(), Some("a\"b&c"));
    let link = "/debug/?sort=sent&amp;debugkey=a%22b%26c#clients";
    assert!(page.contains(&format!("<a href=\"{link}\">Sent</a>")), "{page}");
}

#[test]
fn the_files_of_the_page_are_there_under_the_names_it_uses() {
    let page = render(&Status::default(), None);
    let addresses: Vec<_> = page
        .split(['"'])
        .filter(|text| text.starts_with("/debug/") && text.contains('?') && !text.contains("sort="))
        .filter(|text| text.contains(".js?") || text.contains(".css?"))
        .collect();
    assert_eq!(addresses.len(), 4, "{addresses:?}");
    for address in addresses {
        let (path, mark) = address.split_once('?').unwrap();
        assert_eq!(mark.len(), 16);
        let file = find_asset(path).expect(path);
        assert_eq!(file.status(), StatusCode::OK);
        assert_eq!(file.headers()["x-content-type-options"], "nosniff");
    }
    assert!(find_asset("/debug/status.json").is_none());
}
