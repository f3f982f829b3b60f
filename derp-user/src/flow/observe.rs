//! What the data planes have counted, and who has been silent for too long.

use derp_common::flow::{
    LegStatistics, Side,
    table::{slot_and_side, statistics_index},
};

use super::{FlowId, FlowTable, Lifetime, state::Plane};

/// What the idle timeout has ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expired {
    /// The flow.
    pub flow: FlowId,
    /// Its name.
    pub name: String,
    /// The end that was forgotten; `None` if the whole flow was removed.
    pub end: Option<Side>,
}

impl FlowTable {
    /// Returns where the statistics of all flows are
    /// ([`statistics_index`](derp_common::flow::table::statistics_index)).
    pub fn statistics_indexes(&self) -> impl Iterator<Item = u32> {
        let installed = self
            .flows
            .values()
            .filter(|flow| self.installation.owner(flow.id.slot()) == Some(flow.id));
        installed.flat_map(|flow| Side::ALL.map(|side| statistics_index(flow.id.slot(), side)))
    }

    /// Takes what a data plane has counted of one leg until `now`.
    ///
    /// What is left of the place's last owner, because the tables do not have the flow yet, is ignored.
    pub fn observe(&mut self, plane: Plane, index: u32, statistics: &LegStatistics, now: u64) {
        let (slot, side) = slot_and_side(index);
        let owner = self.installation.owner(slot);
        let Some(flow) = self.flows.get_mut(&slot) else { return };
        if owner != Some(flow.id) {
            return;
        }
        let end = flow.end_mut(side);
        end.observed[plane as usize] = *statistics;
        // 0 is never; and no packet of an end that is to be learnt is from an end that is known.
        if statistics.last_seen != 0 && end.remote.is_some() {
            let last_seen = statistics.last_seen.min(now);
            if last_seen > end.last_seen {
                end.seen(last_seen);
            }
        }
    }

    /// Returns when an end was last heard of through either data plane, as far as [`FlowTable::observe`] has told,
    /// but no earlier than it was bound; `None` when there is no such flow.
    #[must_use]
    pub fn last_seen(&self, id: FlowId, side: Side) -> Option<u64> {
        self.flow(id).map(|flow| flow.end(side).last_seen)
    }

    /// Returns what has come from an end, by [`Plane`], as far as [`FlowTable::observe`] has told; `None` when there is
    /// no such flow.
    #[must_use]
    pub fn observed(&self, id: FlowId, side: Side) -> Option<[LegStatistics; 2]> {
        self.flow(id).map(|flow| flow.end(side).observed)
    }

    /// Returns what has come from an end through both data planes: packets, and bytes of their UDP payloads, as far as
    /// [`FlowTable::observe`] has told.
    #[must_use]
    pub fn counted(&self, id: FlowId, side: Side) -> (u64, u64) {
        let observed = self.flow(id).map(|flow| flow.end(side).observed).unwrap_or_default();
        let sum = |count: fn(&LegStatistics) -> u64| observed.iter().map(count).sum();
        (sum(|it| it.packets), sum(|it| it.bytes))
    }

    /// Forgets ends that were learnt and removes flows, if they have been silent for the idle timeout.
    ///
    /// To be called when [`FlowTable::observe`] has told what both data planes know *now*, which is how a flow that
    /// only the kernel sees is kept.
    pub fn expire(&mut self, now: u64) -> Vec<Expired> {
        let mut expired = Vec::new();
        let timeout = self.idle_timeout;
        for flow in self.flows.values() {
            let is_silent = |side: &Side| now.saturating_sub(flow.end(*side).last_seen) > timeout;
            let silent = Side::ALL.into_iter().filter(is_silent);
            let note = |end| Expired { flow: flow.id, name: flow.spec.name.clone(), end };
            match flow.spec.lifetime {
                Lifetime::Session => expired.extend(silent.take(1).map(|_| note(None))),
                Lifetime::Configured => {
                    let learnt = silent.filter(|&side| flow.end(side).is_learnt);
                    expired.extend(learnt.map(|side| note(Some(side))));
                }
            }
        }
        for Expired { flow, end, .. } in &expired {
            match end {
                Some(side) => self.place_end(flow.slot(), *side, None, now),
                None => {
                    self.remove(*flow);
                }
            }
        }
        expired
    }
}
