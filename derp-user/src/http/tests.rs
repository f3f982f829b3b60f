use std::sync::Arc;

use hyper::{Request, http::HeaderMap};
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    net::{TcpListener, TcpStream},
};

use super::{
    fuzz::{STRANGER, main_from, outcome_of, settings},
    *,
};
use crate::{
    metrics::{AddressView, LinkState, PeerView},
    peer_relay::PeerRelayView,
};

const LOOPBACK: &str = "127.0.0.1:4000";

fn port80_from(remote: &str) -> Origin {
    Origin { remote: remote.parse().unwrap(), listener: Listener::Port80 }
}

/// Builds a request from `METHOD /target` and `Name: value` lines; a Host header is added.
fn request(line: &str, headers: &[(&str, &str)]) -> Parts {
    let (method, target) = line.split_once(' ').unwrap();
    let mut builder = Request::builder().method(method).uri(target).header("Host", "relay:8443");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap().into_parts().0
}

/// Status, headers and body of the answer.
fn ask(
    settings: Settings,
    line: &str,
    headers: &[(&str, &str)],
    origin: Origin,
) -> (u16, HeaderMap, String) {
    let (parts, body) = Site::new(settings).respond(&request(line, headers), &origin).into_parts();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let body = runtime.block_on(http_body_util::BodyExt::collect(body)).unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8(body.to_vec()).unwrap())
}

fn get(line: &str) -> (u16, HeaderMap, String) {
    ask(settings(), line, &[], main_from(STRANGER))
}

fn assert_browser_headers(headers: &HeaderMap) {
    assert_eq!(headers.len(), headers.keys().count(), "no header appears twice");
    assert_eq!(headers["strict-transport-security"], "max-age=63072000; includeSubDomains");
    assert_eq!(headers["x-frame-options"], "DENY");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(
        headers["content-security-policy"],
        "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'; \
         block-all-mixed-content; object-src 'none'"
    );
}

#[test]
fn case_1_and_2_derp_needs_an_upgrade() {
    let (status, headers, body) = get("GET /derp");
    assert_eq!((status, body.as_str()), (426, "DERP requires connection upgrade\n"));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    let (status, _, body) =
        ask(settings(), "GET /derp", &[("Upgrade", "h2c")], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (426, "DERP requires connection upgrade\n"));
}

#[test]
fn derp_can_be_switched_off() {
    let off = || Settings { derp_enabled: false, ..settings() };
    let (status, _, body) = ask(off(), "GET /derp", &[("Upgrade", "DERP")], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (404, "derp server disabled\n"));
    assert_eq!(Site::new(off()).entry(&request("GET /derp", &[("Upgrade", "DERP")])), None);
    let (_, _, page) = ask(off(), "GET /", &[], main_from(STRANGER));
    assert!(page.contains("disabled"));
}

