//! What the kernel program must know of this host: its addresses and its interfaces' MACs.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr},
};

use aya::maps::{DevMapHash, MapData, xdp::XdpMapError};
use derp_common::{Address, AddressKind, Interface, maps::DEVICES};
use nix::sys::socket::SockaddrStorage;

use super::{DataplaneError, LocalAddress, Tables, features::Features, flows::is_missing};

/// Returns the unicast addresses of this host, loopback left out, in this thread's network namespace.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn local_addresses() -> Result<Vec<IpAddr>, DataplaneError> {
    let Snapshot { addresses, .. } = Snapshot::read()?;
    let unicast = addresses.into_iter().filter(|(_, it)| it.kind == AddressKind::Unicast);
    Ok(unicast.map(|(address, _)| address).collect())
}

/// The host's addresses and MACs at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Snapshot {
    addresses: BTreeMap<IpAddr, LocalAddress>,
    /// By interface index.
    macs: BTreeMap<u32, [u8; 6]>,
}

impl Snapshot {
    /// Asks the kernel, in this thread's network namespace.
    pub(super) fn read() -> Result<Self, DataplaneError> {
        let entries = nix::ifaddrs::getifaddrs()
            .map_err(|errno| DataplaneError::Addresses(io::Error::from(errno)))?;
        let (links, addresses): (Vec<_>, Vec<_>) = entries
            .filter(|entry| entry.address.is_some())
            .partition(|entry| entry.address.is_some_and(|it| it.as_link_addr().is_some()));
        let mut snapshot = Self::default();
        let mut indexes = BTreeMap::new();
        for entry in links {
            let link = entry.address.as_ref().and_then(SockaddrStorage::as_link_addr);
            let Some(index) = link.and_then(|link| u32::try_from(link.ifindex()).ok()) else {
                continue;
            };
            if let Some(mac) = link.and_then(|link| link.addr()) {
                snapshot.macs.insert(index, mac);
            }
            indexes.insert(entry.interface_name, index);
        }
        for entry in addresses {
            // An alias, `eth0:1`, is named apart and has no link of its own.
            let link = entry.interface_name.split(':').next().unwrap_or_default();
            let interface = indexes.get(link).copied().unwrap_or(0);
            if let Some(ip) = entry.address.as_ref().and_then(ip) {
                snapshot.add(ip, entry.broadcast.as_ref().and_then(ip_v4), interface);
            }
        }
        Ok(snapshot)
    }

    /// Returns this host's own addresses.
    pub(super) fn unicast(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses.iter().filter(|(_, it)| it.kind == AddressKind::Unicast);
        own.map(|(ip, _)| *ip)
    }

    fn add(&mut self, ip: IpAddr, broadcast: Option<Ipv4Addr>, interface: u32) {
        let address = Address::from(ip);
        // What no request may come from cannot be asked at either: loopback, multicast and their like.
        if address.is_usable_source(address.family()) {
            self.addresses.insert(ip, LocalAddress { kind: AddressKind::Unicast, interface });
        }
        if let Some(broadcast) = broadcast {
            let local = LocalAddress { kind: AddressKind::Broadcast, interface };
            // An address that another interface has as its own stays one.
            self.addresses.entry(broadcast.into()).or_insert(local);
        }
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v6 = || address.as_sockaddr_in6().map(|address| address.ip().into());
    ip_v4(address).map(IpAddr::from).or_else(v6)
}

fn ip_v4(address: &SockaddrStorage) -> Option<Ipv4Addr> {
    address.as_sockaddr_in().map(|address| address.ip())
}

/// Keeps the kernel's tables equal to the host.
pub(super) struct HostTables {
    tables: Tables,
    /// The interfaces that packets can be redirected to, each under its index.
    devices: DevMapHash<MapData>,
    /// Indexes of those.
    written: BTreeSet<u32>,
    /// The interfaces the program is attached to: index, and name at the start.
    attached: BTreeMap<u32, String>,
    /// Asks drivers what they can do; absent where the kernel cannot be asked.
    features: Option<Features>,
}

impl HostTables {
    /// Takes the tables with what an earlier daemon has written, if any did: a program that uses them goes
    /// on meanwhile, and only what differs from the host will change.
    pub(super) fn adopt(
        tables: Tables,
        devices: DevMapHash<MapData>,
        attached: BTreeMap<u32, String>,
    ) -> Result<Self, DataplaneError> {
        let keys: Result<_, _> = devices.keys().collect();
        let written = keys.map_err(DataplaneError::map(DEVICES))?;
        let features = Features::open()
            .inspect_err(|error| tracing::debug!(%error, "drivers cannot be asked"))
            .ok();
        Ok(Self { tables, devices, written, attached, features })
    }

    /// Reads the host and writes what has changed since the last time.
    pub(super) fn refresh(&mut self) -> Result<(), DataplaneError> {
        let mut now = Snapshot::read()?;
        now.macs.retain(|index, _| self.attached.contains_key(index));
        // More addresses than there is room for leave the interfaces' MACs no less current.
        let addresses = self.refresh_addresses(&now);
        self.refresh_interfaces(&now)?;
        addresses
    }

