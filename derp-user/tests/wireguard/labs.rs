//! Two peers, a star and a mesh, and what happens to them.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    PATIENCE,
    builds::{self, Difference},
    internet::{Internet, RELAY_PORT, forward, relay},
    kernel,
    peer::{Identity, Peer, mesh},
    pins::BpfFs,
    programs::Implementation::{Boringtun, BoringtunConnected, WireguardGo},
    relay::{Plane, Relay},
    transfer::{Transfer, echo},
    transfer_bytes,
};

/// MTUs of tunnels: IPv6's least, what fits into IPv6 and into IPv4, and more than fits, which leaves in fragments.
const MTUS: [u16; 5] = [1280, 1360, 1420, 1440, 1500];
/// What is copied in labs that are about something else.
const SOME: u64 = 5_000_000;
/// What takes long enough for something to happen meanwhile.
const MUCH: u64 = 20_000_000;

#[test]
fn two_peers_behind_nat_and_50_megabytes_each_way() {
    let Some(internet) = Internet::create("two WireGuard peers", 2) else { return };
    let [first, second] = [0, 1].map(|site| &internet.sites[site]);
    let mut peers = [
        Peer::start(&internet, first, BoringtunConnected),
        Peer::start(&internet, second, WireguardGo),
    ];
    let relay_process = Relay::start(&internet, &peers, "", Plane::Userspace, "false");
    mesh(&mut peers, |_| relay(false));
    let [a, b] = &peers;
    echo(a, b, false, 1420);
    Transfer::start(a, b, false, transfer_bytes()).finish();
    Transfer::start(b, a, true, SOME).finish();
    for mtu in MTUS {
        a.set_mtu(mtu);
        b.set_mtu(mtu);
        for ipv6 in [false, true] {
            echo(a, b, ipv6, mtu);
        }
    }
    assert!(relay_process.forwarded("userspace") > 0);
}

#[test]
fn ends_of_ipv6_and_of_different_families_and_a_link_of_1280_bytes() {
    let Some(internet) = Internet::create("WireGuard over IPv6", 4) else { return };
    let start = |site| Peer::start(&internet, site, WireguardGo);
    let mut peers: Vec<_> = internet.sites.iter().map(start).collect();
    let pairs = "pairs = [[\"peer1\", \"peer2\"], [\"peer3\", \"peer4\"]]";
    let _relay = Relay::start(&internet, &peers, pairs, Plane::Userspace, "false");
    let (over_ipv6, mixed) = peers.split_at_mut(2);
    mesh(over_ipv6, |_| relay(true));
    mesh(mixed, |peer| relay(peer.number == 3));
    for ([a, b], bytes) in
        [([&peers[0], &peers[1]], transfer_bytes()), ([&peers[2], &peers[3]], SOME)]
    {
        echo(a, b, false, 1420);
        Transfer::start(a, b, true, bytes).finish();
        for mtu in MTUS {
            a.set_mtu(mtu);
            b.set_mtu(mtu);
            echo(a, b, true, mtu);
        }
    }
    // On a link of IPv6's least MTU, everything that is longer leaves in fragments. (wireguard-go's batches, which leave in
    // none, then do not leave at all: what is copied has to fit.)
    internet.set_link_mtu(0, 1280);
    let [a, b] = [&peers[0], &peers[1]];
    for mtu in [1420, 1280, 1200] {
        a.set_mtu(mtu);
        b.set_mtu(mtu);
        echo(a, b, false, mtu);
    }
    Transfer::start(a, b, false, SOME).finish();
}

/// A hub, the first peer, with five spokes of both implementations. Spokes reach each other through the hub.
fn star(internet: &Internet) -> Vec<Peer> {
    let start = |site| {
        let implementation = match site {
            0 | 2 | 4 => WireguardGo,
            _ => Boringtun,
        };
        Peer::start(internet, &internet.sites[site], implementation)
    };
    (0..6).map(start).collect()
}

fn connect_star(peers: &mut [Peer]) {
    let all: Vec<Identity> = peers.iter().map(Peer::identity).collect();
    let (hub, spokes) = peers.split_first_mut().expect("a hub");
    forward(&hub.namespace, true).expect("the hub forwards");
    for (spoke, identity) in spokes.iter_mut().zip(&all[1..]) {
        hub.connect(*identity, relay(false), &[]);
        let others: Vec<_> =
            all[1..].iter().filter(|it| it.number != identity.number).copied().collect();
        spoke.connect(all[0], relay(false), &others);
    }
}

