//! Cases 46 to 48 of the relay's test plan, and what else strangers may try: WireGuard hosts on real sockets, whose every
//! datagram is seen, through a running relay. Each runs in userspace on the loopback, and where the kernel program can be
//! loaded, in namespaces by XDP in either mode.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/lab.rs"]
mod lab;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;
#[path = "support/party.rs"]
mod party;
#[path = "support/server.rs"]
#[allow(dead_code, reason = "shared by several test programs, each of which uses a part")]
mod server;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    lab::{Daemon, Lab, RELAY_A, RELAY_B},
    party::{COOKIE_REPLY, Got, Host, INITIATION, Keys, converse, ip_packet, shake_hands},
    server::{Server, wait_until},
};

const PORT: u16 = 51_820;
/// How long nothing must arrive.
const SILENCE: Duration = Duration::from_millis(300);

/// Where a host is.
#[derive(Clone, Copy)]
enum Place {
    Hub,
    Spoke,
    Stranger,
}

/// A relay for a star, and a place for its peers.
enum Bed {
    Loopback(Server),
    Namespaces { lab: Box<Lab>, daemon: Daemon },
}

impl Bed {
    /// A socket at a place, on a port of its own.
    fn socket(&self, place: Place) -> UdpSocket {
        match (self, place) {
            (Self::Loopback(_), place) => {
                let last = match place {
                    Place::Hub => 1,
                    Place::Spoke => 2,
                    Place::Stranger => 3,
                };
                UdpSocket::bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("a socket")
            }
            (Self::Namespaces { lab, .. }, Place::Hub) => lab.socket(&lab.b, "10.78.2.2:0"),
            (Self::Namespaces { lab, .. }, Place::Spoke) => lab.socket(&lab.a, "10.78.1.2:0"),
            (Self::Namespaces { lab, .. }, Place::Stranger) => lab.socket(&lab.a, "10.78.1.3:0"),
        }
    }

    /// The relay as a place has it.
    fn relay(&self, place: Place) -> SocketAddr {
        match (self, place) {
            (Self::Loopback(server), _) => (server.ip(), PORT).into(),
            (Self::Namespaces { .. }, Place::Hub) => ([10, 78, 2, 1], PORT).into(),
            (Self::Namespaces { .. }, Place::Spoke | Place::Stranger) => {
                ([10, 78, 1, 1], PORT).into()
            }
        }
    }

    fn host(&self, place: Place, keys: &Keys, peers: &[&Keys], index: u32) -> Host {
        let peers: Vec<_> = peers.iter().map(|keys| keys.public).collect();
        Host::new(self.socket(place), self.relay(place), keys, &peers, index)
    }

    /// Has the relay read another configuration, and does not wait until it has.
    fn hang_up(&self, configuration: &str) {
        let (directory, id) = match self {
            Self::Loopback(server) => (server.directory().path(), server.id()),
            Self::Namespaces { lab, daemon } => (lab.directory(), daemon.id()),
        };
        fs::write(directory.join("derpd.toml"), configuration).expect("the configuration");
        let id = i32::try_from(id).expect("a process id");
        kill(Pid::from_raw(id), Signal::SIGHUP).expect("the relay runs");
    }

    fn page(&self, path: &str) -> String {
        match self {
            Self::Loopback(server) => server.get(path).body,
            Self::Namespaces { daemon, .. } => daemon.get(path).expect("a page"),
        }
    }

    fn view(&self) -> Value {
        serde_json::from_str(&self.page("/debug/wireguard?format=json")).expect("JSON")
    }

    fn sessions(&self) -> u64 {
        self.view()["sessions"].as_u64().expect("a number")
    }

    /// Handshake messages dropped for this reason.
    fn dropped(&self, reason: &str) -> u64 {
        let view = self.view();
        let reasons = view["messages"]["dropped"].as_array().expect("a list");
        let found = reasons.iter().find(|it| it["reason"] == reason).expect("the reason");
        found["messages"].as_u64().expect("a number")
    }

