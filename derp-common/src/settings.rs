//! What the daemon tells the kernel program.

use crate::rate::Rate;

/// The daemon's settings, entry 0 of the settings map.
///
/// Zeroes, which the map holds until the daemon writes it, are no valid version: until then every
/// packet is passed. Fields are in wire order where they are compared with packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Settings {
    /// [`Settings::VERSION`] of the program that is to understand them.
    pub version: u32,
    /// [`Switches`] that are on.
    pub switches: u32,
    /// The UDP ports that are served; unused entries are zero.
    pub ports: [Port; Settings::PORTS],
    /// Slots of the flow table less one; slots are a power of two.
    pub slot_mask: u32,
    /// Places of STUN buckets less one; a power of two, too.
    pub stun_mask: u32,
    /// How often each source may be answered a STUN request.
    pub stun_rate: Rate,
    /// How often control packets of each end of a flow may reach userspace.
    pub control_rate: Rate,
    /// How often each leg's packets are passed to userspace as a sample, in nanoseconds; 0 is never.
    pub sample_interval: u64,
    /// Until when flows of another process are forwarded, on `CLOCK_MONOTONIC` in nanoseconds; only with
    /// [`Switches::COMPANION`]. The daemon puts it off again and again: when it no longer can, that process is on
    /// its own.
    pub lease: u64,
}

/// A UDP port and what is served on it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Port {
    /// The port, big-endian as it lies in the packet.
    pub number: u16,
    /// Bits of [`Services`].
    pub services: u16,
}

/// What may be served on a port; bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Services;

impl Services {
    /// STUN Binding requests are answered.
    pub const STUN: u16 = 1;
    /// Geneve packets of known VNIs are forwarded.
    pub const GENEVE: u16 = 2;
    /// WireGuard transport packets are forwarded by source and receiver index.
    pub const WIREGUARD: u16 = 4;
    /// Packets with any payload are forwarded by source.
    pub const ANY: u16 = 8;
}

/// Switches of the daemon; bits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Switches;

impl Switches {
    /// STUN requests are dropped unanswered, in the kernel: sheds load.
    pub const SHED_STUN: u32 = 1;
    /// Another process owns the relay's sockets and decides about what is not forwarded: nothing is dropped.
    pub const COMPANION: u32 = 2;
    /// Frames with a VLAN tag are looked into.
    pub const VLAN: u32 = 4;
}

impl Settings {
    /// The layout and meaning described here.
    pub const VERSION: u32 = 4;
    /// Most ports that can be served.
    pub const PORTS: usize = 4;

    /// Settings that answer STUN on `stun_port`, without limit, and forward nothing.
    #[must_use]
    pub const fn new(stun_port: u16) -> Self {
        let unused = Port { number: 0, services: 0 };
        let stun = Port { number: stun_port.to_be(), services: Services::STUN };
        Self {
            version: Self::VERSION,
            switches: 0,
            ports: [stun, unused, unused, unused],
            slot_mask: 0,
            stun_mask: 0,
            stun_rate: Rate::UNLIMITED,
            control_rate: Rate::UNLIMITED,
            sample_interval: 0,
            lease: 0,
        }
    }

    /// Returns what is served on a port (big-endian), as bits of [`Services`].
    #[inline(always)]
    #[must_use]
    pub const fn services(&self, port: u16) -> u16 {
        let [a, b, c, d] = &self.ports;
        let mut services = 0;
        if a.number == port {
            services |= a.services;
        }
        if b.number == port {
            services |= b.services;
        }
        if c.number == port {
            services |= c.services;
        }
        if d.number == port {
            services |= d.services;
        }
        services
    }

    /// Tells whether a switch is on.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, switch: u32) -> bool {
        self.switches & switch != 0
    }
}

/// One interface the program is attached to, keyed by its index.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Interface {
    /// The MAC address, in wire order, as 16-bit units as they lie in memory.
    pub mac: [u16; 3],
    /// Not zero where packets from other interfaces can be redirected to this one.
    pub is_redirect_target: u16,
}

/// The interface in one of [`INTERFACE_PLACES`](crate::maps::INTERFACE_PLACES): the one, of those whose
/// indexes are equal modulo their number, that is found without asking further.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct InterfacePlace {
    /// Its index; 0 when there is none.
    pub index: u32,
    /// Zero.
    pub reserved: u32,
    /// The interface.
    pub interface: Interface,
}

impl Interface {
    /// Describes an interface with this MAC address.
    #[must_use]
    pub const fn new(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let mac =
            [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])];
        Self { mac, is_redirect_target: 0 }
    }

    /// Returns the MAC address, in wire order.
    #[must_use]
    pub const fn mac_bytes(&self) -> [u8; 6] {
        let [a, b] = self.mac[0].to_ne_bytes();
        let [c, d] = self.mac[1].to_ne_bytes();
        let [e, f] = self.mac[2].to_ne_bytes();
        [a, b, c, d, e, f]
    }
}
