//! Flows that come and go by the thousands in the loaded program's own tables, while others are forwarded.

#[path = "../../derp-common/tests/support/flows.rs"]
mod flows;
#[path = "../../derp-common/tests/support/host.rs"]
mod host;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/packets.rs"]
mod packets;

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use derp_common::{AddressKind, Interface, Settings};
use derp_user::{
    dataplane::{FlowMaps, Kernel, KernelTables, LocalAddress},
    flow::{
        EndSpec, FlowId, FlowSource, FlowSpec, FlowTable, Kind, Lifetime, Local, Remote, Resolved,
        Sink as _, TableSettings,
    },
};
use nix::time::{ClockId, clock_gettime};

use crate::{
    flows::{ANY_PORT, INTERFACE, RELAY_PORT, ROUTER_MAC, data, forwarded, leg},
    packets::{Ip, SERVER_MAC, SERVER4, udp_frame},
};

/// Flows that stay.
const RESIDENTS: u32 = 64;
/// Flows that come and go.
const PASSERS_BY: u32 = 12_000;
/// How many of them come between two of the daemon's rounds.
const BATCH: usize = 128;
/// How many of them there are at once.
const AT_ONCE: usize = 1024;
/// Slots of the tables: those that were just left are not taken again at once.
const SLOTS: u32 = 4096;

const TX: u32 = 3;

/// A packet of a flow, and the only thing it may become if it is forwarded.
#[derive(Clone)]
struct Sample {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// The daemon's side: the table that decides, and the kernel's copy of it.
struct Daemon {
    table: FlowTable,
    maps: KernelTables,
}

impl Daemon {
    /// Admits flow number `number`, every other one by its source alone; with the ways to its ends.
    fn add(&mut self, number: u32) -> (FlowId, Sample) {
        let any = number % 2 == 1;
        let port = if any { ANY_PORT } else { RELAY_PORT };
        let [_, _, high, low] = number.to_be_bytes();
        let remotes = [(1, 41_641), (2, 51_820)].map(|(side, port)| {
            SocketAddr::new(Ipv4Addr::new(198, 18 + side, high, low).into(), port)
        });
        let end = |remote| EndSpec {
            remote: Remote::Fixed(remote),
            local: Local { ip: Some(SERVER4.into()), port },
            sender: 0,
        };
        let spec = FlowSpec {
            name: number.to_string(),
            kind: if any { Kind::Any } else { Kind::Geneve { vni: None } },
            ends: remotes.map(end),
            rate: None,
            lifetime: Lifetime::Configured,
            source: FlowSource::Configuration,
        };
        let id = self.table.add(spec, now()).expect("a slot");
        for request in self.table.way_requests() {
            let way = Resolved {
                interface: INTERFACE,
                source_mac: SERVER_MAC,
                destination_mac: ROUTER_MAC,
                mtu: 1500,
                vlan: 0,
                local: IpAddr::from(SERVER4),
            };
            self.table.set_way(&request, Some(way));
        }
        let local = SocketAddr::new(SERVER4.into(), port);
        let payload = match self.table.vni(id) {
            Some(vni) if vni != 0 => data(vni),
            _ => number.to_be_bytes().repeat(8),
        };
        let input = udp_frame(remotes[0], local, &payload);
        let output = forwarded(&input, Ip::V4, &leg(remotes[1], local, ROUTER_MAC));
        (id, Sample { input, output })
    }

    /// Writes what is due.
    fn write(&mut self) {
        loop {
            let changes = self.table.poll(now());
            if changes.is_empty() {
                return;
            }
            self.maps.apply(&changes).expect("the kernel's maps");
            self.table.applied(now());
        }
    }
}

fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("clock");
    u64::try_from(Duration::from(time).as_nanos()).expect("not in this century")
}

fn program() -> Option<(Kernel, Daemon)> {
    let mut kernel = kernel::load_sized("flows that come and go", SLOTS)?;
    let mut tables = kernel.take_tables().expect("tables");
    tables.insert_interface(INTERFACE, Interface::new(SERVER_MAC)).expect("interface");
    let local = LocalAddress { kind: AddressKind::Unicast, interface: INTERFACE };
    tables.insert_address(IpAddr::from(SERVER4).into(), local).expect("address");
    let maps = FlowMaps::take(&mut kernel).expect("maps");
    let maps = KernelTables::new(maps).expect("tables");
    let settings = Settings { sample_interval: 0, ..flows::settings() };
    kernel.configure(settings).expect("settings");
    let settings = TableSettings { slots: SLOTS, idle_timeout: u64::MAX / 2, seed: 7 };
    Some((kernel, Daemon { table: FlowTable::new(settings), maps }))
}