    /// What both data planes have counted for this reason.
    fn data_dropped(&self, reason: &str) -> f64 {
        let label = format!("reason=\"{reason}\"");
        let page = self.page("/debug/varz");
        let lines = page.lines().filter(|line| line.contains(&label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }
}

/// Keys of a hub and its spokes, as a configuration.
fn star(hub: &Keys, spokes: &[&Keys]) -> String {
    let mut text = format!(
        "[dataplane]\npin = false\n[wireguard]\nport = {PORT}\n\
         [[wireguard.network]]\nname = \"test\"\npairs = \"star\"\nhub = \"peer0\"\n"
    );
    for (number, keys) in [hub].into_iter().chain(spokes.iter().copied()).enumerate() {
        let key = BASE64_STANDARD.encode(keys.public.as_bytes());
        write!(
            text,
            "[[wireguard.network.peer]]\nlabel = \"peer{number}\"\npublic_key = \"{key}\"\n"
        )
        .expect("a string");
    }
    text
}

/// Runs a test everywhere it can be.
fn everywhere(test: &str, configuration: &str, work: impl Fn(&Bed)) {
    let directory = Arc::new(TempDir::new().expect("a temporary directory"));
    let file = server::write_file(directory.path(), "derpd.toml", configuration);
    let flag = format!("-config={file}");
    work(&Bed::Loopback(Server::start_in(directory, &[&flag])));
    for mode in ["native", "generic"] {
        let Some(lab) = Lab::create(&format!("{test}, {mode} XDP")) else { return };
        let flags = [
            format!("-xdp-interface={RELAY_A}"),
            format!("-xdp-interface={RELAY_B}"),
            format!("-xdp-mode={mode}"),
        ];
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let daemon = lab.start(configuration, &flags);
        work(&Bed::Namespaces { lab: Box::new(lab), daemon });
    }
}

/// Nothing comes to a host.
fn expect_silence(host: &Host, what: &str) {
    let datagram = host.datagram(SILENCE);
    assert!(datagram.is_none(), "{what}: {datagram:02x?}");
}

#[test]
fn case_46_a_star_on_one_port_and_a_spoke_that_moves() {
    let (hub, spokes) = (Keys::random(), [Keys::random(), Keys::random(), Keys::random()]);
    let [a, b, c] = spokes.each_ref();
    everywhere("case 46", &star(&hub, &[a, b, c]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[a, b, c], 100);
        let mut spokes = [(1, a), (2, b), (3, c)]
            .map(|(index, keys)| bed.host(Place::Spoke, keys, &[&hub], index));
        for (number, spoke) in spokes.iter_mut().enumerate() {
            shake_hands((spoke, 0), (&mut center, number));
        }
        // The other way round, at the hub's wish.
        shake_hands((&mut center, 2), (&mut spokes[2], 0));
        for round in 0_u8..20 {
            for (number, spoke) in spokes.iter_mut().enumerate() {
                converse((spoke, 0), (&mut center, number), &[round; 1000]);
            }
        }
        assert_eq!(bed.sessions(), 4);

        // The first spoke's router gives it another port. Its session does not move with it.
        let [first, ..] = &mut spokes;
        let before = bed.data_dropped("unknown_source");
        let old = std::mem::replace(&mut first.socket, bed.socket(Place::Spoke));
        first.socket.set_nonblocking(true).expect("nonblocking");
        let sealed = first.sealed(0, &ip_packet(b"from another port"));
        first.send(&sealed);
        expect_silence(&center, "data of a source that has moved");
        wait_until("the packet is counted", || bed.data_dropped("unknown_source") > before);
        // Its next handshake moves it.
        shake_hands((first, 0), (&mut center, 0));
        converse((first, 0), (&mut center, 0), b"moved");
        assert_eq!(old.recv(&mut [0; 100]).map_err(|error| error.kind()).ok(), None);
    });
}

#[test]
fn case_46_a_replayed_initiation_from_a_third_address_makes_no_flow() {
    let (hub, spoke) = (Keys::random(), Keys::random());
    everywhere("case 46, replay", &star(&hub, &[&spoke]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&spoke], 100);
        let mut peer = bed.host(Place::Spoke, &spoke, &[&hub], 1);
        // One whose session is in use, and one before it.
        shake_hands((&mut peer, 0), (&mut center, 0));
        let stranger = bed.host(Place::Stranger, &Keys::random(), &[&hub], 9);
        let initiation = peer.initiation(0);
        peer.send(&initiation);
        let arrived = center.datagram(party::PATIENCE).expect("the initiation");
        assert!(arrived == initiation, "it arrives as it was sent");
        assert_eq!(center.take(&arrived), Got::Message);
        peer.take_all(SILENCE);
        center.take_all(SILENCE);
        converse((&mut peer, 0), (&mut center, 0), b"before");
        let (sessions, replayed) = (bed.sessions(), bed.dropped("replayed"));

        for _ in 0..5 {
            stranger.send(&initiation);
        }
        expect_silence(&center, "a replay");
        expect_silence(&stranger, "an answer to a replay");
        wait_until("the replays are counted", || bed.dropped("replayed") == replayed + 5);
        assert_eq!(bed.sessions(), sessions);
        let sealed = peer.sealed(0, &ip_packet(b"overheard"));
        stranger.send(&sealed);
        expect_silence(&center, "data from a third address");
        converse((&mut peer, 0), (&mut center, 0), b"after");
        expect_silence(&stranger, "data for another");
    });
}

