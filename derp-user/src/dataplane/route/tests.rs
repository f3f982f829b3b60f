//! Ways over a host made of data.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
};

use futures_util::FutureExt as _;
use rtnetlink::packet_route::{
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourMessage, NeighbourState,
    },
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{
    super::link::{Link, Vlan},
    Answer, Hop, Neighbour, News, Pair, Unresolved, Ways,
    facts::Route,
    resolver::{Core, Host},
};
use crate::flow::Resolved;

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const VLAN42: u32 = 4;
const WG0: u32 = 5;
const MAC0: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
const MAC1: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn to(remote: &str) -> Pair {
    Pair { local: None, remote: ip(remote) }
}

/// A host with two Ethernet interfaces, a VLAN and a tunnel, each family behind a gateway.
struct FakeHost {
    links: BTreeMap<u32, Link>,
    addresses: BTreeSet<IpAddr>,
    routes: BTreeMap<IpAddr, Result<Route, Unresolved>>,
    neighbours: BTreeMap<Hop, Neighbour>,
    can_keep_fresh: bool,
    asked_routes: usize,
    kept: Vec<Hop>,
    let_go: Vec<Hop>,
}

fn ethernet(index: u32, name: &str, mac: [u8; 6]) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: Some(mac),
        mtu: 1500,
        is_up: true,
        has_neighbours: true,
        ..Link::default()
    }
}

fn out(interface: u32, gateway: Option<&str>, source: &str) -> Route {
    Route::Out { interface, gateway: gateway.map(ip), source: Some(ip(source)), mtu: None }
}

fn hop(interface: u32, address: &str) -> Hop {
    Hop { interface, address: ip(address) }
}

fn known(mac: [u8; 6]) -> Neighbour {
    Neighbour { mac: Some(mac), is_fixed: false, is_kept_fresh: true }
}

impl FakeHost {
    fn new() -> Self {
        let vlan = Vlan { id: 42, is_ordinary: true };
        let vlan = Link {
            kind: "vlan".to_owned(),
            vlan: Some(vlan),
            lower: Some(ETH1),
            ..ethernet(VLAN42, "eth1.42", MAC1)
        };
        let tunnel = Link {
            kind: "wireguard".to_owned(),
            mac: None,
            has_neighbours: false,
            ..ethernet(WG0, "wg0", MAC0)
        };
        let eth1 = Link { mtu: 1400, ..ethernet(ETH1, "eth1", MAC1) };
        let links = [ethernet(ETH0, "eth0", MAC0), eth1, vlan, tunnel];
        let addresses = ["192.0.2.1", "2001:db8::1", "198.51.100.1", "10.0.0.1"];
        let routes = [
            ("203.0.113.5", out(ETH0, Some("192.0.2.254"), "192.0.2.1")),
            ("192.0.2.7", out(ETH0, None, "192.0.2.1")),
            ("2001:db8:5::5", out(ETH0, Some("fe80::1"), "2001:db8::1")),
            ("198.51.100.9", out(VLAN42, None, "198.51.100.1")),
            ("10.0.0.2", out(WG0, None, "10.0.0.1")),
        ];
        let neighbours = [
            (hop(ETH0, "192.0.2.254"), known(GATEWAY_MAC)),
            (hop(ETH0, "fe80::1"), known(GATEWAY_MAC)),
            (hop(VLAN42, "198.51.100.9"), known([2, 0, 0, 0, 0, 9])),
        ];
        Self {
            links: links.into_iter().map(|link| (link.index, link)).collect(),
            addresses: addresses.into_iter().map(ip).collect(),
            routes: routes.into_iter().map(|(to, route)| (ip(to), Ok(route))).collect(),
            neighbours: neighbours.into_iter().collect(),
            can_keep_fresh: true,
            asked_routes: 0,
            kept: Vec::new(),
            let_go: Vec::new(),
        }
    }
}

impl Host for FakeHost {
    fn links(&mut self) -> io::Result<BTreeMap<u32, Link>> {
        Ok(self.links.clone())
    }

    fn addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        Ok(self.addresses.clone())
    }

    fn route(&mut self, pair: Pair) -> Result<Route, Unresolved> {
        self.asked_routes += 1;
        let none = Err(Unresolved::NoRoute { remote: pair.remote, reason: "none" });
        self.routes.get(&pair.remote).cloned().unwrap_or(none)
    }

    fn neighbour(&mut self, hop: Hop) -> io::Result<Neighbour> {
        Ok(self.neighbours.get(&hop).copied().unwrap_or_default())
    }

    fn keep_fresh(&mut self, hop: Hop) -> io::Result<()> {
        self.kept.push(hop);
        if self.can_keep_fresh {
            self.neighbours.entry(hop).or_default().is_kept_fresh = true;
        }
        Ok(())
    }

    fn let_go(&mut self, hop: Hop) -> io::Result<()> {
        self.let_go.push(hop);
        Ok(())
    }
}

