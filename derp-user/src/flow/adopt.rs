//! How flows outlive the daemon: a new one takes over what the kernel's tables hold.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use derp_common::{
    Address,
    flow::{
        Control, Leg, Side, Source,
        table::{MAX_SLOTS, Senders, leg_index, source_value, wireguard_sender},
    },
};

use super::{
    AdmitError, EndSpec, FlowId, FlowSpec, FlowTable, Kind, Remote, Resolved,
    place::{Place, Settled},
    state::{canonical, mac_bytes, socket_address},
};

/// What the tables hold when the daemon starts. Tables that are too short count as empty where they end.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// By slot.
    pub controls: Vec<Control>,
    /// By [`leg_index`].
    pub legs: Vec<Leg>,
    /// By slot.
    pub senders: Vec<Senders>,
    /// Every source with its value.
    pub sources: Vec<(Source, u32)>,
}

/// The owner of what was found and belongs to no flow: an identity no flow can have.
const NOBODY: u64 = u64::MAX;

impl Found {
    /// Enters a slot with its control word, the legs of the copy that this names, and its senders.
    pub fn add(&mut self, slot: u32, control: Control, legs: [Leg; 2], senders: Senders) {
        if slot >= MAX_SLOTS {
            return;
        }
        fill(&mut self.controls, slot, Control::OFF, control);
        fill(&mut self.senders, slot, Senders::default(), senders);
        for (side, leg) in Side::ALL.into_iter().zip(legs) {
            fill(&mut self.legs, leg_index(slot, control.copy(), side), Leg::UNBOUND, leg);
        }
    }

    fn control(&self, slot: u32) -> Control {
        self.controls.get(slot as usize).copied().unwrap_or(Control::OFF)
    }

    fn senders(&self, slot: u32) -> Senders {
        self.senders.get(slot as usize).copied().unwrap_or_default()
    }

    /// Returns the valid legs of a slot; none where it neither forwards nor learns.
    fn legs(&self, slot: u32) -> [Leg; 2] {
        let control = self.control(slot);
        if !control.forwards() && !control.learns() {
            return [Leg::UNBOUND; 2];
        }
        let at = |side| leg_index(slot, control.copy(), side) as usize;
        Side::ALL.map(|side| self.legs.get(at(side)).copied().unwrap_or(Leg::UNBOUND))
    }

    /// Tells whether a slot may hold this flow as it was before.
    fn fits(&self, slot: u32, spec: &FlowSpec) -> bool {
        let control = self.control(slot);
        let is_kind = match spec.kind {
            Kind::Geneve { .. } => control.vni() != 0,
            Kind::Any => control.vni() == 0,
            // Flows between the same two ends differ in their indexes only.
            Kind::WireGuard { indexes } => {
                control.vni() == 0 && self.senders(slot) == indexes.map(wireguard_sender)
            }
        };
        let is_in_use = control.forwards() || control.learns();
        is_in_use
            && is_kind
            && Side::ALL.into_iter().zip(self.legs(slot)).all(|(side, leg)| {
                let end = spec.end(side);
                match &end.remote {
                    Remote::Fixed(remote) => leg_of(*remote, end) == place_of(&leg),
                    Remote::Learn(_) => leg.remote_port == 0 || is_learnt(&leg, end),
                }
            })
    }
}

/// Puts a value into a list that is as long as that takes.
fn fill<T: Clone>(list: &mut Vec<T>, index: u32, empty: T, value: T) {
    let index = index as usize;
    if index >= list.len() {
        list.resize(index + 1, empty);
    }
    list[index] = value;
}

/// Where a leg's packets come from and at which port they arrive.
type LegPlace = (Address, u16, u16);

fn place_of(leg: &Leg) -> LegPlace {
    (leg.remote, leg.remote_port, leg.local_port)
}

fn leg_of(remote: SocketAddr, end: &EndSpec) -> LegPlace {
    (canonical(remote).ip().into(), remote.port().to_be(), end.local.port.to_be())
}

/// Tells whether a leg may have been learnt for this end.
fn is_learnt(leg: &Leg, end: &EndSpec) -> bool {
    let remote = IpAddr::from(leg.remote);
    let Remote::Learn(networks) = &end.remote else { return false };
    leg.remote_port != 0
        && leg.local_port == end.local.port.to_be()
        && end.local.ip.is_none_or(|ip| Address::from(ip.to_canonical()) == leg.local)
        && networks.iter().any(|network| network.contains(&remote))
}

