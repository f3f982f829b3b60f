//! How frames leave: interface, next hop and its MAC for every leg the kernel program is to forward to.
//!
//! The kernel program asks no routing table. The daemon does, as the host's own packets would: [`Resolver`]
//! asks the kernel for the route to each far end, looks its next hop up among the neighbours, and has the
//! kernel keep that neighbour known although the host itself sends it nothing. It asks again whenever
//! routes, rules, links, addresses or neighbours change, and reports what has changed. A leg without a way
//! is userspace's, whose packets go by the host's network stack.
//!
//! `way` and `facts` are pure; `resolver`, who asks for what, knows the machine by a trait that `kernel`
//! implements.

mod facts;
mod kernel;
mod resolver;
#[cfg(test)]
mod tests;
mod way;

use std::net::IpAddr;

pub(super) use self::{
    facts::{Hop, Neighbour},
    resolver::News,
};
pub use self::{
    resolver::{Answer, Resolver, TooManyWays, Ways},
    way::Unresolved,
};

/// The ends of a way.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    /// The address of this host that packets are to leave from; `None` leaves it to routing.
    pub local: Option<IpAddr>,
    /// Where they are to go.
    pub remote: IpAddr,
}
