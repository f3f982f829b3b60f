//! What was forwarded for endpoints, over all of them and also after they have ended.

use std::net::SocketAddr;

use derp_common::flow::{LegStatistics, Side};

use super::{PeerRelay, endpoint::Endpoint};
use crate::{
    flow::{FlowTable, Plane},
    udp::Count,
};

/// What was forwarded, by data plane and by the address families of sender and receiver.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Traffic([[Count; WAYS]; Plane::ALL.len()]);

/// From IPv4 or IPv6, to IPv4 or IPv6.
const WAYS: usize = 4;

impl Traffic {
    /// Returns what was forwarded by both data planes: transport in, transport out, and how much. The labels are those
    /// of the reference's metrics.
    #[must_use]
    pub fn by_transport(&self) -> [(&'static str, &'static str, Count); WAYS] {
        let mut ways = [
            ("udp4", "udp4", Count::default()),
            ("udp4", "udp6", Count::default()),
            ("udp6", "udp4", Count::default()),
            ("udp6", "udp6", Count::default()),
        ];
        for plane in &self.0 {
            for ((_, _, sum), count) in ways.iter_mut().zip(plane) {
                *sum = sum.plus(*count);
            }
        }
        ways
    }

    /// Returns what was forwarded by one data plane.
    #[must_use]
    pub fn by_plane(&self, plane: Plane) -> Count {
        let ways = self.0.get(plane as usize).copied().unwrap_or_default();
        ways.into_iter().fold(Count::default(), Count::plus)
    }

    fn add(&mut self, plane: usize, from: SocketAddr, to: SocketAddr, count: Count) {
        let way = usize::from(from.is_ipv6()) << 1 | usize::from(to.is_ipv6());
        if let Some(sum) = self.0.get_mut(plane).and_then(|ways| ways.get_mut(way)) {
            *sum = sum.plus(count);
        }
    }
}

impl PeerRelay {
    /// Returns what was forwarded, as far as the last [`PeerRelay::review`] knew.
    #[must_use]
    pub const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Adds what the flow table has been told since the last time.
    pub(super) fn count_traffic(&mut self, table: &FlowTable) {
        for endpoint in self.endpoints.values_mut() {
            count(endpoint, table, &mut self.traffic);
        }
    }
}

fn count(endpoint: &mut Endpoint, table: &FlowTable, traffic: &mut Traffic) {
    let remotes = Side::ALL.map(|side| endpoint.client(side).remote);
    // Nothing is forwarded before both ends are bound, which they stay.
    let [Some(a), Some(b)] = remotes else { return };
    for (side, from, to) in [(Side::A, a, b), (Side::B, b, a)] {
        let Some(observed) = table.observed(endpoint.flow, side) else { continue };
        let counted = &mut endpoint.client_mut(side).counted;
        for (plane, (counted, observed)) in counted.iter_mut().zip(observed).enumerate() {
            let LegStatistics { packets, bytes, .. } = observed;
            // Tables that were made anew count from 0 again.
            let since = if packets < counted.packets { Count::default() } else { *counted };
            let more = Count {
                packets: packets - since.packets,
                bytes: bytes.saturating_sub(since.bytes),
            };
            traffic.add(plane, from, to, more);
            *counted = Count { packets, bytes };
        }
    }
}
