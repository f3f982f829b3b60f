//! Ways of flows in a network namespace of its own, while somebody changes everything about it.

#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use derp_user::{
    dataplane::{
        Watcher,
        route::{Pair, Resolver, Unresolved, Ways},
    },
    flow::Resolved,
};
use tokio::{runtime, sync::oneshot};

use crate::netns::{
    CLIENT_INTERFACE, CLIENT4, CLIENT6, Namespaces, SERVER_INTERFACE, SERVER4, SERVER6, run_in,
    spawn_in,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// Behind the client.
const FAR4: &str = "203.0.113.5";
const FAR6: &str = "2001:db8:5::5";

/// A resolver at work in the server's namespace.
struct Router {
    namespaces: Namespaces,
    ways: Ways<u32>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Router {
    fn start(test: &str) -> Option<Self> {
        let namespaces = match Namespaces::create() {
            Ok(namespaces) => namespaces,
            Err(reason) => {
                kernel::skip(test, &reason);
                return None;
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, start) = std::sync::mpsc::channel();
        let thread = spawn_in(&namespaces.server, move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async move {
                let (resolver, ways) = Resolver::<u32>::new(64).expect("resolver");
                started.send(ways).expect("test waits");
                tokio::select! {
                    end = Watcher::for_routes(resolver).run() => end.expect("watcher"),
                    _ = stopped => {}
                }
            });
        });
        let ways = start.recv().expect("it starts");
        Some(Self { namespaces, ways, stop: Some(stop), thread: Some(thread) })
    }

    fn want(&self, claim: u32, local: Option<&str>, remote: &str) {
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        let pair = Pair { local: local.map(ip), remote: ip(remote) };
        self.ways.want(claim, Some(pair)).expect("room");
    }

    /// Waits until what is known of a claim is as it should be.
    fn wait(
        &self,
        claim: u32,
        what: &str,
        is_right: impl Fn(&Result<Resolved, Unresolved>) -> bool,
    ) -> Result<Resolved, Unresolved> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self.ways.known(claim);
            if let Some(way) = known.clone().filter(&is_right) {
                return way;
            }
            assert!(Instant::now() < deadline, "{what}, but it is {known:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn wait_for_way(&self, claim: u32, what: &str) -> Resolved {
        self.wait(claim, what, Result::is_ok).expect("a way")
    }

    fn wait_for_reason(&self, claim: u32, reason: &str) {
        let is_right = |way: &Result<Resolved, Unresolved>| {
            way.as_ref().is_err_and(|found| found.to_string().contains(reason))
        };
        let _ = self.wait(claim, reason, is_right);
    }

    fn client_ip(&self, arguments: &str) {
        ip(&self.namespaces.client, arguments);
    }

    fn server_ip(&self, arguments: &str) -> String {
        ip(&self.namespaces.server, arguments)
    }

    /// Makes the client ask for the server's MAC, and so tell its own.
    fn client_speaks(&self) {
        self.namespaces.forget_neighbours();
        run_in(&self.namespaces.client, || {
            for (from, to) in [(CLIENT4, SERVER4), (CLIENT6, SERVER6)] {
                let address = |ip: &str, port| SocketAddr::new(ip.parse().expect("ip"), port);
                let socket = UdpSocket::bind(address(from, 0)).expect("socket");
                socket.send_to(b"hello", address(to, 9)).expect("send");
            }
        });
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ip(namespace: &str, arguments: &str) -> String {
    let output = Command::new("ip")
        .args(["-n", namespace])
        .args(arguments.split_whitespace())
        .output()
        .expect("ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the MAC address of an interface.
fn mac(namespace: &str, interface: &str) -> [u8; 6] {
    let text = ip(namespace, &format!("-o link show dev {interface}"));
    let after = text.split("link/ether ").nth(1).expect("an Ethernet address");
    let digits = after.split(' ').next().expect("an Ethernet address").split(':');
    let bytes: Vec<u8> =
        digits.map(|digits| u8::from_str_radix(digits, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}

#[test]
fn on_link_and_behind_a_gateway_in_both_families() {
    let Some(router) = Router::start("ways of both families") else { return };
    router.server_ip(&format!("route add 203.0.113.0/24 via {CLIENT4}"));
    router.server_ip(&format!("route add 2001:db8:5::/48 via {CLIENT6}"));
    let client = mac(&router.namespaces.client, CLIENT_INTERFACE);
    let server = mac(&router.namespaces.server, SERVER_INTERFACE);
    let cases = [(CLIENT4, SERVER4), (FAR4, SERVER4), (CLIENT6, SERVER6), (FAR6, SERVER6)];
    for (claim, (remote, local)) in (0..).zip(cases) {
        router.want(claim, None, remote);
        let way = router.wait_for_way(claim, remote);
        assert_eq!((way.source_mac, way.destination_mac), (server, client), "{remote}");
        assert_eq!((way.mtu, way.vlan), (1500, 0));
        assert_eq!(way.local, local.parse::<IpAddr>().expect("address"));
    }
    // Asked for once, the kernel keeps asking.
    for address in [CLIENT4, CLIENT6] {
        let entry = router.server_ip(&format!("neigh show {address}"));
        assert!(entry.contains("managed"), "{entry}");
    }
    for claim in 0..4 {
        router.ways.want(claim, None).expect("given up");
    }
    let deadline = Instant::now() + PATIENCE;
    while router.server_ip("neigh show").contains("managed") {
        assert!(Instant::now() < deadline, "the kernel still keeps asking");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn changed_routes_are_followed() {
    let Some(router) = Router::start("changes of routes") else { return };
    router.want(0, None, FAR4);
    router.want(1, None, FAR6);
    router.wait_for_reason(0, "no route leads to 203.0.113.5");
    router.wait_for_reason(1, "no route leads to 2001:db8:5::5");
    for (claim, network, gateway) in
        [(0, "203.0.113.0/24", CLIENT4), (1, "2001:db8:5::/48", CLIENT6)]
    {
        router.server_ip(&format!("route add {network} via {gateway}"));
        router.wait_for_way(claim, "the new route");
        router.server_ip(&format!("route change {network} via {gateway} mtu 1300"));
        let is_smaller =
            |way: &Result<Resolved, Unresolved>| way.as_ref().is_ok_and(|it| it.mtu == 1300);
        let _ = router.wait(claim, "the route's MTU", is_smaller);
        router.server_ip(&format!("route del {network}"));
        router.wait_for_reason(claim, "no route");
        router.server_ip(&format!("route add unreachable {network}"));
        router.wait_for_reason(claim, "host unreachable");
        router.server_ip(&format!("route del unreachable {network}"));
        router.wait_for_reason(claim, "network unreachable");
        router.server_ip(&format!("route add blackhole {network}"));
        router.wait_for_reason(claim, "no route");
    }
}

#[test]
fn a_rule_can_change_the_way_too() {
    let Some(router) = Router::start("changes of rules") else { return };
    router.server_ip(&format!("route add 203.0.113.0/24 via {CLIENT4}"));
    router.want(0, None, FAR4);
    router.wait_for_way(0, "the route");
    router.server_ip("rule add to 203.0.113.0/24 prohibit");
    router.wait_for_reason(0, "prohibited");
    router.server_ip("rule del to 203.0.113.0/24 prohibit");
    router.wait_for_way(0, "without the rule");
}

#[test]
fn a_neighbour_with_a_new_mac_is_followed() {
    let Some(router) = Router::start("changes of neighbours' MACs") else { return };
    router.want(0, None, CLIENT4);
    router.want(1, None, CLIENT6);
    for claim in 0..2 {
        router.wait_for_way(claim, "the neighbour");
    }
    let new = [2, 0, 0, 0, 0x77, 2];
    router.client_ip(&format!("link set {CLIENT_INTERFACE} address 02:00:00:00:77:02"));
    router.client_speaks();
    for claim in 0..2 {
        let is_new = |way: &Result<Resolved, Unresolved>| {
            way.as_ref().is_ok_and(|it| it.destination_mac == new)
        };
        let _ = router.wait(claim, "the new MAC", is_new);
    }
    // And our own.
    let own = [2, 0, 0, 0, 0x77, 1];
    router.server_ip(&format!("link set {SERVER_INTERFACE} address 02:00:00:00:77:01"));
    let is_own =
        |way: &Result<Resolved, Unresolved>| way.as_ref().is_ok_and(|it| it.source_mac == own);
    let _ = router.wait(0, "our new MAC", is_own);
    // Flushed, it is asked for again.
    router.server_ip(&format!("neigh flush dev {SERVER_INTERFACE}"));
    for claim in 0..2 {
        router.wait_for_way(claim, "the neighbour after a flush");
    }
}

#[test]
fn a_neighbour_that_nobody_is_has_a_reason() {
    let Some(router) = Router::start("a neighbour that does not answer") else { return };
    router.want(0, None, "10.77.0.66");
    router.wait_for_reason(0, "the MAC address of 10.77.0.66 on server0 is not known");
    router.client_ip(&format!("addr add 10.77.0.66/24 dev {CLIENT_INTERFACE}"));
    router.wait_for_way(0, "a neighbour that answers at last");
    // Fixed by hand, and left alone.
    router.server_ip(&format!(
        "neigh replace 10.77.0.67 lladdr 02:00:00:00:00:67 nud permanent dev {SERVER_INTERFACE}"
    ));
    router.want(1, None, "10.77.0.67");
    let way = router.wait_for_way(1, "a neighbour fixed by hand");
    assert_eq!(way.destination_mac, [2, 0, 0, 0, 0, 0x67]);
    let entry = router.server_ip("neigh show 10.77.0.67");
    assert!(entry.contains("PERMANENT") && !entry.contains("managed"), "{entry}");
}

#[test]
fn a_link_that_goes_down_and_up_is_followed() {
    let Some(router) = Router::start("links down and up") else { return };
    router.want(0, None, CLIENT4);
    router.wait_for_way(0, "the neighbour");
    // The other end going down takes the carrier, but neither route nor address.
    router.client_ip(&format!("link set {CLIENT_INTERFACE} down"));
    router.wait_for_reason(0, "server0 is down or unplugged");
    router.client_ip(&format!("link set {CLIENT_INTERFACE} up"));
    router.wait_for_way(0, "the carrier is back");
    router.server_ip(&format!("link set {SERVER_INTERFACE} down"));
    router.wait_for_reason(0, "");
    router.server_ip(&format!("link set {SERVER_INTERFACE} up"));
    router.wait_for_way(0, "the link is back");
    router.server_ip(&format!("link set {SERVER_INTERFACE} mtu 1400"));
    let is_smaller =
        |way: &Result<Resolved, Unresolved>| way.as_ref().is_ok_and(|it| it.mtu == 1400);
    let _ = router.wait(0, "the link's MTU", is_smaller);
    router.server_ip(&format!("link del {SERVER_INTERFACE}"));
    router.wait_for_reason(0, "no route");
}

#[test]
fn an_address_that_goes_ends_the_ways_from_it() {
    let Some(router) = Router::start("changes of addresses") else { return };
    for (claim, second, bits, remote) in
        [(0, "10.77.0.99", 24, CLIENT4), (1, "fd77::99", 64, CLIENT6)]
    {
        router.want(claim, Some(second), remote);
        router.wait_for_reason(claim, "is on no interface");
        router.server_ip(&format!("addr add {second}/{bits} dev {SERVER_INTERFACE}"));
        let way = router.wait_for_way(claim, "the new address");
        assert_eq!(way.local, second.parse::<IpAddr>().expect("address"));
        router.server_ip(&format!("addr del {second}/{bits} dev {SERVER_INTERFACE}"));
        router.wait_for_reason(claim, "is on no interface");
    }
    router.want(2, None, CLIENT4);
    router.wait_for_way(2, "the neighbour");
    router.server_ip(&format!("addr add {CLIENT4}/32 dev lo"));
    router.wait_for_reason(2, "10.77.0.2 is an address of this host");
    router.server_ip(&format!("addr del {CLIENT4}/32 dev lo"));
    router.wait_for_way(2, "the neighbour is one again");
}

#[test]
fn interfaces_without_neighbours_are_refused() {
    let Some(router) = Router::start("ways into tunnels") else { return };
    router.server_ip("tuntap add dev tun0 mode tun");
    router.server_ip("addr add 10.88.0.1/24 dev tun0");
    router.server_ip("link set tun0 up");
    router.want(0, None, "10.88.0.2");
    router.wait_for_reason(0, "tun0 (tun) carries no Ethernet frames");
    router.want(1, None, "127.0.0.2");
    router.wait_for_reason(1, "127.0.0.2 is an address of this host");
    router.want(2, None, SERVER6);
    router.wait_for_reason(2, "fd77::1 is an address of this host");
    router.want(3, None, "10.77.0.255");
    router.wait_for_reason(3, "10.77.0.255 is not the address of one host");
}

#[test]
fn of_several_paths_the_kernels_choice_is_taken() {
    let Some(router) = Router::start("multipath routes") else { return };
    router.client_ip(&format!("addr add 10.77.0.3/24 dev {CLIENT_INTERFACE}"));
    router.server_ip(&format!(
        "route add 203.0.113.0/24 nexthop via {CLIENT4} weight 1 nexthop via 10.77.0.3 weight 1"
    ));
    router.want(0, None, FAR4);
    let way = router.wait_for_way(0, "one of two paths");
    assert_eq!(way.destination_mac, mac(&router.namespaces.client, CLIENT_INTERFACE));
}

#[test]
fn a_thousand_ways_are_found_at_once() {
    let Some(mut router) = Router::start("many ways") else { return };
    // The first resolver has little room; it need not be in the way.
    drop(router.stop.take());
    let ways = run_in(&router.namespaces.server, || {
        let (resolver, ways) = Resolver::<u32>::new(1000).expect("resolver");
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("runtime").block_on(async {
            for claim in 0..1000 {
                let [_, _, high, low] = u32::to_be_bytes(claim);
                let remote = IpAddr::from([198, 18, high, low]);
                ways.want(claim, Some(Pair { local: None, remote })).expect("room");
            }
            let watcher = Watcher::for_routes(resolver);
            let start = Instant::now();
            tokio::select! {
                end = watcher.run() => end.expect("watcher"),
                () = async {
                    let mut told = 0;
                    while told < 1000 {
                        ways.answered().await;
                        told += ways.answers().len();
                    }
                } => {}
            }
            println!("1000 ways in {:?}", start.elapsed());
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        });
        ways
    });
    assert!(ways.known(999).expect("known").is_err());
}
