//! Leave for aya to copy the map types to and from the kernel as bytes.
#![expect(unsafe_code, reason = "Pod is an unsafe trait; each use is justified beside it")]

use aya::Pod;

use crate::{
    Address, AddressPlace, Interface, InterfacePlace, OwnPlaces, Settings,
    flow::{Control, Leg, LegStatistics, Source},
    maps::{Counter, Event},
    rate::Rate,
    settings::Port,
};

/// Fails to compile unless the fields fill the struct.
macro_rules! no_padding {
    ($type:ty: $($field:ty),+) => {
        const _: () = assert!(size_of::<$type>() == 0 $(+ size_of::<$field>())+);
    };
}

no_padding!(Rate: u64, u64);
no_padding!(Port: u16, u16);
no_padding!(Settings: u32, u32, [Port; Settings::PORTS], u32, u32, Rate, Rate, u64, u64);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Settings {}

no_padding!(Interface: [u16; 3], u16);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Interface {}

no_padding!(InterfacePlace: u32, u32, Interface);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for InterfacePlace {}

no_padding!(Counter: u64, u64);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Counter {}

no_padding!(Address: [u32; 4]);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Address {}

no_padding!(AddressPlace: Address, u32, u32, u32, u32, Interface, OwnPlaces, [u64; 2]);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for AddressPlace {}

// SAFETY: one integer; every bit pattern is valid.
unsafe impl Pod for Control {}

no_padding!(Leg: Address, Address, u16, u16, u32, [u16; 3], [u16; 3], u16, u16, u32, u32);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Leg {}

no_padding!(LegStatistics: u64, u64, u64, u64, u64, u64, u64, u64);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for LegStatistics {}

no_padding!(Source: Address, u16, u16, u32);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Source {}

no_padding!(Event: Address, u32, u32, u16, u16, u32);
// SAFETY: repr(C) integers without padding (asserted above); every bit pattern is valid.
unsafe impl Pod for Event {}
