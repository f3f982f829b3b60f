//! What the daemon tells the kernel program.

/// The daemon's settings, entry 0 of the settings map.
///
/// Zeroes, which the map holds until the daemon writes it, are no valid version: until then every
/// packet is passed. Fields are in wire order where they are compared with packets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Settings {
    /// [`Settings::VERSION`] of the program that is to understand them.
    pub version: u32,
    /// The UDP port STUN is answered on, big-endian.
    pub stun_port: [u8; 2],
    /// Zero; room for switches.
    pub reserved: [u8; 10],
}

impl Settings {
    /// The layout and meaning described here.
    pub const VERSION: u32 = 1;

    /// Settings that answer STUN on `stun_port`.
    #[must_use]
    pub const fn new(stun_port: u16) -> Self {
        Self { version: Self::VERSION, stun_port: stun_port.to_be_bytes(), reserved: [0; 10] }
    }
}

/// One interface the program is attached to, keyed by its index.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Interface {
    /// The MAC address, in wire order, as 16-bit units as they lie in memory.
    pub mac: [u16; 3],
    /// Zero.
    pub reserved: u16,
}

impl Interface {
    /// Describes an interface with this MAC address.
    #[must_use]
    pub const fn new(mac: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = mac;
        let mac =
            [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])];
        Self { mac, reserved: 0 }
    }
}
