//! The kernel data plane: an XDP program that answers STUN before the network stack sees it.

mod capability;
mod error;
mod kernel;
mod mode;
mod object;

pub use self::{
    error::DataplaneError,
    kernel::{Count, Kernel, Tables},
    mode::{AttachedMode, Mode, UnknownMode},
    object::{embedded_object, object_hash},
};
