//! `serve_connection` on one end of a pipe.

use super::*;

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
