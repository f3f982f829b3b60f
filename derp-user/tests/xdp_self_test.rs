//! The self-test at attach (case 30 of the UDP relay's): what loses frames is there, is found, and is gone when
//! it is mended.

#[path = "support/client.rs"]
mod client;
#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/netns.rs"]
mod netns;
#[path = "support/packets.rs"]
mod packets;

use std::{
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use derp_common::{Address, AddressKind, Interface, Settings};
use derp_user::dataplane::{
    AttachedMode, DataplaneError, Kernel, LocalAddress, Mode, Xdp,
    self_test::{self, Trap},
};
use nix::net::if_::if_nametoindex;

use crate::{
    client::{ask, connect, request},
    daemon::options,
    netns::{CLIENT_INTERFACE, CLIENT4, Namespaces, SERVER_INTERFACE, SERVER4, run_in},
    packets::STUN_PORT,
};

const NATIVE: AttachedMode = AttachedMode::Native;
const GENERIC: AttachedMode = AttachedMode::Generic;

/// Two namespaces, nothing attached.
fn namespaces(test: &str) -> Option<Namespaces> {
    kernel::load(test)?;
    Namespaces::create().inspect_err(|reason| kernel::skip(test, reason)).ok()
}

/// What is found on the server's end.
fn look(namespaces: &Namespaces, mode: AttachedMode) -> Vec<Trap> {
    run_in(&namespaces.server, move || {
        let index = if_nametoindex(SERVER_INTERFACE).expect("interface");
        self_test::look(index, mode)
    })
}

fn no_program() -> Trap {
    Trap::NoProgramAtOtherEnd { other_end: CLIENT_INTERFACE.to_owned(), is_elsewhere: true }
}

fn unfinished() -> Trap {
    Trap::UnfinishedChecksums { other_end: CLIENT_INTERFACE.to_owned(), is_elsewhere: true }
}

/// Attaches a program that passes everything to the client's end, until it is dropped.
fn attach_at_client(namespaces: &Namespaces, mode: AttachedMode) -> Kernel {
    run_in(&namespaces.client, move || {
        let mut kernel = Kernel::load().expect("load");
        // What was attached a moment ago is taken off a moment later.
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match kernel.attach(CLIENT_INTERFACE, mode) {
                Err(DataplaneError::Occupied { .. }) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                result => break result.expect("attach"),
            }
        }
        kernel
    })
}

/// Attaches the program to the server's end whatever the self-test says, configured to answer.
fn attach_regardless(namespaces: &Namespaces) -> Kernel {
    run_in(&namespaces.server, || {
        let mut kernel = Kernel::load().expect("load");
        let mut tables = kernel.take_tables().expect("tables");
        let index = if_nametoindex(SERVER_INTERFACE).expect("interface");
        let own = Address::from(SERVER4.parse::<IpAddr>().expect("address"));
        tables
            .insert_address(own, LocalAddress { kind: AddressKind::Unicast, interface: index })
            .expect("address");
        let addresses = nix::ifaddrs::getifaddrs().expect("addresses");
        let mac = addresses
            .filter(|entry| entry.interface_name == SERVER_INTERFACE)
            .find_map(|entry| entry.address?.as_link_addr()?.addr())
            .expect("a MAC");
        tables.insert_interface(index, Interface::new(mac)).expect("interface");
        kernel.configure(Settings::new(STUN_PORT)).expect("settings");
        kernel.attach(SERVER_INTERFACE, NATIVE).expect("attach");
        kernel
    })
}

fn try_out(namespaces: &Namespaces, kernel: Kernel) -> (Kernel, Option<Trap>) {
    run_in(&namespaces.server, move || {
        let index = if_nametoindex(SERVER_INTERFACE).expect("interface");
        let settings = kernel.settings().expect("settings");
        let trap = self_test::try_out(&kernel, &settings, index).expect("it can be run");
        (kernel, trap)
    })
}