#[test]
fn case_59_captive_portal_challenge() {
    for origin in [port80_from(STRANGER), main_from(STRANGER)] {
        let answer = |challenge: &str| {
            let headers = [("X-Tailscale-Challenge", challenge)];
            let (status, headers, body) = ask(settings(), "GET /generate_204", &headers, origin);
            assert_eq!((status, body.as_str()), (204, ""));
            assert_eq!(
                headers["cache-control"],
                "no-cache, no-store, must-revalidate, no-transform, max-age=0"
            );
            headers.get("x-tailscale-response").map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(answer("ts_1.2.3.4").as_deref(), Some("response ts_1.2.3.4"));
        assert_eq!(answer(&"a".repeat(64)), Some(format!("response {}", "a".repeat(64))));
        for refused in [&"a".repeat(65), "with space", "", "semi;colon", "\u{e9}"] {
            assert_eq!(answer(refused), None, "{refused}");
        }
    }
}

#[test]
fn case_60_probes() {
    for path in ["/derp/probe", "/derp/latency-check"] {
        for method in ["GET", "HEAD"] {
            let (status, headers, body) = get(&format!("{method} {path}"));
            assert_eq!((status, body.as_str()), (200, ""));
            assert_eq!(headers["access-control-allow-origin"], "*");
        }
        let (status, headers, body) = get(&format!("POST {path}"));
        assert_eq!((status, body.as_str()), (405, "bogus probe method\n"));
        assert!(!headers.contains_key("access-control-allow-origin"));
    }
}

#[test]
fn case_61_home_page() {
    let home = |home| Settings { home, ..settings() };
    let (status, headers, body) = get("GET /no-such-page");
    assert_eq!(status, 200);
    assert_browser_headers(&headers);
    assert_eq!(headers["content-type"], "text/html; charset=utf-8");
    assert!(body.contains("DERP") && !body.contains("/debug/") && !body.contains("disabled"));

    let (_, _, body) = ask(settings(), "GET /", &[], main_from(LOOPBACK));
    assert!(body.contains("href=\"/debug/\""));

    let blank = ask(home(Home::Blank), "GET /", &[], main_from(STRANGER));
    assert_eq!((blank.0, blank.2.as_str()), (200, ""));
    assert_eq!(blank.1["content-type"], "text/html; charset=utf-8");

    let elsewhere = Home::Redirect("https://x.example/".to_owned());
    let (status, headers, _) = ask(home(elsewhere), "GET /no-such-page", &[], main_from(STRANGER));
    assert_eq!((status, headers["location"].to_str().unwrap()), (302, "https://x.example/"));
}

#[test]
fn home_setting() {
    assert_eq!("".parse(), Ok(Home::BuiltIn));
    assert_eq!("blank".parse(), Ok(Home::Blank));
    assert_eq!("http://a/".parse(), Ok(Home::Redirect("http://a/".to_owned())));
    for wrong in ["Blank", "ftp://a/", "example.com", "https://a\n"] {
        assert_eq!(wrong.parse::<Home>(), Err(HomeError(wrong.to_owned())));
    }
}

#[test]
fn case_62_port_80_redirects_to_https() {
    let ask80 = |line: &str, remote| ask(settings(), line, &[], port80_from(remote));
    for (line, remote, location) in [
        ("GET /derp", STRANGER, "https://relay:8443/derp"),
        ("HEAD /a?b=c", STRANGER, "https://relay:8443/a?b=c"),
        ("GET /", STRANGER, "https://relay:8443/"),
        ("GET /", LOOPBACK, "https://relay:8443/debug/"),
    ] {
        let (status, headers, _) = ask80(line, remote);
        assert_eq!((status, headers["location"].to_str().unwrap()), (302, location), "{line}");
    }
    let (status, _, body) = ask80("POST /", STRANGER);
    assert_eq!((status, body.as_str()), (400, "Use HTTPS\n"));
    assert_eq!(ask80("GET /debug/", LOOPBACK).0, 200);
    assert_eq!(ask80("GET /debug/", STRANGER).0, 403);
}

#[test]
fn challenges_are_answered_on_port_80_where_there_are_any() {
    let with_challenge = || Settings {
        acme_challenge: Some(Box::new(|token| (token == "abc").then(|| "abc.xyz".to_owned()))),
        ..settings()
    };
    let path = "GET /.well-known/acme-challenge/abc";
    let ask_for = |settings, path, origin| {
        let (status, _, body) = ask(settings, path, &[], origin);
        (status, body)
    };
    let port80 = port80_from(STRANGER);
    assert_eq!(ask_for(with_challenge(), path, port80), (200, "abc.xyz".to_owned()));
    let (status, _) = ask_for(with_challenge(), "GET /.well-known/acme-challenge/other", port80);
    assert_eq!(status, 404);
    // Elsewhere the path means nothing: redirected, or the home page.
    assert_eq!(ask_for(settings(), path, port80).0, 302);
    let (status, body) = ask_for(with_challenge(), path, main_from(STRANGER));
    assert_eq!((status, body.contains("abc.xyz")), (200, false));
}

#[test]
fn case_63_debug_access() {
    let access = |address, networks, key| DebugAccess::new(address, networks, key, false).unwrap();
    let ask_varz = |access: DebugAccess, line: &str, headers: &[(&str, &str)], remote: &str| {
        ask(Settings { access, ..settings() }, line, headers, main_from(remote)).0
    };
    let varz = "GET /debug/varz";
    let forwarded = [("X-Forwarded-For", "127.0.0.1")];
    for (remote, expected) in [
        (LOOPBACK, 200),
        ("[::1]:1", 200),
        ("[::ffff:127.0.0.1]:1", 200),
        ("100.64.0.1:1", 200),
        ("100.115.92.1:1", 403),
        ("100.128.0.1:1", 403),
        ("[fd7a:115c:a1e0::1]:1", 200),
        ("[fd7a:115c:a1e1::1]:1", 403),
        (STRANGER, 403),
    ] {
        assert_eq!(ask_varz(access(None, None, None), varz, &[], remote), expected, "{remote}");
    }
    assert_eq!(ask_varz(access(None, None, None), varz, &forwarded, LOOPBACK), 403);

    let allowed = || access(Some("198.51.100.7"), None, None);
    assert_eq!(ask_varz(allowed(), varz, &[], STRANGER), 200);
    assert_eq!(ask_varz(allowed(), varz, &[], "198.51.100.8:1"), 403);
    let networks = || access(None, Some("192.0.2.0/24, 2001:db8::/32"), None);
    assert_eq!(ask_varz(networks(), varz, &[], "192.0.2.200:1"), 200);
    assert_eq!(ask_varz(networks(), varz, &[], "[2001:db8::1]:1"), 200);
    assert_eq!(ask_varz(networks(), varz, &[], STRANGER), 403);

    let key = || access(None, None, Some(" s3cret&\n"));
    let with_key = "GET /debug/varz?a=1&debugkey=s3cret%26";
    assert_eq!(ask_varz(key(), with_key, &forwarded, STRANGER), 200);
    assert_eq!(ask_varz(key(), "GET /debug/varz?debugkey=s3cret", &[], STRANGER), 403);
    assert_eq!(ask_varz(key(), "GET /debug/varz?debugkey=", &[], STRANGER), 403);
    assert_eq!(ask_varz(key(), "POST /debug/varz?debugkey=s3cret%26", &[], STRANGER), 403);
    assert_eq!(ask_varz(access(None, None, Some("")), "GET /debug/?debugkey=", &[], STRANGER), 403);
}

#[test]
fn access_settings_are_checked() {
    let error = |address, networks| DebugAccess::new(address, networks, None, false).err();
    assert_eq!(error(Some("host"), None), Some(AccessError::Address("host".to_owned())));
    assert_eq!(
        error(None, Some("10.0.0.0/8,10.0.0.0/33")),
        Some(AccessError::Network("10.0.0.0/33".to_owned()))
    );
    assert_eq!(error(Some(""), Some("")), None);
}

#[test]
fn debug_pages() {
    let local = |line: &str| ask(settings(), line, &[], main_from(LOOPBACK));
    let (status, headers, body) = local("GET /debug/");
    assert_eq!(status, 200);
    assert_browser_headers(&headers);
    for part in ["derper debug", "relay&lt;1&gt;", "derp.example.com", "1.2.3", "/debug/varz"] {
        assert!(body.contains(part), "{part}");
    }
    let (status, headers, body) = local("GET /debug/varz");
    assert_eq!((status, body.as_str()), (200, "derp_accepts 1\n"));
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/plain;"));
    let policy = headers["content-security-policy"].to_str().unwrap();
    assert!(policy.ends_with("object-src 'none'; style-src 'self' 'unsafe-inline'"));
    assert_eq!(local("GET /debug/nothing").0, 404);
    let (status, headers, _) = local("GET /debug");
    assert_eq!((status, headers["location"].to_str().unwrap()), (307, "/debug/"));

    assert_eq!(local("GET /debug/check").2, "derp.Server ConsistencyCheck okay");
    let broken = Settings { check: Box::new(|| Err("1 key too many".to_owned())), ..settings() };
    let (status, _, body) = ask(broken, "GET /debug/check", &[], main_from(LOOPBACK));
    assert_eq!((status, body.as_str()), (500, "1 key too many\n"));
}

#[test]
fn requests_are_counted_by_their_tls() {
    let tls_requests = TlsRequests::default();
    let site = Site::new(Settings { tls_requests: tls_requests.clone(), ..settings() });
    let origin = |tls| Origin { listener: Listener::Main { tls }, ..main_from(STRANGER) };
    for tls in [Some(TlsVersion::V12), Some(TlsVersion::V13), Some(TlsVersion::V13), None] {
        site.respond(&request("GET /", &[]), &origin(tls));
    }
    site.respond(&request("GET /", &[]), &port80_from(STRANGER));
    let session = site.begin(&origin(Some(TlsVersion::V13)));
    let counts = |active| {
        let [first, second, third] = TlsVersion::ALL;
        [(first, 1, 0), (second, 3, active), (third, 0, 0)]
    };
    assert_eq!(tls_requests.counts(), counts(1));
    drop(session);
    assert_eq!(tls_requests.counts(), counts(0));
}

#[test]
fn traffic_is_told_as_it_comes_to_few_who_may_see_it() {
    fn stream() -> Option<mpsc::Receiver<Bytes>> {
        let (pieces, stream) = mpsc::channel(4);
        for piece in ["{}\n", "\n"] {
            pieces.try_send(Bytes::from(piece)).unwrap();
        }
        Some(stream)
    }
    let ask_traffic = |line, stream: fn() -> Option<mpsc::Receiver<Bytes>>, remote| {
        ask(Settings { traffic: Box::new(stream), ..settings() }, line, &[], main_from(remote))
    };
    let (status, headers, body) = ask_traffic("GET /debug/traffic", stream, LOOPBACK);
    assert_eq!((status, body.as_str()), (200, "{}\n\n"));
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(headers["x-frame-options"], "DENY");
    let (status, _, body) = ask_traffic("HEAD /debug/traffic", || panic!("not read"), LOOPBACK);
    assert_eq!((status, body.as_str()), (200, ""));
    let (status, _, body) = ask_traffic("GET /debug/traffic", || None, LOOPBACK);
    assert_eq!((status, body.as_str()), (503, "enough people look already\n"));
    assert_eq!(ask_traffic("GET /debug/traffic", || panic!("denied"), STRANGER).0, 403);
}

#[test]
fn a_refusal_tells_developers_how_to_get_in() {
    let access = DebugAccess::new(None, None, None, true).unwrap();
    let (status, _, body) =
        ask(Settings { access, ..settings() }, "GET /debug/", &[], main_from(STRANGER));
    assert_eq!(status, 403);
    assert!(body.starts_with("debug access denied\n"));
    assert!(body.contains("TS_ALLOW_DEBUG_IP=198.51.100.7"));
    let (_, _, body) = get("GET /debug/");
    assert_eq!(body, "debug access denied\n");
}

#[test]
fn small_pages() {
    let (status, headers, body) = get("GET /robots.txt");
    assert_eq!((status, body.as_str()), (200, "User-agent: *\nDisallow: /\n"));
    assert_browser_headers(&headers);
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");

    let (status, headers, body) = get("GET /bootstrap-dns");
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(headers["connection"], "close");

    let (status, headers, _) = get("GET /derpd.css");
    assert_eq!(status, 200);
    assert_eq!(headers["content-type"], "text/css; charset=utf-8");
}

#[test]
fn unclean_paths_are_redirected_on_both_ports() {
    for origin in [main_from(STRANGER), port80_from(STRANGER)] {
        for (method, link) in [("GET", "<a href"), ("POST", "")] {
            let line = format!("{method} //derp/./probe?a=b");
            let (status, headers, body) = ask(settings(), &line, &[], origin);
            assert_eq!((status, headers["location"].to_str().unwrap()), (307, "/derp/probe?a=b"));
            assert!(body.starts_with(link) && body.is_empty() == link.is_empty(), "{body}");
        }
        let (status, headers, body) = ask(settings(), "OPTIONS *", &[], origin);
        assert_eq!((status, body.as_str(), headers.len()), (200, "", 0));
    }
}

#[test]
fn case_65_no_tunnels() {
    let (status, _, body) = get("CONNECT login.tailscale.com:443");
    assert_eq!((status, body.as_str()), (403, "CONNECT not enabled\n"));
}

#[test]
fn a_request_without_host_is_refused() {
    let mut request = request("GET /", &[]);
    request.headers.remove("host");
    let response = Site::new(settings()).respond(&request, &main_from(STRANGER));
    assert_eq!(response.status(), 400);
    request.version = Version::HTTP_10;
    let response = Site::new(settings()).respond(&request, &main_from(STRANGER));
    assert_eq!(response.status(), 200);
}

/// Runs `serve_connection` on one end of a pipe and, on the other, sends `first` and runs `client`.
async fn served<T>(
    first: &'static [u8],
    client: impl AsyncFnOnce(&mut tokio::io::DuplexStream) -> T,
) -> (Outcome<tokio::io::DuplexStream>, T) {
    let (near, mut far) = duplex(64 * 1024);
    let site = Arc::new(Site::new(settings()));
    let server = serve_connection(near, main_from(STRANGER), site);
    let client = async {
        far.write_all(first).await.unwrap();
        let result = client(&mut far).await;
        drop(far);
        result
    };
    tokio::join!(server, client)
}

async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn serves_one_request_after_another() {
    let (outcome, ()) = served(b"GET /derp/probe HTTP/1.1\r\nHo", async |client| {
        client.write_all(b"st: a\r\n\r\n").await.unwrap();
        assert!(read_head(client).await.starts_with("HTTP/1.1 200 OK\r\n"));
        client.write_all(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let head = read_head(client).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        client.write_all(b"GET /generate_204 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert!(read_head(client).await.starts_with("HTTP/1.1 204 "), "HEAD has no body");
    })
    .await;
    assert!(matches!(outcome, Outcome::Done));
}

#[tokio::test]
async fn derp_after_another_request_is_handed_over() {
    let (outcome, ()) = served(b"GET /generate_204 HTTP/1.1\r\nHost: a\r\n\r\n", async |client| {
        assert!(read_head(client).await.starts_with("HTTP/1.1 204 "));
        let upgrade =
            b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n\x02abc";
        client.write_all(upgrade).await.unwrap();
    })
    .await;
    let Outcome::Derp { unread, request, mut io, .. } = outcome else { panic!("not handed over") };
    let mut unread = unread.to_vec();
    io.read_to_end(&mut unread).await.unwrap();
    assert_eq!(unread, b"\x02abc");
    assert_eq!(request.uri.path(), "/derp");
}

#[tokio::test]
async fn pipelined_derp_is_handed_over_with_its_bytes() {
    const REQUESTS: &[u8] = b"GET /derp/probe HTTP/1.1\r\nHost: a\r\n\r\n\
        POST /derp HTTP/1.1\r\nHost: a\r\nUpgrade: derp\r\nDerp-Fast-Start: 1\r\n\r\n\x02\0\0\0\x01x";
    let (outcome, head) = served(REQUESTS, async |client| read_head(client).await).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
    let Outcome::Derp { unread, request, .. } = outcome else { panic!("not handed over") };
    assert_eq!(&unread[..], b"\x02\0\0\0\x01x");
    assert_eq!(request.headers["derp-fast-start"], "1");
}

#[tokio::test]
async fn garbage_and_oversized_heads_are_refused() {
    let (outcome, head) =
        served(b"\x16\x03\x01 garbage\r\n\r\n", async |client| read_head(client).await).await;
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
    assert!(matches!(outcome, Outcome::Done));

    let (_, head) = served(b"GET / HTTP/1.1\r\nHost: a\r\nX: ", async |client| {
        let _ = client.write_all(&[b'a'; 40_000]).await;
        read_head(client).await
    })
    .await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
}

#[tokio::test]
async fn port_80_serves_until_told_to_stop() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Arc::new(Site::new(settings()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve_port80(listener, site, Arc::default(), async {
        let _ = stopped.await;
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /derp HTTP/1.1\r\nHost: relay\r\n\r\n").await.unwrap();
    let head = read_head(&mut client).await;
    assert!(head.starts_with("HTTP/1.1 302 "), "{head}");
    assert!(head.contains("location: https://relay/derp\r\n"), "{head}");
    stop.send(()).unwrap();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// What becomes of a connection on which exactly these bytes arrive.
const UPGRADE_REQUEST: &[u8] =
    b"GET /derp HTTP/1.1\r\nHost: a\r\nUpgrade: DERP\r\nDerp-Fast-Start: 1\r\n\r\n\x02\0\0\0\0";

proptest! {
    #[test]
    fn any_bytes_are_served_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(matches!(outcome_of(&bytes), Outcome::Done));
    }

    #[test]
    fn a_damaged_upgrade_never_loses_the_bytes_after_it(at in 0..UPGRADE_REQUEST.len() - 9, byte: u8) {
        let mut bytes = UPGRADE_REQUEST.to_vec();
        bytes[at] = byte;
        if let Outcome::Derp { unread, .. } = outcome_of(&bytes) {
            prop_assert!(unread.ends_with(b"\x02\0\0\0\0"), "{unread:?}");
        }
    }
}

/// A flow with as much as there can be in it, by way of a real flow table.
fn some_flows(number: usize) -> FlowsView {
    use crate::flow::{
        EndSpec, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote, TableSettings,
        Viewer,
    };
    let mut table = FlowTable::new(TableSettings { slots: 1024, idle_timeout: 0, seed: 0 });
    for flow in 0..number {
        let end = |remote| EndSpec { remote, local: Local { ip: None, port: 40000 }, sender: 0 };
        let remote = format!("192.0.2.1:{}", flow + 1).parse().unwrap();
        let spec = FlowSpec {
            name: format!("<flow {flow}>"),
            kind: if flow == 0 { Kind::Geneve { vni: Some(7) } } else { Kind::Any },
            ends: [
                end(Remote::Fixed(remote)),
                end(Remote::Learn(vec!["10.0.0.0/8".parse().unwrap()])),
            ],
            rate: None,
            lifetime: Lifetime::Configured,
            source: FlowSource::Configuration,
        };
        table.add(spec, 0).unwrap();
    }
    let flows = table.views(&Viewer { has_kernel: true, interface_name: &|_| None, now: 0 });
    FlowsView { counted_seconds: Some(2.6), flows }
}

#[test]
fn flows_are_shown_to_people() {
    let flows = |number| Settings { flows: Box::new(move || some_flows(number)), ..settings() };
    let ask_flows = |number, line: &str, headers: &[(&str, &str)]| {
        ask(flows(number), line, headers, main_from(LOOPBACK))
    };
    let browser = [("Accept", "text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8")];
    let (status, headers, page) = ask_flows(2, "GET /debug/flows", &browser);
    assert_eq!(
        (status, headers["content-type"].to_str().unwrap()),
        (200, "text/html; charset=utf-8")
    );
    for part in [
        "2 flows, 0 forwarding",
        "Counted 3 s ago.",
        "&lt;flow 0&gt;",
        "<td rowspan=\"2\">7</td>",
        "<td rowspan=\"2\">none</td>",
        "192.0.2.1:1",
        "to be learnt from 10.0.0.0/8",
        "nobody: an end is not known",
        "never",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    assert!(!page.contains("<flow") && !page.contains("<script"));
    assert!(ask_flows(501, "GET /debug/flows", &[]).2.contains("1 more are only in the JSON"));
    assert!(ask_flows(0, "GET /debug/flows", &[]).2.contains("0 flows"));
    assert!(ask_flows(0, "GET /debug/", &[]).2.contains("href=\"/debug/flows\""));
}

#[test]
fn flows_are_told_to_programs() {
    let flows = || Settings { flows: Box::new(|| some_flows(600)), ..settings() };
    let json = [("Accept", "application/json")];
    for (line, headers) in
        [("GET /debug/flows?a=b&format=json", [].as_slice()), ("GET /debug/flows", &json)]
    {
        let (status, headers, body) = ask(flows(), line, headers, main_from(LOOPBACK));
        assert_eq!((status, headers["content-type"].to_str().unwrap()), (200, "application/json"));
        let document: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(document["counted_seconds"], 2.6);
        let flows = document["flows"].as_array().unwrap();
        assert_eq!(flows.len(), 600);
        assert!(flows.iter().any(|flow| flow["vni"] == 7 && flow["name"] == "<flow 0>"));
    }
    let (_, headers, _) = ask(flows(), "GET /debug/flows?format=html", &json, main_from(LOOPBACK));
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/html"));
}

#[test]
fn flows_are_behind_the_access_rule() {
    for line in ["GET /debug/flows", "GET /debug/flows?format=json"] {
        let (status, _, body) = ask(settings(), line, &[], main_from(STRANGER));
        assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
    }
}

fn some_mesh() -> MeshView {
    let address = |last: u8, state| AddressView {
        address: ([192, 0, 2, last], 443).into(),
        state,
        seconds: 61,
        server_key: Some(format!("nodekey:{}", "0a".repeat(32))),
        connects: 2,
        failures: 1,
        last_failure: Some("Recv: the peer <closed> the link".to_owned()),
        clients: 12,
        forwarded_packets: 3,
        forwarded_bytes: 12_345_678,
        dropped_packets: 4,
    };
    let peer = |name: &str, look_up_fault: Option<&str>, addresses| PeerView {
        name: name.to_owned(),
        dials: format!("{name}:443"),
        look_up_fault: look_up_fault.map(str::to_owned),
        addresses,
    };
    MeshView {
        peers: vec![
            peer("a.example", None, vec![address(1, LinkState::Up), address(2, LinkState::Own)]),
            peer("b.example", Some("cannot look up b.example: <no>"), vec![]),
            peer("c.example", None, vec![address(3, LinkState::Down)]),
        ],
    }
}

#[test]
fn the_mesh_is_shown_to_people_and_told_to_programs() {
    let ask_mesh = |line| {
        let settings = Settings { mesh: Box::new(some_mesh), ..settings() };
        ask(settings, line, &[], main_from(LOOPBACK))
    };
    let (status, _, page) = ask_mesh("GET /debug/mesh");
    assert_eq!(status, 200);
    for part in [
        "1 of 2 links up",
        "<td>192.0.2.1:443</td><td>up</td><td>1 min 1 s</td>",
        "<td>this server</td>",
        "the peer &lt;closed&gt; the link",
        "cannot look up b.example: &lt;no&gt;",
        "3 packets, 12 MB",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    let index = ask_mesh("GET /debug/").2;
    assert!(index.contains("<th>Mesh</th><td>1 of 2 links up</td>"), "{index}");

    let (_, headers, body) = ask_mesh("GET /debug/mesh?format=json");
    assert_eq!(headers["content-type"].to_str().unwrap(), "application/json");
    let document: serde_json::Value = serde_json::from_str(&body).unwrap();
    let first = &document["peers"][0]["addresses"][0];
    assert_eq!((&first["state"], &first["clients"]), (&"up".into(), &12.into()));
    assert_eq!(document["peers"][0]["addresses"][1]["state"], "own");
    assert!(document["peers"][1]["look_up_fault"].is_string());

    let alone = ask(settings(), "GET /debug/mesh", &[], main_from(LOOPBACK)).2;
    assert!(alone.contains("<p>none. "), "{alone}");
    let (status, _, body) =
        ask(settings(), "GET /debug/mesh?format=json", &[], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
}

fn some_peer_relay() -> PeerRelayView {
    use crate::peer_relay::{
        ClientView, DerpView, EndpointState, LimitsView, Mapping, SessionView,
    };
    let client = |disco: &str, end: &crate::flow::EndView| ClientView {
        disco: disco.to_owned(),
        end: end.clone(),
    };
    let mut ends = some_flows(1).flows.remove(0).ends;
    ends[0].kernel.packets = 3;
    ends[0].kernel.bytes = 300;
    ends[0].userspace.packets = 1;
    ends[0].userspace.bytes = 50;
    let derp = |server: &str, is_connected, fault: Option<&str>| DerpView {
        server: server.to_owned(),
        is_connected,
        seconds: 61,
        fault: fault.map(str::to_owned),
    };
    PeerRelayView {
        node_key: format!("nodekey:{}", "0a".repeat(32)),
        port: 40000,
        allow: "2 nodes".to_owned(),
        addresses: vec!["203.0.113.1:40000".parse().unwrap()],
        mappings: vec![Mapping {
            server: "198.51.100.1:3478".parse().unwrap(),
            seen: "203.0.113.1:61000".parse().unwrap(),
        }],
        cloud: vec!["203.0.113.7".parse().unwrap()],
        derp: vec![derp("https://a", true, None), derp("https://b", false, Some("<no>"))],
        limits: LimitsView { endpoints: 16, endpoints_per_node: 2 },
        requests: [("allocated", 5), ("not_permitted", 7), ("repeated", 0)].into(),
        forwarded: [("kernel", (4, 12_345_678))].into(),
        counted_seconds: Some(2.6),
        sessions: vec![SessionView {
            vni: 0x05_0003,
            state: EndpointState::Connecting,
            node: format!("nodekey:{}", "0b".repeat(32)),
            age_seconds: 62,
            clients: [
                client("d:0102030405060708", &ends[0]),
                client("d:1112131415161718", &ends[1]),
            ],
        }],
        ..PeerRelayView::default()
    }
}

#[test]
fn the_peer_relay_is_shown_to_people_and_told_to_programs() {
    let ask_relay = |line| {
        let settings = Settings { peer_relay: Box::new(|| Some(some_peer_relay())), ..settings() };
        ask(settings, line, &[], main_from(LOOPBACK))
    };
    let (status, _, page) = ask_relay("GET /debug/peer-relay");
    assert_eq!(status, 200);
    for part in [
        "1 endpoints, 0 open",
        "<th>May ask for endpoints</th><td>2 nodes</td>",
        "<th>Clients are told</th><td>203.0.113.1:40000</td>",
        "203.0.113.1:61000 (says 198.51.100.1:3478)",
        "https://a (for 1 min 1 s), https://b (not for 1 min 1 s: &lt;no&gt;)",
        "<td>16, 2 of one node</td>",
        "<th>Requests</th><td>5 allocated, 7 not permitted</td>",
        "<th>Handshake messages</th><td>none</td>",
        "<th>Forwarded in the kernel</th><td>4 packets, 12 MB</td>",
        "Counted 3 s ago.",
        ">327683</td><td rowspan=\"2\">connecting</td><td rowspan=\"2\">1 min 2 s</td>",
        "<td>d:0102030405060708</td><td>192.0.2.1:1</td>",
        "<td>not bound</td>",
        "<td>3 packets, 300 B</td><td>1 packets, 50 B</td>",
    ] {
        assert!(page.contains(part), "{part} is missing from\n{page}");
    }
    assert!(!page.contains("<script"));
    assert!(ask_relay("GET /debug/").2.contains("href=\"/debug/peer-relay\""));

    let document = |line| {
        let (_, headers, body) = ask_relay(line);
        assert_eq!(headers["content-type"].to_str().unwrap(), "application/json");
        serde_json::from_str::<serde_json::Value>(&body).unwrap()
    };
    let json = document("GET /debug/peer-relay?format=json");
    assert_eq!((&json["port"], &json["requests"]["not_permitted"]), (&40000.into(), &7.into()));
    let session = &json["sessions"][0];
    assert_eq!((&session["vni"], &session["state"]), (&327_683.into(), &"connecting".into()));
    assert_eq!(session["clients"][0]["kernel"]["packets"], 3);
    assert_eq!(session["clients"][0]["forwarder"], "nobody");

    let expected = serde_json::json!({"UDPPort": 40000, "Sessions": [{
        "VNI": 327_683,
        "Client1": {"Endpoint": "192.0.2.1:1", "ShortDisco": "d:0102030405060708",
            "PacketsTx": 4, "BytesTx": 350},
        "Client2": {"Endpoint": "", "ShortDisco": "d:1112131415161718", "PacketsTx": 0,
            "BytesTx": 0},
    }]});
    assert_eq!(document("GET /debug/peer-relay?format=tailscale"), expected);

    let none = |line| ask(settings(), line, &[], main_from(LOOPBACK)).2;
    assert!(none("GET /debug/peer-relay").contains("None: [peer_relay]"));
    assert_eq!(none("GET /debug/peer-relay?format=json"), "null\n");
    let nothing = "{\"UDPPort\":null,\"Sessions\":[]}\n";
    assert_eq!(none("GET /debug/peer-relay?format=tailscale"), nothing);
    let (status, _, body) =
        ask(settings(), "GET /debug/peer-relay?format=tailscale", &[], main_from(STRANGER));
    assert_eq!((status, body.as_str()), (403, "debug access denied\n"));
}
