//! The flow table: who is admitted, and what the tables that are read are to hold.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use derp_common::flow::{Side, Source, table::MAX_SLOTS};

use super::{
    AdmitError, Change, FlowId, FlowSpec, Kind, Remote, Resolved, WayRequest,
    check::{check, check_ends, check_remote, same_family},
    install::Installation,
    learn::Learners,
    slots::Slots,
    state::{End, Flow, canonical, source_of},
};

/// What a flow table is made with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TableSettings {
    /// How many flows there can be; rounded up to a power of two, at most [`MAX_SLOTS`].
    pub slots: u32,
    /// After how long silence an end is forgotten or a flow removed, in nanoseconds.
    pub idle_timeout: u64,
    /// A random number. VNIs of new flows follow from it.
    pub seed: u64,
}

/// Every admitted flow. The only writer of the flow tables.
///
/// Whoever drives it gives inputs as they come, then applies what [`FlowTable::poll`] returns, and calls that again
/// at [`FlowTable::next_deadline`]. Now and then it also passes on what the data planes have counted
/// ([`FlowTable::observe`]) and has silent ends forgotten ([`FlowTable::expire`]).
#[derive(Clone, Debug)]
pub struct FlowTable {
    pub(super) idle_timeout: u64,
    pub(super) slots: Slots,
    next_serial: u64,
    /// By slot.
    pub(super) flows: BTreeMap<u32, Flow>,
    pub(super) installation: Installation,
    /// Whose each source is or is about to be.
    pub(super) owners: HashMap<Source, (u32, Side)>,
    /// Ends that are recognised by their source and not known yet.
    pub(super) learners: Learners,
    local_addresses: HashSet<IpAddr>,
    /// Ends whose ways are to be looked after, or no longer.
    requests: BTreeSet<(FlowId, Side)>,
}

impl FlowTable {
    /// Makes an empty table.
    #[must_use]
    pub fn new(settings: TableSettings) -> Self {
        let slots = settings.slots.clamp(1, MAX_SLOTS).next_power_of_two();
        Self {
            idle_timeout: settings.idle_timeout,
            slots: Slots::new(slots, settings.seed),
            next_serial: 0,
            flows: BTreeMap::new(),
            installation: Installation::default(),
            owners: HashMap::new(),
            learners: Learners::default(),
            local_addresses: HashSet::new(),
            requests: BTreeSet::new(),
        }
    }