#[test]
fn case_47_two_spokes_that_choose_the_same_index_do_not_hear_each_other() {
    let (hub, a, b) = (Keys::random(), Keys::random(), Keys::random());
    everywhere("case 47", &star(&hub, &[&a, &b]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&a, &b], 100);
        let mut first = bed.host(Place::Spoke, &a, &[&hub], 7);
        let mut second = bed.host(Place::Spoke, &b, &[&hub], 7);
        shake_hands((&mut first, 0), (&mut center, 0));
        let collisions = bed.dropped("index_collision");
        let initiation = second.initiation(0);
        second.send(&initiation);
        expect_silence(&center, "an initiation with an index in use");
        assert_eq!(bed.dropped("index_collision"), collisions + 1);
        // As it would 5 s later, it tries again with the next index.
        shake_hands((&mut second, 0), (&mut center, 1));
        for _ in 0..20 {
            converse((&mut first, 0), (&mut center, 0), b"the first one's");
            converse((&mut second, 0), (&mut center, 1), b"the second one's");
        }
        expect_silence(&first, "another one's packets");
        expect_silence(&second, "another one's packets");
    });
}

#[test]
fn case_48_an_initiation_for_an_unlisted_key_does_not_reach_the_hub() {
    let (hub, spoke, unlisted) = (Keys::random(), Keys::random(), Keys::random());
    everywhere("case 48, unlisted", &star(&hub, &[&spoke]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&spoke], 100);
        let mut peer = bed.host(Place::Spoke, &spoke, &[&hub], 1);
        shake_hands((&mut peer, 0), (&mut center, 0));
        let mut stranger = bed.host(Place::Stranger, &Keys::random(), &[&unlisted, &hub], 9);
        let unknown = bed.dropped("unknown_key");
        for _ in 0..3 {
            let initiation = stranger.initiation(0);
            stranger.send(&initiation);
        }
        expect_silence(&center, "an initiation for another key");
        wait_until("it is counted", || bed.dropped("unknown_key") == unknown + 3);

        // One for the hub itself is passed on, as nobody else can tell who made it; the hub does not answer.
        let sessions = bed.sessions();
        let initiation = stranger.initiation(1);
        stranger.send(&initiation);
        let arrived = center.datagram(party::PATIENCE).expect("the initiation");
        assert_eq!(arrived.len(), INITIATION);
        assert_eq!(center.take(&arrived), Got::Refused);
        expect_silence(&center, "more than was sent");
        expect_silence(&stranger, "an answer");
        assert_eq!(bed.sessions(), sessions);
        converse((&mut peer, 0), (&mut center, 0), b"undisturbed");
    });
}

