//! The companion of a peer relay that another process runs (udp-relay reference, sections 4.6 and 5.7), without I/O.
//!
//! A tailscaled that is a peer relay allocates, authenticates and binds its sessions; it also tells, over its local
//! API, which they are. The companion has the kernel program forward what they carry, and speaks nothing of the
//! protocol itself. Whatever it is in doubt about is tailscaled's, as if there were no companion.
//!
//! [`Companion::poll`] is told what tailscaled has answered ([`Report`]) and which flows the kernel program has found
//! control packets for, and changes the [flow table](crate::flow). Its rules:
//!
//! - A session becomes a flow when both of its clients are bound, to usable addresses of one family, neither of
//!   which is this host's, and when no other session has its place in the flow table.
//! - A new flow is *held*: the kernel passes its data, and notes control packets for it. It forwards when two answers
//!   in a row, both asked for after [`QUIET`] without a control packet, show the same ends.
//! - A control packet (the kernel stops by itself, at once), an end elsewhere, or an answer that comes late hold it
//!   again. Other clients under its VNI, as after a restart of tailscaled, end it.
//! - No answer, one that cannot be understood, another port, or none: every flow ends.
//! - The kernel forwards until the [lease](Serving::lease) is over, which each answer puts off. It ends by itself
//!   when the daemon is killed or stands still.

mod report;
mod state;
mod view;

pub use self::{
    report::{Client, Endpoint, MAX_ANSWER, Report, ReportError, Session},
    state::{Companion, CompanionOptions, Failure, Observation, QUIET, Serving},
    view::{CompanionView, Standing, Status},
};

#[cfg(any(test, feature = "fuzzing"))]
#[allow(clippy::unwrap_used, reason = "these are tests")]
pub(crate) mod tests;
