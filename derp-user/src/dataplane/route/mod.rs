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
use crate::flow::WayRequest;

/// The ends of a way.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pair {
    /// The address of this host that packets are to leave from; `None` leaves it to routing.
    pub local: Option<IpAddr>,
    /// Where they are to go.
    pub remote: IpAddr,
}

impl Pair {
    /// Returns the ends of the way that is asked for; `None` where no longer any is.
    #[must_use]
    pub fn of(request: &WayRequest) -> Option<Self> {
        let local = request.local.map(|local| local.to_canonical());
        request.remote.map(|remote| Self { local, remote: remote.ip().to_canonical() })
    }
}
