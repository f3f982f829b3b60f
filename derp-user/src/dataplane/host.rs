//! What the kernel program must know of this host: its addresses and its interfaces' MACs.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
};

use derp_common::{
    Address, AddressKind, Interface,
    maps::{ADDRESSES, INTERFACES},
};
use nix::{ifaddrs::InterfaceAddress, sys::socket::SockaddrStorage};

use super::{DataplaneError, Tables};

/// Returns the unicast addresses of this host, loopback left out, in this thread's network namespace.
///
/// # Errors
///
/// When the kernel cannot be asked.
pub fn local_addresses() -> Result<Vec<IpAddr>, DataplaneError> {
    let Snapshot { addresses, .. } = Snapshot::read()?;
    let unicast = addresses.into_iter().filter(|(_, kind)| *kind == AddressKind::Unicast);
    Ok(unicast.map(|(address, _)| address).collect())
}

/// The host's addresses and MACs at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Snapshot {
    addresses: BTreeMap<IpAddr, AddressKind>,
    /// By interface index.
    macs: BTreeMap<u32, [u8; 6]>,
}

impl Snapshot {
    /// Asks the kernel, in this thread's network namespace.
    pub(super) fn read() -> Result<Self, DataplaneError> {
        let entries = nix::ifaddrs::getifaddrs()
            .map_err(|errno| DataplaneError::Addresses(io::Error::from(errno)))?;
        let mut snapshot = Self::default();
        for entry in entries {
            snapshot.add(&entry);
        }
        Ok(snapshot)
    }

    /// Returns this host's own addresses.
    pub(super) fn unicast(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses.iter().filter(|(_, kind)| **kind == AddressKind::Unicast);
        own.map(|(ip, _)| *ip)
    }

    fn add(&mut self, entry: &InterfaceAddress) {
        let Some(address) = &entry.address else { return };
        if let Some(link) = address.as_link_addr() {
            if let (Ok(index), Some(mac)) = (u32::try_from(link.ifindex()), link.addr()) {
                self.macs.insert(index, mac);
            }
        } else if let Some(ip) = ip(address) {
            self.add_address(ip, entry.broadcast.as_ref().and_then(ip_v4));
        }
    }

    fn add_address(&mut self, ip: IpAddr, broadcast: Option<Ipv4Addr>) {
        let address = Address::from(ip);
        // What no request may come from cannot be asked at either: loopback, multicast and their like.
        if address.is_usable_source(address.family()) {
            self.addresses.insert(ip, AddressKind::Unicast);
        }
        if let Some(broadcast) = broadcast {
            // An address that another interface has as its own stays one.
            self.addresses.entry(broadcast.into()).or_insert(AddressKind::Broadcast);
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
    written: Snapshot,
    /// Indexes of the interfaces the program is attached to.
    attached: Vec<u32>,
}

impl HostTables {
    /// Takes the tables with what an earlier daemon has written, if any did: a program that uses them goes
    /// on meanwhile, and only what differs from the host will change.
    pub(super) fn adopt(mut tables: Tables, attached: Vec<u32>) -> Result<Self, DataplaneError> {
        let mut written = Snapshot::default();
        let addresses: Vec<_> = tables.addresses.iter().collect();
        for entry in addresses {
            let (address, kind) = entry.map_err(DataplaneError::map(ADDRESSES))?;
            match [AddressKind::Unicast, AddressKind::Broadcast]
                .into_iter()
                .find(|it| *it as u32 == kind)
            {
                Some(kind) => {
                    written.addresses.insert(address.into(), kind);
                }
                None => {
                    let removed = tables.addresses.remove(&address);
                    removed.map_err(DataplaneError::map(ADDRESSES))?;
                }
            }
        }
        for entry in tables.interfaces.iter() {
            let (index, interface) = entry.map_err(DataplaneError::map(INTERFACES))?;
            written.macs.insert(index, interface.mac_bytes());
        }
        Ok(Self { tables, written, attached })
    }

    /// Reads the host and writes what has changed since the last time.
    pub(super) fn refresh(&mut self) -> Result<(), DataplaneError> {
        let mut now = Snapshot::read()?;
        now.macs.retain(|index, _| self.attached.contains(index));
        // Removals first, so that a full table has room for what replaces them.
        let gone: Vec<_> = missing(&self.written.addresses, &now.addresses);
        for ip in gone {
            tracing::debug!(%ip, "address gone");
            let removed = self.tables.addresses.remove(&Address::from(ip));
            removed.map_err(DataplaneError::map(ADDRESSES))?;
            self.written.addresses.remove(&ip);
        }
        for index in missing(&self.written.macs, &now.macs) {
            tracing::warn!(index, "interface with XDP attached is gone, or no longer configured");
            let removed = self.tables.interfaces.remove(&index);
            removed.map_err(DataplaneError::map(INTERFACES))?;
            self.written.macs.remove(&index);
        }
        for (&ip, &kind) in &now.addresses {
            if self.written.addresses.get(&ip) != Some(&kind) {
                tracing::debug!(%ip, ?kind, "address");
                let added = self.tables.addresses.insert(Address::from(ip), kind as u32, 0);
                added.map_err(DataplaneError::map(ADDRESSES))?;
                self.written.addresses.insert(ip, kind);
            }
        }
        for (&index, &mac) in &now.macs {
            if self.written.macs.get(&index) != Some(&mac) {
                let added = self.tables.interfaces.insert(index, Interface::new(mac), 0);
                added.map_err(DataplaneError::map(INTERFACES))?;
                self.written.macs.insert(index, mac);
            }
        }
        Ok(())
    }
}

/// Returns the keys of `old` that `new` lacks.
fn missing<K: Ord + Copy, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>) -> Vec<K> {
    old.keys().filter(|key| !new.contains_key(key)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(entries: &[(&str, Option<&str>)]) -> Vec<(String, AddressKind)> {
        let mut snapshot = Snapshot::default();
        for (address, broadcast) in entries {
            let broadcast = broadcast.map(|text| text.parse().expect("broadcast"));
            snapshot.add_address(address.parse().expect("address"), broadcast);
        }
        snapshot.addresses.into_iter().map(|(ip, kind)| (ip.to_string(), kind)).collect()
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
