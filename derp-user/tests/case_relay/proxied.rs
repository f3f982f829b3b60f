//! Connections by way of proxies that speak the PROXY protocol.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls_pki_types::ServerName;
use socket2::{Domain, Socket, Type};

use crate::{
    differences::{is_derpd, kind},
    fake::{Fake, Reply},
    peer::{PEER_PRESENT, Peer, WATCH_CONNS, Wire, frame, random_secret},
    server::{Kind, PATIENCE, Response, Server, skip, wait_until, write_file},
};

const INFO: &str = r#"{"version":2}"#;
const MESH_KEY: &str = "1f2e3d4c5b6a79880011223344556677ffeeddccbbaa99887766554433221100";
/// The proxy that is trusted. Connections from elsewhere on this machine come from 127.0.0.1.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 77, 0, 1);
pub(crate) const TRUST: &str = "-proxy-protocol-from=192.0.2.0/24,127.77.0.0/16";
pub(crate) const TEXT: &[u8] = b"PROXY TCP4 203.0.113.9 198.51.100.1 4660 443\r\n";
const BINARY: &[u8] =
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xcb\0\x71\x09\xc6\x33\x64\x01\x12\x34\x01\xbb";

/// Connects from the proxy's address.
fn by_proxy(address: SocketAddr) -> TcpStream {
    connect_from(PROXY, address)
}

fn connect_from(source: Ipv4Addr, address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((source, 0)).into()).expect("all of 127/8 is this machine's");
    socket.connect(&address.into()).expect("the port is open");
    socket.into()
}

/// Begins TLS by way of the proxy, which sends this header.
pub(crate) fn tls(server: &Server, header: &[u8]) -> Result<Wire, std::io::Error> {
    let mut stream = by_proxy(server.tls_address());
    stream.write_all(header)?;
    Wire::over(stream, ServerName::IpAddress(server.ip().into()), None)
}

fn get(mut stream: TcpStream, header: &[u8], path: &str) -> Response {
    let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
    stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
    stream.write_all(&[header, request.as_bytes()].concat()).expect("few bytes");
    let mut answer = Vec::new();
    // A reset after the answer is no matter.
    stream.read_to_end(&mut answer).ok();
    Response::parse(&answer)
}

