//! A running forwarder with flows written straight into its tables, and what its ends send.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    num::NonZeroUsize,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use derp_common::{
    Address, Port, Settings,
    flow::{
        Control, Leg, Side, Source,
        table::{leg_index, source_value},
    },
};
use derp_user::{
    flow::{Change, Mirror, SharedMirror, Sink as _},
    forward::{Forwarder, ForwarderOptions, Notices, Outlet, Running},
    stun::Responder,
    udp::{Merging, SettingsCell, Totals},
};

/// Slots of the tables.
pub(crate) const SLOTS: u32 = 128;
/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A running forwarder on one port, with what it reads.
pub(crate) struct Relay {
    pub(crate) port: u16,
    pub(crate) outlet: Outlet,
    pub(crate) settings: Arc<SettingsCell>,
    pub(crate) responder: Arc<Responder>,
    tables: SharedMirror,
    running: Running,
}

impl Relay {
    /// Starts one with these services on any port of every address.
    pub(crate) fn start(services: u16, notices: &Notices) -> Self {
        Self::start_with(services, notices, Merging::On, 1, 0)
    }

    pub(crate) fn start_with(
        services: u16,
        notices: &Notices,
        merging: Merging,
        threads: usize,
        port: u16,
    ) -> Self {
        let options = ForwarderOptions {
            host: None,
            ports: vec![port],
            threads: NonZeroUsize::new(threads).expect("a thread"),
            merging,
        };
        let forwarder = Forwarder::bind(&options).expect("bind");
        let port = forwarder.local_addresses()[0].port();
        let outlet = forwarder.outlet();
        let mut settings = Settings::new(0);
        settings.ports[0] = Port { number: port.to_be(), services };
        settings.slot_mask = SLOTS - 1;
        let settings = Arc::new(SettingsCell::new(settings));
        let tables = SharedMirror::new(Mirror::new(SLOTS));
        let responder = Arc::new(Responder::new());
        let running = forwarder.start(&tables, &settings, &responder, notices).expect("start");
        Self { port, outlet, settings, responder, tables, running }
    }

    /// The relay's address with this IP.
    pub(crate) fn at(&self, ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("address"), self.port)
    }

    /// Installs a flow between two ends, each with the relay's address it uses. VNI 0 is a flow of any
    /// payload.
    pub(crate) fn flow(&self, slot: u32, vni: u32, ends: [(SocketAddr, &str); 2]) {
        let mut changes = Vec::new();
        for (side, (remote, local)) in Side::ALL.into_iter().zip(ends) {
            let leg = leg(remote, self.at(local));
            changes.push(Change::Leg { index: leg_index(slot, 0, side), leg });
            let source = Source {
                address: leg.remote,
                port: leg.remote_port,
                local_port: leg.local_port,
                index: 0,
            };
            if vni == 0 {
                changes.push(Change::InsertSource { source, value: source_value(slot, side) });
            }
        }
        changes.push(Change::Control { slot, control: Control::forward(vni, 0) });
        let Ok(()) = self.tables.clone().apply(&changes);
    }

    /// Says whose control packets reach userspace.
    pub(crate) fn senders(&self, slot: u32, senders: [u64; 2]) {
        let Ok(()) = self.tables.clone().apply(&[Change::Senders { slot, senders }]);
    }

    pub(crate) fn totals(&self) -> Totals {
        self.running.totals()()
    }

    /// Waits until the counts satisfy `is`.
    pub(crate) fn wait_until(&self, what: &str, is: impl Fn(&Totals) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(&self.totals()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.totals());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn leg(remote: SocketAddr, local: SocketAddr) -> Leg {
    Leg {
        remote: Address::from(remote.ip()),
        local: Address::from(local.ip()),
        remote_port: remote.port().to_be(),
        local_port: local.port().to_be(),
        ..Leg::UNBOUND
    }
}

/// A socket of one end, which waits for what it receives, but not for ever.
pub(crate) fn end(ip: &str) -> UdpSocket {
    let ip: IpAddr = ip.parse().expect("address");
    let socket = UdpSocket::bind((ip, 0)).expect("an end");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    socket
}

pub(crate) fn address(socket: &UdpSocket) -> SocketAddr {
    socket.local_addr().expect("bound")
}

/// A Geneve data packet.
pub(crate) fn geneve(vni: u32, payload: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = vni.to_be_bytes();
    [&[0, 0, 0x7a, 0x12, high, middle, low, 0][..], payload].concat()
}