/// A resolver on [`FakeHost`] that has been asked for some pairs, numbered.
fn resolver(pairs: &[Pair]) -> (Core<usize, FakeHost>, Ways<usize>) {
    let (mut core, ways) = Core::with_capacity(FakeHost::new(), 16);
    for (claim, &pair) in pairs.iter().enumerate() {
        ways.want(claim, Some(pair)).expect("room");
    }
    refresh(&mut core, &News::default());
    (core, ways)
}

fn refresh(core: &mut Core<usize, FakeHost>, news: &News) {
    // It only ever gives way to others.
    let done = async {
        core.refresh(news).await.expect("the host answers");
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    runtime.block_on(done);
}

fn only(answers: Vec<Answer<usize>>) -> Result<Resolved, Unresolved> {
    let [answer] = <[_; 1]>::try_from(answers).expect("one answer");
    answer.way
}

fn links() -> News {
    News { links: true, ..News::default() }
}

fn routes() -> News {
    News { routes: true, ..News::default() }
}

fn neighbour(hop: Hop, neighbour: Neighbour) -> News {
    let mut news = News::default();
    news.add(hop, neighbour);
    news
}

#[test]
fn either_family_goes_by_its_gateway() {
    for (remote, local) in [("203.0.113.5", "192.0.2.1"), ("2001:db8:5::5", "2001:db8::1")] {
        let (_core, ways) = resolver(&[to(remote)]);
        let expected = Resolved {
            interface: ETH0,
            source_mac: MAC0,
            destination_mac: GATEWAY_MAC,
            mtu: 1500,
            vlan: 0,
            local: ip(local),
        };
        assert_eq!(only(ways.answers()), Ok(expected), "{remote}");
        assert_eq!(ways.known(0), Some(Ok(expected)));
    }
}

#[test]
fn an_ipv4_route_may_have_an_ipv6_gateway() {
    let mut host = FakeHost::new();
    let route = out(ETH0, Some("fe80::1"), "192.0.2.1");
    host.routes.insert(ip("203.0.113.5"), Ok(route));
    let (mut core, ways) = Core::with_capacity(host, 1);
    ways.want(0, Some(to("203.0.113.5"))).expect("room");
    refresh(&mut core, &News::default());
    assert_eq!(only(ways.answers()).expect("a way").destination_mac, GATEWAY_MAC);
}

#[test]
fn a_vlan_is_a_tag_on_the_interface_below_whose_mtu_counts_too() {
    let (_core, ways) = resolver(&[to("198.51.100.9")]);
    let way = only(ways.answers()).expect("a way");
    assert_eq!((way.interface, way.vlan, way.mtu), (ETH1, 42, 1400));
    assert_eq!(way.source_mac, MAC1);
}

#[test]
fn the_smaller_mtu_of_route_and_link_counts() {
    for (route_mtu, expected) in [(Some(1280), 1280), (Some(9000), 1500), (None, 1500)] {
        let mut host = FakeHost::new();
        let route = Route::Out {
            interface: ETH0,
            gateway: Some(ip("192.0.2.254")),
            source: Some(ip("192.0.2.1")),
            mtu: route_mtu,
        };
        host.routes.insert(ip("203.0.113.5"), Ok(route));
        let (mut core, ways) = Core::with_capacity(host, 1);
        ways.want(0, Some(to("203.0.113.5"))).expect("room");
        refresh(&mut core, &News::default());
        assert_eq!(only(ways.answers()).expect("a way").mtu, expected);
    }
}

#[test]
fn what_has_no_way_says_why() {
    let mut host = FakeHost::new();
    host.routes.insert(ip("203.0.113.9"), Ok(Route::Encapsulated));
    host.routes.insert(ip("203.0.113.255"), Ok(Route::NotUnicast));
    host.routes.insert(ip("203.0.113.10"), Ok(out(99, None, "192.0.2.1")));
    let from_v4 = Pair { local: Some(ip("192.0.2.1")), remote: ip("2001:db8:5::5") };
    let from_stranger = Pair { local: Some(ip("192.0.2.99")), remote: ip("203.0.113.5") };
    for (pair, expected) in [
        (to("192.0.2.1"), "192.0.2.1 is an address of this host"),
        (to("127.0.0.1"), "127.0.0.1 is an address of this host"),
        (to("239.1.1.1"), "239.1.1.1 is not the address of one host"),
        (to("203.0.113.255"), "203.0.113.255 is not the address of one host"),
        (to("fe80::1"), "link-local"),
        (from_v4, "different address families"),
        (from_stranger, "192.0.2.99 is on no interface"),
        (to("8.8.8.8"), "no route leads to 8.8.8.8"),
        (to("203.0.113.9"), "wraps packets up"),
        (to("203.0.113.10"), "index 99 is gone"),
        (to("10.0.0.2"), "wg0 (wireguard) carries no Ethernet frames"),
        (to("192.0.2.7"), "192.0.2.7 on eth0 is not known"),
    ] {
        let fresh = FakeHost { routes: host.routes.clone(), ..FakeHost::new() };
        let (mut core, ways) = Core::with_capacity(fresh, 1);
        ways.want(0, Some(pair)).expect("room");
        refresh(&mut core, &News::default());
        let reason = only(ways.answers()).expect_err("no way").to_string();
        assert!(reason.contains(expected), "{reason}");
    }
}

#[test]
fn only_ordinary_vlans_on_ethernet_are_tagged() {
    let unusual = [
        Link {
            vlan: Some(Vlan { id: 42, is_ordinary: false }),
            ..FakeHost::new().links[&VLAN42].clone()
        },
        Link { lower: Some(VLAN42), ..FakeHost::new().links[&VLAN42].clone() },
        Link { lower_namespace: Some(1), ..FakeHost::new().links[&VLAN42].clone() },
    ];
    for vlan in unusual {
        let (mut core, ways) = resolver(&[to("198.51.100.9")]);
        assert!(only(ways.answers()).is_ok());
        core.host.links.insert(VLAN42, vlan);
        refresh(&mut core, &links());
        let reason = only(ways.answers()).expect_err("no way");
        assert_eq!(reason, Unresolved::UnusualVlan { interface: "eth1.42".to_owned() });
    }
}

#[test]
fn a_link_that_goes_down_takes_its_ways_along_and_brings_them_back() {
    let (mut core, ways) = resolver(&[to("203.0.113.5"), to("198.51.100.9")]);
    assert_eq!(ways.answers().len(), 2);
    for (index, claim) in [(ETH0, 0), (ETH1, 1)] {
        core.host.links.get_mut(&index).expect("link").is_up = false;
        refresh(&mut core, &links());
        let answers = ways.answers();
        assert_eq!(answers.iter().map(|answer| answer.claim).collect::<Vec<_>>(), [claim]);
        assert!(matches!(answers[0].way, Err(Unresolved::Down { .. })));
        core.host.links.get_mut(&index).expect("link").is_up = true;
        refresh(&mut core, &links());
        assert!(only(ways.answers()).is_ok());
    }
}

#[test]
fn a_changed_route_is_told_and_an_unchanged_one_is_not() {
    let (mut core, ways) = resolver(&[to("203.0.113.5"), to("192.0.2.7")]);
    assert_eq!(ways.answers().len(), 2);
    refresh(&mut core, &routes());
    assert_eq!(ways.answers(), []);
    let other = hop(ETH1, "198.51.100.254");
    core.host.neighbours.insert(other, known(MAC0));
    let route = out(ETH1, Some("198.51.100.254"), "198.51.100.1");
    core.host.routes.insert(ip("203.0.113.5"), Ok(route));
    refresh(&mut core, &routes());
    let way = only(ways.answers()).expect("a way");
    assert_eq!((way.interface, way.destination_mac), (ETH1, MAC0));
}

#[test]
fn a_neighbour_that_answers_completes_the_way_and_a_new_mac_changes_it() {
    let (mut core, ways) = resolver(&[to("192.0.2.7")]);
    assert!(only(ways.answers()).is_err());
    let hop = hop(ETH0, "192.0.2.7");
    assert_eq!(core.host.kept, [hop], "it is asked for");
    for mac in [MAC1, GATEWAY_MAC] {
        let asked = core.host.asked_routes;
        refresh(&mut core, &neighbour(hop, known(mac)));
        assert_eq!(only(ways.answers()).expect("a way").destination_mac, mac);
        assert_eq!(core.host.asked_routes, asked, "no route is asked for again");
    }
    // Deleted, by `ip neigh flush`, say.
    core.host.neighbours.remove(&hop);
    refresh(&mut core, &neighbour(hop, Neighbour::default()));
    assert!(only(ways.answers()).is_err());
    assert_eq!(core.host.kept, [hop, hop], "it is asked for again");
}

#[test]
fn neighbours_of_nobody_are_ignored() {
    let (mut core, ways) = resolver(&[to("203.0.113.5")]);
    assert_eq!(ways.answers().len(), 1);
    refresh(&mut core, &neighbour(hop(ETH0, "192.0.2.66"), known(MAC1)));
    assert_eq!(ways.answers(), []);
    assert_eq!(core.host.kept, []);
}

#[test]
fn a_kernel_that_keeps_nobody_fresh_is_reminded_at_every_tick() {
    let mut host = FakeHost::new();
    host.can_keep_fresh = false;
    let gateway = hop(ETH0, "192.0.2.254");
    host.neighbours.insert(gateway, Neighbour { is_kept_fresh: false, ..known(GATEWAY_MAC) });
    let (mut core, ways) = Core::with_capacity(host, 2);
    ways.want(0, Some(to("203.0.113.5"))).expect("room");
    refresh(&mut core, &News::default());
    assert_eq!(core.host.kept, [gateway]);
    refresh(&mut core, &routes());
    assert_eq!(core.host.kept, [gateway], "not by every change of something else");
    refresh(&mut core, &News::everything());
    assert_eq!(core.host.kept, [gateway; 2]);
}

#[test]
fn a_neighbour_fixed_by_hand_is_left_alone() {
    let mut host = FakeHost::new();
    let gateway = hop(ETH0, "192.0.2.254");
    let fixed = Neighbour { is_fixed: true, is_kept_fresh: false, ..known(GATEWAY_MAC) };
    host.neighbours.insert(gateway, fixed);
    let (mut core, ways) = Core::with_capacity(host, 2);
    ways.want(0, Some(to("203.0.113.5"))).expect("room");
    refresh(&mut core, &News::everything());
    assert!(only(ways.answers()).is_ok());
    ways.want(0, None).expect("given up");
    refresh(&mut core, &News::default());
    assert_eq!((core.host.kept.len(), core.host.let_go.len()), (0, 0));
}

#[test]
fn a_neighbour_is_let_go_with_the_last_who_wants_it() {
    let (mut core, ways) = resolver(&[to("192.0.2.7"), to("192.0.2.7")]);
    assert_eq!(core.host.asked_routes, 1, "once per pair");
    for claim in 0..2 {
        assert_eq!(core.host.let_go, []);
        ways.want(claim, None).expect("given up");
        refresh(&mut core, &News::default());
    }
    assert_eq!(core.host.let_go, [hop(ETH0, "192.0.2.7")]);
    // One that somebody else keeps fresh is not ours to let go.
    let (mut core, ways) = resolver(&[to("203.0.113.5")]);
    ways.want(0, None).expect("given up");
    refresh(&mut core, &News::default());
    assert_eq!(core.host.let_go, []);
}

#[test]
fn an_address_that_is_removed_ends_the_ways_from_it() {
    let pair = Pair { local: Some(ip("192.0.2.1")), remote: ip("203.0.113.5") };
    let (mut core, ways) = resolver(&[pair]);
    assert!(only(ways.answers()).is_ok());
    core.host.addresses.remove(&ip("192.0.2.1"));
    refresh(&mut core, &links());
    assert_eq!(only(ways.answers()), Err(Unresolved::NotOurs(ip("192.0.2.1"))));
    // A far end that becomes this host is none any more.
    core.host.addresses.extend([ip("192.0.2.1"), ip("203.0.113.5")]);
    refresh(&mut core, &links());
    assert_eq!(only(ways.answers()), Err(Unresolved::ThisHost(ip("203.0.113.5"))));
}

#[test]
fn whoever_asks_again_is_told_again_and_never_of_the_old() {
    let (mut core, ways) = resolver(&[to("203.0.113.5")]);
    ways.want(0, Some(to("192.0.2.7"))).expect("room");
    assert_eq!(ways.answers(), [], "nothing of what is not wanted any more");
    refresh(&mut core, &News::default());
    assert!(only(ways.answers()).is_err());
    ways.want(1, Some(to("192.0.2.7"))).expect("room");
    ways.want(0, Some(to("192.0.2.7"))).expect("room");
    assert_eq!(ways.answers().len(), 2, "without asking the host");
    ways.want(0, None).expect("given up");
    assert_eq!(ways.known(0), None);
}

#[test]
fn what_is_found_at_once_is_what_is_found_in_turns() {
    let pairs = ["203.0.113.5", "192.0.2.7", "2001:db8:5::5", "203.0.113.99"].map(to);
    let (_core, in_turns) = resolver(&pairs);
    let (mut core, at_once) = Core::with_capacity(FakeHost::new(), 16);
    for (claim, &pair) in pairs.iter().enumerate() {
        at_once.want(claim, Some(pair)).expect("room");
    }
    core.refresh_at_once(&News::everything()).expect("the host answers");
    let answers = at_once.answers();
    assert_eq!((answers.len(), answers), (4, in_turns.answers()));
}

#[test]
fn there_is_a_limit() {
    let (_core, ways) = Core::<usize, _>::with_capacity(FakeHost::new(), 1);
    ways.want(0, Some(to("203.0.113.5"))).expect("room");
    let error = ways.want(1, Some(to("203.0.113.5"))).expect_err("full");
    assert!(error.to_string().contains("no more than 1 ways"), "{error}");
    ways.want(0, Some(to("192.0.2.7"))).expect("the old one may change");
    ways.want(0, None).expect("given up");
    ways.want(1, Some(to("203.0.113.5"))).expect("room");
}

#[test]
fn waiting_ends_when_there_is_something_to_do_or_to_tell() {
    let (mut core, ways) = Core::<usize, _>::with_capacity(FakeHost::new(), 2);
    assert!(ways.asked().now_or_never().is_none());
    ways.want(0, Some(to("203.0.113.5"))).expect("room");
    assert!(ways.asked().now_or_never().is_some());
    assert!(ways.answered().now_or_never().is_none());
    refresh(&mut core, &News::default());
    assert!(ways.answered().now_or_never().is_some());
    ways.want(1, Some(to("203.0.113.5"))).expect("room");
    assert!(ways.answered().now_or_never().is_some(), "it is known already");
}

fn route_message(kind: RouteType, attributes: Vec<RouteAttribute>) -> Route {
    let mut message = RouteMessage::default();
    message.header.kind = kind;
    message.attributes = attributes;
    Route::new(&message)
}

#[test]
fn the_kernels_answers_are_read() {
    let gateway = RouteAttribute::Gateway(RouteAddress::from(ip("192.0.2.254")));
    let source = RouteAttribute::PrefSource(RouteAddress::from(ip("192.0.2.1")));
    let metrics = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1280)]);
    let attributes = vec![RouteAttribute::Oif(2), gateway, source, metrics];
    let expected = Route::Out {
        interface: 2,
        gateway: Some(ip("192.0.2.254")),
        source: Some(ip("192.0.2.1")),
        mtu: Some(1280),
    };
    assert_eq!(route_message(RouteType::Unicast, attributes), expected);

    let via = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().expect("address")));
    let route = route_message(RouteType::Unicast, vec![RouteAttribute::Oif(2), via]);
    assert_eq!(route.hop(ip("203.0.113.5")), Some(hop(2, "fe80::1")));
    let on_link = route_message(RouteType::Unicast, vec![RouteAttribute::Oif(2)]);
    assert_eq!(on_link.hop(ip("203.0.113.5")), Some(hop(2, "203.0.113.5")));

    let kinds = [
        (RouteType::Local, Route::Local),
        (RouteType::Broadcast, Route::NotUnicast),
        (RouteType::Multicast, Route::NotUnicast),
        (RouteType::Unreachable, Route::None),
        (RouteType::BlackHole, Route::None),
    ];
    for (kind, expected) in kinds {
        assert_eq!(route_message(kind, vec![RouteAttribute::Oif(1)]), expected, "{kind:?}");
    }
    let encapsulated = vec![RouteAttribute::Oif(2), RouteAttribute::Encap(Vec::new())];
    assert_eq!(route_message(RouteType::Unicast, encapsulated), Route::Encapsulated);
}

#[test]
fn a_neighbour_is_believed_while_the_kernel_believes_it() {
    let read = |state: NeighbourState, mac: &[u8]| {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = ETH0;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([192, 0, 2, 7].into())),
            NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
            NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed),
        ];
        let (found, neighbour) = Neighbour::new(&message).expect("a neighbour");
        assert_eq!((found, neighbour.is_kept_fresh), (hop(ETH0, "192.0.2.7"), true));
        neighbour
    };
    use NeighbourState::{Delay, Failed, Incomplete, Permanent, Probe, Reachable, Stale};
    for state in [Reachable, Stale, Delay, Probe, Permanent] {
        assert_eq!(read(state, &MAC1).mac, Some(MAC1), "{state}");
    }
    for state in [Incomplete, Failed, NeighbourState::None] {
        assert_eq!(read(state, &MAC1).mac, None, "{state}");
    }
    assert!(read(Permanent, &MAC1).is_fixed && !read(Stale, &MAC1).is_fixed);
    for no_host in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        assert_eq!(read(Reachable, &no_host).mac, None, "{no_host:?}");
    }
    assert_eq!(read(Reachable, &[1, 2, 3]).mac, None);
}