#[test]
fn ten_thousand_flows_come_and_go_while_others_are_forwarded() {
    let Some((kernel, mut daemon)) = program() else { return };
    let kernel = &kernel;
    let run = |sample: &Sample| kernel.test_run(&sample.input).expect("test run");
    let residents: Vec<_> = (0..RESIDENTS).map(|number| daemon.add(number).1).collect();
    daemon.write();

    let done = AtomicBool::new(false);
    let [of_residents, of_passers_by, refused] = [const { AtomicU64::new(0) }; 3];
    // Some that are about to come, some that are there, and some that have gone.
    let recent: Mutex<VecDeque<Sample>> = Mutex::new(VecDeque::new());
    let started = Instant::now();
    thread::scope(|scope| {
        let forwarders = [
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    for sample in &residents {
                        let (action, output) = run(sample);
                        assert_eq!(action, TX, "a packet of a flow that nobody touched is lost");
                        assert_eq!(output, sample.output);
                        of_residents.fetch_add(1, Relaxed);
                    }
                }
            }),
            scope.spawn(|| {
                let mut turn = 0;
                while !done.load(Relaxed) {
                    turn += 1;
                    let sample = {
                        let recent = recent.lock().expect("no panic");
                        let Some(sample) = recent.get(turn * 7919 % recent.len().max(1)) else {
                            continue;
                        };
                        sample.clone()
                    };
                    let (action, output) = run(&sample);
                    if action == TX {
                        assert_eq!(output, sample.output, "another flow's tuple");
                        of_passers_by.fetch_add(1, Relaxed);
                    } else {
                        assert_eq!(output, sample.input, "refused, but changed");
                        refused.fetch_add(1, Relaxed);
                    }
                }
            }),
        ];
        let mut present = VecDeque::new();
        let mut numbers = RESIDENTS..RESIDENTS + PASSERS_BY;
        while !(numbers.is_empty() && present.is_empty()) {
            if forwarders.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
            let come: Vec<_> = numbers.by_ref().take(BATCH).map(|it| daemon.add(it)).collect();
            recent.lock().expect("no panic").extend(come.iter().map(|(_, it)| it.clone()));
            daemon.write();
            if let Some((_, sample)) = come.last() {
                assert_eq!(run(sample), (TX, sample.output.clone()), "it is there");
            }
            present.extend(come);
            let leave =
                if numbers.is_empty() { BATCH } else { present.len().saturating_sub(AT_ONCE) };
            let gone: Vec<_> = present.drain(..leave.min(present.len())).collect();
            for (id, _) in &gone {
                assert!(daemon.table.remove(*id));
            }
            daemon.write();
            if let Some((_, sample)) = gone.last() {
                let (action, output) = run(sample);
                assert!(action != TX && output == sample.input, "it has gone");
            }
            let mut recent = recent.lock().expect("no panic");
            let excess = recent.len().saturating_sub(2 * AT_ONCE);
            recent.drain(..excess);
        }
        done.store(true, Relaxed);
    });
    let seconds = started.elapsed().as_secs_f64();
    let [of_residents, of_passers_by, refused] =
        [of_residents, of_passers_by, refused].map(AtomicU64::into_inner);
    println!(
        "{PASSERS_BY} flows came and went in {seconds:.2} s, {:.0} per second; forwarded meanwhile: {of_residents} \
         packets of those that stayed and {of_passers_by} of the others; {refused} of these were refused",
        f64::from(PASSERS_BY) / seconds
    );
    assert!(of_residents > 0 && of_passers_by > 0 && refused > 0);
    assert_eq!(daemon.table.len(), RESIDENTS as usize);
    assert_eq!(daemon.maps.stored_flows().expect("readable").len(), RESIDENTS as usize);
    assert_eq!(daemon.maps.slots_left_out(), 0);
    assert_eq!(daemon.maps.sources_left_out(), 0);
}
