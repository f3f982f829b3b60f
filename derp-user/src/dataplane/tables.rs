//! What the kernel program knows of this host: its addresses and the MACs of its interfaces.
//!
//! Each table is a hash, which knows all there is, with an array before it, which is all that most packets
//! need. The array is written after the hash.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{Array, HashMap, MapData},
};
use derp_common::{
    Address, AddressKind, AddressPlace, Interface, InterfacePlace, OwnPlaces,
    address::ADDRESS_PLACES as ADDRESS_PLACES_CAPACITY,
    maps::{
        ADDRESS_PLACES, ADDRESSES, INTERFACE_PLACES, INTERFACE_PLACES_CAPACITY, INTERFACES,
        interface_place,
    },
};

use super::{DataplaneError, flows::is_missing};

/// The tables, and what is in them.
pub struct Tables {
    maps: Maps,
    addresses: BTreeMap<Address, LocalAddress>,
    interfaces: BTreeMap<u32, Interface>,
    address_places: Vec<AddressPlace>,
    interface_places: Vec<InterfacePlace>,
}

/// An address as the program is told about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalAddress {
    /// What it is.
    pub kind: AddressKind,
    /// The index of its interface, by which its packets commonly come in; 0 when that is not known.
    pub interface: u32,
}

pub(super) struct Maps {
    pub(super) addresses: HashMap<MapData, Address, u32>,
    pub(super) address_places: Array<MapData, AddressPlace>,
    pub(super) interfaces: HashMap<MapData, u32, Interface>,
    pub(super) interface_places: Array<MapData, InterfacePlace>,
}

impl Tables {
    /// Takes the maps with what an earlier daemon has written, if any did, and mends what it left half done.
    pub(super) fn adopt(mut maps: Maps) -> Result<Self, DataplaneError> {
        let address_places = read(&maps.address_places, ADDRESS_PLACES)?;
        let interface_places = read(&maps.interface_places, INTERFACE_PLACES)?;
        let mut addresses = BTreeMap::new();
        let found: Vec<_> = maps.addresses.iter().collect();
        for entry in found {
            let (address, kind) = entry.map_err(DataplaneError::map(ADDRESSES))?;
            match AddressKind::ALL.into_iter().find(|it| *it as u32 == kind) {
                Some(kind) => {
                    let place = address_places.get(address.place() as usize);
                    let place = place.filter(|place| place.address == address);
                    let interface = place.map_or(0, |place| place.ingress);
                    addresses.insert(address, LocalAddress { kind, interface });
                }
                None => remove(&mut maps.addresses, &address, ADDRESSES)?,
            }
        }
        let interfaces: Result<_, _> = maps.interfaces.iter().collect();
        let interfaces = interfaces.map_err(DataplaneError::map(INTERFACES))?;
        let mut tables = Self { maps, addresses, interfaces, address_places, interface_places };
        tables.place()?;
        Ok(tables)
    }

    /// Returns the addresses of this host that the program knows.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<Address, LocalAddress> {
        &self.addresses
    }

    /// Returns the interfaces that the program knows, by index.
    #[must_use]
    pub fn interfaces(&self) -> &BTreeMap<u32, Interface> {
        &self.interfaces
    }

    /// Adds an address, or changes what it is.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or the table is full.
    pub fn insert_address(
        &mut self,
        address: Address,
        local: LocalAddress,
    ) -> Result<(), DataplaneError> {
        let added = self.maps.addresses.insert(address, local.kind as u32, 0);
        added.map_err(DataplaneError::map(ADDRESSES))?;
        self.addresses.insert(address, local);
        self.place()
    }

    /// Forgets an address.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn remove_address(&mut self, address: &Address) -> Result<(), DataplaneError> {
        remove(&mut self.maps.addresses, address, ADDRESSES)?;
        self.addresses.remove(address);
        self.place()
    }

    /// Adds an interface, or changes it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or the table is full.
    pub fn insert_interface(
        &mut self,
        index: u32,
        interface: Interface,
    ) -> Result<(), DataplaneError> {
        let added = self.maps.interfaces.insert(index, interface, 0);
        added.map_err(DataplaneError::map(INTERFACES))?;
        self.interfaces.insert(index, interface);
        self.place()
    }

    /// Forgets an interface.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn remove_interface(&mut self, index: u32) -> Result<(), DataplaneError> {
        remove(&mut self.maps.interfaces, &index, INTERFACES)?;
        self.interfaces.remove(&index);
        self.place()
    }

    /// Brings the arrays up to date.
    fn place(&mut self) -> Result<(), DataplaneError> {
        let wanted = address_places(&self.addresses, &self.interfaces);
        let map = &mut self.maps.address_places;
        write(map, &mut self.address_places, &wanted, ADDRESS_PLACES)?;
        let wanted = interface_places(&self.interfaces);
        let map = &mut self.maps.interface_places;
        write(map, &mut self.interface_places, &wanted, INTERFACE_PLACES)
    }
}

