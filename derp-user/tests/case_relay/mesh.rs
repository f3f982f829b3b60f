//! Mesh peers and others with the mesh key (cases 43 to 53).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crypto_box::PublicKey;

use crate::{
    differences::{is_derpd, kind},
    peer::{
        CLOSE_PEER, Event, PEER_GONE, PEER_PRESENT, Peer, WATCH_CONNS, Wire, client_info,
        disco_packet, frame, random_bytes, random_secret, to_hex,
    },
    region::{
        Authority, FakePeer, MESH_INFO, MESH_KEY, Site, forward_packet, mesh_client,
        start_with_peers,
    },
    server::{Kind, PATIENCE, Place, Server, binary, wait_until, write_file},
};

const INFO: &str = r#"{"version":2}"#;
const DISCONNECTED: u8 = 0;
const NOT_HERE: u8 = 1;
const DROPPED_OTHER: &str = r#"derp_packets_dropped{reason="unknown_dest_on_fwd",kind="other"}"#;
const DROPPED_DISCO: &str = r#"derp_packets_dropped{reason="unknown_dest_on_fwd",kind="disco"}"#;

fn start_with_mesh_key() -> Server {
    let (server, []) = start_with_peers();
    server
}

fn watcher(server: &Server) -> Peer {
    let mut watcher = mesh_client(server);
    watcher.wire.write(&frame(WATCH_CONNS, &[]));
    watcher
}

/// The payload of the PeerPresent frame about a client of these flags.
fn presence(peer: &Peer, flags: u8) -> Vec<u8> {
    let std::net::SocketAddr::V4(address) = peer.wire.socket().local_addr().expect("connected")
    else {
        panic!("relays under test listen on IPv4");
    };
    let ip = address.ip().to_ipv6_mapped().octets();
    [peer.key().as_bytes(), &ip[..], &address.port().to_be_bytes(), &[flags]].concat()
}

#[test]
fn case_43_a_watcher_is_told_of_everybody_itself_included() {
    let server = start_with_mesh_key();
    let clients = [(); 3].map(|()| Peer::connect(&server));
    let mut watcher = watcher(&server);
    let mut expected: Vec<_> = clients.iter().map(|client| presence(client, 0x01)).collect();
    expected.push(presence(&watcher, 0x02));
    let mut told = [(); 4].map(|()| watcher.wire.expect(PEER_PRESENT));
    expected.sort();
    told.sort();
    assert_eq!(told.as_slice(), expected);
    assert!(told.iter().all(|payload| payload.len() == 51));
    watcher.round_trip();
    // Asked again, it is told again.
    watcher.wire.write(&frame(WATCH_CONNS, &[]));
    let mut again = [(); 4].map(|()| watcher.wire.expect(PEER_PRESENT));
    again.sort();
    assert_eq!(again, told);
    assert_eq!(server.metric("derp_watchers"), 1.0);
}

#[test]
fn case_44_a_key_is_announced_with_every_connection_and_gone_with_the_last() {
    let server = start_with_mesh_key();
    let mut watcher = watcher(&server);
    watcher.wire.expect(PEER_PRESENT);
    let secret = random_secret();
    let older = Peer::connect_as(&server, secret.clone(), INFO);
    assert_eq!(watcher.wire.expect(PEER_PRESENT), presence(&older, 0x01));
    let newer = Peer::connect_as(&server, secret.clone(), INFO);
    assert_eq!(watcher.wire.expect(PEER_PRESENT), presence(&newer, 0x01));
    drop(newer);
    server.wait_for_metric("derp_current_connections", 2.0);
    watcher.wire.expect_silence(Duration::from_millis(300));
    drop(older);
    let gone = [secret.public_key().as_bytes(), &[DISCONNECTED][..]].concat();
    assert_eq!(watcher.wire.expect(PEER_GONE), gone);
    watcher.wire.expect_silence(Duration::from_millis(300));
}

