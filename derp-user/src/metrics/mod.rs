//! What the relay counts, and how an operator reads it.
//!
//! Each worker owns one [`WorkerCounters`] and is its only writer; whoever exports adds them up into [`Totals`].
//! Current values are [`Gauges`], read from the relay's tables at export time. [`export`] renders both under
//! the names that dashboards for Tailscale's derper already use.

pub mod counters;
pub mod export;
mod families;
pub mod histogram;
mod mesh;
mod peer_relay;
pub(crate) mod process;
mod round_trips;
mod udp;

pub use counters::{Counter, Gauges, Totals, WorkerCounters};
pub use export::{AttachedInterface, KernelCount, Reloads, Report, StunTotals};
pub use histogram::{Histogram, HistogramTotals, Waits};
pub use mesh::{AddressView, LinkState, MeshView, PeerView};
pub use peer_relay::PeerRelayFigures;
pub use process::{Usage, usage};
pub use round_trips::{RoundTripTotals, RoundTrips};
pub use udp::UdpFigures;

pub use crate::relay::packet::{DropReason, PacketKind};