impl FlowTable {
    /// Admits these flows like [`FlowTable::add`], in a table that has none yet, and lets those that the tables
    /// already hold go on there: with their slot, VNI, learnt addresses and ways. Everything else that was found
    /// is removed. Returns what became of each flow.
    ///
    /// The addresses of this host must have been told before ([`FlowTable::set_local_addresses`]). A flow whose VNI
    /// is not configured is found again by its ends; of several equal ones the first has the lowest slot. The copy of
    /// the tables that was found needs only what [`FlowTable::poll`] returns from now on, an empty one first
    /// [`FlowTable::snapshot`].
    pub fn adopt(
        &mut self,
        specs: &[FlowSpec],
        found: &Found,
        now: u64,
    ) -> Vec<Result<FlowId, AdmitError>> {
        let (own_sources, strays) = self.sort_sources(found);
        self.installation.begin_with(strays, now);
        let mut left = Left::new(found, self.slots());
        let mut results: Vec<_> = specs.iter().map(|_| None).collect();
        // Those with a VNI of their own first, lest another flow take what is theirs.
        for has_vni in [true, false] {
            for (spec, result) in specs.iter().zip(&mut results) {
                if is_of_fixed_vni(spec) == has_vni
                    && self.check(spec).is_ok()
                    && let Some(slot) = self.find(spec, found, &left)
                    && self.slots.take_this(slot)
                {
                    left.slots.remove(&slot);
                    let id = self.continue_flow(spec.clone(), slot, found, now);
                    self.installation.adopt(slot, place(slot, id, found, &own_sources, now));
                    *result = Some(Ok(id));
                }
            }
        }
        for slot in left.slots {
            let nobody = FlowId { serial: NOBODY, slot };
            self.installation.adopt(slot, place(slot, nobody, found, &own_sources, now));
        }
        for has_vni in [true, false] {
            for (spec, result) in specs.iter().zip(&mut results) {
                if is_of_fixed_vni(spec) == has_vni && result.is_none() {
                    *result = Some(self.add(spec.clone(), now));
                }
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Returns the sources by value, and those that lead nowhere or where another one leads already.
    fn sort_sources(&self, found: &Found) -> (HashMap<u32, Source>, Vec<Source>) {
        let mut own = HashMap::new();
        let mut strays = Vec::new();
        for &(source, value) in &found.sources {
            if value >> 1 < self.slots() && !own.contains_key(&value) {
                own.insert(value, source);
            } else {
                strays.push(source);
            }
        }
        (own, strays)
    }

    /// Finds the slot that holds a flow.
    fn find(&self, spec: &FlowSpec, found: &Found, left: &Left) -> Option<u32> {
        if let Kind::Geneve { vni: Some(vni) } = spec.kind {
            let slot = self.slots.slot_of(vni);
            return (left.slots.contains(&slot) && found.control(slot).vni() == vni)
                .then_some(slot);
        }
        let fixed = Side::ALL.into_iter().find_map(|side| match spec.end(side).remote {
            Remote::Fixed(remote) => Some((side, leg_of(remote, spec.end(side)))),
            Remote::Learn(_) => None,
        });
        let fits = |slot: &u32| left.slots.contains(slot) && found.fits(*slot, spec);
        match fixed {
            Some(place) => left.by_place.get(&place)?.iter().copied().find(fits),
            None => left.slots.iter().copied().find(fits),
        }
    }

    /// Admits a flow where it was found, with what is known about its ends.
    fn continue_flow(&mut self, spec: FlowSpec, slot: u32, found: &Found, now: u64) -> FlowId {
        let vni = found.control(slot).vni();
        if vni != 0 {
            self.slots.note_vni(vni);
        }
        let id = self.admit(spec, slot, vni, now);
        for (side, leg) in Side::ALL.into_iter().zip(found.legs(slot)) {
            self.continue_end(id, side, &leg, now);
        }
        id
    }

    fn continue_end(&mut self, id: FlowId, side: Side, leg: &Leg, now: u64) {
        let Some(flow) = self.flow(id) else { return };
        let spec = flow.spec.end(side);
        let remote = socket_address(leg.remote, leg.remote_port);
        let learns = is_learnt(leg, spec);
        if learns {
            // Nothing but `rebind` checks everything; its refusals leave the end to be learnt.
            if self.rebind(id, side, remote, now).is_err() {
                return;
            }
        } else if flow.end(side).remote != Some(remote) {
            return;
        }
        let local = IpAddr::from(leg.local);
        let is_ours = self.is_this_host(local);
        let Some(flow) = self.flow_mut(id) else { return };
        let end = flow.end_mut(side);
        end.is_learnt = learns;
        end.used_local = is_ours.then_some(local);
        if leg.interface != 0 && !end.is_this_host {
            end.way = Some(Resolved {
                interface: leg.interface,
                source_mac: mac_bytes(leg.source_mac),
                destination_mac: mac_bytes(leg.destination_mac),
                mtu: leg.mtu,
                vlan: leg.vlan,
                local,
            });
        }
    }
}

/// The slots that are not empty and were not taken over yet.
struct Left {
    slots: BTreeSet<u32>,
    by_place: HashMap<(Side, LegPlace), Vec<u32>>,
}

impl Left {
    fn new(found: &Found, slots: u32) -> Self {
        let mut left = Self { slots: BTreeSet::new(), by_place: HashMap::new() };
        let owned: BTreeSet<_> = found.sources.iter().map(|(_, value)| value >> 1).collect();
        for slot in 0..slots {
            let is_empty = found.control(slot) == Control::OFF
                && found.senders(slot) == Senders::default()
                && !owned.contains(&slot);
            if is_empty {
                continue;
            }
            left.slots.insert(slot);
            for (side, leg) in Side::ALL.into_iter().zip(found.legs(slot)) {
                left.by_place.entry((side, place_of(&leg))).or_default().push(slot);
            }
        }
        left
    }
}

fn is_of_fixed_vni(spec: &FlowSpec) -> bool {
    matches!(spec.kind, Kind::Geneve { vni: Some(_) })
}

/// Returns a slot as it was found.
fn place(
    slot: u32,
    owner: FlowId,
    found: &Found,
    sources: &HashMap<u32, Source>,
    now: u64,
) -> Place {
    let control = found.control(slot);
    let source = |side| sources.get(&source_value(slot, side)).copied();
    Place {
        owner: Some(owner),
        control,
        copy: control.copy(),
        legs: found.legs(slot),
        senders: found.senders(slot),
        sources: Side::ALL.map(source),
        settled: Settled::At(now),
    }
}
