//! A relay's host in the middle, and sites around it: each a host behind a router that translates its address.
//!
//! The relay's host forwards nothing, so sites reach each other through a relay on it only.

use std::{
    cell::Cell,
    fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

use derp_user::dataplane::{AttachedMode, Kernel};
use tempfile::TempDir;

use crate::{
    kernel,
    netns::{run, run_in},
    programs::{Programs, skip},
};

/// Addresses of the relay, on the loopback interface of its host.
pub(crate) const RELAY4: &str = "198.51.100.1";
pub(crate) const RELAY6: &str = "2001:db8:51::1";
/// The relay's port for WireGuard.
pub(crate) const RELAY_PORT: u16 = 51_820;
/// Ports that routers map to, and after a change.
const PORTS: [&str; 2] = ["20000-29999", "30000-39999"];

/// Namespaces and files; gone when dropped.
pub(crate) struct Internet {
    /// The relay's namespace.
    pub(crate) relay: String,
    pub(crate) sites: Vec<Site>,
    pub(crate) programs: &'static Programs,
    directory: TempDir,
    /// Pass-all programs on the routers' ends, which native XDP on veth needs.
    ends: Vec<Kernel>,
}

/// A host behind a router.
pub(crate) struct Site {
    /// From 1 on.
    pub(crate) number: usize,
    /// The namespace of the host. In every site its address is 192.168.1.2 or fd01::2.
    pub(crate) host: String,
    router: String,
    /// Last part of the router's public address, which is 10.80.N.this, or fd80:N::this.
    address: Cell<u8>,
    /// Which of [`PORTS`] the router maps to.
    ports: Cell<usize>,
}

impl Internet {
    /// Makes this many sites, or skips the test and says why.
    pub(crate) fn create(test: &str, sites: usize) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let programs = match Programs::find() {
            Ok(programs) => programs,
            Err(reason) => {
                skip(test, &reason);
                return None;
            }
        };
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let site = |number| Site {
            number,
            host: format!("derpd-wg-{id}-host{number}"),
            router: format!("derpd-wg-{id}-router{number}"),
            address: Cell::new(2),
            ports: Cell::new(0),
        };
        let internet = Self {
            relay: format!("derpd-wg-{id}-relay"),
            sites: (1..=sites).map(site).collect(),
            programs,
            directory: TempDir::new().expect("a temporary directory"),
            ends: Vec::new(),
        };
        if let Err(reason) = internet.wire() {
            skip(test, &reason);
            return None;
        }
        Some(internet)
    }

    /// Makes the routers' ends ready for native XDP at the relay's, or skips the test and says why.
    pub(crate) fn prepare_for_xdp(&mut self, test: &str) -> Option<()> {
        for site in &self.sites {
            let mut end = kernel::load(test)?;
            self.ends.push(run_in(&site.router, move || {
                end.attach("wan0", AttachedMode::Native).expect("a router's end");
                end
            }));
        }
        Some(())
    }

    fn wire(&self) -> Result<(), String> {
        let relay = &self.relay;
        add_namespace(relay, false)?;
        run(&format!("ip -n {relay} addr add {RELAY4}/32 dev lo"))?;
        run(&format!("ip -n {relay} addr add {RELAY6}/128 dev lo nodad"))?;
        self.sites.iter().try_for_each(|site| {
            add_namespace(&site.host, false)?;
            add_namespace(&site.router, true)?;
            let (n, host, router) = (site.number, &site.host, &site.router);
            let outside = interface(n);
            run(&format!(
                "ip link add {outside} netns {relay} type veth peer name wan0 netns {router}"
            ))?;
            run(&format!("ip link add lan0 netns {router} type veth peer name eth0 netns {host}"))?;
            run(&format!("ip -n {relay} addr add 10.80.{n}.1/24 dev {outside}"))?;
            run(&format!("ip -n {relay} addr add fd80:{n}::1/64 dev {outside} nodad"))?;
            run(&format!("ip -n {router} addr add 192.168.1.1/24 dev lan0"))?;
            run(&format!("ip -n {router} addr add fd01::1/64 dev lan0 nodad"))?;
            run(&format!("ip -n {host} addr add 192.168.1.2/24 dev eth0"))?;
            run(&format!("ip -n {host} addr add fd01::2/64 dev eth0 nodad"))?;
            for (namespace, interface) in
                [(relay, &*outside), (router, "wan0"), (router, "lan0"), (host, "eth0")]
            {
                run(&format!("ip -n {namespace} link set {interface} up"))?;
                // The kernel program wants whole checksums, which virtual interfaces otherwise leave out.
                run(&format!("ip netns exec {namespace} ethtool -K {interface} tx off"))?;
            }
            run(&format!("ip -n {host} route add default via 192.168.1.1"))?;
            run(&format!("ip -n {host} route add default via fd01::1"))?;
            self.translate(site)?;
            add_public_address(site)
        })
    }

    /// Has a site's router translate addresses.
    fn translate(&self, site: &Site) -> Result<(), String> {
        let path = self.directory().join(format!("nat{}", site.number));
        let ports = PORTS[site.ports.get()];
        let table = |family| {
            format!(
                "table {family} nat {{
                    chain out {{
                        type nat hook postrouting priority srcnat;
                        oifname \"wan0\" meta l4proto udp masquerade to :{ports} random
                        oifname \"wan0\" masquerade
                    }}
                }}\n"
            )
        };
        let rules = format!("flush ruleset\n{}{}", table("ip"), table("ip6"));
        fs::write(&path, rules).map_err(|error| format!("{}: {error}", path.display()))?;
        run(&format!("ip netns exec {} nft -f {}", site.router, path.display()))
    }

    /// Makes a site's router forget what it has translated and map to other ports from now on.
    pub(crate) fn change_ports(&self, site: usize) {
        let site = &self.sites[site];
        site.ports.set(1 - site.ports.get());
        remove_public_address(site);
        self.translate(site).expect("nft");
        add_public_address(site).expect("ip");
    }

    /// Gives a site's router another public address.
    pub(crate) fn change_address(&self, site: usize) {
        let site = &self.sites[site];
        remove_public_address(site);
        site.address.set(site.address.get() + 1);
        add_public_address(site).expect("ip");
    }

    /// Sets the MTU of the link between a site's router and the relay.
    pub(crate) fn set_link_mtu(&self, index: usize, mtu: u16) {
        let site = &self.sites[index];
        let outside = interface(site.number);
        for (namespace, interface) in [(&self.relay, &*outside), (&site.router, "wan0")] {
            run(&format!("ip -n {namespace} link set {interface} mtu {mtu}")).expect("ip");
        }
    }

    /// A directory of this network's own.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.ends.clear();
        let sites = self.sites.iter().flat_map(|site| [&site.host, &site.router]);
        for namespace in sites.chain([&self.relay]) {
            // It may not have been made.
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}

