//! The kernel data plane: an XDP program that answers STUN before the network stack sees it.
//!
//! [`Xdp::attach`] does what the command line asks for. The program decides with the functions of
//! `derp_common`; this module loads it, tells it about the host and reads its counters. Whatever it
//! passes, or all there is where it cannot run, the userspace STUN server answers.

mod capability;
mod error;
mod features;
mod flows;
mod host;
mod kernel;
mod link;
mod mode;
mod netlink;
mod object;
pub mod route;
mod watch;
mod xdp;

pub use self::{
    error::DataplaneError,
    flows::{FlowMaps, FlowTableError, KernelTables, Place, StoredFlow},
    kernel::{Count, Kernel, Tables},
    mode::{AttachedMode, Mode, UnknownMode},
    object::{embedded_object, object_hash},
    watch::Watcher,
    xdp::{Attachment, Xdp, XdpOptions},
};
