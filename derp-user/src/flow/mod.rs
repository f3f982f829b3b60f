//! Which UDP flows are forwarded: the one place that decides it, and what it writes into the flow tables.
//!
//! [`FlowTable`] admits flows and keeps them current. It knows no socket, clock or random number: `now` is an
//! argument, in nanoseconds of `CLOCK_MONOTONIC`, and so is randomness. What it decides becomes [`Change`]s,
//! which the daemon applies to every [`Sink`]: the userspace forwarder's [`SharedMirror`] and the kernel's maps.

mod change;
mod mirror;
mod spec;
mod way;

pub use self::{
    change::{Change, Sink},
    mirror::{Mirror, SharedMirror},
    spec::{EndSpec, FlowId, FlowRate, FlowRateError, FlowSpec, Kind, Lifetime, Local, Remote},
    way::{Resolved, WayRequest},
};
