//! The kernel data plane: an XDP program that answers STUN before the network stack sees it.
//!
//! [`Xdp::attach`] does what the command line asks for. The program decides with the functions of
//! `derp_common`; this module loads it, tells it about the host and reads its counters. Whatever it
//! passes, or all there is where it cannot run, the userspace STUN server answers.

mod error;
mod events;
mod features;
pub(crate) mod fit;
mod flows;
mod host;
pub mod inspect;
mod kernel;
mod layout;
mod link;
mod mode;
mod netlink;
mod object;
mod pin;
mod pinned;
pub mod route;
pub mod self_test;
mod tables;
mod watch;
mod xdp;

pub use self::{
    error::DataplaneError,
    events::{FlowEvent, FlowEvents},
    flows::{FlowMaps, FlowTableError, KernelTables, Place, StoredFlow},
    host::local_addresses,
    kernel::{Count, Kernel, interface_name},
    layout::MapSizes,
    mode::{AttachedMode, Mode, UnknownMode},
    object::{embedded_object, object_hash},
    pin::{DEFAULT_DIRECTORY, Pin, PinError, UnknownPin},
    tables::{LocalAddress, Tables},
    watch::Watcher,
    xdp::{Attachment, Prepared, Xdp, XdpOptions},
};
