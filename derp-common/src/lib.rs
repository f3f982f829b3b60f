//! Packet code and map layouts shared by the kernel program and the daemon.
//!
//! Everything that decides about a packet lives here, generic over [`Packet`] and [`Host`], so that the
//! XDP program, the userspace data plane, the unit tests and the fuzzer run the same lines. The crate
//! allocates nothing, has no clock and reads a packet only in small words: copies of whole headers
//! would overrun the 512 bytes of stack a kernel program has.
//!
//! [`decide()`] is the entry point: one frame in, one [`Decision`] out. Everything is validated before
//! anything is written, so a frame that is passed up the stack is passed up untouched.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod address;
pub mod cell;
pub mod checksum;
pub mod decide;
pub mod eth;
pub mod flow;
pub mod frame;
pub mod ip;
pub mod maps;
pub mod packet;
#[cfg(feature = "user")]
mod pod;
pub mod rate;
pub mod reason;
pub mod settings;
pub mod stun;
pub mod udp;

pub use crate::{
    address::{Address, AddressKind, AddressPlace, Family, OwnPlaces},
    decide::{Decision, Host, decide},
    packet::{Packet, SlicePacket},
    rate::Rate,
    reason::{Reason, Verdict},
    settings::{Interface, InterfacePlace, Port, Services, Settings, Switches},
};