/// Whether an answer comes within a while.
fn is_answered(namespaces: &Namespaces) -> bool {
    run_in(&namespaces.client, || {
        let socket = connect(CLIENT4, SERVER4);
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
        socket.send(&request(1)).expect("send");
        socket.recv(&mut [0; 100]).is_ok()
    })
}

fn ethtool(namespace: &str, interface: &str, features: &str) {
    let status = Command::new("ip")
        .args(["netns", "exec", namespace, "ethtool", "-K", interface])
        .args(features.split(' '))
        .output();
    assert!(status.expect("ethtool").status.success(), "{features}");
}

#[test]
fn an_other_end_without_a_program_is_found_before_it_loses_frames() {
    let Some(namespaces) = namespaces("veth without a program at the other end") else { return };
    assert_eq!(look(&namespaces, NATIVE), [no_program()]);
    assert_eq!(look(&namespaces, GENERIC), []);
    // A generic program there changes nothing.
    let generic = attach_at_client(&namespaces, GENERIC);
    assert_eq!(look(&namespaces, NATIVE), [no_program()]);
    drop(generic);

    let error = run_in(&namespaces.server, || Xdp::attach(&options(Mode::Native)).err());
    let error = error.expect("native was asked for by name");
    assert!(matches!(error, DataplaneError::Loses { .. }), "{error}");
    assert!(error.to_string().contains("xdpdrv obj"), "{error}");
    let attached = run_in(&namespaces.server, || Xdp::attach(&options(Mode::Auto)));
    let attached = attached.expect("auto").expect("attached");
    assert_eq!(attached.attachments()[0].mode, GENERIC, "the best that works");
    drop(attached);

    let mended = attach_at_client(&namespaces, NATIVE);
    assert_eq!(look(&namespaces, NATIVE), []);
    let attached = run_in(&namespaces.server, || Xdp::attach(&options(Mode::Native)));
    assert!(attached.expect("native").is_some());
    drop(mended);
}

#[test]
fn what_is_found_is_true_and_shows_in_a_trial() {
    let Some(namespaces) = namespaces("a trial of native mode on veth") else { return };
    let kernel = attach_regardless(&namespaces);
    assert!(!is_answered(&namespaces), "the answer cannot arrive");
    let (kernel, trap) = try_out(&namespaces, kernel);
    assert_eq!(trap, Some(Trap::NeverLeft { sent: 32 }));

    // GRO at the other end has it take frames in, but not when they come.
    ethtool(&namespaces.client, CLIENT_INTERFACE, "gro on");
    assert_eq!(look(&namespaces, NATIVE), [no_program()]);
    assert!(!is_answered(&namespaces), "the answer is late");
    ethtool(&namespaces.client, CLIENT_INTERFACE, "gro off");

    let mended = attach_at_client(&namespaces, NATIVE);
    assert!(is_answered(&namespaces), "the answer arrives");
    let (_kernel, trap) = try_out(&namespaces, kernel);
    assert_eq!(trap, None);
    drop(mended);
}

#[test]
fn unfinished_checksums_are_found_in_either_mode() {
    let Some(namespaces) = namespaces("checksums left to hardware") else { return };
    let _client_end = attach_at_client(&namespaces, NATIVE);
    for mode in [NATIVE, GENERIC] {
        assert_eq!(look(&namespaces, mode), [], "{mode}");
    }
    ethtool(&namespaces.client, CLIENT_INTERFACE, "tx on");
    for mode in [NATIVE, GENERIC] {
        assert_eq!(look(&namespaces, mode), [unfinished()], "{mode}");
    }
    // Nothing is lost: userspace answers.
    let server = daemon::Daemon::start(&namespaces, Mode::Native).expect("a warning only");
    run_in(&namespaces.client, || ask(&connect(CLIENT4, SERVER4), 1));
    server.wait_for_userspace(1);
    drop(server);
    ethtool(&namespaces.client, CLIENT_INTERFACE, "tx off");
    assert_eq!(look(&namespaces, NATIVE), []);
}