#[test]
fn case_48_data_with_a_known_index_from_a_foreign_source_moves_no_flow() {
    let (hub, spoke) = (Keys::random(), Keys::random());
    everywhere("case 48, foreign source", &star(&hub, &[&spoke]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&spoke], 100);
        let mut peer = bed.host(Place::Spoke, &spoke, &[&hub], 1);
        shake_hands((&mut peer, 0), (&mut center, 0));
        let stranger = bed.host(Place::Stranger, &Keys::random(), &[&hub], 9);
        let before = bed.data_dropped("unknown_source");
        for number in 0_u8..10 {
            // Even what would decrypt.
            let sealed = peer.sealed(0, &ip_packet(&[number; 100]));
            stranger.send(&sealed);
            let forged = [&sealed[..16], &[0xff; 64]].concat();
            stranger.send(&forged);
        }
        expect_silence(&center, "data of a foreign source");
        wait_until("it is counted", || bed.data_dropped("unknown_source") >= before + 20.0);
        converse((&mut peer, 0), (&mut center, 0), b"where it was");
        expect_silence(&stranger, "data for another");
    });
}

#[test]
fn a_forged_response_and_a_forged_cookie_reply_reach_nobody() {
    let (hub, spoke) = (Keys::random(), Keys::random());
    everywhere("forged responses", &star(&hub, &[&spoke]), |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&spoke], 100);
        let mut peer = bed.host(Place::Spoke, &spoke, &[&hub], 1);
        shake_hands((&mut peer, 0), (&mut center, 0));
        // A true response, but from somewhere else.
        let initiation = peer.initiation(0);
        peer.send(&initiation);
        let arrived = center.datagram(party::PATIENCE).expect("the initiation");
        let stranger = bed.host(Place::Stranger, &Keys::random(), &[&hub], 9);
        let home = std::mem::replace(&mut center.socket, bed.socket(Place::Hub));
        assert_eq!(center.take(&arrived), Got::Message);
        expect_silence(&peer, "a response from another port of the hub");
        assert_eq!(bed.dropped("unasked"), 1);
        let mut cookie = [0; COOKIE_REPLY];
        cookie[0] = 3;
        cookie[4..8].copy_from_slice(&initiation[4..8]);
        stranger.send(&cookie);
        expect_silence(&peer, "a cookie reply of a stranger");
        assert_eq!(bed.dropped("unasked"), 2);
        center.socket = home;
        converse((&mut peer, 0), (&mut center, 0), b"the session before");
    });
}

#[test]
fn cookie_replies_go_back_to_who_is_asked_to_wait() {
    let (hub, spoke) = (Keys::random(), Keys::random());
    everywhere("cookie replies", &star(&hub, &[&spoke]), |bed| {
        // A hub that is under load, and a spoke that has to find it first.
        let mut center = bed.host(Place::Hub, &hub, &[&spoke], 100);
        let mut peer = bed.host(Place::Spoke, &spoke, &[&hub], 1);
        shake_hands((&mut center, 0), (&mut peer, 0));
        let mut center =
            Host::with_limit(center.socket, center.relay, &hub, &[spoke.public], 200, 0);
        let initiation = peer.initiation(0);
        peer.send(&initiation);
        let arrived = center.datagram(party::PATIENCE).expect("the initiation");
        assert_eq!(center.take(&arrived), Got::Message);
        let reply = peer.datagram(party::PATIENCE).expect("a cookie reply");
        assert_eq!((reply[0], reply.len()), (3, COOKIE_REPLY));
        assert_eq!(peer.take(&reply), Got::Message);
        // With the cookie, the next one is answered.
        shake_hands((&mut peer, 0), (&mut center, 0));
        converse((&mut peer, 0), (&mut center, 0), b"with a cookie");
        assert_eq!(bed.view()["messages"]["cookie_replies"], 1);
    });
}