/// Each of these pairs, both ways, at the same time.
fn echo_all(pairs: &[(&Peer, &Peer)]) {
    thread::scope(|scope| {
        for (a, b) in pairs {
            scope.spawn(|| {
                echo(*a, *b, false, 1280);
                echo(*b, *a, true, 1280);
            });
        }
    });
}

#[test]
fn a_star_of_five_spokes_whose_hub_restarts_and_whose_spokes_move() {
    let Some(internet) = Internet::create("WireGuard star", 6) else { return };
    let mut peers = star(&internet);
    let pairs = "pairs = \"star\"\nhub = \"peer1\"";
    let relay_process = Relay::start(&internet, &peers, pairs, Plane::Userspace, "false");
    connect_star(&mut peers);
    let places = (0..6).flat_map(|a| (a + 1..6).map(move |b| (a, b)));
    let pairs: Vec<_> = places.map(|(a, b)| (&peers[a], &peers[b])).collect();
    // First those with the hub, by which the others reach each other.
    echo_all(&pairs[..5]);
    echo_all(&pairs[5..]);
    Transfer::start(&peers[3], &peers[0], false, transfer_bytes()).finish();

    // A spoke's router maps it to another port, another one's gets another address, a third spoke sends from another port of
    // its own: each in the middle of a copy to the hub. (boringtun goes on to listen on the port before, and answers from it.)
    let movers = [1, 2, 4];
    let before = movers.map(|spoke| relay_process.places(spoke + 1));
    let transfers = movers.map(|spoke| Transfer::start(&peers[spoke], &peers[0], false, MUCH));
    for transfer in &transfers {
        transfer.wait_for(10);
    }
    internet.change_ports(1);
    internet.change_address(2);
    peers[4].set_port(RELAY_PORT + 1);
    for transfer in transfers {
        transfer.finish();
    }
    let after = movers.map(|spoke| relay_process.places(spoke + 1));
    for (before, after) in before.iter().zip(&after) {
        // The place before is kept for a while.
        assert!(!after.is_subset(before), "{before:?}, {after:?}: where has it gone?");
    }

    // The hub restarts in the middle of a copy between two spokes.
    let transfer = Transfer::start(&peers[3], &peers[4], false, MUCH);
    transfer.wait_for(10);
    let handshakes = relay_process.handshakes(1);
    peers[0].restart(&internet);
    transfer.finish();
    assert!(relay_process.handshakes(1) > handshakes, "{}", relay_process.view());
    let pairs: Vec<_> = peers[1..].iter().map(|spoke| (spoke, &peers[0])).collect();
    echo_all(&pairs);
}

#[test]
fn a_full_mesh_of_five() {
    let Some(internet) = Internet::create("WireGuard mesh", 5) else { return };
    let implementations = [WireguardGo, Boringtun, WireguardGo, Boringtun, WireguardGo];
    let mut peers: Vec<_> = internet
        .sites
        .iter()
        .zip(implementations)
        .map(|(site, implementation)| Peer::start(&internet, site, implementation))
        .collect();
    let relay_process =
        Relay::start(&internet, &peers, "pairs = \"all\"", Plane::Userspace, "false");
    mesh(&mut peers, |_| relay(false));
    let pairs: Vec<_> = (0..5)
        .flat_map(|a| (a + 1..5).map(move |b| (a, b)))
        .map(|(a, b)| (&peers[a], &peers[b]))
        .collect();
    echo_all(&pairs);
    assert_eq!(relay_process.view()["pairs"].as_array().expect("a list").len(), pairs.len());
    for (a, b, bytes) in [(0, 1, SOME), (1, 3, transfer_bytes()), (2, 4, SOME)] {
        Transfer::start(&peers[a], &peers[b], false, bytes).finish();
    }
}

#[test]
fn a_relay_that_restarts_or_dies_during_a_transfer_goes_on_with_its_sessions() {
    let Some(internet) = Internet::create("WireGuard relay restart", 2) else { return };
    let [first, second] = [0, 1].map(|site| &internet.sites[site]);
    let mut peers =
        [Peer::start(&internet, first, Boringtun), Peer::start(&internet, second, WireguardGo)];
    let mut relay_process = Relay::start(&internet, &peers, "", Plane::Userspace, "false");
    mesh(&mut peers, |_| relay(false));
    let [a, b] = &peers;
    echo(a, b, false, 1420);
    // The state of the handshake is in the file within a second.
    thread::sleep(Duration::from_secs(2));
    let transfer = Transfer::start(a, b, false, transfer_bytes());
    for (signal, percent) in [(Signal::SIGKILL, 20), (Signal::SIGTERM, 60)] {
        transfer.wait_for(percent);
        relay_process.restart(signal);
        transfer.wait_for(percent + 20);
        assert_eq!(relay_process.handshakes(1), 0, "{signal}: the sessions were kept");
    }
    transfer.finish();
}