#[test]
fn in_one_namespace_the_other_end_is_seen_as_well() {
    let Some(namespaces) = namespaces("both ends of a pair in one namespace") else { return };
    namespaces.server_ip("link add near0 type veth peer name far0");
    namespaces.server_ip("link set near0 up");
    namespaces.server_ip("link set far0 up");
    let found = run_in(&namespaces.server, || {
        self_test::look(if_nametoindex("near0").expect("interface"), NATIVE)
    });
    let other_end = "far0".to_owned();
    let expected = [
        Trap::NoProgramAtOtherEnd { other_end: other_end.clone(), is_elsewhere: false },
        Trap::UnfinishedChecksums { other_end, is_elsewhere: false },
    ];
    assert_eq!(found, expected);
}

/// A process in a network namespace of its own, which has no name.
struct Container(Child);

impl Container {
    fn start(namespace: &str) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "unshare", "--net", "sleep", "60"]);
        let container = Self(command.spawn().expect("unshare"));
        let inode = |process: &str| {
            std::fs::metadata(format!("/proc/{process}/ns/net")).map(|it| it.ino()).ok()
        };
        let outside = std::fs::metadata(format!("/run/netns/{namespace}")).expect("named").ino();
        let deadline = Instant::now() + Duration::from_secs(10);
        // It is `ip`, then in the named namespace, then in its own.
        let name = || std::fs::read_to_string(format!("/proc/{}/comm", container.0.id()));
        while inode(&container.id()) == Some(outside) || name().is_ok_and(|it| it != "sleep\n") {
            assert!(Instant::now() < deadline, "no namespace of its own");
            thread::sleep(Duration::from_millis(5));
        }
        container
    }

    fn id(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn case_30_an_other_end_in_a_namespace_without_a_name_is_seen_as_well() {
    let Some(namespaces) = namespaces("the other end in a container") else { return };
    let container = Container::start(&namespaces.server);
    namespaces.server_ip("link add near0 type veth peer name far0");
    namespaces.server_ip("link set near0 up");
    namespaces.server_ip(&format!("link set far0 netns {}", container.id()));
    let found = run_in(&namespaces.server, || {
        self_test::look(if_nametoindex("near0").expect("interface"), NATIVE)
    });
    let other_end = "far0".to_owned();
    let expected = [
        Trap::NoProgramAtOtherEnd { other_end: other_end.clone(), is_elsewhere: true },
        Trap::UnfinishedChecksums { other_end, is_elsewhere: true },
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_port_of_a_bridge_with_another_mac_is_found() {
    let Some(namespaces) = namespaces("a port of a bridge") else { return };
    let _client_end = attach_at_client(&namespaces, NATIVE);
    namespaces.server_ip("link add br0 address 02:00:00:00:77:99 type bridge");
    namespaces.server_ip(&format!("link set {SERVER_INTERFACE} master br0"));
    assert_eq!(look(&namespaces, NATIVE), [Trap::PortOf { master: "br0".to_owned() }]);
    namespaces.server_ip(&format!("link set {SERVER_INTERFACE} nomaster"));
    assert_eq!(look(&namespaces, NATIVE), []);
}

#[test]
fn an_interface_that_is_gone_is_no_trap() {
    let Some(namespaces) = namespaces("an interface that is gone") else { return };
    let found = run_in(&namespaces.server, || self_test::look(0x7fff_fff0, NATIVE));
    assert_eq!(found, []);
}

#[test]
fn the_self_test_takes_no_time_to_speak_of() {
    let Some(namespaces) = namespaces("the self-test's own time") else { return };
    let _client_end = attach_at_client(&namespaces, NATIVE);
    let start = Instant::now();
    let attached = run_in(&namespaces.server, || Xdp::attach(&options(Mode::Native)));
    assert!(attached.expect("native").is_some());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