fn address_places(
    addresses: &BTreeMap<Address, LocalAddress>,
    interfaces: &BTreeMap<u32, Interface>,
) -> Vec<AddressPlace> {
    let mut places = vec![AddressPlace::default(); ADDRESS_PLACES_CAPACITY as usize];
    let own = addresses.keys().fold(OwnPlaces::default(), |own, address| own.with(address));
    for (address, local) in addresses {
        let Some(place) = places.get_mut(address.place() as usize) else { continue };
        if place.kind != 0 {
            place.is_shared = 1;
            continue;
        }
        let interface = interfaces.get(&local.interface);
        *place = AddressPlace {
            address: *address,
            kind: local.kind as u32,
            ingress: interface.map_or(0, |_| local.interface),
            interface: interface.copied().unwrap_or_default(),
            own,
            ..AddressPlace::default()
        };
    }
    places
}

fn interface_places(interfaces: &BTreeMap<u32, Interface>) -> Vec<InterfacePlace> {
    let mut places = vec![InterfacePlace::default(); INTERFACE_PLACES_CAPACITY as usize];
    // The lowest index has the place.
    for (&index, &interface) in interfaces.iter().rev() {
        if let Some(place) = places.get_mut(interface_place(index) as usize) {
            *place = InterfacePlace { index, reserved: 0, interface };
        }
    }
    places
}

/// Reads a whole array.
fn read<V: Pod>(map: &Array<MapData, V>, name: &'static str) -> Result<Vec<V>, DataplaneError> {
    let values: Result<_, _> = (0..map.len()).map(|index| map.get(&index, 0)).collect();
    values.map_err(DataplaneError::map(name))
}

/// Writes what differs from what is there.
fn write<V: Pod + PartialEq>(
    map: &mut Array<MapData, V>,
    there: &mut [V],
    wanted: &[V],
    name: &'static str,
) -> Result<(), DataplaneError> {
    for (index, (there, wanted)) in (0..).zip(there.iter_mut().zip(wanted)) {
        if there != wanted {
            map.set(index, *wanted, 0).map_err(DataplaneError::map(name))?;
            *there = *wanted;
        }
    }
    Ok(())
}

/// Removes an entry, unless it is gone.
fn remove<K: Pod, V: Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), DataplaneError> {
    match map.remove(key) {
        Err(error) if !is_missing(&error) => Err(DataplaneError::map(name)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> Address {
        Address([number, 0, 0, 1])
    }

    /// Two addresses of one place.
    fn neighbours() -> [Address; 2] {
        let first = address(0);
        let second = (1..).map(address).find(|it| it.place() == first.place());
        [first, second.expect("one of many")]
    }

    #[test]
    fn a_place_says_what_its_address_is_and_where_its_packets_come_in() {
        let interface = Interface::new([2, 0, 0, 0, 0, 7]);
        let local = LocalAddress { kind: AddressKind::Unicast, interface: 7 };
        let places = address_places(&[(address(0), local)].into(), &[(7, interface)].into());
        let used: Vec<_> = places.iter().filter(|place| place.kind != 0).collect();
        let expected = AddressPlace {
            address: address(0),
            kind: AddressKind::Unicast as u32,
            ingress: 7,
            interface,
            own: OwnPlaces::default().with(&address(0)),
            ..AddressPlace::default()
        };
        assert_eq!(used, [&expected]);
        let places = address_places(&[(address(0), local)].into(), &BTreeMap::new());
        let place = places.iter().find(|place| place.kind != 0).expect("a place");
        assert_eq!(place.ingress, 0, "an interface that the program is not attached to");
    }

    #[test]
    fn addresses_that_share_a_place_are_said_to() {
        let local = LocalAddress { kind: AddressKind::Unicast, interface: 0 };
        let addresses = neighbours().map(|address| (address, local)).into();
        let places = address_places(&addresses, &BTreeMap::new());
        let used: Vec<_> = places.iter().filter(|place| place.kind != 0).collect();
        assert_eq!(used.len(), 1);
        assert!(used[0].is_shared != 0 && neighbours().contains(&used[0].address));
    }

    #[test]
    fn of_interfaces_that_share_a_place_one_has_it() {
        let interface = Interface::new([2; 6]);
        let interfaces = [(3, interface), (3 + INTERFACE_PLACES_CAPACITY, interface)].into();
        let used: Vec<_> = interface_places(&interfaces).iter().map(|it| it.index).collect();
        assert_eq!(used.iter().filter(|index| **index != 0).collect::<Vec<_>>(), [&3]);
    }
}