#[test]
fn in_the_kernel_a_mesh_and_a_restart_of_the_relay_during_a_transfer() {
    for mode in ["native", "generic"] {
        let test = format!("WireGuard, {mode} XDP");
        let Some(mut internet) = Internet::create(&test, 3) else { return };
        if internet.prepare_for_xdp(&test).is_none() {
            return;
        }
        let pins = match BpfFs::mount() {
            Ok(pins) => pins,
            Err(reason) => return kernel::skip(&test, &reason),
        };
        let implementations = [WireguardGo, Boringtun, WireguardGo];
        let mut peers: Vec<_> = internet
            .sites
            .iter()
            .zip(implementations)
            .map(|(site, implementation)| Peer::start(&internet, site, implementation))
            .collect();
        let pin = format!("\"{}\"", pins.pins().display());
        let mut relay_process =
            Relay::start(&internet, &peers, "pairs = \"all\"", Plane::Kernel(mode), &pin);
        mesh(&mut peers, |peer| relay(peer.number == 3));
        let [a, b, c] = &peers[..] else { panic!("three peers") };
        echo_all(&[(a, b), (a, c), (b, c)]);
        // The third one has IPv6, so its tunnels are userspace's.
        let before = relay_process.forwarded("kernel");
        Transfer::start(a, b, false, transfer_bytes()).finish();
        let packets = relay_process.forwarded("kernel") - before;
        let least = 2 * transfer_bytes() / 1420;
        assert!(packets >= least, "{mode}: the kernel forwarded {packets} of {least} packets");
        Transfer::start(a, c, true, SOME).finish();

        let transfer = Transfer::start(a, b, false, MUCH);
        transfer.wait_for(20);
        relay_process.restart(Signal::SIGTERM);
        transfer.finish();
        assert_eq!(relay_process.handshakes(1), 0, "{mode}: the sessions were kept");
        echo(a, c, false, 1280);
    }
}

#[test]
fn an_upgrade_and_a_downgrade_of_the_relay_during_a_transfer() {
    const TEST: &str = "WireGuard, upgrade";
    let Some(mut internet) = Internet::create(TEST, 2) else { return };
    if internet.prepare_for_xdp(TEST).is_none() {
        return;
    }
    let pins = match BpfFs::mount() {
        Ok(pins) => pins,
        Err(reason) => return kernel::skip(TEST, &reason),
    };
    let [other_program, other_maps] = [Difference::Program, Difference::Maps].map(|difference| {
        builds::make(internet.directory(), difference).expect("the kernel program was loaded")
    });
    let [first, second] = [0, 1].map(|site| &internet.sites[site]);
    let mut peers =
        [Peer::start(&internet, first, Boringtun), Peer::start(&internet, second, WireguardGo)];
    let pin = format!("\"{}\"", pins.pins().display());
    let mut relay_process = Relay::start(&internet, &peers, "", Plane::Kernel("native"), &pin);
    let old = builds::released().unwrap_or(other_program);
    relay_process.replace_by(&old);
    mesh(&mut peers, |_| relay(false));
    let [a, b] = &peers;
    echo(a, b, false, 1420);

    let transfer = Transfer::start(a, b, false, transfer_bytes());
    let mut percent = 10;
    // To this build, back to one with other maps, and to this one again.
    for (build, has_other_maps) in [
        (Path::new(builds::THIS), false),
        (other_maps.as_path(), true),
        (Path::new(builds::THIS), true),
    ] {
        transfer.wait_for(percent);
        let log = relay_process.replace_by(build);
        if has_other_maps {
            assert!(log.contains("what is pinned will be replaced"), "{log}");
        } else if builds::released().is_none() {
            assert!(log.contains("the maps pinned in"), "{log}");
        }
        transfer.wait_for(percent + 20);
        assert_eq!(relay_process.handshakes(1), 0, "the sessions were kept: {log}");
        percent += 30;
    }
    transfer.finish();
    // New tables have the ways to the ends as soon as routes were asked for.
    let deadline = Instant::now() + PATIENCE;
    while relay_process.forwarded("kernel") == 0 {
        assert!(Instant::now() < deadline, "{:#?}", relay_process.daemon().flows());
        echo(a, b, false, 1420);
    }
}
