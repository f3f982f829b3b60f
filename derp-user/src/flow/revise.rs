//! Another list of flows in the configuration, while everything runs.
//!
//! What a flow forwards is said by how its packets are recognised and by its ends. A flow of the new list that has these of
//! one of the old goes on as it is: with its slot, VNI, learnt addresses, ways and counts, and without a write to the tables.
//! A restart finds flows again by the same rule ([`FlowTable::adopt`]).

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::{AdmitError, EndSpec, FlowId, FlowRate, FlowSource, FlowSpec, FlowTable, Kind};

/// What another list of flows has changed, as names.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Revision {
    /// Flows that no flow of the old list had the name of.
    pub added: Vec<String>,
    /// Flows of the old list that are gone, with their names.
    pub removed: Vec<String>,
    /// Flows of an old name that forward something else. They began anew.
    pub replaced: Vec<String>,
    /// Flows that went on, with another name or rate.
    pub adjusted: Vec<String>,
    /// How many went on as they were.
    pub kept: usize,
}

impl Revision {
    /// Tells whether nothing is different.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.removed.is_empty()
            && self.replaced.is_empty()
            && self.adjusted.is_empty()
    }
}

/// A flow of another list that cannot be admitted beside those that stay.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the flow {name:?} cannot be admitted: {source}")]
pub struct ReviseError {
    /// Its name.
    pub name: String,
    /// Why.
    pub source: AdmitError,
}

/// How two lists differ. Flows of the old one go by `K`, those of the new one by their place in it.
#[derive(Debug, Eq, PartialEq)]
pub(super) struct Difference<K> {
    /// What both have.
    pub(super) kept: Vec<(K, usize)>,
    pub(super) removed: Vec<K>,
    pub(super) added: Vec<usize>,
}

/// What a flow forwards.
type Essence<'a> = (Kind, &'a [EndSpec; 2]);

const fn essence(spec: &FlowSpec) -> Essence<'_> {
    (spec.kind, &spec.ends)
}

/// Compares two lists. Flows that forward the same are paired by name first, then in order.
pub(super) fn difference<K: Copy>(old: &[(K, &FlowSpec)], new: &[FlowSpec]) -> Difference<K> {
    let mut kept = Vec::new();
    let mut by_name: HashMap<_, VecDeque<usize>> = HashMap::new();
    let mut by_essence: HashMap<_, BTreeSet<usize>> = HashMap::new();
    for (place, (_, spec)) in old.iter().enumerate() {
        by_name.entry((essence(spec), &spec.name)).or_default().push_back(place);
        by_essence.entry(essence(spec)).or_default().insert(place);
    }
    let mut partners: Vec<Option<usize>> = vec![None; new.len()];
    for (spec, partner) in new.iter().zip(&mut partners) {
        *partner = by_name.get_mut(&(essence(spec), &spec.name)).and_then(VecDeque::pop_front);
        if let (Some(place), Some(left)) = (*partner, by_essence.get_mut(&essence(spec))) {
            left.remove(&place);
        }
    }
    let mut added = Vec::new();
    for (index, (spec, partner)) in new.iter().zip(partners).enumerate() {
        let left = || by_essence.get_mut(&essence(spec)).and_then(BTreeSet::pop_first);
        match partner.or_else(left).and_then(|place| old.get(place)) {
            Some((key, _)) => kept.push((*key, index)),
            None => added.push(index),
        }
    }
    let left: BTreeSet<_> = by_essence.into_values().flatten().collect();
    let removed = left.into_iter().filter_map(|place| old.get(place)).map(|(key, _)| *key);
    Difference { kept, removed: removed.collect(), added }
}

impl FlowTable {
    /// Has the flows of the configuration be these from now on: those that forward the same go on, the rest of the old
    /// ones is removed, the rest of the new ones admitted. Flows of other sources are left alone.
    ///
    /// # Errors
    ///
    /// The first flow that cannot be admitted. The table is to be thrown away then: call it on a copy.
    pub(crate) fn revise(&mut self, flows: &[FlowSpec], now: u64) -> Result<Revision, ReviseError> {
        let of_configuration = |source| source == FlowSource::Configuration;
        let old = self.flows.values().filter(|flow| of_configuration(flow.spec.source));
        let old: Vec<_> = old.map(|flow| (flow.id, &flow.spec)).collect();
        let names: HashMap<FlowId, String> =
            old.iter().map(|(id, spec)| (*id, spec.name.clone())).collect();
        let Difference { kept, removed, added } = difference(&old, flows);
        let mut revision = Revision::default();
        for (id, index) in kept {
            let Some(spec) = flows.get(index) else { continue };
            if self.adjust(id, &spec.name, spec.rate) {
                revision.adjusted.push(spec.name.clone());
            } else {
                revision.kept += 1;
            }
        }
        let mut gone = BTreeSet::new();
        for id in removed {
            gone.extend(names.get(&id).cloned());
            self.remove(id);
        }
        let has_vni = |spec: &FlowSpec| matches!(spec.kind, Kind::Geneve { vni: Some(_) });
        // Those with a VNI of their own first, lest another flow take what is theirs.
        for first in [true, false] {
            let specs = added.iter().filter_map(|index| flows.get(*index));
            for spec in specs.filter(|spec| has_vni(spec) == first) {
                let admitted = self.add(spec.clone(), now);
                admitted.map_err(|source| ReviseError { name: spec.name.clone(), source })?;
            }
        }
        for spec in added.iter().filter_map(|index| flows.get(*index)) {
            let is_old = gone.remove(&spec.name);
            let list = if is_old { &mut revision.replaced } else { &mut revision.added };
            list.push(spec.name.clone());
        }
        revision.removed = gone.into_iter().collect();
        Ok(revision)
    }

    /// Gives a flow another name and rate. Returns whether they are others.
    fn adjust(&mut self, id: FlowId, name: &str, rate: Option<FlowRate>) -> bool {
        let Some(flow) = self.flow_mut(id) else { return false };
        let (is_renamed, is_other_rate) = (flow.spec.name != name, flow.spec.rate != rate);
        if is_renamed {
            name.clone_into(&mut flow.spec.name);
        }
        if is_other_rate {
            flow.spec.rate = rate;
            self.installation.touch(id.slot);
        }
        is_renamed || is_other_rate
    }

    /// Forgets ends and flows after another time of silence from now on, in nanoseconds.
    pub(crate) const fn set_idle_timeout(&mut self, idle_timeout: u64) {
        self.idle_timeout = idle_timeout;
    }
}
