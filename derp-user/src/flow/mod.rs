//! Which UDP flows are forwarded: the one place that decides it, and what it writes into the flow tables.
//!
//! [`FlowTable`] admits flows and keeps them current. It knows no socket, clock or random number: `now` is an
//! argument, in nanoseconds of `CLOCK_MONOTONIC`, and so is randomness. What it decides becomes [`Change`]s,
//! which the daemon applies to every [`Sink`]: the userspace forwarder's [`SharedMirror`] and the kernel's maps.

mod adopt;
mod change;
mod check;
mod install;
mod learn;
mod mirror;
mod observe;
mod place;
mod revise;
mod slots;
mod spec;
mod state;
mod table;
mod view;
mod way;

pub use self::{
    adopt::Found,
    change::{Change, Sink},
    check::AdmitError,
    learn::{Learnt, Outcome, Refusal},
    mirror::{Mirror, SharedMirror},
    observe::Expired,
    revise::{ReviseError, Revision},
    spec::{
        EndSpec, FlowId, FlowRate, FlowRateError, FlowSource, FlowSpec, Kind, Lifetime, Local,
        Remote,
    },
    state::Plane,
    table::{FlowTable, TableSettings},
    view::{CountView, EndView, FlowView, FlowsView, Forwarder, KindView, StateView, Viewer},
    way::{Resolved, WayRequest},
};

#[cfg(test)]
pub(crate) use self::state::source_of;
pub(crate) use self::{check::check_address, state::socket_address};

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod tests;