#[test]
fn case_45_watchers_see_what_kind_of_client_it_is() {
    let server = start_with_mesh_key();
    let mut watcher = watcher(&server);
    watcher.wire.expect(PEER_PRESENT);
    let prober = r#"{"version":2,"IsProber":true}"#;
    let prober_of_mesh = MESH_INFO.replace('}', r#","IsProber":true}"#);
    for (info, flags) in [(INFO, 0x01), (prober, 0x04), (MESH_INFO, 0x02), (&prober_of_mesh, 0x06)]
    {
        let client = Peer::connect_as(&server, random_secret(), info);
        assert_eq!(watcher.wire.expect(PEER_PRESENT), presence(&client, flags), "{info}");
        drop(client);
        watcher.wire.expect(PEER_GONE);
    }
    let elsewhere = "Connection: Upgrade\r\nUpgrade: DERP\r\nIdeal-Node: other";
    let client = Peer::connect_with(&server, elsewhere, random_secret(), INFO);
    assert_eq!(watcher.wire.expect(PEER_PRESENT), presence(&client, 0x08));
}

/// Two relays: the second one knows that a client is at the first, and yet sends nothing on.
#[test]
fn case_46_a_forwarded_packet_is_not_forwarded_again() {
    let (first, second) = two_relays();
    let mut far = Peer::connect(&first);
    // derper counts itself, whom it sees as a client of its peer.
    let remote = match kind() {
        Kind::Derpd => 1.0,
        Kind::Derper => 2.0,
    };
    second.wait_for_metric("derp_clients_remote", remote);
    let mut link = mesh_client(&second);
    let source = random_secret().public_key();
    link.wire.write(&forward_packet(&source, &far.key(), b"one hop too many"));
    link.round_trip();
    second.wait_for_metric(DROPPED_OTHER, 1.0);
    assert_eq!(second.metric("derp_packets_forwarded_in"), 1.0);
    assert_eq!(second.metric("derp_packets_forwarded_out"), 0.0);
    // What it got from a client itself it does forward.
    link.send(&far.key(), b"the first hop");
    assert_eq!(far.receive(), (link.key(), b"the first hop".to_vec()));
    assert_eq!(second.metric("derp_packets_forwarded_out"), 1.0);
    first.wait_for_metric("derp_packets_forwarded_in", 1.0);
    assert_eq!(first.metric("derp_packets_received"), 0.0, "forwarded ones count apart");
}

fn two_relays() -> (Server, Server) {
    two_relays_with(|_| Vec::new())
}

/// Each with the flags that it gets for its place.
fn two_relays_with(flags: impl Fn(&Site) -> Vec<String>) -> (Server, Server) {
    let authority = Authority::new();
    let sites = [(); 2].map(|()| Site::prepare(&authority));
    let [first, second] = [1, 0].map(|other: usize| {
        let site = &sites[1 - other];
        site.start_with(binary(), &[sites[other].name()], &flags(site))
    });
    for server in [&first, &second] {
        server.wait_for_log("connected; ");
    }
    (first, second)
}

/// The servers of a region are on no list, and a link carries the packets of many clients.
#[test]
fn admission_and_limits_are_for_clients_and_not_for_servers() {
    if !is_derpd() {
        return;
    }
    let secrets = [(); 5].map(|()| random_secret());
    let list = secrets
        .each_ref()
        .map(|secret| format!("nodekey:{}\n", to_hex(secret.public_key().as_bytes())));
    let (first, second) = two_relays_with(|site| {
        let directory = site.directory.path();
        let keys = write_file(directory, "keys", &list.concat());
        let rates = write_file(
            directory,
            "rates.json",
            "{\"PerClientRateLimitBytesPerSec\":1000,\"PerClientRateBurstBytes\":65568}",
        );
        vec![format!("-allow-keys={keys}"), format!("-rate-config={rates}")]
    });
    for server in [&first, &second] {
        let mut stranger = Wire::connect(server);
        let server_key = stranger.upgrade();
        stranger.write(&client_info(&random_secret(), &server_key, INFO));
        stranger.expect_closed();
    }
    let [far, near @ ..] = secrets;
    let mut far = Peer::connect_as(&second, far, INFO);
    first.wait_for_metric("derp_clients_remote", 1.0);
    let packet = random_bytes::<60_000>();
    let begun = Instant::now();
    // Each client sends what it may at once; the link takes it all.
    let mut near = near.map(|secret| Peer::connect_as(&first, secret, INFO));
    for sender in &mut near {
        sender.send(&far.key(), &packet);
        assert_eq!(far.receive(), (sender.key(), packet.to_vec()));
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for server in [&first, &second] {
        assert_eq!(server.metric("derp_rate_limit_per_client_waited"), 0.0);
    }
    assert_eq!(second.metric("derp_packets_forwarded_in"), 4.0);
}

/// What the only address of the only peer is shown with.
fn link_view(server: &Server) -> serde_json::Value {
    let page = server.get("/debug/mesh?format=json");
    let mut mesh: serde_json::Value = serde_json::from_str(&page.body).expect("JSON");
    // None until the peer's name has been looked up.
    mesh.pointer_mut("/peers/0/addresses/0").map(serde_json::Value::take).unwrap_or_default()
}

#[test]
fn sighup_reloads_the_key_and_the_authorities_of_the_mesh() {
    if !is_derpd() {
        return;
    }
    let (authority, stranger) = (Authority::new(), Authority::new());
    let sites = [(); 2].map(|()| Site::prepare(&authority));
    let directory = sites[1].directory.path();
    let other_key = MESH_KEY.replace('1', "2");
    let write = |name, text: &str| write_file(directory, name, text);
    let authorities = write("mesh-ca.pem", stranger.pem());
    write("mesh.key", &other_key);
    let first = sites[0].start(&[]);
    let flags = [format!("-mesh-ca-file={authorities}")];
    let second = sites[1].start_with(binary(), &[sites[0].name()], &flags);
    let failure = |text: &'static str| {
        wait_until(text, || {
            link_view(&second)["last_failure"].as_str().is_some_and(|it| it.contains(text))
        });
    };
    let failed_reloads = || second.metric("derpd_reloads_total{result=\"failed\"}");
    failure("certificate");

    // All or nothing: a good file of authorities beside a bad key, and the other way round.
    write("mesh-ca.pem", authority.pem());
    write("mesh.key", "no key");
    second.reload();
    write("mesh-ca.pem", "no certificate");
    write("mesh.key", MESH_KEY);
    second.reload();
    // A mesh without a key would be none.
    write("mesh-ca.pem", authority.pem());
    write("mesh.key", "");
    second.reload();
    assert_eq!(failed_reloads(), 3.0);
    assert_eq!(second.metric("derpd_mesh_connects_total"), 0.0);

    // The certificate will do now, the key will not.
    write("mesh.key", &other_key);
    second.reload();
    failure("the peer closed the link");
    let mut trusted =
        Peer::connect_as(&second, random_secret(), &MESH_INFO.replace(MESH_KEY, &other_key));
    write("mesh.key", MESH_KEY);
    second.reload();
    assert_eq!(failed_reloads(), 3.0);
    wait_until("the link to stand", || link_view(&second)["state"] == "up");
    let mut far = Peer::connect(&first);
    wait_until("its client to be known", || link_view(&second)["clients"] == 1);
    let mut near = mesh_client(&second);
    near.send(&far.key(), b"hello");
    assert_eq!(far.receive(), (near.key(), b"hello".to_vec()));
    assert_eq!(link_view(&second)["forwarded_packets"], 1);

    // Who shows the new key is trusted, who has proven the old one still is, who shows it now is not.
    near.wire.write(&frame(WATCH_CONNS, &[]));
    near.wire.expect(PEER_PRESENT);
    trusted.wire.write(&frame(WATCH_CONNS, &[]));
    trusted.wire.expect(PEER_PRESENT);
    let mut late =
        Peer::connect_as(&second, random_secret(), &MESH_INFO.replace(MESH_KEY, &other_key));
    late.wire.write(&frame(WATCH_CONNS, &[]));
    late.wire.expect_closed();
}

#[test]
fn case_47_a_peer_that_has_not_got_the_client_says_so_and_is_not_sent_more() {
    let server = start_with_mesh_key();
    let mut link = mesh_client(&server);
    let [source, nobody] = [(); 2].map(|()| random_secret().public_key());
    link.wire.write(&forward_packet(&source, &nobody, &disco_packet(100)));
    let gone = [nobody.as_bytes(), &[NOT_HERE][..]].concat();
    assert_eq!(link.wire.expect(PEER_GONE), gone);
    server.wait_for_metric(DROPPED_DISCO, 1.0);
    drop(server);

    let (server, [peer]) = start_with_peers();
    let mut link = peer.accept();
    let moved = random_secret().public_key();
    link.present(&moved);
    wait_until("the client to be known", || server.metric("derp_clients_remote") >= 1.0);
    let mut client = Peer::connect(&server);
    client.send(&moved, &disco_packet(100));
    assert_eq!(link.forwarded(), (client.key(), moved.clone(), disco_packet(100)));
    link.gone(&moved, NOT_HERE);
    server.wait_for_metric("derp_clients_remote", 0.0);
    client.send(&moved, &disco_packet(100));
    let gone = [moved.as_bytes(), &[NOT_HERE][..]].concat();
    assert_eq!(client.wire.expect(PEER_GONE), gone);
    assert_eq!(server.metric("derp_packets_forwarded_out"), 1.0);
}

#[test]
fn case_48_packets_go_to_the_peer_that_announced_the_client_first() {
    let (server, peers) = start_with_peers::<3>();
    let mut links = peers.each_ref().map(FakePeer::accept);
    let key = random_secret().public_key();
    let mut client = Peer::connect(&server);
    let mut expect_at = |links: &mut [_; 3], at: usize| {
        let token = random_bytes::<16>();
        client.send(&key, &token);
        let link: &mut crate::region::FakeLink = &mut links[at];
        assert_eq!(link.forwarded(), (client.key(), key.clone(), token.to_vec()));
    };
    links[1].present(&key);
    wait_until("the first", || server.metric("derp_clients_remote") >= 1.0);
    links[0].present(&key);
    server.wait_for_metric("derp_multiforwarder_created", 1.0);
    expect_at(&mut links, 1);
    links[1].gone(&key, DISCONNECTED);
    server.wait_for_metric("derp_multiforwarder_deleted", 1.0);
    expect_at(&mut links, 0);
    // It comes back, but only as the second.
    links[1].present(&key);
    server.wait_for_metric("derp_multiforwarder_created", 2.0);
    expect_at(&mut links, 0);
    // One that never had it takes it back, which is nothing while there are several.
    links[2].gone(&key, DISCONNECTED);
    links[2].present(&random_secret().public_key());
    server.wait_for_metric("derp_clients_remote", 2.0);
    links[0].gone(&key, DISCONNECTED);
    server.wait_for_metric("derp_multiforwarder_deleted", 2.0);
    expect_at(&mut links, 1);
    assert_eq!(server.metric("derp_clients_remote"), 2.0);
    links[0].gone(&key, DISCONNECTED);
    server.wait_for_metric("derp_packet_forwarder_delete_other_value", 1.0);
    expect_at(&mut links, 1);
}

#[test]
fn case_49_a_broken_link_takes_its_clients_along_and_is_made_again() {
    let (server, [peer]) = start_with_peers();
    let mut link = peer.accept();
    let far = random_secret().public_key();
    link.present(&far);
    wait_until("the client to be known", || server.metric("derp_clients_remote") >= 1.0);
    let mut client = Peer::connect(&server);
    // The other direction has a link of its own.
    let mut back = mesh_client(&server);
    back.wire.write(&forward_packet(&far, &client.key(), b"hello"));
    assert_eq!(client.receive(), (far.clone(), b"hello".to_vec()));
    drop(link);
    let gone = [far.as_bytes(), &[DISCONNECTED][..]].concat();
    assert_eq!(client.wire.expect(PEER_GONE), gone);
    let start = Instant::now();
    let mut link = peer.accept();
    assert!(start.elapsed() < Duration::from_secs(15), "after {:?}", start.elapsed());
    link.present(&far);
    wait_until("the client to be known", || server.metric("derp_clients_remote") >= 1.0);
    client.send(&far, b"again");
    assert_eq!(link.forwarded(), (client.key(), far, b"again".to_vec()));
}

/// A sender whose packets go to a peer that reads nothing, or is not there, goes on.
#[test]
fn a_peer_that_hangs_does_not_hold_up_senders() {
    if !is_derpd() {
        return;
    }
    let (server, [peer]) = start_with_peers();
    let mut link = peer.accept();
    let far = random_secret().public_key();
    link.present(&far);
    server.wait_for_metric("derp_clients_remote", 1.0);
    let (mut sender, mut other) = (Peer::connect(&server), Peer::connect(&server));
    let packet = random_bytes::<60_000>();
    let start = Instant::now();
    for _ in 0..700 {
        sender.send(&far, &packet);
    }
    sender.send(&other.key(), b"not held up");
    assert_eq!(other.receive().1, b"not held up");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let dropped = server.metric("derpd_mesh_packets_dropped_total");
    assert!(dropped > 0.0, "nothing was dropped");
    assert_eq!(server.metric("derp_packets_forwarded_out"), 700.0);
    // It is given up then, and its clients with it.
    server.wait_for_metric("derp_clients_remote", 0.0);
    sender.send(&far, &disco_packet(100));
    sender.wire.expect(PEER_GONE);
}

/// More than any server has connections: what is too much is not heeded, counted, and logged once.
#[test]
fn regression_a_peer_announces_a_million_keys_and_no_more() {
    if !is_derpd() {
        return;
    }
    const MOST: u32 = 1 << 20;
    let (server, [peer]) = start_with_peers();
    let mut link = peer.accept();
    let key = |number: u32| [&number.to_be_bytes()[..], &[7; 28]].concat();
    let announcement = |number: u32| frame(PEER_PRESENT, &[&key(number)[..], &[0; 19]].concat());
    for start in (0..MOST + 500).step_by(500) {
        let announcements: Vec<_> = (start..start + 500).flat_map(announcement).collect();
        link.write(&announcements);
    }
    let announced = f64::from((MOST + 500).next_multiple_of(500));
    let most = f64::from(MOST);
    server.wait_for_metric("derpd_mesh_keys_refused_total", announced - most);
    assert_eq!(server.metric("derp_clients_remote"), most);
    assert_eq!(server.log().matches("announces more than 1048576 keys").count(), 1);
    // There is room again for one that comes when another one has left.
    link.write(&frame(PEER_GONE, &[&key(0)[..], &[DISCONNECTED]].concat()));
    server.wait_for_metric("derp_clients_remote", most - 1.0);
    link.write(&announcement(u32::MAX));
    server.wait_for_metric("derp_clients_remote", most);
    let mut sender = Peer::connect(&server);
    let far = PublicKey::from_slice(&key(u32::MAX)).expect("32 bytes");
    sender.send(&far, b"hello");
    assert_eq!(link.forwarded(), (sender.key(), far, b"hello".to_vec()));
}

#[test]
fn case_50_a_relay_that_is_told_to_mesh_with_itself_finds_out() {
    let authority = Authority::new();
    let site = Site::prepare(&authority);
    let server = site.start(&[site.name()]);
    server.wait_for_log("detected self-connect; ignoring host");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(server.metric("derp_watchers"), 0.0);
    assert_eq!(server.log().matches("self-connect").count(), 1);
    assert_eq!(server.metric("derp_clients_remote"), 0.0);
}

#[test]
fn case_51_the_dial_host_is_dialled_and_the_host_is_verified() {
    let authority = Authority::new();
    let peer = FakePeer::new(&authority, Some("relay.invalid"));
    let site = Site::prepare(&authority);
    let address = peer.address();
    let name = format!("relay.invalid:{}/{}", address.port(), address.ip());
    let _server = site.start(&[name]);
    let link = peer.accept();
    assert_eq!(link.server_name(), Some("relay.invalid"));
}

#[test]
fn case_52_blanks_in_the_list_are_refused_at_start() {
    let authority = Authority::new();
    let directory = Arc::new(tempfile::tempdir().expect("a temporary directory"));
    let key = write_file(directory.path(), "mesh.key", MESH_KEY);
    authority.write(&directory);
    for list in ["127.0.0.1:1, 127.0.0.1:2", "127.0.0.1:1/127.0.0.1/127.0.0.1"] {
        let place = Place::own_address();
        let output = std::process::Command::new(binary())
            .arg(format!("-a={}", place.tls_address()))
            .args(["-http-port=-1", "-stun=false", "-certmode=manual"])
            .arg(format!("-hostname={}", place.address()))
            .arg(format!("-certdir={}", directory.path().join("certs").display()))
            .arg(format!("-c={}", directory.path().join("derper.key").display()))
            .arg(format!("-mesh-psk-file={key}"))
            .arg(format!("-mesh-with={list}"))
            .output()
            .expect("the binary can be run");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{list}: {said}");
    }
}

#[test]
fn case_53_close_peer_closes_every_connection_of_the_key() {
    let server = start_with_mesh_key();
    let secret = random_secret();
    let mut twins = [(); 2].map(|()| Peer::connect_as(&server, secret.clone(), INFO));
    let mut bystander = Peer::connect(&server);
    let mut closer = mesh_client(&server);
    closer.wire.write(&frame(CLOSE_PEER, random_secret().public_key().as_bytes()));
    closer.wire.write(&frame(CLOSE_PEER, secret.public_key().as_bytes()));
    for twin in &mut twins {
        assert_eq!(twin.wire.event(PATIENCE), Event::Closed);
    }
    server.wait_for_metric("derp_current_connections", 2.0);
    bystander.round_trip();
    closer.round_trip();
}