    fn refresh_addresses(&mut self, now: &Snapshot) -> Result<(), DataplaneError> {
        let wanted: BTreeMap<_, _> =
            now.addresses.iter().map(|(ip, local)| (Address::from(*ip), *local)).collect();
        // Removals first, so that a full table has room for what replaces them.
        for address in missing(self.tables.addresses(), &wanted) {
            tracing::debug!(ip = %IpAddr::from(address), "address gone");
            self.tables.remove_address(&address)?;
        }
        for (&address, &local) in &wanted {
            if self.tables.addresses().get(&address) != Some(&local) {
                tracing::debug!(ip = %IpAddr::from(address), ?local, "address");
                self.tables.insert_address(address, local)?;
            }
        }
        Ok(())
    }

    /// An interface is a device before the program is told to redirect to it, and for as long.
    fn refresh_interfaces(&mut self, now: &Snapshot) -> Result<(), DataplaneError> {
        for index in missing(self.tables.interfaces(), &now.macs) {
            match self.attached.get(&index) {
                Some(name) => tracing::warn!(
                    "interface {name} is gone, and XDP with it: if one of this name comes again, userspace serves it \
                     until derpd is started again"
                ),
                None => tracing::info!(index, "an interface is no longer served in the kernel"),
            }
            self.tables.remove_interface(index)?;
        }
        for (&index, &mac) in &now.macs {
            let is_target = self.is_redirect_target(index) && self.add_device(index)?;
            let interface =
                Interface { is_redirect_target: u16::from(is_target), ..Interface::new(mac) };
            if self.tables.interfaces().get(&index) != Some(&interface) {
                tracing::debug!(index, is_target, "interface");
                self.tables.insert_interface(index, interface)?;
            }
        }
        let interfaces = self.tables.interfaces();
        let is_target =
            |index: &u32| interfaces.get(index).is_some_and(|it| it.is_redirect_target != 0);
        let unused: Vec<_> =
            self.written.iter().filter(|index| !is_target(index)).copied().collect();
        for index in unused {
            match self.devices.remove(index) {
                // The kernel removes interfaces that are gone.
                Err(error) if !is_missing(&error) => {
                    return Err(DataplaneError::map(DEVICES)(error));
                }
                Ok(()) | Err(_) => {}
            }
            self.written.remove(&index);
        }
        Ok(())
    }

    /// Tells whether frames from other interfaces can leave by one that the program is attached to.
    fn is_redirect_target(&mut self, index: u32) -> bool {
        let Some(features) = &mut self.features else { return true };
        // A kernel that does not tell has to be believed: the program is there, which most drivers want.
        features.is_redirect_target(index).unwrap_or(true)
    }

    /// Returns whether it is one.
    fn add_device(&mut self, index: u32) -> Result<bool, DataplaneError> {
        if self.written.contains(&index) {
            return Ok(true);
        }
        match self.devices.insert(index, index, None, 0) {
            Ok(()) => {
                self.written.insert(index);
                Ok(true)
            }
            Err(XdpMapError::MapError(error)) => Err(DataplaneError::map(DEVICES)(error)),
            Err(error) => {
                tracing::debug!(index, %error, "no redirects");
                Ok(false)
            }
        }
    }
}

/// Returns the keys of `old` that `new` lacks.
fn missing<K: Ord + Copy, V, W>(old: &BTreeMap<K, V>, new: &BTreeMap<K, W>) -> Vec<K> {
    old.keys().filter(|key| !new.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(entries: &[(&str, Option<&str>)]) -> Vec<(String, AddressKind)> {
        let mut snapshot = Snapshot::default();
        for (address, broadcast) in entries {
            let broadcast = broadcast.map(|text| text.parse().expect("broadcast"));
            snapshot.add(address.parse().expect("address"), broadcast, 1);
        }
        snapshot.addresses.into_iter().map(|(ip, it)| (ip.to_string(), it.kind)).collect()
    }

    #[test]
    fn only_unicast_addresses_of_the_network_are_asked_at() {
        let entries = [("127.0.0.1", None), ("::1", None), ("fe80::1", None), ("::", None)];
        assert_eq!(kinds(&entries), [("fe80::1".to_owned(), AddressKind::Unicast)]);
    }

    #[test]
    fn the_broadcast_address_comes_with_its_subnet() {
        let expected = [
            ("192.0.2.1".to_owned(), AddressKind::Unicast),
            ("192.0.2.255".to_owned(), AddressKind::Broadcast),
        ];
        assert_eq!(kinds(&[("192.0.2.1", Some("192.0.2.255"))]), expected);
    }

    #[test]
    fn an_address_of_this_host_is_never_a_mere_broadcast_address() {
        let own = ("192.0.2.255", Some("192.0.2.255"));
        let subnet = ("192.0.2.1", Some("192.0.2.255"));
        for order in [[own, subnet], [subnet, own]] {
            assert!(kinds(&order).contains(&("192.0.2.255".to_owned(), AddressKind::Unicast)));
        }
    }

    #[test]
    fn this_host_can_be_read() {
        let snapshot = Snapshot::read().expect("addresses");
        assert!(!snapshot.addresses.contains_key(&Ipv4Addr::LOCALHOST.into()));
    }
}