#[test]
fn a_reload_ends_a_pair_at_once_and_costs_the_others_no_packet() {
    /// After how many packets each way the relay is told, and how many follow when it has done as told.
    const BEFORE: u16 = 1000;
    const AFTER: u16 = 1000;
    let (hub, a, b) = (Keys::random(), Keys::random(), Keys::random());
    let before = star(&hub, &[&a, &b]);
    let pairs = "pairs = \"star\"\nhub = \"peer0\"";
    assert!(before.contains(pairs));
    let after = before.replace(pairs, "pairs = [[\"peer0\", \"peer1\"]]");
    everywhere("reload", &before, |bed| {
        let mut center = bed.host(Place::Hub, &hub, &[&a, &b], 100);
        let mut first = bed.host(Place::Spoke, &a, &[&hub], 1);
        let mut second = bed.host(Place::Spoke, &b, &[&hub], 2);
        shake_hands((&mut first, 0), (&mut center, 0));
        shake_hands((&mut second, 0), (&mut center, 1));
        converse((&mut first, 0), (&mut center, 0), b"before");
        converse((&mut second, 0), (&mut center, 1), b"before");

        // By who receives it, and from whom: packets that were sent, and those that have come.
        let mut got = [const { BTreeSet::new() }; 4];
        let mut reloaded = None;
        let mut number = 0;
        while reloaded.is_none_or(|reloaded| number < reloaded + AFTER) {
            if number == BEFORE {
                bed.hang_up(&after);
            }
            if number > BEFORE && reloaded.is_none() && number % 50 == 0 {
                let is_new = bed.view()["peers"][0]["partners"] == 1;
                reloaded = is_new.then_some(number);
                assert!(number < u16::MAX - 2 * AFTER, "the relay does not reload");
            }
            let packet = ip_packet(&number.to_be_bytes());
            for (spoke, peer) in [(&mut first, 0), (&mut second, 1)] {
                let sealed = spoke.sealed(0, &packet);
                spoke.send(&sealed);
                let sealed = center.sealed(peer, &packet);
                center.send(&sealed);
            }
            let patience = Duration::from_millis(u64::from(number % 10 == 0));
            for (host, offset) in [(&mut center, 0), (&mut first, 2), (&mut second, 3)] {
                take_numbers(host, patience, &mut got[offset..]);
            }
            number += 1;
        }
        for (host, offset) in [(&mut center, 0), (&mut first, 2), (&mut second, 3)] {
            take_numbers(host, SILENCE, &mut got[offset..]);
        }
        let reloaded = reloaded.expect("the relay has reloaded in the meantime");
        let [from_first, from_second, to_first, to_second] = got;
        let all: BTreeSet<_> = (0..number).collect();
        assert_eq!(from_first, all);
        assert_eq!(to_first, all);
        for got in [from_second, to_second] {
            // The last ones may still be on their way when it is none any more.
            assert!(got.is_superset(&(0..BEFORE / 2).collect()), "until then it is a pair");
            let last = got.last().copied().expect("some");
            assert!(last < reloaded, "packet {last}, of a pair that is none since {reloaded}");
        }
        let refused = bed.dropped("not_allowed");
        let initiation = second.initiation(0);
        second.send(&initiation);
        // Where it was not yet known who is there, the hub gets it, and its response is dropped.
        center.take_all(SILENCE);
        expect_silence(&second, "a handshake of a pair that is none any more");
        assert_eq!(bed.dropped("not_allowed"), refused + 1);
    });
}

/// Takes what has come to a host: numbers, by the peer they are from.
fn take_numbers(host: &mut Host, patience: Duration, got: &mut [BTreeSet<u16>]) {
    for it in host.take_all(patience) {
        match it {
            Got::Packet(peer, packet) => {
                let number = packet[20..].try_into().map(u16::from_be_bytes).expect("a number");
                assert!(got[peer].insert(number), "{number} has come twice");
            }
            Got::Message => {}
            Got::Refused => panic!("something for nobody"),
        }
    }
}