#[test]
fn the_address_in_the_header_counts_everywhere() {
    if !is_derpd() {
        return;
    }
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let mesh_file = write_file(directory.path(), "mesh.key", MESH_KEY);
    let fake = Fake::on_tcp(Reply::new(200, r#"{"Allow":true}"#));
    let flags = [
        TRUST.to_owned(),
        format!("-mesh-psk-file={mesh_file}"),
        format!("-verify-client-url={}", fake.url("/")),
    ];
    let server = Server::start_in(directory, &flags.each_ref().map(String::as_str));
    let json = format!(r#"{{"meshKey":"{MESH_KEY}"}}"#);
    let mut watcher = Peer::connect_as(&server, random_secret(), &json);
    watcher.wire.write(&frame(WATCH_CONNS, &[]));
    watcher.wire.expect(PEER_PRESENT);

    for (count, header) in [TEXT, BINARY].into_iter().enumerate() {
        let wire = tls(&server, header).expect("the header is taken off before TLS");
        let peer = Peer::log_in(wire, random_secret(), INFO);
        let present = watcher.wire.expect(PEER_PRESENT);
        assert_eq!(present[..32], *peer.key().as_bytes());
        let mapped = Ipv4Addr::new(203, 0, 113, 9).to_ipv6_mapped().octets();
        assert_eq!((&present[32..48], &present[48..50]), (&mapped[..], &[0x12, 0x34][..]));
        assert!(fake.asked()[count].body.ends_with(r#""Source":"203.0.113.9"}"#));
        drop(peer);
        watcher.wire.expect(crate::peer::PEER_GONE);
    }
    fake.answer(Reply::new(200, r#"{"Allow":false}"#));
    let mut wire = tls(&server, TEXT).expect("TLS");
    let key = wire.upgrade();
    wire.write(&crate::peer::client_info(&random_secret(), &key, INFO));
    wire.expect_closed();
    server.wait_for_log("derp: 203.0.113.9:4660: client nodekey:");

    // The proxy's own address would open the debug pages.
    let port80 = |header| get(by_proxy(server.http_address()), header, "/debug/varz").status;
    assert_eq!(port80(TEXT), 403);
    assert_eq!(port80(BINARY), 403);
    assert_eq!(port80(b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n"), 200);
    assert_eq!(port80(b"PROXY UNKNOWN\r\n"), 200, "the proxy's own address");
    let answer = get(by_proxy(server.http_address()), TEXT, "/generate_204");
    assert_eq!(answer.status, 204);
}

#[test]
fn a_trusted_proxy_must_send_a_header() {
    if !is_derpd() {
        return;
    }
    let server = Server::start_with(&[TRUST]);
    for header in [&b""[..], b"PROXY NONSENSE 1 2\r\n", b"PROXY TCP4 1.1.1.1 1.1.1.1 1 70000\r\n"] {
        assert!(tls(&server, header).is_err());
        let answer = get(by_proxy(server.http_address()), header, "/generate_204");
        assert_eq!(answer.status, 0, "no HTTP answer");
    }
    let line = server.wait_for_log("does not begin with a PROXY header");
    assert!(line.contains("127.77.0.1:") && line.contains("-proxy-protocol-from"), "{line}");
    server.wait_for_log("a malformed PROXY header");
    assert_eq!(server.metric("derpd_proxy_protocol_errors_total"), 6.0);

    // A health check that connects and leaves is no fault.
    drop(by_proxy(server.tls_address()));
    let begun = Instant::now();
    let mut silent = by_proxy(server.tls_address());
    silent.set_read_timeout(Some(PATIENCE)).expect("not zero");
    assert_eq!(silent.read(&mut [0]).unwrap_or(0), 0);
    let waited = begun.elapsed();
    assert!((Duration::from_millis(4900)..Duration::from_secs(15)).contains(&waited), "{waited:?}");
    assert_eq!(server.metric("derpd_proxy_protocol_errors_total"), 7.0);
}

#[test]
fn a_header_from_anybody_else_is_refused() {
    let both = [&[TRUST][..], &[]];
    for flags in both.iter().skip(usize::from(kind() == Kind::Derper)) {
        let server = Server::start_with(flags);
        for header in [TEXT, BINARY] {
            let mut stream = TcpStream::connect(server.tls_address()).expect("the port is open");
            stream.write_all(header).expect("few bytes");
            let name = ServerName::IpAddress(server.ip().into());
            assert!(Wire::over(stream, name, None).is_err());
            let stream = TcpStream::connect(server.http_address()).expect("the port is open");
            let spoofed = b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n";
            let header = if header == TEXT { &spoofed[..] } else { header };
            assert_ne!(get(stream, header, "/debug/varz").status, 200);
        }
        Peer::connect(&server).round_trip();
        assert_eq!(server.get("/generate_204").status, 204);
    }
}

/// A real proxy, killed when dropped.
struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Starts a proxy and waits for its ports, or says why the test is skipped.
fn start_proxy(test: &str, command: &mut Command, ports: &[SocketAddr]) -> Option<Proxy> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let proxy = match command.spawn() {
        Ok(child) => Proxy(child),
        Err(error) => {
            skip(test, &format!("{} cannot be run: {error}", command.get_program().display()));
            return None;
        }
    };
    for port in ports {
        wait_until("the proxy", || TcpStream::connect(port).is_ok());
    }
    Some(proxy)
}

/// Clients by way of real proxies on `ports` have their own addresses, and cannot pretend others.
fn check_real_proxy(server: &Server, watcher: &mut Peer, ports: &[SocketAddr], port80: SocketAddr) {
    let client = Ipv4Addr::new(127, 88, 0, 9);
    for &port in ports {
        let stream = connect_from(client, port);
        let source = stream.local_addr().expect("connected").port();
        let name = || ServerName::IpAddress(server.ip().into());
        let wire = Wire::over(stream, name(), None).expect("TLS by way of the proxy");
        let mut peer = Peer::log_in(wire, random_secret(), INFO);
        let present = watcher.wire.expect(PEER_PRESENT);
        assert_eq!(present[..32], *peer.key().as_bytes());
        assert_eq!(present[32..48], client.to_ipv6_mapped().octets());
        assert_eq!(present[48..50], source.to_be_bytes());
        peer.round_trip();
        drop(peer);
        watcher.wire.expect(crate::peer::PEER_GONE);

        let mut spoofed = connect_from(client, port);
        spoofed.write_all(TEXT).expect("few bytes");
        assert!(Wire::over(spoofed, name(), None).is_err(), "a second header is no TLS");
    }
    // Loopback addresses may see the debug pages; the proxy's address is one, and so is the client's.
    assert_eq!(get(connect_from(client, port80), b"", "/debug/varz").status, 200);
    let spoofed = get(connect_from(client, port80), TEXT, "/debug/varz");
    assert_ne!(spoofed.status, 200);
    assert_eq!(server.metric("derpd_proxy_protocol_errors_total"), 0.0, "{}", server.log());
}

/// A relay that trusts the proxy's address, and a mesh peer that watches who comes.
fn watched(directory: &Arc<tempfile::TempDir>) -> (Server, Peer) {
    let mesh_file = write_file(directory.path(), "mesh.key", MESH_KEY);
    let mesh_flag = format!("-mesh-psk-file={mesh_file}");
    let server = Server::start_in(Arc::clone(directory), &[TRUST, &mesh_flag]);
    let json = format!(r#"{{"meshKey":"{MESH_KEY}"}}"#);
    let mut watcher = Peer::connect_as(&server, random_secret(), &json);
    watcher.wire.write(&frame(WATCH_CONNS, &[]));
    watcher.wire.expect(PEER_PRESENT);
    (server, watcher)
}

#[test]
fn real_haproxy_in_front_with_both_versions_and_health_checks() {
    if !is_derpd() {
        return;
    }
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let (server, mut watcher) = watched(&directory);
    let port = |number| SocketAddr::new(server.ip(), number);
    let ports = [port(21_001), port(21_002), port(21_003)];
    let (tls, http) = (server.tls_address(), server.http_address());
    let [text, binary, plain] = ports;
    let configuration = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
         listen text\n bind {text}\n source {PROXY}\n server s {tls} send-proxy check inter 100ms\n\
         listen binary\n bind {binary}\n source {PROXY}\n \
         server s {tls} send-proxy-v2 proxy-v2-options unique-id,crc32c check inter 100ms\n\
         listen plain\n bind {plain}\n source {PROXY}\n server s {http} send-proxy-v2\n"
    );
    let file = write_file(directory.path(), "haproxy.cfg", &configuration);
    let mut command = Command::new(program("haproxy"));
    command.args(["-db", "-q", "-f", &file]);
    let test = "HAProxy in front of the relay";
    let Some(_proxy) = start_proxy(test, &mut command, &ports) else { return };
    check_real_proxy(&server, &mut watcher, &[text, binary], plain);
}

#[test]
fn real_nginx_in_front() {
    if !is_derpd() {
        return;
    }
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let (server, mut watcher) = watched(&directory);
    let port = |number| SocketAddr::new(server.ip(), number);
    let (stream, plain) = (port(21_004), port(21_005));
    let (tls, http) = (server.tls_address(), server.http_address());
    let place = directory.path().display();
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let module =
        if Path::new(module).exists() { format!("load_module {module};") } else { String::new() };
    let proxied = format!("proxy_bind {PROXY}; proxy_protocol on;");
    let configuration = format!(
        "{module}\ndaemon off;\nmaster_process off;\npid {place}/nginx.pid;\n\
         error_log {place}/nginx.log;\nevents {{}}\nstream {{\n\
         server {{ listen {stream}; proxy_pass {tls}; {proxied} }}\n\
         server {{ listen {plain}; proxy_pass {http}; {proxied} }}\n}}\n"
    );
    let file = write_file(directory.path(), "nginx.conf", &configuration);
    let mut command = Command::new(program("nginx"));
    command.args(["-p", &place.to_string(), "-e", "nginx.log", "-c", &file]);
    let test = "nginx in front of the relay";
    let Some(_proxy) = start_proxy(test, &mut command, &[stream, plain]) else { return };
    check_real_proxy(&server, &mut watcher, &[stream], plain);
}

/// Debian keeps servers where ordinary users' PATH does not look.
fn program(name: &str) -> String {
    let usual = format!("/usr/sbin/{name}");
    if Path::new(&usual).exists() { usual } else { name.to_owned() }
}
