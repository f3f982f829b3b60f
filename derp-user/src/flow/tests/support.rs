//! A flow table with tables to write into, which notice when the update protocol is broken.

use std::collections::HashMap;

use derp_common::{
    Settings,
    flow::{
        Class, Control, Datagram, Leg, Side, Tables, admit,
        table::{GRACE, leg_index},
    },
    reason::Reason,
};

use crate::flow::{
    AdmitError, Change, EndSpec, FlowId, FlowSource, FlowSpec, FlowTable, FlowView, Found, Kind,
    Lifetime, Local, Mirror, Remote, Resolved, TableSettings, Viewer,
};

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const TIMEOUT: u64 = 60 * SECOND;
/// The relay port of most tests.
pub(super) const PORT: u16 = 40000;
/// The addresses of this host.
pub(super) const OURS: [&str; 3] = ["203.0.113.1", "203.0.113.2", "2001:db8::1"];

/// Tables that are written as the kernel's are, and panic where a reader could see something torn.
#[derive(Debug)]
pub(super) struct Checked {
    pub(super) mirror: Mirror,
    slots: u32,
    /// Until when a reader may have used a copy of a slot's legs.
    used_until: HashMap<(u32, u32), u64>,
    sources: HashMap<derp_common::flow::Source, u32>,
}

fn copy_in_use(control: Control) -> Option<u32> {
    (control.forwards() || control.learns()).then_some(control.copy())
}

impl Checked {
    pub(super) fn new(slots: u32) -> Self {
        Self {
            mirror: Mirror::new(slots),
            slots,
            used_until: HashMap::new(),
            sources: HashMap::new(),
        }
    }

    pub(super) fn control(&self, slot: u32) -> Control {
        self.mirror.control(slot).unwrap_or(Control::OFF)
    }

    /// Makes a change at this time.
    pub(super) fn change(&mut self, change: &Change, now: u64) {
        match *change {
            Change::Leg { index, .. } => self.assert_quiet(index >> 2, index >> 1 & 1, now),
            Change::Control { slot, control } => {
                assert!(slot < self.slots);
                assert!(control.vni() == 0 || control.vni() & (self.slots - 1) == slot);
                if let Some(copy) = copy_in_use(self.control(slot)) {
                    self.used_until.insert((slot, copy), now);
                }
            }
            Change::Senders { slot, .. } => self.assert_off(slot, now),
            Change::ResetStatistics { index } => self.assert_off(index >> 1, now),
            Change::InsertSource { source, value } => {
                self.sources.insert(source, value);
                assert!(self.sources.len() <= 2 * self.slots as usize, "the map has no room");
            }
            Change::RemoveSource { source } => {
                assert!(self.sources.remove(&source).is_some(), "{source:?} is not there");
            }
        }
        self.mirror.change(change);
    }

    fn assert_off(&self, slot: u32, now: u64) {
        assert_eq!(copy_in_use(self.control(slot)), None, "slot {slot} is in use");
        self.assert_quiet(slot, 0, now);
        self.assert_quiet(slot, 1, now);
    }

    fn assert_quiet(&self, slot: u32, copy: u32, now: u64) {
        assert_ne!(copy_in_use(self.control(slot)), Some(copy), "slot {slot} is read there");
        if let Some(until) = self.used_until.get(&(slot, copy)) {
            assert!(now >= until + GRACE, "slot {slot} may be read there still");
        }
    }

    /// Returns everything, as a daemon finds it that starts now.
    pub(super) fn found(&self) -> Found {
        let sources = self.sources.iter().map(|(source, value)| (*source, *value)).collect();
        let mut found = Found { sources, ..Found::default() };
        for slot in 0..self.slots {
            let control = self.control(slot);
            let leg = |side| self.mirror.leg(leg_index(slot, control.copy(), side));
            let legs = Side::ALL.map(|side| leg(side).copied().unwrap_or(Leg::UNBOUND));
            let senders = self.mirror.senders(slot).unwrap_or_default();
            found.add(slot, control, legs, senders);
        }
        found
    }
}

/// A flow table and what it writes into.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) table: FlowTable,
    pub(super) tables: Checked,
    pub(super) now: u64,
}

pub(super) fn settings(slots: u32) -> TableSettings {
    TableSettings { slots, idle_timeout: TIMEOUT, seed: 0x5eed }
}

impl Rig {
    pub(super) fn new(slots: u32) -> Self {
        let mut table = FlowTable::new(settings(slots));
        table.set_local_addresses(OURS.map(|ip| ip.parse().unwrap()));
        Self { table, tables: Checked::new(slots), now: 1000 * SECOND }
    }

