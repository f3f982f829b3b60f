//! Pages beside the relay (cases 59 to 65 and 73).

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use rustls_pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use crate::{
    differences::is_derpd,
    peer::{Peer, Wire},
    server::{PATIENCE, Response, Server, skip, wait_until},
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

/// The address by which this machine reaches others; nothing is sent.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    socket.connect(("192.0.2.1", 9)).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback())
}

#[test]
fn case_63_debug_pages_are_for_this_machine_alone() {
    let server = Server::start();
    assert_eq!(server.get("/debug/varz").status, 200);
    let forwarded = server.http(
        "GET /debug/varz HTTP/1.1\r\nHost: relay\r\nX-Forwarded-For: 127.0.0.1\r\n\
         Connection: close\r\n\r\n",
    );
    assert_eq!(forwarded.status, 403);
    assert!(!forwarded.body.contains("derp_accepts"), "{forwarded:?}");

    let Some(address) = own_address() else {
        return skip("half of case 63", "this machine has no address but loopback ones");
    };
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::new(address, 0).into()).expect("an own address");
    socket.connect(&server.http_address().into()).expect("the port is open");
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a non-zero timeout");
    let request = "GET /debug/varz HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("the request is small");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the answer ends");
    assert_eq!(Response::parse(&answer).status, 403);
}

#[test]
fn case_64_bootstrap_dns_without_names_is_an_empty_answer() {
    let server = Server::start();
    for path in ["/bootstrap-dns", "/bootstrap-dns?q=unknown.example.com"] {
        let mut wire = Wire::connect(&server);
        let answer = wire.http(&format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n"));
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{path}");
        assert_eq!(answer.header("Connection"), Some("close"), "{path}");
        assert_eq!(answer.header("Content-Type"), Some("application/json"), "{path}");
    }
}

#[test]
fn case_65_nobody_is_tunnelled() {
    let server = Server::start();
    let answer = Wire::connect(&server).http(
        "CONNECT controlplane.tailscale.com:443 HTTP/1.1\r\n\
         Host: controlplane.tailscale.com:443\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(answer.status, 403, "{answer:?}");
}

/// derper stops serving at the first rejection; derpd goes on.
#[test]
fn case_73_connections_beyond_the_limit_are_closed_at_once() {
    if !is_derpd() {
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
