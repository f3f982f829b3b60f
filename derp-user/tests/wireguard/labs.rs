//! Labs.

use crate::{
    internet::{Internet, relay},
    lab::Daemon,
    peer::{Peer, mesh},
    programs::Implementation,
    transfer::{Transfer, echo},
    transfer_bytes,
};

#[test]
fn two_peers() {
    let Some(internet) = Internet::create("two WireGuard peers", 2) else { return };
    let _relay = Daemon::start(
        &internet.relay,
        internet.directory(),
        "[[flow]]\nname = \"x\"\nport = 51820\nlearn_a = [\"10.80.1.0/24\"]\nlearn_b = [\"10.80.2.0/24\"]\n",
        &[],
    );
    let mut peers = [
        Peer::start(&internet, &internet.sites[0], Implementation::BoringtunConnected),
        Peer::start(&internet, &internet.sites[1], Implementation::WireguardGo),
    ];
    mesh(&mut peers, |_| relay(false));
    let [a, b] = &peers;
    for ipv6 in [false, true] {
        println!("echo after {:?}", echo(a, b, ipv6, 1420));
        let begin = std::time::Instant::now();
        Transfer::start(a, b, ipv6, transfer_bytes()).finish();
        println!("{:?}", begin.elapsed());
    }
}
