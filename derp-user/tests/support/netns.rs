//! Two network namespaces joined by a veth pair, removed on drop.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    fs::File,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread::{self, JoinHandle},
};

use nix::sched::{CloneFlags, setns};

pub(crate) const SERVER_INTERFACE: &str = "server0";
pub(crate) const CLIENT_INTERFACE: &str = "client0";
pub(crate) const SERVER4: &str = "10.77.0.1";
pub(crate) const CLIENT4: &str = "10.77.0.2";
pub(crate) const SERVER6: &str = "fd77::1";
pub(crate) const CLIENT6: &str = "fd77::2";

/// A server's and a client's namespace.
pub(crate) struct Namespaces {
    pub(crate) server: String,
    pub(crate) client: String,
}

impl Namespaces {
    /// Makes both, joined, with addresses of both families.
    ///
    /// # Errors
    ///
    /// Which command failed, and what it said.
    pub(crate) fn create() -> Result<Self, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let namespaces =
            Self { server: format!("derpd-test-s-{id}"), client: format!("derpd-test-c-{id}") };
        let Self { server, client } = &namespaces;
        run(&format!("ip netns add {server}"))?;
        run(&format!("ip netns add {client}"))?;
        run(&format!(
            "ip link add {SERVER_INTERFACE} netns {server} type veth \
             peer name {CLIENT_INTERFACE} netns {client}"
        ))?;
        for (namespace, interface, address4, address6) in [
            (server, SERVER_INTERFACE, SERVER4, SERVER6),
            (client, CLIENT_INTERFACE, CLIENT4, CLIENT6),
        ] {
            run(&format!("ip -n {namespace} link set lo up"))?;
            run(&format!("ip -n {namespace} addr add {address4}/24 brd + dev {interface}"))?;
            run(&format!("ip -n {namespace} addr add {address6}/64 dev {interface} nodad"))?;
            run(&format!("ip -n {namespace} link set {interface} up"))?;
        }
        // Else every request would carry the partial checksum of an offload that never happens.
        run(&format!("ip netns exec {client} ethtool -K {CLIENT_INTERFACE} tx off"))?;
        Ok(namespaces)
    }

    /// Makes the client ask anew which MAC an address has.
    pub(crate) fn forget_neighbours(&self) {
        run(&format!("ip -n {} neigh flush all", self.client)).expect("ip");
    }

    /// Runs `ip` in the server's namespace.
    pub(crate) fn server_ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.server)).expect("ip");
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.client] {
            // It may not have been made.
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}

/// Runs `work` on a thread of its own in a namespace.
pub(crate) fn spawn_in<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{namespace}")).expect("namespace");
    thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).expect("setns");
        work()
    })
}

/// Like [`spawn_in`], and waits for the result.
pub(crate) fn run_in<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    match spawn_in(namespace, work).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Index and MAC of an interface in a namespace.
pub(crate) fn link(namespace: &str, interface: &'static str) -> (u32, [u8; 6]) {
    run_in(namespace, move || {
        let links = nix::ifaddrs::getifaddrs().expect("interfaces");
        let mut links = links.filter(|link| link.interface_name == interface);
        links
            .find_map(|link| {
                let link = *link.address?.as_link_addr()?;
                Some((u32::try_from(link.ifindex()).expect("index"), link.addr()?))
            })
            .expect("a MAC")
    })
}

pub(crate) fn run(command: &str) -> Result<(), String> {
    let mut words = command.split_whitespace();
    let program = words.next().ok_or("empty command")?;
    let output = Command::new(program)
        .args(words)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
