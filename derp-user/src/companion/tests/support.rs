//! A companion between a pretended tailscaled and the flow tables, as the kernel program reads them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use derp_common::{
    Settings, Switches,
    flow::{Class, Datagram, Side, Tables as _, admit, table::statistics_index},
};

use crate::{
    companion::{
        Client, Companion, CompanionOptions, Endpoint, Failure, Observation, Report, Session,
        Standing,
    },
    flow::{FlowTable, Mirror, Resolved, Sink as _, TableSettings},
};

pub(super) const MILLISECOND: u64 = 1_000_000;
pub(super) const POLL: u64 = 250 * MILLISECOND;
pub(super) const LEASE: u64 = 1500 * MILLISECOND;
pub(super) const SLOTS: u32 = 8;
pub(super) const PORT: u16 = 40_000;
pub(super) const OURS: &str = "203.0.113.1";
pub(super) const A: &str = "198.51.100.10:41641";
pub(super) const B: &str = "192.0.2.20:51820";

pub(super) fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A session between clients with these keys and addresses; an empty address is not bound.
pub(super) fn session(vni: u32, keys: [u64; 2], ends: [&str; 2]) -> Session {
    let client = |(sender, end): (u64, &str)| Client {
        sender,
        endpoint: match end {
            "" => Endpoint::Unbound,
            end => Endpoint::At(address(end)),
        },
    };
    let [one, other] = keys;
    Session { vni, clients: [client((one, ends[0])), client((other, ends[1]))] }
}

/// The companion with everything around it.
pub(super) struct World {
    pub(super) companion: Companion,
    pub(super) table: FlowTable,
    pub(super) mirror: Mirror,
    /// What tailscaled would say now.
    pub(super) sessions: BTreeMap<u32, Session>,
    pub(super) port: Option<u16>,
    pub(super) now: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let settings = TableSettings { slots: SLOTS, idle_timeout: 1, seed: 1 };
        let mut table = FlowTable::new(settings);
        table.set_local_addresses([OURS.parse().unwrap()]);
        Self {
            companion: Companion::new(CompanionOptions { lease: LEASE, own_ports: vec![3478] }),
            table,
            mirror: Mirror::new(SLOTS),
            sessions: BTreeMap::new(),
            port: Some(PORT),
            now: 1_000_000 * MILLISECOND,
        }
    }

    pub(super) fn set(&mut self, session: Session) {
        self.sessions.insert(session.vni, session);
    }

    pub(super) fn report(&self) -> Report {
        Report { port: self.port, sessions: self.sessions.values().copied().collect() }
    }

    /// Asks, and applies the answer, a moment later.
    pub(super) fn poll(&mut self) {
        let (asked, report) = (self.now, self.report());
        self.now += MILLISECOND;
        let suspects = self.suspects();
        self.answer(asked, &report, &suspects);
    }

    /// Polls this often, at the usual distance.
    pub(super) fn polls(&mut self, count: u32) {
        for _ in 0..count {
            self.poll();
            self.now += POLL - MILLISECOND;
        }
    }

    pub(super) fn answer(&mut self, asked: u64, report: &Report, suspects: &BTreeSet<u32>) {
        let seen = Observation { asked, report, suspects, now: self.now };
        let trusted = self.companion.poll(&mut self.table, &seen);
        self.settle();
        for slot in trusted {
            let cells = self.mirror.statistics(statistics_index(slot, Side::A)).unwrap();
            cells.trust();
        }
    }

    pub(super) fn fail(&mut self) {
        self.companion.fail(&mut self.table, Failure::Unreachable);
        self.settle();
    }

    pub(super) fn suspects(&self) -> BTreeSet<u32> {
        let is_suspect = |slot: &u32| {
            let cells = self.mirror.statistics(statistics_index(*slot, Side::A));
            cells.is_some_and(|cells| cells.is_suspect())
        };
        self.companion.slots().filter(is_suspect).collect()
    }

    /// Brings the tables up to date, as the keeper does.
    pub(super) fn settle(&mut self) {
        for request in self.table.way_requests() {
            let way = Resolved {
                interface: 7,
                source_mac: [2, 0, 0, 0, 0, 1],
                destination_mac: [2, 0, 0, 0, 0, 2],
                mtu: 1500,
                vlan: 0,
                local: OURS.parse().unwrap(),
            };
            self.table.set_way(&request, request.remote.map(|_| way));
        }
        loop {
            let changes = self.table.poll(self.now);
            if changes.is_empty() {
                return;
            }
            let Ok(()) = self.mirror.apply(&changes);
            self.table.applied(self.now);
        }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::new(3478);
        settings.switches = Switches::COMPANION;
        settings.slot_mask = SLOTS - 1;
        settings.lease = self.companion.serving().map_or(0, |serving| serving.lease);
        settings
    }

    /// Where the kernel sends a packet of a flow, unless it leaves it to tailscaled.
    pub(super) fn data(&self, vni: u32, from: &str) -> Option<SocketAddr> {
        let settings = self.settings();
        let class = Class::Geneve { vni };
        let hop = admit(&datagram(from), class, &settings, &self.mirror, || self.now).ok()?;
        let cells = self.mirror.statistics(statistics_index(hop.slot, Side::A)).unwrap();
        if cells.is_suspect() || self.now >= settings.lease || hop.to.interface == 0 {
            return None;
        }
        let to = hop.to;
        Some(SocketAddr::new(to.remote.into(), u16::from_be(to.remote_port)))
    }

    /// A control packet passes the kernel.
    pub(super) fn control(&self, vni: u32, sender: u64) {
        let class = Class::Control { vni, sender };
        assert!(admit(&datagram(A), class, &self.settings(), &self.mirror, || self.now).is_err());
    }

    /// How many sessions are in this standing.
    pub(super) fn count(&self, standing: Standing) -> usize {
        self.companion.view().sessions[standing as usize]
    }
}

fn datagram(from: &str) -> Datagram {
    let from = address(from);
    let ours: std::net::IpAddr = OURS.parse().unwrap();
    Datagram {
        source: from.ip().into(),
        destination: ours.into(),
        source_port: from.port().to_be(),
        destination_port: PORT.to_be(),
    }
}
