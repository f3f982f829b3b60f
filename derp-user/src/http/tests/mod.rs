mod connections;
mod views;

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
