//! Datagrams from sources that do not exist, in network namespaces: STUN, control messages and relayed packets.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    apart, kernel,
    lab::{Daemon, geneve},
    netns::{CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, run_in, spawn_in},
    packets::tailscale_request,
    pair::Pair,
    peer::{Peer, Wire, random_bytes, random_secret},
    scene::{Attack, MEGABYTE, Relay, Scene, duration},
    server::binary,
};

const TLS_PORT: u16 = 8443;
const STUN_PORT: u16 = 3478;
const RELAY_PORT: u16 = 40_000;
/// A flow whose first end anybody may be who comes first, and a peer relay that anybody may ask.
const CONFIGURATION: &str = r#"
[relay]
port = 40000
slots = 64
[[flow]]
name = "one"
vni = 7
learn_a = ["198.18.0.0/15"]
learn_b = ["192.0.2.0/24"]
[peer_relay]
enabled = true
allow = "any"
key_file = "DIRECTORY/peer-relay.keys"
"#;
/// A network that nobody is in; what is answered to it ends at the client.
const SPOOFED: [u8; 2] = [198, 18];

impl Relay for Daemon {
    fn process(&self) -> u32 {
        self.id()
    }

    fn lines(&self) -> String {
        self.log()
    }

    fn check(&self) -> Result<(), String> {
        self.get("/debug/check")
            .map(drop)
            .ok_or_else(|| "the tables contradict each other".to_owned())
    }
}

/// A relay in a namespace with a pair in another one; and the namespaces, which must outlive it.
fn start(test: &str, flags: &[&str]) -> Option<(Scene<Daemon>, Namespaces, tempfile::TempDir)> {
    let namespaces = match Namespaces::create() {
        Ok(namespaces) => namespaces,
        Err(reason) => {
            kernel::skip(test, &reason);
            return None;
        }
    };
    namespaces.server_ip(&format!("route add default via {CLIENT4}"));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let certificates = format!("-certdir={}", directory.path().display());
    let address = format!("-a=:{TLS_PORT}");
    let name = format!("-hostname={SERVER4}");
    let own = [&address, &name, &certificates, "-http-port=8080", "-certmode=manual"];
    let flags = [&own, apart::flags(), flags].concat();
    let configuration = CONFIGURATION.replace("DIRECTORY", &directory.path().display().to_string());
    let scene = Scene::of(|| {
        let place = (&namespaces.server, directory.path());
        let daemon = Daemon::start_build(&binary(), place.0, place.1, &configuration, &flags);
        let peers = run_in(&namespaces.client, || {
            [(); 2].map(|()| {
                let ip: Ipv4Addr = SERVER4.parse().expect("an address");
                let name = ServerName::IpAddress(std::net::IpAddr::from(ip).into());
                let wire = Wire::connect_to((ip, TLS_PORT).into(), name, None).expect("it serves");
                Peer::log_in(wire, random_secret(), r#"{"version":2}"#)
            })
        });
        let [sender, receiver] = peers;
        (daemon, Pair::of(sender, receiver))
    });
    Some((scene, namespaces, directory))
}

/// An IPv4 packet with a UDP datagram; the kernel fills in lengths and checksum of the former.
fn datagram(from: SocketAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let SocketAddr::V4(from) = from else { panic!("IPv4 only") };
    let to: Ipv4Addr = SERVER4.parse().expect("an address");
    let length = u16::try_from(8 + payload.len()).expect("a short datagram");
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.ip().octets());
    packet.extend(to.octets());
    packet.extend([from.port(), port, length, 0].iter().flat_map(|word| word.to_be_bytes()));
    packet.extend(payload);
    packet
}

/// Sends from ever new sources until the attack is over, as fast as one thread can; how many it was.
fn spoof(
    namespaces: &Namespaces,
    attack: &Attack<'_, Daemon>,
    port: u16,
    payloads: &[Vec<u8>],
) -> u64 {
    let to: SocketAddr = (SERVER4.parse::<Ipv4Addr>().expect("an address"), port).into();
    let socket = run_in(&namespaces.client, || {
        let raw = Some(Protocol::from(libc::IPPROTO_RAW));
        Socket::new(Domain::IPV4, Type::RAW, raw).expect("root may open it")
    });
    let mut count = 0;
    while attack.goes_on() {
        for payload in payloads {
            let [c, d, high, low, ..] = random_bytes::<8>();
            let [a, b] = SPOOFED;
            let source = (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high | 4, low])).into();
            // A full queue of the interface refuses some.
            count +=
                u64::from(socket.send_to(&datagram(source, port, payload), &to.into()).is_ok());
        }
    }
    count
}

/// Asks for its address by STUN 100 times a second meanwhile; how many of a hundred requests got no answer.
fn honest_stun(namespaces: &Namespaces) -> thread::JoinHandle<f64> {
    spawn_in(&namespaces.client, || {
        let socket = UdpSocket::bind((CLIENT4, 0)).expect("a socket");
        socket.connect((SERVER4, STUN_PORT)).expect("an address");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("legal");
        let (begun, mut asked, mut lost) = (Instant::now(), 0, 0);
        let mut buffer = [0; 200];
        while begun.elapsed() < duration() {
            socket.send(&tailscale_request()).expect("a datagram");
            asked += 1;
            lost += u32::from(socket.recv(&mut buffer).is_err());
            thread::sleep(Duration::from_millis(10));
        }
        f64::from(lost) * 100.0 / f64::from(asked)
    })
}

fn stun_flood(test: &'static str, flags: &[&str]) {
    let Some((scene, namespaces, _directory)) = start(test, flags) else { return };
    let outcome = scene.suffer(test, |attack| {
        let honest = honest_stun(&namespaces);
        let count = spoof(&namespaces, attack, STUN_PORT, &[tailscale_request()]);
        let lost = honest.join().expect("it does not panic");
        println!("{count} requests, {lost:.1} % of an honest client's were lost");
        // The datagrams share one queue of the system, which drops what comes faster than it is taken.
        assert!(lost < 100.0, "nobody is answered");
    });
    scene.judge(&outcome, 32 * MEGABYTE);
}

#[test]
fn stun_requests_from_spoofed_sources_in_userspace() {
    stun_flood("STUN, spoofed, userspace", &[]);
}

#[test]
fn stun_requests_from_spoofed_sources_in_the_kernel() {
    let test = "STUN, spoofed, kernel";
    if kernel::load(test).is_some() {
        let interface = format!("-xdp-interface={SERVER_INTERFACE}");
        stun_flood(test, &[&interface, "-xdp-mode=generic", "-xdp-pin=off"]);
    }
}

/// What a relay for UDP must look at more closely: control messages, packets of flows that are being learnt, of flows
/// that do not exist, and things that are none of these.
#[test]
fn relayed_and_control_packets_from_spoofed_sources() {
    let Some((scene, namespaces, _directory)) = start("UDP relay, spoofed", &[]) else { return };
    let mut control = geneve(7, 1, 200);
    // The O bit, and disco's protocol type (RFC 8926 section 3.4).
    control[1] |= 0x80;
    let payloads = [
        control,
        geneve(7, 2, 100),
        geneve(99, 3, 100),
        random_bytes::<64>().to_vec(),
        vec![4, 0, 0, 0],
    ];
    let outcome = scene.suffer("UDP relay, spoofed", |attack| {
        let count = spoof(&namespaces, attack, RELAY_PORT, &payloads);
        println!("{count} datagrams");
    });
    scene.judge(&outcome, 32 * MEGABYTE);
    let flows = scene.server.flows();
    assert_eq!(flows.len(), 1, "{flows:?}");
}