    /// Returns how many flows there can be, a power of two.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots.count()
    }

    /// Returns how many flows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Tells whether there are no flows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Admits a flow.
    ///
    /// # Errors
    ///
    /// What is wrong with it, or who is in its way; nothing has changed then.
    pub fn add(&mut self, spec: FlowSpec, now: u64) -> Result<FlowId, AdmitError> {
        self.check(&spec)?;
        let (slot, vni) = self.take_slot(&spec)?;
        Ok(self.admit(spec, slot, vni, now))
    }

    /// Checks a flow, by itself and beside the others.
    pub(super) fn check(&self, spec: &FlowSpec) -> Result<(), AdmitError> {
        check(spec)?;
        for side in Side::ALL {
            let end = spec.end(side);
            if let (Some(index), Remote::Fixed(remote)) =
                (spec.kind.source_index(side), &end.remote)
            {
                self.check_source(canonical(*remote), end.local.port, index)?;
            }
        }
        Ok(())
    }

    /// Takes a slot for a flow, with its VNI.
    fn take_slot(&mut self, spec: &FlowSpec) -> Result<(u32, u32), AdmitError> {
        let full = AdmitError::Full { slots: self.slots() };
        match spec.kind {
            Kind::Geneve { vni: Some(vni) } => {
                let slot = self.slots.slot_of(vni);
                if !self.slots.take_this(slot) {
                    let by = self.flows.get(&slot).map(|flow| flow.spec.name.clone());
                    let by = by.unwrap_or_default();
                    return Err(AdmitError::SlotTaken { vni, slots: self.slots(), by });
                }
                self.slots.note_vni(vni);
                Ok((slot, vni))
            }
            Kind::Geneve { vni: None } => {
                let slot = self.slots.take().ok_or(full)?;
                Ok((slot, self.slots.next_vni(slot)))
            }
            Kind::Any | Kind::WireGuard { .. } => Ok((self.slots.take().ok_or(full)?, 0)),
        }
    }

    /// Admits a flow that has been checked, into a slot that was taken for it.
    pub(super) fn admit(&mut self, spec: FlowSpec, slot: u32, vni: u32, now: u64) -> FlowId {
        let id = FlowId { serial: self.next_serial, slot };
        self.next_serial += 1;
        let mut ends = Side::ALL.map(|side| End::new(spec.end(side), now));
        for end in &mut ends {
            end.is_this_host = end.remote.is_some_and(|remote| self.is_this_host(remote.ip()));
        }
        self.flows.insert(slot, Flow { id, spec, vni, is_held: false, ends });
        for side in Side::ALL {
            self.claim(slot, side);
        }
        self.installation.touch(slot);
        id
    }

    /// Removes a flow. Returns whether there was one.
    pub fn remove(&mut self, id: FlowId) -> bool {
        if self.flow(id).is_none() {
            return false;
        }
        for side in Side::ALL {
            self.release(id.slot, side);
            if self.flow(id).is_some_and(|flow| flow.end(side).way_requested) {
                self.requests.insert((id, side));
            } else {
                self.requests.remove(&(id, side));
            }
        }
        self.flows.remove(&id.slot);
        self.slots.give_back(id.slot);
        self.installation.touch(id.slot);
        true
    }

    /// Has a flow forward nothing, although its ends are known, or no longer so. Control packets for it are still told
    /// from others, and the ways to its ends are looked after. A new flow is not held.
    pub fn hold(&mut self, id: FlowId, is_held: bool) {
        let Some(flow) = self.flow_mut(id).filter(|flow| flow.is_held != is_held) else { return };
        flow.is_held = is_held;
        self.installation.touch(id.slot);
    }

    /// Returns the name of a flow, if it exists.
    #[must_use]
    pub fn name(&self, id: FlowId) -> Option<&str> {
        self.flow(id).map(|flow| flow.spec.name.as_str())
    }

    /// Returns the VNI of a flow, if it exists and has one.
    #[must_use]
    pub fn vni(&self, id: FlowId) -> Option<u32> {
        self.flow(id).map(|flow| flow.vni).filter(|vni| *vni != 0)
    }

    /// Puts one end of a flow at another remote address: packets from there are forwarded from now on, and those
    /// from the old address no longer.
    ///
    /// # Errors
    ///
    /// Why that address cannot be used; nothing has changed then.
    pub fn rebind(
        &mut self,
        id: FlowId,
        side: Side,
        remote: SocketAddr,
        now: u64,
    ) -> Result<(), AdmitError> {
        let remote = canonical(remote);
        let flow = self.flow(id).ok_or(AdmitError::NoSuchFlow)?;
        if flow.end(side).remote == Some(remote) {
            return Ok(());
        }
        let local = flow.spec.end(side).local;
        check_remote(remote, local.ip)?;
        if let Some(other) = flow.end(side.other()).remote {
            check_ends(&flow.spec, remote, other)?;
        }
        if let Some(index) = flow.spec.kind.source_index(side) {
            self.check_source(remote, local.port, index)?;
        }
        self.place_end(id.slot, side, Some(remote), now);
        Ok(())
    }

    /// Puts an end at an address, which has been checked, or nowhere.
    pub(super) fn place_end(
        &mut self,
        slot: u32,
        side: Side,
        remote: Option<SocketAddr>,
        now: u64,
    ) {
        self.release(slot, side);
        let is_this_host = remote.is_some_and(|remote| self.is_this_host(remote.ip()));
        if let Some(flow) = self.flows.get_mut(&slot) {
            flow.end_mut(side).place(remote, is_this_host, now);
        }
        self.claim(slot, side);
        self.installation.touch(slot);
    }

    /// Notes which address of this host one end uses, where that is not configured. Returns whether that changes
    /// anything.
    pub fn set_local(&mut self, id: FlowId, side: Side, local: IpAddr) -> bool {
        let local = local.to_canonical();
        let is_ours = self.is_this_host(local);
        let Some(flow) = self.flow_mut(id) else { return false };
        let is_configured = flow.spec.end(side).local.ip.is_some();
        let end = flow.end_mut(side);
        let fits = end.remote.is_some_and(|remote| same_family(remote.ip(), local));
        if !is_ours || is_configured || !fits || end.used_local == Some(local) {
            return false;
        }
        end.used_local = Some(local);
        // The way found for another address of ours may be another one.
        end.way = None;
        self.ask_for_way(id.slot, side);
        self.installation.touch(id.slot);
        true
    }

    /// Takes the answer to a request for a way; `None` when there is none now. Returns whether that changes
    /// anything: an answer to a question that is no longer asked, because the end has moved, does not.
    pub fn set_way(&mut self, request: &WayRequest, way: Option<Resolved>) -> bool {
        let id = request.flow;
        if request.remote.is_none() || self.way_request(id, request.side) != *request {
            return false;
        }
        let Some(flow) = self.flow_mut(id) else { return false };
        let end = flow.end_mut(request.side);
        if end.way == way {
            return false;
        }
        end.way = way;
        self.installation.touch(id.slot);
        true
    }

    /// Returns the ways that are to be found and looked after, or no longer, since the last call.
    pub fn way_requests(&mut self) -> Vec<WayRequest> {
        let asked = std::mem::take(&mut self.requests);
        let mut requests = Vec::with_capacity(asked.len());
        for (id, side) in asked {
            requests.push(self.way_request(id, side));
            if let Some(flow) = self.flow_mut(id) {
                flow.end_mut(side).way_requested = true;
            }
        }
        requests
    }

    fn way_request(&self, id: FlowId, side: Side) -> WayRequest {
        let nothing = WayRequest { flow: id, side, local: None, remote: None };
        let Some(flow) = self.flow(id) else { return nothing };
        let end = flow.end(side);
        match end.remote.filter(|_| !end.is_this_host) {
            Some(remote) => WayRequest {
                local: end.preferred_local(flow.spec.end(side)),
                remote: Some(remote),
                ..nothing
            },
            None => nothing,
        }
    }

    /// Asks for the way of an end, or tells that it is no longer needed.
    fn ask_for_way(&mut self, slot: u32, side: Side) {
        let Some(flow) = self.flows.get(&slot) else { return };
        let end = flow.end(side);
        if end.way_requested || (end.remote.is_some() && !end.is_this_host) {
            self.requests.insert((flow.id, side));
        }
    }

    /// Says which addresses this host has. Packets to them are never forwarded by the kernel, and only they can be
    /// learnt as local addresses. Loopback addresses are always among them.
    pub fn set_local_addresses(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.local_addresses = addresses.into_iter().map(|ip| ip.to_canonical()).collect();
        let slots: Vec<_> = self.flows.keys().copied().collect();
        for slot in slots {
            for side in Side::ALL {
                self.review(slot, side);
            }
        }
    }

    /// Brings what is known of an end into agreement with the addresses of this host.
    fn review(&mut self, slot: u32, side: Side) {
        let Some(end) = self.flows.get(&slot).map(|flow| flow.end(side)) else { return };
        let is_this_host = end.remote.is_some_and(|remote| self.is_this_host(remote.ip()));
        let used_local = end.used_local.filter(|&ip| self.is_this_host(ip));
        if (is_this_host, used_local) == (end.is_this_host, end.used_local) {
            return;
        }
        if let Some(flow) = self.flows.get_mut(&slot) {
            let end = flow.end_mut(side);
            end.is_this_host = is_this_host;
            end.used_local = used_local;
            end.way = None;
        }
        self.ask_for_way(slot, side);
        self.installation.touch(slot);
    }

    /// Tells whether an address is one of this host.
    #[must_use]
    pub fn is_this_host(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.local_addresses.contains(&ip)
    }

    /// Returns what is to be written into the tables now, in this order. It must have been applied, to every
    /// copy of the tables, before the next call of this or of [`FlowTable::applied`].
    ///
    /// Not everything may be due, or fit one batch: call again at [`FlowTable::next_deadline`].
    #[must_use]
    pub fn poll(&mut self, now: u64) -> Vec<Change> {
        self.installation.poll(&self.flows, now)
    }

    /// Notes that everything [`FlowTable::poll`] has returned was applied by `now`. Optional: it only lets the next
    /// change of the same flow come earlier.
    pub fn applied(&mut self, now: u64) {
        self.installation.applied(now);
    }

    /// Returns when [`FlowTable::poll`] has something to do, if no input comes before; what is over means now.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.installation.next_deadline()
    }

    /// Returns the changes that fill an empty copy of the tables with what the others hold. Whatever
    /// [`FlowTable::poll`] has returned counts as applied; what it returns later is for this copy, too.
    #[must_use]
    pub fn snapshot(&self) -> Vec<Change> {
        self.installation.snapshot()
    }

    /// Enters an end where it is looked for: as the owner of its source, or among those to be learnt.
    fn claim(&mut self, slot: u32, side: Side) {
        let Some(flow) = self.flows.get(&slot) else { return };
        if let Some(source) = flow.source(side) {
            self.owners.insert(source, (slot, side));
        }
        if flow.spec.kind == Kind::Any && flow.learns(side) {
            self.learners.insert(flow.spec.end(side), (slot, side));
        }
        self.ask_for_way(slot, side);
    }

    /// Removes an end from where it is looked for.
    fn release(&mut self, slot: u32, side: Side) {
        let Some(flow) = self.flows.get(&slot) else { return };
        if let Some(source) = flow.source(side)
            && self.owners.get(&source) == Some(&(slot, side))
        {
            self.owners.remove(&source);
        }
        if flow.spec.kind == Kind::Any && flow.learns(side) {
            self.learners.remove(flow.spec.end(side), (slot, side));
        }
    }

    /// Refuses a source that a flow has.
    pub(super) fn check_source(
        &self,
        remote: SocketAddr,
        port: u16,
        index: u32,
    ) -> Result<(), AdmitError> {
        let owner = self.owners.get(&source_of(remote, port, index));
        match owner.and_then(|(slot, _)| self.flows.get(slot)) {
            Some(flow) => Err(AdmitError::SourceTaken {
                source_address: remote,
                port,
                by: flow.spec.name.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn flow(&self, id: FlowId) -> Option<&Flow> {
        self.flows.get(&id.slot).filter(|flow| flow.id == id)
    }

    pub(super) fn flow_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows.get_mut(&id.slot).filter(|flow| flow.id == id)
    }
}
