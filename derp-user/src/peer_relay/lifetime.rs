//! When endpoints end.

use derp_common::flow::Side;

use super::{
    PeerRelay,
    endpoint::Endpoint,
    server::{BIND_LIFETIME, STEADY_STATE_LIFETIME},
};
use crate::flow::FlowTable;

/// An endpoint that is no longer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its VNI.
    pub vni: u32,
    /// Who used it, as people call them.
    pub name: String,
    /// Why it has ended.
    pub by: EndedBy,
}

/// Why an endpoint has ended.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum EndedBy {
    /// Not both clients have bound their ends in time.
    NotBound,
    /// A client was silent for too long.
    Silence,
    /// Its flow is no longer in the flow table.
    Removal,
}

impl PeerRelay {
    /// Ends the endpoints whose time has come, and their flows.
    ///
    /// To be called when the flow table has been told what both data planes know *now*
    /// ([`FlowTable::observe`]), which is how an endpoint that only the kernel sees is kept. A client that sends
    /// handshake messages only counts as silent, as in the reference.
    pub fn review(&mut self, table: &mut FlowTable, now: u64) -> Vec<Ended> {
        let ends = |(vni, endpoint): (&u32, &Endpoint)| {
            let by = ends(endpoint, table, now)?;
            let name = endpoint.keys().map(|key| key.short()).join(" ");
            Some(Ended { vni: *vni, name, by })
        };
        let ended: Vec<_> = self.endpoints.iter().filter_map(ends).collect();
        self.end(table, &ended);
        ended
    }

    /// Ends every endpoint, for instance because the relay is no longer wanted.
    pub fn close(&mut self, table: &mut FlowTable) {
        for endpoint in self.endpoints.values() {
            table.remove(endpoint.flow);
        }
        let vnis: Vec<_> = self.endpoints.keys().copied().collect();
        vnis.into_iter().for_each(|vni| self.forget(vni));
    }

    fn end(&mut self, table: &mut FlowTable, ended: &[Ended]) {
        for Ended { vni, .. } in ended {
            if let Some(endpoint) = self.endpoints.get(vni) {
                table.remove(endpoint.flow);
            }
            self.forget(*vni);
        }
    }
}

/// Says whether and why an endpoint ends now.
fn ends(endpoint: &Endpoint, table: &FlowTable, now: u64) -> Option<EndedBy> {
    let mut is_silent = false;
    for side in Side::ALL {
        let Some(seen) = table.last_seen(endpoint.flow, side) else {
            return Some(EndedBy::Removal);
        };
        let heard = seen.max(endpoint.client(side).bound_at);
        is_silent |= now.saturating_sub(heard) > STEADY_STATE_LIFETIME;
    }
    if !endpoint.is_open() {
        let is_late = now.saturating_sub(endpoint.asked_at) > BIND_LIFETIME;
        return is_late.then_some(EndedBy::NotBound);
    }
    is_silent.then_some(EndedBy::Silence)
}