/// The relay's interface towards a site.
pub(crate) fn interface(site: usize) -> String {
    format!("site{site}")
}

/// The relay's address of a family.
pub(crate) fn relay(ipv6: bool) -> SocketAddr {
    let address = if ipv6 { RELAY6 } else { RELAY4 };
    SocketAddr::new(address.parse().expect("an address"), RELAY_PORT)
}

fn add_namespace(name: &str, forwards: bool) -> Result<(), String> {
    run(&format!("ip netns add {name}"))?;
    run(&format!("ip -n {name} link set lo up"))?;
    // A new namespace may take over what the host does.
    forward(name, forwards)
}

/// Has a namespace forward packets or not.
pub(crate) fn forward(namespace: &str, on: bool) -> Result<(), String> {
    let value = u8::from(on);
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        run_in(namespace, move || {
            fs::write(&path, value.to_string()).map_err(|error| format!("{path}: {error}"))
        })?;
    }
    Ok(())
}

fn add_public_address(site: &Site) -> Result<(), String> {
    let (Site { number: n, router, .. }, address) = (site, site.address.get());
    run(&format!("ip -n {router} addr add 10.80.{n}.{address}/24 dev wan0"))?;
    run(&format!("ip -n {router} addr add fd80:{n}::{address}/64 dev wan0 nodad"))?;
    run(&format!("ip -n {router} route add default via 10.80.{n}.1"))?;
    run(&format!("ip -n {router} route add default via fd80:{n}::1"))
}

/// The kernel forgets what it has translated to an address that goes away.
fn remove_public_address(site: &Site) {
    let (Site { number: n, router, .. }, address) = (site, site.address.get());
    run(&format!("ip -n {router} route del default via fd80:{n}::1")).expect("ip");
    run(&format!("ip -n {router} addr del 10.80.{n}.{address}/24 dev wan0")).expect("ip");
    run(&format!("ip -n {router} addr del fd80:{n}::{address}/64 dev wan0")).expect("ip");
}
