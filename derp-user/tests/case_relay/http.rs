//! Pages beside the relay (cases 59 to 62 and 73).

use std::{thread, time::Duration};

use rustls_pki_types::ServerName;

use crate::{
    peer::{Peer, Wire},
    server::{Kind, Response, Server, kind, skip, wait_until},
};

fn https(server: &Server, method: &str, path: &str) -> Response {
    Wire::connect(server)
        .http(&format!("{method} {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n"))
}

#[test]
fn case_59_the_captive_portal_challenge_is_answered_if_it_is_well_formed() {
    let server = Server::start();
    let ask = |challenge: &str| {
        server.http(&format!(
            "GET /generate_204 HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\
             X-Tailscale-Challenge: {challenge}\r\n\r\n"
        ))
    };
    let longest = "a".repeat(64);
    for good in ["ts_1.2.3.4", "Az09.-_:", &longest] {
        let answer = ask(good);
        assert_eq!(answer.status, 204);
        let expected = format!("response {good}");
        assert_eq!(answer.header("X-Tailscale-Response"), Some(expected.as_str()));
    }
    for bad in ["a".repeat(65).as_str(), "two words", "a/b", ""] {
        let answer = ask(bad);
        assert_eq!(answer.status, 204);
        assert_eq!(answer.header("X-Tailscale-Response"), None, "to {bad:?}");
    }
}

#[test]
fn case_60_probes_take_get_and_head_from_any_origin() {
    let server = Server::start();
    for path in ["/derp/probe", "/derp/latency-check"] {
        for method in ["GET", "HEAD"] {
            let answer = https(&server, method, path);
            assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{method} {path}");
            assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("*"));
        }
        let answer = https(&server, "POST", path);
        assert_eq!((answer.status, answer.body.as_str()), (405, "bogus probe method\n"));
        assert_eq!(answer.header("Access-Control-Allow-Origin"), None);
    }
}

#[test]
fn case_61_every_other_path_is_the_home_page() {
    let server = Server::start();
    let home = https(&server, "GET", "/");
    let other = https(&server, "GET", "/no-such-page");
    assert_eq!((home.status, other.status), (200, 200));
    assert_eq!(home.header("Content-Type"), Some("text/html; charset=utf-8"));
    assert_eq!(home.body, other.body);
    let robots = https(&server, "GET", "/robots.txt");
    assert!(robots.body.contains("Disallow: /"), "{robots:?}");

    let server = Server::start_with(&["-home=https://example.com/about"]);
    let answer = https(&server, "GET", "/no-such-page");
    assert_eq!(answer.status, 302);
    assert_eq!(answer.header("Location"), Some("https://example.com/about"));

    let server = Server::start_with(&["-home=blank"]);
    let answer = https(&server, "GET", "/");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
}

#[test]
fn case_62_the_plain_port_sends_browsers_to_https_and_refuses_the_rest() {
    let server = Server::start();
    let ask = |method: &str, path: &str| {
        server.http(&format!(
            "{method} {path} HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n\r\n"
        ))
    };
    let answer = ask("GET", "/derp?a=b");
    assert_eq!(answer.status, 302);
    assert_eq!(answer.header("Location"), Some("https://relay.example/derp?a=b"));
    let answer = ask("POST", "/");
    assert_eq!((answer.status, answer.body.trim_end()), (400, "Use HTTPS"));
}

/// derper stops serving at the first rejection; derpd goes on.
#[test]
fn case_73_connections_beyond_the_limit_are_closed_at_once() {
    if kind() == Kind::Derper {
        skip("case 73", "derper exits when it reaches this limit");
        return;
    }
    let server = Server::start_with(&["-accept-connection-limit=1", "-accept-connection-burst=2"]);
    let rejected = (0..10).filter(|_| try_connect(&server).is_none()).count();
    assert!(rejected > 0, "ten connections at once were all accepted");
    assert!(server.metric("tls_listener_rejected_connections") > 0.0);
    wait_until("a connection after the bucket has filled again", || {
        thread::sleep(Duration::from_secs(1));
        try_connect(&server).map(|mut wire| wire.upgrade()).is_some()
    });
    thread::sleep(Duration::from_secs(2));
    Peer::connect(&server).round_trip();
}

fn try_connect(server: &Server) -> Option<Wire> {
    let name = ServerName::IpAddress(server.ip().into());
    Wire::connect_to(server.tls_address(), name, None).ok()
}
