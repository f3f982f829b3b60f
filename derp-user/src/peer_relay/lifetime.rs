//! When endpoints end.

use derp_common::flow::Side;

use super::{
    PeerRelay,
    endpoint::Endpoint,
    server::{BIND_LIFETIME, STEADY_STATE_LIFETIME},
};
use crate::{flow::FlowTable, proto::keys::NodePublic};

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
    /// The node that has asked for it may not any more.
    Permission,
    /// The relay is no longer wanted.
    Closing,
}

impl EndedBy {
    /// Every reason, in order.
    pub const ALL: [Self; 5] =
        [Self::NotBound, Self::Silence, Self::Removal, Self::Permission, Self::Closing];

    /// Returns the metric label and log word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotBound => "not_bound",
            Self::Silence => "silence",
            Self::Removal => "removal",
            Self::Permission => "permission",
            Self::Closing => "closing",
        }
    }
}

impl PeerRelay {
    /// Ends the endpoints whose time has come, and their flows.
    ///
    /// To be called when the flow table has been told what both data planes know *now*
    /// ([`FlowTable::observe`]), which is how an endpoint that only the kernel sees is kept. A client that sends
    /// handshake messages only counts as silent, as in the reference.
    pub fn review(&mut self, table: &mut FlowTable, now: u64) -> Vec<Ended> {
        self.end(table, |endpoint, table| ends(endpoint, table, now))
    }

    /// Ends the endpoints of nodes that may not have any more. The other client of one may ask for another.
    pub fn retain(
        &mut self,
        table: &mut FlowTable,
        may: impl Fn(&NodePublic) -> bool,
    ) -> Vec<Ended> {
        self.end(table, |endpoint, _| (!may(&endpoint.owner)).then_some(EndedBy::Permission))
    }

    /// Ends every endpoint, for instance because the relay is no longer wanted.
    pub fn close(&mut self, table: &mut FlowTable) {
        self.end(table, |_, _| Some(EndedBy::Closing));
    }

    /// Ends the endpoints that `why` has a reason for, and their flows, when what was forwarded has been counted.
    fn end(
        &mut self,
        table: &mut FlowTable,
        why: impl Fn(&Endpoint, &FlowTable) -> Option<EndedBy>,
    ) -> Vec<Ended> {
        self.count_traffic(table);
        let ended = |(vni, endpoint): (&u32, &Endpoint)| {
            let by = why(endpoint, table)?;
            let name = endpoint.keys().map(|key| key.short()).join(" ");
            Some(Ended { vni: *vni, name, by })
        };
        let ended: Vec<_> = self.endpoints.iter().filter_map(ended).collect();
        for Ended { vni, by, .. } in &ended {
            if let Some(endpoint) = self.endpoints.get(vni) {
                table.remove(endpoint.flow);
            }
            self.forget(*vni, *by);
        }
        ended
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