    pub(super) fn add(&mut self, spec: FlowSpec) -> Result<FlowId, AdmitError> {
        self.table.add(spec, self.now)
    }

    /// Admits a flow and has it written.
    pub(super) fn added(&mut self, spec: FlowSpec) -> FlowId {
        let id = self.add(spec).unwrap();
        self.settle();
        id
    }

    pub(super) fn remove(&mut self, id: FlowId) {
        assert!(self.table.remove(id));
    }

    /// Makes the changes that are due, and returns them.
    pub(super) fn poll(&mut self) -> Vec<Change> {
        let changes = self.table.poll(self.now);
        for change in &changes {
            self.tables.change(change, self.now);
        }
        changes
    }

    /// Makes all changes, however long that takes.
    pub(super) fn settle(&mut self) -> Vec<Change> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let Some(deadline) = self.table.next_deadline() else { return all };
            self.now = self.now.max(deadline);
            all.extend(self.poll());
        }
        panic!("the table never comes to rest");
    }

    pub(super) fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
    }

    pub(super) fn views(&self, has_kernel: bool) -> Vec<FlowView> {
        let interface_name = |index| (index == 7).then(|| "eth7".to_owned());
        self.table.views(&Viewer { has_kernel, interface_name: &interface_name, now: self.now })
    }

    pub(super) fn vni(&self, id: FlowId) -> u32 {
        self.table.vni(id).unwrap_or(0)
    }

    /// Where a packet goes: remote and local address.
    pub(super) fn route(
        &self,
        class: Class,
        from: &str,
        to: &str,
    ) -> Result<(String, String), Reason> {
        let datagram = datagram(from, to);
        let mut settings = Settings::new(3478);
        settings.slot_mask = self.table.slots() - 1;
        let hop = admit(&datagram, class, &settings, &self.tables.mirror, || self.now)?;
        let text = |address, port| crate::flow::state::socket_address(address, port).to_string();
        Ok((text(hop.to.remote, hop.to.remote_port), text(hop.to.local, hop.to.local_port)))
    }

    /// Answers every request for a way, and returns who asked for which.
    pub(super) fn resolve(&mut self) -> Vec<(Side, Option<String>, Option<String>)> {
        let requests = self.table.way_requests();
        for request in &requests {
            let Some(remote) = request.remote else { continue };
            let local = request
                .local
                .unwrap_or_else(|| OURS[if remote.is_ipv4() { 0 } else { 2 }].parse().unwrap());
            self.table.set_way(request, Some(Resolved { local, ..way(7) }));
        }
        let text = |request: crate::flow::WayRequest| {
            let remote = request.remote.map(|remote| remote.to_string());
            (request.side, request.local.map(|local| local.to_string()), remote)
        };
        requests.into_iter().map(text).collect()
    }
}

pub(super) fn datagram(from: &str, to: &str) -> Datagram {
    let parse = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
    let (from, to) = (parse(from), parse(to));
    Datagram {
        source: from.ip().into(),
        destination: to.ip().into(),
        source_port: from.port().to_be(),
        destination_port: to.port().to_be(),
    }
}

pub(super) fn way(interface: u32) -> Resolved {
    Resolved {
        interface,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
        mtu: 1500,
        vlan: 0,
        local: OURS[0].parse().unwrap(),
    }
}

pub(super) fn fixed(remote: &str) -> EndSpec {
    EndSpec {
        remote: Remote::Fixed(remote.parse().unwrap()),
        local: Local { ip: None, port: PORT },
        sender: 0,
    }
}

pub(super) fn learn(networks: &[&str]) -> EndSpec {
    let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
    EndSpec { remote: Remote::Learn(networks), ..fixed("192.0.2.1:1") }
}

pub(super) fn at(ip: &str, end: EndSpec) -> EndSpec {
    EndSpec { local: Local { ip: Some(ip.parse().unwrap()), port: PORT }, ..end }
}

pub(super) fn flow(kind: Kind, a: EndSpec, b: EndSpec) -> FlowSpec {
    FlowSpec {
        name: "test".to_owned(),
        kind,
        ends: [a, b],
        rate: None,
        lifetime: Lifetime::Configured,
        source: FlowSource::Configuration,
    }
}

pub(super) const fn vni(vni: u32) -> Kind {
    Kind::Geneve { vni: Some(vni) }
}

pub(super) const ALLOCATE: Kind = Kind::Geneve { vni: None };
pub(super) const A: &str = "198.51.100.10:41641";
pub(super) const B: &str = "192.0.2.20:51820";
pub(super) const US: &str = "203.0.113.1:40000";
